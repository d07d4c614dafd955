"""The CRF: the library itself, the order and the failures of its processes, and saved scores."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from narrow_main import UNITS
from PIL import Image

from model import Model
from utils.data import data_lists, sources
from utils.data.palette import load_classes
from utils.prediction import crf, masks, metrics
from utils.prediction.predictor import Prediction
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEFAULTS = crf.Settings(10, 1.0, 3.0, 67.0, 3.0, 4.0)
WORK = crf.Work(2, 1e9, False)
needs_library = pytest.mark.skipif(importlib.util.find_spec('pydensecrf') is None,
                                   reason='pydensecrf2 is not installed: ' + crf.INSTALL)

# Stands in for the library: it returns the network's result, dies at grey 13 and fails at grey 14.
STAND_IN = '''
import os
class DenseCRF2D(object):
    def __init__(self, width, height, num_classes):
        self.shape = (num_classes, width * height)
    def setUnaryEnergy(self, unary):
        assert unary.shape == self.shape and unary.dtype == 'float32' and unary.flags.c_contiguous
        self.unary = unary
    def addPairwiseGaussian(self, sxy, compat):
        pass
    def addPairwiseBilateral(self, sxy, srgb, rgbim, compat):
        if rgbim[0, 0, 0] == 13:
            os._exit(3)
        if rgbim[0, 0, 0] == 14:
            raise ValueError('fourteen')
    def inference(self, iterations):
        return -self.unary
'''


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts the stand-in on sys.path, which the processes of refined() inherit."""
    (tmp_path / 'library' / 'pydensecrf').mkdir(parents=True)
    (tmp_path / 'library' / 'pydensecrf' / '__init__.py').write_text('')
    (tmp_path / 'library' / 'pydensecrf' / 'densecrf.py').write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / 'library'))


def pictures(folder, greys, size=(9, 12)):
    """Writes PNG pictures, each of one grey, and returns their paths."""
    paths = [str(folder / ('%d.png' % number)) for number in range(len(greys))]
    for path, grey in zip(paths, greys):
        Image.fromarray(np.full(size + (3,), grey, np.uint8)).save(path)
    return paths


def predicted(count, size=(9, 12), num_classes=4):
    """Yields predictions with random scores and class maps that do not belong to them."""
    random = np.random.RandomState(0)
    for index in range(count):
        scores = random.randn(*(size + (num_classes,))).astype(np.float32)
        yield Prediction(index, np.zeros(size, np.uint8), np.full(size, -1, np.int32), scores)


def disc():
    """Returns (image, label, logits) of a disc; the logits are correct, but noisy."""
    random = np.random.RandomState(1)
    rows, columns = np.mgrid[:60, :80]
    label = ((rows - 30) ** 2 + (columns - 40) ** 2 < 20 ** 2).astype(np.int32)
    image = np.where(label[:, :, None], (200, 60, 40), (40, 80, 160)).astype(np.uint8)
    logits = np.eye(3)[label] * 1.5 + random.randn(60, 80, 3)
    return image, label, logits.astype(np.float32)


@needs_library
@pytest.mark.parametrize('are_probabilities', [False, True])
def test_it_is_what_the_library_gives(are_probabilities):
    from pydensecrf import densecrf, utils

    image, _, logits = disc()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    settings = crf.Settings(4, 2.0, 1.5, 30.0, 7.0, 2.5)
    direct = densecrf.DenseCRF2D(80, 60, 3)
    direct.setUnaryEnergy(utils.unary_from_softmax(np.ascontiguousarray(probabilities.transpose(2, 0, 1))))
    direct.addPairwiseGaussian(sxy=2, compat=1.5)
    direct.addPairwiseBilateral(sxy=30, srgb=7, rgbim=image, compat=2.5)
    wanted = np.argmax(direct.inference(4), axis=0).reshape(60, 80)
    found = crf.refine(image, probabilities if are_probabilities else logits, are_probabilities, settings)
    assert found.dtype == np.int32 and (found != wanted).mean() < 0.001  # except for ties
    assert (found != logits.argmax(axis=2)).mean() > 0.05


@needs_library
def test_it_raises_the_mean_iou_of_a_noisy_disc(tmp_path):
    image, label, logits = disc()
    Image.fromarray(image).save(str(tmp_path / 'disc.png'))
    before = Prediction(0, label, logits.argmax(axis=2), logits)
    after, = crf.refined((one for one in [before]), [str(tmp_path / 'disc.png')], False, DEFAULTS, WORK)
    mean_iou = [metrics.scores(metrics.confusion_matrix(label, one.classes, 3))['mean_iou'] for one in (before, after)]
    assert mean_iou[0] < 0.7 and mean_iou[1] > mean_iou[0] + 0.2


@pytest.mark.parametrize('work', [crf.Work(3, 1e9, True), crf.Work(2, 0, False)], ids=['three', 'one by one'])
def test_the_order_is_kept_and_class_maps_replaced(stand_in, tmp_path, work):
    wanted = list(predicted(7))
    found = list(crf.refined(predicted(7), pictures(tmp_path, range(7)), False, DEFAULTS, work))
    assert [one.index for one in found] == list(range(7))
    for one, other in zip(found, wanted):
        np.testing.assert_array_equal(one.classes, other.scores.argmax(axis=2))
        assert one.classes.dtype == np.int32 and (one.scores is not None) == work.keep_scores


@pytest.mark.parametrize('grey, told', [(13, 'ended .exit code 3.*--num_threads'), (14, 'failed .fourteen')])
def test_a_process_that_dies_or_fails_is_one_sentence(stand_in, tmp_path, grey, told):
    paths, got = pictures(tmp_path, [1, 2, grey, 4]), []
    with pytest.raises(UserError, match=r'2\.png: .*' + told):
        for one in crf.refined(predicted(4), paths, False, DEFAULTS, WORK):
            got.append(one.index)
    assert got == [0, 1]


def test_predictions_are_closed_when_the_rest_is_not_asked_for(stand_in, tmp_path):
    predictions = predicted(4)
    found = crf.refined(predictions, pictures(tmp_path, range(4)), False, DEFAULTS, WORK)
    next(found)
    found.close()
    assert list(predictions) == []


def test_images_that_the_lattice_cannot_count_are_refused(tmp_path):
    with pytest.raises(UserError, match='5x2 pixels and 4 classes are too many for --crf'):
        settings = dataclasses.replace(DEFAULTS, gaussian_sxy=0.0004)
        list(crf.refined(predicted(1, (2, 5)), ['wide.png'], False, settings, WORK))


def test_processes_import_no_tensorflow():
    code = 'import sys, utils.prediction.crf; print([name for name in sys.modules if name.startswith("tensorflow")])'
    assert subprocess.check_output([sys.executable, '-c', code], cwd=ROOT).split() == [b'[]']


def test_without_the_library_one_sentence_says_what_to_install(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)  # makes an import fail
    assert crf.settings_from_flags(settings()) is None
    with pytest.raises(UserError, match=r'--crf needs .*pydensecrf2.*pip install -r requirements-crf\.txt'):
        crf.settings_from_flags(settings(crf=True))


def test_defaults(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydensecrf', types.SimpleNamespace(densecrf=None))
    assert crf.settings_from_flags(settings(crf=True)) == DEFAULTS


def test_softmax_of_large_logits():
    logits = np.array([[1000.0, 999.0, -1000.0]], np.float32)
    np.testing.assert_allclose(crf.softmax(logits), [[0.7310586, 0.2689414, 0]], atol=1e-6)


@pytest.fixture
def model(settings, narrow, tmp_path, monkeypatch):
    """Returns a function from changed flags to a Model with a checkpoint of random weights and three pictures."""
    narrow({'res50': UNITS})
    monkeypatch.setitem(sys.modules, 'pydensecrf', types.SimpleNamespace(densecrf=None))
    paths = pictures(tmp_path, [10, 100, 200], (33, 41))
    for path in paths:
        Image.fromarray((np.arange(33 * 41).reshape(33, 41) % 4).astype(np.uint8)).save(path + '.label.png')
    (tmp_path / 'list.txt').write_text(''.join('%s %s.label.png\n' % (path, path) for path in paths))
    flags = {'encoder_name': 'res50', 'num_classes': 4, 'modeldir': str(tmp_path / 'model'), 'num_threads': 2,
             'out_dir': str(tmp_path / 'output'), 'test_data_list': str(tmp_path / 'list.txt'),
             'valid_data_list': str(tmp_path / 'list.txt')}
    with tf.Graph().as_default(), tf.Session() as sess:
        net = Model(settings(**flags)).network(tf.zeros([1, 33, 33, 3]), phase=False, batch_norm='frozen')
        sess.run(tf.global_variables_initializer())
        os.mkdir(flags['modeldir'])
        tf.train.Saver(net.variables).save(sess, os.path.join(flags['modeldir'], 'model.ckpt'), 1)
    return lambda **changed: Model(settings(**dict(flags, **changed)))


def test_models_test_and_predict_refine(model, stand_in, tmp_path):
    """The stand-in changes no class, so the results must equal those without --crf."""
    results = []
    for refine in (False, True):
        result = model(crf=refine).test()
        model(crf=refine, save_probabilities=refine).predict()
        masks_written = [np.asarray(Image.open(str(tmp_path / 'output' / 'prediction' / ('%d_mask.png' % number))))
                         for number in range(3)]
        results.append((result['iou'].tolist(), masks_written))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    for number, mask in enumerate(results[1][1]):
        saved = read(tmp_path / 'output' / 'probabilities' / ('%d.npz' % number), 'probabilities')
        assert saved.shape == (4, 33, 41)
        chosen = np.take_along_axis(saved, mask[np.newaxis].astype(int), axis=0)
        assert (chosen == saved.max(axis=0)).all()


def test_a_process_that_dies_ends_predict(model, stand_in, tmp_path):
    pictures(tmp_path, [10, 13, 200], (33, 41))
    with pytest.raises(UserError, match=r'1\.png: .*exit code 3'):
        model(crf=True).predict()


# files of scores ------------------------------------------------------------------------------------------------

def named(images):
    return sources.Images(list(images), data_lists.output_names(images))


def written(settings, tmp_path, are_probabilities=False, images=('a/x.png', 'b/x.png'), **changed):
    """Writes the predictions of two images; returns (the scores, the writer)."""
    conf = settings(out_dir=str(tmp_path), visual=False, num_classes=4, **changed)
    writer = masks.MaskWriter(conf, load_classes(4, 255, ''), named(images), are_probabilities)
    found = [dataclasses.replace(one, classes=one.classes * 0) for one in predicted(len(images))]
    found[0].scores[0, 0, 0] = 1e6
    writer.write_all(one for one in found)
    return [one.scores for one in found], writer


def read(path, key):
    with np.load(str(path)) as arrays:
        assert list(arrays) == [key]
        return arrays[key]


def test_files_of_logits_and_probabilities(settings, tmp_path):
    found, _ = written(settings, tmp_path, save_logits=True, save_probabilities=True)
    for kind in ('logits', 'probabilities'):
        assert sorted(os.listdir(str(tmp_path / kind))) == ['a_x.npz', 'b_x.npz']
    for name, scores in zip(('a_x.npz', 'b_x.npz'), found):
        logits, probabilities = (read(tmp_path / kind / name, kind) for kind in ('logits', 'probabilities'))
        assert logits.dtype == probabilities.dtype == np.float16 and logits.shape == probabilities.shape == (4, 9, 12)
        np.testing.assert_allclose(logits.transpose(1, 2, 0), np.minimum(scores, 65504), rtol=1e-3, atol=1e-6)
        powers = np.exp(scores - scores.max(axis=2, keepdims=True))
        np.testing.assert_allclose(probabilities.transpose(1, 2, 0), powers / powers.sum(axis=2, keepdims=True),
                                   atol=1e-3)
    assert read(tmp_path / 'logits' / 'a_x.npz', 'logits')[0, 0, 0] == 65504


def test_merged_probabilities_are_saved_as_they_are_and_have_no_logits(settings, tmp_path):
    found, writer = written(settings, tmp_path, are_probabilities=True, save_probabilities=True)
    assert sorted(writer.folders) == ['prediction', 'probabilities']
    saved = read(tmp_path / 'probabilities' / 'b_x.npz', 'probabilities')
    np.testing.assert_allclose(saved.transpose(1, 2, 0), found[1], rtol=1e-3, atol=1e-6)
    with pytest.raises(UserError, match='--save_logits.*--save_probabilities'):
        written(settings, tmp_path, are_probabilities=True, save_logits=True)


def test_waiting_arrays_are_bounded_by_their_bytes(settings, tmp_path, monkeypatch):
    """If there is no memory for arrays, each image is written before the next is predicted."""
    monkeypatch.setattr(masks, 'MOST_WAITING_BYTES', 0)
    conf = settings(out_dir=str(tmp_path), visual=False, num_classes=4, save_logits=True)
    writer = masks.MaskWriter(conf, load_classes(4, 255, ''), named(['%d.png' % number for number in range(3)]))

    def stream():
        for one in predicted(3):
            yield one
            assert len(os.listdir(str(tmp_path / 'logits'))) == one.index + 1

    writer.write_all(stream())


def test_a_full_disk_leaves_no_part_of_a_file(settings, tmp_path, full_disk):
    with full_disk(500), pytest.raises(UserError, match='logits.*cannot be written'):
        written(settings, tmp_path, save_logits=True)
    assert os.listdir(str(tmp_path / 'logits')) == []
