"""Class weights, hard pixels, a frozen encoder and the decoder's learning rates, against numpy."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from absl import flags
from narrow_main import UNITS
from PIL import Image

from model import Model
from utils.data.palette import Classes, load_classes
from utils.system.errors import UserError
from utils.training import losses, optimizer


def example():
    """Returns logits [2, 4, 5, 3], labels [2, 4, 5, 1] of which some are ignored, and the losses of all pixels."""
    random = np.random.RandomState(0)
    logits = random.randn(2, 4, 5, 3).astype(np.float32)
    label = random.randint(0, 3, (2, 4, 5, 1))
    label[0, 0], label[1, 1, :2] = 255, 7
    valid = label[..., 0] < 3
    log_softmax = logits - np.log(np.exp(logits).sum(axis=3, keepdims=True))
    picked = -np.take_along_axis(log_softmax, np.where(label < 3, label, 0), axis=3)[..., 0]
    return logits, label, picked, valid


@pytest.fixture
def computed(settings):
    """Returns a function from logits, labels, class weights and the share of hard pixels (None: all) to the loss."""
    def compute(logits, label, factors, fraction=None):
        with tf.Graph().as_default(), tf.Session() as sess:
            labels = losses.resized_labels(tf.constant(label), label.shape[1:3], Classes(3, 255, None))
            loss = losses.cross_entropy if fraction is None else losses.hard_cross_entropy
            return sess.run(loss(tf.constant(logits), labels, factors, settings(ohem_fraction=fraction)))

    return compute


def test_class_weights(computed):
    logits, label, pixels, valid = example()
    factors = np.array([0.5, 0.0, 3.0])
    weights = np.where(valid, factors[np.where(valid, label[..., 0], 0)], 0)
    found = computed(logits, label, factors)
    np.testing.assert_allclose(found, (weights * pixels).sum() / weights.sum(), rtol=1e-5)
    assert computed(logits, np.full_like(label, 255), factors) == 0


@pytest.mark.parametrize('fraction', [0.01, 0.25, 0.7])
def test_hard_pixels(computed, fraction):
    logits, label, pixels, valid = example()
    hardest = np.sort(pixels[valid])[::-1][:max(1, int(np.ceil(fraction * valid.sum())))]
    np.testing.assert_allclose(computed(logits, label, None, fraction), hardest.mean(), rtol=1e-5)
    assert computed(logits, np.full_like(label, 255), None, fraction) == 0


def test_all_weights_1_change_nothing(computed):
    logits, label, pixels, valid = example()
    for weighting in ((None,), (None, 1.0), (np.ones(3),)):
        np.testing.assert_allclose(computed(logits, label, *weighting), pixels[valid].mean(), rtol=1e-5)


def test_balanced_weights(tmp_path):
    np.testing.assert_allclose(losses.balanced_class_weights([60, 30, 0, 10]), [0.5, 1, 1, 3])
    paths = str(tmp_path / 'image.png'), str(tmp_path / 'label.png')
    Image.new('RGB', (10, 10)).save(paths[0])
    label = np.zeros([10, 10], np.uint8)
    label[:3], label[3] = 1, 255
    Image.fromarray(label).save(paths[1])
    found = losses.load_class_weights('balanced', load_classes(3), [paths[0]], [paths[1]], 1)
    np.testing.assert_allclose(found, [0.75, 1.5, 1])
    assert losses.load_class_weights('', load_classes(3), [], [], 1) is None


@pytest.mark.parametrize('text, words', [
    ('1 2', 'give 3 numbers'), ('1 2 -3', 'none negative'), ('0 0 0', 'not all 0'), ('1 2 nan', 'give 3'),
    ('a b c', 'file of numbers'), (None, 'No such file'), ('1\n\n2 nan', 'line 3: nan is not a finite'),
    ('1\n1e39\n0', 'line 2: inf is not a finite'), ('1\n2\n-3', 'line 3: -3 is negative: give 3'),
    ('1,2.5,0', "line 1: '1,2.5,0' is not a number; separate numbers by spaces or line breaks"),
    ('1\n0,5\n2', "line 2: '0,5' is not a number; separate numbers by spaces or line breaks, and write 0.5, not 0,5"),
    ('1\n2\nx', "line 3: 'x' is not a number)"),
])
def test_bad_class_weights(tmp_path, text, words):
    path = tmp_path / 'weights.txt'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match='--class_weights=.*weights.txt') as error:
        losses.read_class_weights(str(path), 3)
    assert words in str(error.value)
    for text in (b'1\n2.5\n0\n', b'\xef\xbb\xbf1 2.5\r\n0'):  # the second has a byte order mark
        path.write_bytes(text)
        np.testing.assert_array_equal(losses.read_class_weights(str(path), 3), [1, 2.5, 0])
    assert len(str(error.value)) <= 300


def test_a_frozen_encoder_and_the_decoders_rates(settings, narrow):
    narrow({'res50': UNITS})
    with tf.Graph().as_default():
        model = Model(settings(encoder_name='res50', num_classes=3, freeze_encoder=True, decoder_rate=[3.0, 5.0]))
        graph = model.training_graph(tf.zeros([1, 33, 33, 3]), tf.zeros([1, 33, 33, 1], tf.int32))
        groups = optimizer.rate_groups(graph.net, model.conf)
    assert [rate for _, rate in groups] == [3, 5]
    assert {v.op.name.split('/')[0] for v in graph.update.state} == {'decoder'} and len(graph.update.state) == 8
    assert not model.train_bn
    with pytest.raises(UserError, match='--freeze_encoder and --train_bn'):
        Model(settings(freeze_encoder=True, train_bn=True))


@pytest.mark.parametrize('text', ['1', '1,2,3', '0,1', '-1,1', 'a,b', 'nan,1', '1,inf', ''])
def test_pairs(text):
    parser = flags.FLAGS['decoder_rate'].parser
    with pytest.raises(ValueError, match='two positive numbers'):
        parser.parse(text)
    assert parser.parse('0.5,1.5') == [0.5, 1.5]
