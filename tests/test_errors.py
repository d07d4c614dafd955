"""Foreign text in messages, and TensorFlow's reports reduced to the reason."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from utils.system.errors import MOST_LISTED, MOST_QUOTED, quoted, reason, some


@pytest.mark.parametrize('text, shown', [
    ('data/a photo.jpg', 'data/a photo.jpg'), ('a\x1b[31m\n\x00b', 'a\\x1b[31m\\n\\x00b'), (b'caf\xc3\xa9', 'caf\xe9'),
    ('\udc80', '\\udc80'), ('x' * 200 + '/end.jpg', '...' + 'x' * 69 + '/end.jpg'),
])
def test_quoted(text, shown):
    assert quoted(text)[-20:] == shown[-20:] and len(quoted(text)) <= MOST_QUOTED and quoted(text).isprintable()
    if len(shown) < MOST_QUOTED:
        assert quoted(text) == shown


def test_quoted_is_short_where_escapes_make_it_long():
    assert len(quoted('\x00' * 80)) == MOST_QUOTED and quoted('\x00' * 80).endswith('\\x00\\x00')


def test_some():
    assert some(['a', 'b', 'c'], 3) == 'a, b, c' and some(['a', 'b', 'c']) == 'a and 2 more' and some([]) == ''
    long = ['x' * (MOST_LISTED // 2)] * 3
    assert some(long, 3) == long[0] + ' and 2 more' and some(long, 3, 2 * MOST_LISTED) == ', '.join(long)
    assert some(['x' * 200, 'y'], 2) == 'x' * 200 + ' and 1 more'


def test_reason_is_tensorflows_own():
    with tf.Graph().as_default(), tf.Session() as sess:
        x = tf.placeholder(tf.float32, [None])
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            sess.run(tf.reshape(x, [7]), {x: np.ones(1)})
        assert reason(error.value) == 'Input to reshape is a tensor with 1 values, but the requested shape has 7'
        with pytest.raises(tf.errors.ResourceExhaustedError) as error:
            sess.run(tf.zeros(tf.cast(tf.stack([x[0], 1e6, 100]), tf.int64)), {x: [1e6]})
        assert reason(error.value).startswith('OOM when allocating tensor with shape[1000000,1000000,100]')


def test_reason_of_other_errors():
    assert reason(OSError(28, 'No space left on device')) == 'No space left on device'
    assert reason(ValueError('a\nb.')) == 'a b' and reason(KeyError()) == 'KeyError'
    both = '2 root error(s) found.\n  (0) Resource exhausted: OOM now\n\t [[node x]]\n  (1) Resource exhausted: OOM'
    assert reason(tf.errors.ResourceExhaustedError(None, None, both)) == 'OOM now'
