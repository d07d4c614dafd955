"""Scores of an image: scales, mirroring and merging against numpy, windows, and limits of memory."""

import dataclasses
import os
import types

import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf

from model import Model
from model_msc import Model_msc
from utils.net import layers
from utils.prediction import windows
from utils.prediction.predictor import Predictor, Scoring

SAMPLE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'dataset', 'sample')
GB = 1e9
SIZE = (45, 58)
PLAIN = Scoring()


@pytest.fixture
def make(settings, narrow):
    """Returns a function from changed flags to a Model of a narrow ResNet-50 with one unit per block."""
    narrow({'res50': (1, 1, 1, 1)})
    return lambda model_class=Model, **changed: model_class(settings(encoder_name='res50', num_classes=5, **changed))


def predictor_of(model, scoring=PLAIN, **changed):
    """Returns (Predictor, session) of a model with the recipe's weights."""
    predictor = model._predictor(dataclasses.replace(scoring, **dict({'keep_scores': True}, **changed)))
    predictor.build()
    with predictor.graph.as_default():
        sess = tf.Session()
        recipe.load(sess, predictor.net)
    return predictor, sess


def score(image, *args, **settings):
    """Returns (class map, scores) of an image [H, W, 3]."""
    return score_all([image], *args, **settings)[0]


def score_all(images, *args, **settings):
    predictor, sess = predictor_of(*args, **settings)
    with sess:
        return [predictor.score(sess, image)[:2] for image in images]


def plain_logits(model, images):
    """Returns the logits that the network of Model.scores computes for the images, without any passes around it."""
    with tf.Graph().as_default(), tf.Session() as sess:
        fed = tf.placeholder(tf.float32, [1, None, None, 3])
        net, logits = model.scores(fed)
        recipe.load(sess, net)
        return [sess.run(logits, {fed: image[np.newaxis]})[0] for image in images]


def resized(maps, size, align_corners):
    with tf.Graph().as_default(), tf.Session() as sess:
        return sess.run(layers.resize(tf.constant(maps[np.newaxis]), size, align_corners))[0]


def reference(model, image, scoring):
    """Computes the scores with passes that are merged by numpy."""
    align_corners, size = model.numerics.align_corners, np.array(image.shape[:2])
    offset = 1 if align_corners else 0
    steps = (1, -1) if scoring.flip else (1,)
    sizes = [((size - offset) * np.float32(scale)).astype(int) + offset for scale in scoring.scales]
    logits = plain_logits(model, [resized(image[:, ::step], scaled, align_corners)
                                  for scaled in sizes for step in steps])
    assert [one.shape[:2] for one in logits] == [tuple(scaled) for scaled in sizes for step in steps]
    found = [resized(one, size, align_corners)[:, ::step] for one, step in zip(logits, steps * len(sizes))]
    if scoring.merge == 'max' or len(found) == 1:
        return np.max(found, axis=0)
    return np.mean([np.exp(one) / np.exp(one).sum(axis=2, keepdims=True) for one in found], axis=0)


MEAN, MAX = Scoring((0.5, 0.77, 1.0, 1.25), True, 'mean'), Scoring((0.6, 1.5), True, 'max')


@pytest.mark.parametrize('model_class, compat, scoring', [
    (Model, 'original', MEAN), (Model, 'caffe', MEAN), (Model, 'original', MAX), (Model, 'caffe', MAX),
    (Model, 'original', Scoring((0.75,), False, 'mean')), (Model_msc, 'caffe', MEAN)])
def test_scales_and_mirroring_against_numpy(make, model_class, compat, scoring):
    """With --compat=caffe, every scale is padded to a multiple plus 1 for the network, and cropped again."""
    model, image = make(model_class, compat=compat), recipe.image(1, *SIZE)[0]
    classes, found = score(image, model, scoring)
    wanted = reference(model, image, scoring)
    if not scoring.gives_probabilities:
        assert recipe.relative_error(found, wanted) <= 1e-5
    else:
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_array_equal(classes, found.argmax(axis=2))
    assert classes.dtype == np.int32 and found.dtype == np.float32


@pytest.mark.parametrize('model_class, compat', [(Model, 'original'), (Model, 'caffe'), (Model_msc, 'original')])
def test_one_pass_is_as_without_any(make, model_class, compat):
    """Three cases are equal bit for bit: no flag, the maximum of scale 1.0, and the maximum of the same scale twice."""
    model, image = make(model_class, compat=compat), recipe.image(1, *SIZE)[0]
    logits, = plain_logits(model, [image])
    assert Scoring((1.0,), False, 'max').passes == PLAIN.passes
    for scoring in (Scoring((1.0,), False, 'max'), Scoring((1.0, 1.0), False, 'max')):
        classes, found = score(image, model, scoring)
        np.testing.assert_array_equal(found, logits)
        np.testing.assert_array_equal(classes, logits.argmax(axis=2))
    assert score(image, model, keep_scores=False)[1] is None


@pytest.mark.parametrize('compat', ['original', 'caffe'])
def test_a_scale_may_leave_a_single_pixel(make, compat):
    classes, found = score(recipe.image(1, *SIZE)[0], make(compat=compat), Scoring((0.001,), True, 'max'))
    assert found.shape == SIZE + (5,) and np.isfinite(found).all()
    assert np.abs(found - found[0, 0]).max() <= 1e-4 and (classes == classes[0, 0]).all()


@pytest.mark.parametrize('merge, compat', [('mean', 'original'), ('max', 'caffe')])
def test_a_mirrored_image_has_mirrored_scores(make, merge, compat):
    model, image = make(compat=compat), recipe.image(1, *SIZE)[0]
    scoring = Scoring((0.7, 1.0), True, merge)
    (_, found), (_, mirrored) = score_all([image, image[:, ::-1]], model, scoring)
    np.testing.assert_allclose(mirrored, found[:, ::-1], rtol=1e-5, atol=1e-6)
    _, unlike = score(image, model, dataclasses.replace(scoring, flip=False))
    assert np.abs(unlike - found).max() > 1e-3


@pytest.mark.parametrize('scoring', [PLAIN, Scoring((0.5, 1.0), True, 'mean')])
def test_a_window_that_covers_the_image_is_the_whole(make, scoring):
    """The scores are equal bit for bit."""
    model, image = make(), recipe.image(1, *SIZE)[0]
    whole = score(image, model, scoring)
    for window in (SIZE, (1000, SIZE[1])):
        for one, other in zip(whole, score(image, model, scoring, window=window, overlap=0.5)):
            np.testing.assert_array_equal(one, other)


def stand_in(images):
    """Returns (images, scores [1, H, W, 4]) of a network of single pixels: a 1x1 convolution of [1, H, W, 3]."""
    kernel = tf.constant(np.random.RandomState(3).uniform(-0.01, 0.01, [1, 1, 3, 4]), tf.float32)
    return types.SimpleNamespace(), tf.nn.conv2d(images, kernel, [1, 1, 1, 1], 'SAME')


@pytest.mark.parametrize('case', range(12))
def test_windows_of_single_pixels_are_the_whole(case):
    random = np.random.RandomState(case)
    image = recipe.image(1, *random.randint(17, 90, 2))[0]
    window, overlap = tuple(random.randint(17, 60, 2)), random.uniform(0, 0.9)
    results = []
    for scoring in (Scoring(keep_scores=True), Scoring(window=window, overlap=overlap, keep_scores=True)):
        predictor = Predictor(stand_in, scoring)
        predictor.build()
        with tf.Session(graph=predictor.graph) as sess:
            results.append(predictor.score(sess, image)[:2])
    np.testing.assert_allclose(results[1][1], results[0][1], atol=1e-6)
    np.testing.assert_array_equal(results[1][0], results[1][1].argmax(axis=2))


def test_windows_of_the_network_are_each_an_image_of_its_own(make):
    model, image = make(compat='caffe'), recipe.image(1, 60, 50)[0]
    predictor, sess = predictor_of(model, window=(40, 50), overlap=0.4)
    reports = []
    with sess:
        classes, found, _ = predictor.score(sess, image, report=lambda *progress: reports.append(progress))
    upper, lower = plain_logits(model, [image[:40], image[20:]])
    np.testing.assert_allclose(found[:20], upper[:20], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[40:], lower[20:], rtol=1e-5, atol=1e-5)
    between = np.stack([upper[20:], lower[:20]])
    assert (found[20:40] <= between.max(axis=0) + 1e-4).all() and (found[20:40] >= between.min(axis=0) - 1e-4).all()
    np.testing.assert_array_equal(classes, found.argmax(axis=2))
    assert reports == [(0, 2), (1, 2)]


def set_free(monkeypatch, number, gpu=False):
    monkeypatch.setattr(windows.memory, 'free', lambda: number)
    monkeypatch.setattr(windows.runtime, 'on_gpu', lambda: gpu)


def test_what_the_free_memory_allows(monkeypatch):
    set_free(monkeypatch, 8 * GB)
    small, photo = (513, 513), (3000, 4000)
    assert windows.FreeMemory(21).window(small) == small
    window = windows.FreeMemory(21).window(photo)
    assert window == (1025, 1025) and windows.FreeMemory(21).needed(photo) > 8 * GB
    assert windows.FreeMemory(21, (2.0 ** 0.5,)).needed(small) > 1.5 * windows.FreeMemory(21).needed(small)
    assert windows.FreeMemory(256).window(photo) < window  # the scores take more memory
    assert windows.FreeMemory(21).window((20, 40000)) == (20, 40000)  # the number of pixels counts, not the sides
    assert windows.FreeMemory(21).window((700, 40000)) == (700, 1025)
    set_free(monkeypatch, 0)
    assert windows.FreeMemory(21).window(photo) == (321, 321) and windows.FreeMemory(21).window((99, 400)) == (99, 321)
    set_free(monkeypatch, 0, gpu=True)
    assert windows.FreeMemory(21).window(photo) == photo


def test_an_image_that_is_too_large_is_cut_and_a_line_says_so(make, monkeypatch, capsys):
    model, image = make(), recipe.image(1, 400, 50)[0]
    whole = score(image, model)
    assert capsys.readouterr().out == ''
    set_free(monkeypatch, 1e6)
    predictor, sess = predictor_of(model)
    with sess:
        found = predictor.score(sess, image)[1]
        again = predictor.score(sess, image)[1]
    told, = capsys.readouterr().out.splitlines()  # printed once
    assert 'image of 50x400 pixels' in told and 'windows of 50x321 (--window=321,50' in told
    np.testing.assert_array_equal(found, again)
    _, wanted = score(image, model, window=(321, 321), overlap=0.33)
    np.testing.assert_array_equal(found, wanted)
    assert recipe.relative_error(found, whole[1]) < 0.5


class Exhausted(object):
    """A session whose memory is exhausted by images with more than `most` pixels."""

    def __init__(self, sess, most):
        self.sess, self.most, self.asked = sess, most, []

    def run(self, fetches, feed):
        (pixels,) = feed.values()
        self.asked.append(pixels.shape[1:3])
        if pixels.shape[1] * pixels.shape[2] > self.most:
            raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')
        return self.sess.run(fetches, feed)


def test_an_image_that_exhausts_a_gpu_is_cut(monkeypatch, capsys):
    set_free(monkeypatch, 0, gpu=True)
    image = recipe.image(1, 700, 900)[0]
    predictor = Predictor(stand_in, Scoring(keep_scores=True))
    predictor.build()
    with tf.Session(graph=predictor.graph) as sess:
        whole = predictor.score(sess, image)[1]
        limited = Exhausted(sess, 600 * 600)
        found = predictor.score(limited, image)[1]
        assert limited.asked[:3] == [(700, 900), (700, 769), (513, 513)]
        np.testing.assert_allclose(found, whole, atol=1e-6)
        del limited.asked[:]
        predictor.score(limited, image)
        assert set(limited.asked) == {(513, 513)}  # a size that failed is not tried again
        with pytest.raises(tf.errors.ResourceExhaustedError):
            predictor.score(Exhausted(sess, 9), image)
    assert '--window' in capsys.readouterr().out
