"""Tests utils/prediction/metrics.py against figures by hand, scikit-learn and tf.metrics."""

import json
import types
import warnings

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score

from model import Model
from utils.data.palette import load_classes
from utils.prediction import metrics
from utils.system.errors import UserError

TOTALS = ('pixel_accuracy', 'mean_accuracy', 'mean_iou', 'frequency_weighted_iou')


def random_case(seed, num_classes=8):
    """Returns labels without 3 and 6, and predictions without 3 and 5; 255 and num_classes+1 are ignored."""
    rng = np.random.RandomState(seed)
    label = rng.choice([0, 1, 2, 4, 5, 7, 255, num_classes + 1], (17, 23)).astype(np.uint8)
    other = rng.choice([0, 1, 2, 4, 6, 7], label.shape)
    right = (rng.uniform(size=label.shape) < 0.6) & (label < num_classes) & (label != 5)
    return label, np.where(right, label, other).astype(np.int64)


def test_matrix_and_scores_by_hand():
    label = np.array([[0, 0, 0, 1], [1, 2, 255, 4]])
    prediction = np.array([[0, 0, 1, 1], [1, 0, 1, 3]])
    matrix = metrics.confusion_matrix(label, prediction, 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    result = metrics.scores(matrix)
    np.testing.assert_allclose(result['iou'], [2 / 4, 2 / 3, 0, np.nan])
    np.testing.assert_allclose(result['accuracy'], [2 / 3, 1, 0, np.nan])
    expected = (4 / 6, 5 / 9, 7 / 18, (3 * 0.5 + 2 * 2 / 3) / 6)
    np.testing.assert_allclose([result[key] for key in TOTALS], expected)


def test_predicted_only_class_counts_in_mean_iou_but_not_in_mean_accuracy():
    result = metrics.scores(metrics.confusion_matrix([0, 0], [0, 1], 3))
    np.testing.assert_allclose(result['iou'], [0.5, 0, np.nan])
    assert result['mean_iou'] == 0.25
    assert result['mean_accuracy'] == 0.5


def test_an_ignored_class_has_no_score_and_enters_no_mean(tmp_path, capsys):
    """Class 0 is often the ignored one: its row is empty because its pixels are not counted, but it is predicted."""
    label, prediction = np.array([0, 0, 1, 1, 2, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2, 2, 0])
    matrix = metrics.confusion_matrix(label, prediction, 3, 0)
    result = metrics.scores(matrix, 0)
    np.testing.assert_allclose(result['iou'], [np.nan, 1 / 2, 3 / 4])
    np.testing.assert_allclose(result['accuracy'], [np.nan, 1 / 2, 3 / 4])
    np.testing.assert_allclose([result[key] for key in TOTALS], [4 / 6, 0.625, 0.625, (2 * 0.5 + 4 * 0.75) / 6])
    for ignore_label in (None, 255, -1, 3):  # not one of the classes: class 0 is absent and predicted
        assert metrics.scores(matrix, ignore_label)['mean_iou'] == pytest.approx(1.25 / 3)
    conf = types.SimpleNamespace(out_dir=str(tmp_path), valid_data_list='val.txt')
    metrics.write_scores(conf, matrix, 'model.ckpt-1', load_classes(3, 0))
    assert capsys.readouterr().out.splitlines()[1].split() == ['0', '-', '-', '-', '-']
    numbers = json.loads((tmp_path / 'metrics.json').read_text())
    assert (numbers['iou'], numbers['mean_iou']) == ([None, 0.5, 0.75], 0.625)


@pytest.mark.parametrize('matrix, note', [
    ([[7, 0], [0, 0]], 'note: in these labels 1 of 2 classes has no pixels: 1; only one class has pixels (0), so '
                       'predicting it everywhere scores 100 %.'),
    ([[5, 1, 0], [0, 3, 0], [0, 0, 0]], 'note: in these labels 1 of 3 classes has no pixels: 2.'),
    ([[0, 0], [0, 0]], 'note: in these labels no label contains a pixel of any class.'),
    ([[7, 0], [0, 1]], None)])
def test_a_test_names_the_classes_without_pixels(tmp_path, capsys, matrix, note):
    conf = types.SimpleNamespace(out_dir=str(tmp_path), valid_data_list='val.txt')
    metrics.write_scores(conf, np.array(matrix), 'model.ckpt-1', load_classes(len(matrix)))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith('note')]
    assert notes == ([note] if note else [])


def test_validation_scores_no_ignored_class(settings, monkeypatch):
    found = []
    monkeypatch.setattr(metrics, 'count', lambda *_, **__: (np.array([[0, 0, 0], [1, 1, 0], [1, 0, 3]]), 0.0))
    run = types.SimpleNamespace(
        signal=types.SimpleNamespace(number=0), log_scores=lambda _, scores: found.append(scores))
    one = types.SimpleNamespace(variables=[], run=lambda fetches: [], reader=None, predictor=types.SimpleNamespace(
        predictions=lambda *_: None))
    Model(settings(num_classes=3, ignore_label=0)).validate(one, one, run, one, 5)
    assert found[0]['mean_iou'] == 0.625


@pytest.mark.parametrize('seed', range(5))
def test_agrees_with_sklearn(seed):
    label, prediction = random_case(seed)
    result = metrics.scores(metrics.confusion_matrix(label, prediction, 8))
    counted = label < 8
    y, p = label[counted], prediction[counted]
    seen = [c for c in range(8) if c in y or c in p]
    assert 0 < len(seen) < 8
    np.testing.assert_allclose(result['iou'][seen], jaccard_score(y, p, labels=seen, average=None), atol=1e-9)
    assert np.isnan(np.delete(result['iou'], seen)).all()
    assert abs(result['mean_iou'] - jaccard_score(y, p, labels=seen, average='macro')) < 1e-9
    assert abs(result['frequency_weighted_iou'] - jaccard_score(y, p, average='weighted')) < 1e-9
    assert abs(result['pixel_accuracy'] - accuracy_score(y, p)) < 1e-9
    by_class = [accuracy_score(y[y == c], p[y == c]) for c in np.unique(y)]
    assert abs(result['mean_accuracy'] - np.mean(by_class)) < 1e-9


@pytest.mark.parametrize('seed', range(3))
def test_agrees_with_tf_metrics(seed):
    label, prediction = random_case(seed)
    matrix = metrics.confusion_matrix(label, prediction, 8)
    result = metrics.scores(matrix)
    with tf.Graph().as_default(), tf.Session() as session:
        kept = tf.cast(label < 8, tf.int32)
        safe = tf.constant(np.where(label < 8, label, 0), tf.int64)
        prediction = tf.constant(prediction)
        mean_iou, update_iou = tf.metrics.mean_iou(safe, prediction, 8, weights=kept)
        accuracy, update_accuracy = tf.metrics.accuracy(safe, prediction, weights=kept)
        session.run(tf.local_variables_initializer())
        total_confusion, _ = session.run([update_iou, update_accuracy])
        mean_iou, accuracy = session.run([mean_iou, accuracy])
    # tf.metrics divides in float32, so its counts are compared exactly and its quotients to float32's precision.
    np.testing.assert_array_equal(total_confusion, matrix)
    assert abs(result['mean_iou'] - mean_iou) < 2e-7
    assert abs(result['pixel_accuracy'] - accuracy) < 2e-7


@pytest.mark.parametrize('ignore_label', [0, 2, 255, -1, 1000])
def test_any_ignore_label(ignore_label):
    label, prediction = random_case(9)
    matrix = metrics.confusion_matrix(label, prediction, 8, ignore_label)
    expected = np.zeros((8, 8), int)
    for y, p in zip(label.ravel().tolist(), prediction.ravel().tolist()):
        if y < 8 and y != ignore_label:
            expected[y, p] += 1
    np.testing.assert_array_equal(matrix, expected)


def test_narrow_integers_do_not_overflow():
    label = np.array([20, 255], np.uint8)
    matrix = metrics.confusion_matrix(label, np.array([20, 3], np.uint8), 21)
    assert matrix[20, 20] == 1
    assert matrix.sum() == 1


def test_matrices_add_up():
    cases = [random_case(seed) for seed in (0, 1)]
    total = sum(metrics.confusion_matrix(y, p, 8) for y, p in cases)
    whole = metrics.confusion_matrix(*(np.concatenate(part) for part in zip(*cases)), num_classes=8)
    np.testing.assert_array_equal(total, whole)


def test_empty_matrix_gives_nan_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        result = metrics.scores(metrics.confusion_matrix(np.full((2, 2), 255), np.zeros((2, 2), int), 3))
        table = metrics.format_table(result)
    assert all(np.isnan(result[key]) for key in TOTALS)
    assert np.isnan(result['iou']).all()
    assert 'nan' not in table


@pytest.mark.parametrize('prediction', [[0, 3], [0, -1], [0]])
def test_bad_prediction_is_refused(prediction):
    with pytest.raises(ValueError, match='prediction'):
        metrics.confusion_matrix([0, 1], prediction, 3)


def test_table_names_classes_and_marks_absent_ones():
    result = metrics.scores([[2, 1, 0], [0, 2, 0], [0, 0, 0]])
    lines = metrics.format_table(result, ['background', 'cat']).splitlines()
    assert lines[1].split() == ['0', 'background', '66.67', '66.67', '100.00', '80.00']
    assert lines[2].split() == ['1', 'cat', '66.67', '100.00', '66.67', '80.00']
    assert lines[3].split() == ['2', '-', '-', '-', '-']
    assert lines[4].split() == ['mean', 'IoU', '66.67']
    assert lines[-1].split() == ['pixel', 'accuracy', '80.00']
    assert len({len(line) for line in lines[:4]}) == 1  # the columns line up


@pytest.mark.parametrize('names', [None, ['background', 'cat']])
def test_plot_is_a_whole_image_and_nothing_else(tmp_path, names):
    metrics.plot_confusion_matrix(np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]]), str(tmp_path / 'm.png'), names)
    assert [p.name for p in tmp_path.iterdir()] == ['m.png']
    pixels = np.asarray(Image.open(str(tmp_path / 'm.png')).convert('RGB'))
    assert pixels.std() > 10


def test_plot_keeps_the_old_file_when_it_fails(tmp_path):
    with pytest.raises(UserError, match='must end in one of .*png'):
        metrics.plot_confusion_matrix(np.eye(2), str(tmp_path / 'm.xyz'))
    with pytest.raises(UserError, match='cannot be written'):
        metrics.plot_confusion_matrix(np.eye(2), str(tmp_path / 'none' / 'm.png'))
    (tmp_path / 'folder.png').mkdir()
    with pytest.raises(UserError, match='cannot be written'):
        metrics.plot_confusion_matrix(np.eye(2), str(tmp_path / 'folder.png'))
    assert [p.name for p in tmp_path.iterdir()] == ['folder.png']


def test_scores_are_printed_though_the_disk_is_full(tmp_path, full_disk, capsys):
    conf = types.SimpleNamespace(out_dir=str(tmp_path), valid_data_list='val.txt')
    with full_disk(100), pytest.raises(UserError, match='metrics.json.*cannot be written'):
        metrics.write_scores(conf, np.array([[2, 1], [0, 2]]), 'model.ckpt-1', load_classes(2))
    assert list(tmp_path.iterdir()) == [] and 'mean IoU' in capsys.readouterr().out
    assert metrics.write_scores(conf, np.array([[2, 1], [0, 2]]), 'model.ckpt-1', load_classes(2))['mean_iou'] > 0.6
    assert sorted(path.name for path in tmp_path.iterdir()) == ['confusion_matrix.png', 'metrics.json']


def test_a_picture_of_many_classes_is_not_huge(tmp_path):
    metrics.plot_confusion_matrix(np.random.RandomState(0).randint(0, 9, (182, 182)), str(tmp_path / 'matrix.png'))
    with Image.open(str(tmp_path / 'matrix.png')) as image:
        assert 2000 < max(image.size) < 6000
