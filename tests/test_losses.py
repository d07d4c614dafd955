"""utils/training/losses.py: labels resized to the logits."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from utils.training.losses import prepare_label


def resized(label, size, **options):
    with tf.Graph().as_default(), tf.Session() as sess:
        out = prepare_label(tf.constant(label), size, **options)
        assert out.dtype == tf.int32
        return sess.run(out)


@pytest.mark.parametrize('dtype', [np.uint8, np.int32])
@pytest.mark.parametrize('size, new_size', [
    ((321, 321), (41, 41)), ((33, 50), (5, 7)), ((6, 9), (6, 9)), ((4, 5), (8, 10)),
])
def test_prepare_label_is_the_legacy_rule(dtype, size, new_size):
    label = np.random.RandomState(0).randint(0, 256, (2,) + size + (1,)).astype(dtype)
    rows, columns = (np.arange(n) * full // n for n, full in zip(new_size, size))
    np.testing.assert_array_equal(resized(label, new_size), label[:, rows][:, :, columns, 0])


def test_prepare_label_with_align_corners_is_caffes():
    label = np.random.RandomState(0).randint(0, 256, (1, 321, 161, 1)).astype(np.int32)
    np.testing.assert_array_equal(resized(label, (41, 21), align_corners=True), label[:, ::8, ::8, 0])


def test_prepare_label_takes_a_tensor_as_size():
    label = np.arange(64, dtype=np.int32).reshape(1, 8, 8, 1)
    with tf.Graph().as_default(), tf.Session() as sess:
        out = sess.run(prepare_label(tf.constant(label), tf.constant([4, 2])))
    np.testing.assert_array_equal(out, label[:, ::2, ::4, 0])
