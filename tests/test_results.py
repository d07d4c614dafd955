"""Tests results as users see them: formats of masks, unknown pixels, scores of each class, --patience, videos."""

import csv
import json
import os
import shutil
import types

import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score
from test_crf import DEFAULTS, WORK, predicted, stand_in  # noqa: F401  stand_in is a fixture
from test_crf import pictures as grey_pictures
from test_main import refused
from test_older_run import OLD
from test_older_run import conf as old_run  # noqa: F401  a fixture
from test_predict_images import photo, predict, trained, written  # noqa: F401  the last but one are fixtures
from test_scores import MAX, MEAN, PLAIN, SIZE, make, predictor_of, score  # noqa: F401  make is a fixture

import plot_training_curve
from model import Model
from utils.data import palette, sources
from utils.prediction import crf, masks, metrics
from utils.prediction.predictor import LoadedImage, Prediction
from utils.system import errors
from utils.system.errors import UserError
from utils.training.records import Records

SAMPLE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'dataset', 'sample')
VOC_FOLDER = os.path.join('results', 'VOC2012', 'Segmentation', 'comp6_test_cls')


# formats of masks ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('id_format, name', [
    ('indexed', 'prediction/sub/a_mask.png'), ('voc', os.path.join(VOC_FOLDER, 'sub', 'a.png'))])
def test_indexed_masks_hold_indices_and_show_the_colours_of_the_coloured_masks(settings, tmp_path, id_format, name):
    conf = settings(out_dir=str(tmp_path), id_format=id_format)
    classes = palette.load_classes(21)
    writer = masks.MaskWriter(conf, classes, sources.Images(['sub/a.jpg', 'a.jpg'], ['sub/a', 'a']))
    mask = np.arange(30).reshape(5, 6).astype(np.int32) % 21
    mask[0, 0] = 255
    writer.write_all(Prediction(index, None, mask + index * (mask == 3)) for index in range(2))
    with Image.open(str(tmp_path / name)) as image:
        assert image.mode == 'P'
        np.testing.assert_array_equal(np.asarray(image), mask)
        coloured = np.asarray(Image.open(str(tmp_path / 'visual_prediction' / 'sub' / 'a_mask_visual.png')))
        np.testing.assert_array_equal(np.asarray(image.convert('RGB')), coloured)
    assert tuple(coloured[0, 0]) == palette.VOID_COLOUR and tuple(coloured[0, 1]) == (128, 0, 0)
    with Image.open(str(tmp_path / name.replace('sub' + os.sep, '').replace('sub/', ''))) as other:
        assert np.asarray(other)[0, 3] == 4  # that image's own mask
    again = masks.MaskWriter(settings(out_dir=str(tmp_path), id_format=id_format, skip_existing=True), classes,
                             sources.Images(['sub/a.jpg', 'b.jpg'], ['sub/a', 'b']))
    assert again.paths == ['b.jpg']


def test_voc_names_are_for_its_classes_and_lie_in_one_folder(predict, settings, tmp_path):  # noqa: F811
    photo(tmp_path / 'a.jpg')
    code, _, stderr = predict('--image=%s' % (tmp_path / 'a.jpg'), '--id_format=voc')
    assert code == 1 and "--id_format=voc is for VOC's 21 classes, not --num_classes=6" in stderr
    assert not (tmp_path / 'output' / 'results').exists()
    conf = settings(image_dir=str(tmp_path), out_dir=str(tmp_path), id_format='voc', visual=False)
    images = sources.images_to_predict(conf)
    writer = masks.MaskWriter(conf, palette.load_classes(21), images)
    writer.write_all(Prediction(0, None, np.zeros([30, 41], np.int32)) for _ in images.paths)
    assert os.listdir(str(tmp_path / VOC_FOLDER)) == ['a.png']
    assert sources.images_to_predict(conf) == images  # masks below the images are not predicted


# unknown pixels --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('scoring', [PLAIN, MEAN, MAX])
@pytest.mark.parametrize('window', [None, (33, 40)])
def test_unknown_pixels_are_those_of_low_probability(make, scoring, window):  # noqa: F811
    model, image = make(), recipe.image(1, *SIZE)[0]
    before, scores = score(image, model, scoring, window=window)
    highest = (scores if scoring.gives_probabilities else crf.softmax(scores)).max(axis=2)
    limit = float(np.median(highest))
    found, kept = score(image, model, scoring, window=window, unknown_below=limit, ignore_label=77)
    np.testing.assert_array_equal(kept, scores)
    sure, unsure = highest > limit + 1e-6, highest < limit - 1e-6
    assert sure.any() and unsure.any()
    np.testing.assert_array_equal(found[sure], before[sure])
    assert (found[unsure] == 77).all()


def test_the_probabilities_of_the_crf_decide(stand_in, tmp_path):  # noqa: F811
    """The marginals of the stand-in for the library are the logarithms of the probabilities."""
    images, (one,) = grey_pictures(tmp_path, [50]), predicted(1)
    highest = np.log(crf.softmax(one.scores)).max(axis=2)
    limit = float(np.median(highest))
    plain, = crf.refined(predicted(1), images, False, DEFAULTS, WORK)
    found, = crf.refined(predicted(1), images, False, DEFAULTS, WORK, unknown=(limit, 255))
    unsure = highest < limit - 1e-6
    assert 0 < unsure.sum() < unsure.size and (found.classes[unsure] == 255).all()
    np.testing.assert_array_equal(found.classes[highest > limit + 1e-6], plain.classes[highest > limit + 1e-6])


@pytest.mark.parametrize('flags', [[], ['--num_gpus=2', '--window=20,20', '--eval_flip']])
def test_unknown_pixels_have_the_label_and_colour_of_ignored_ones(predict, tmp_path, flags):  # noqa: F811
    for number in range(3):
        photo(tmp_path / 'photos' / ('%d.png' % number), number)
    flags = ['--image_dir=%s' % (tmp_path / 'photos'), '--save_probabilities', '--id_format=indexed'] + flags
    code, _, stderr = predict(*flags)
    assert code == 0, stderr
    with np.load(str(tmp_path / 'output' / 'probabilities' / '1.npz')) as arrays:
        limit = float(np.median(arrays['probabilities'].max(axis=0)))
    code, _, stderr = predict(*flags, '--unknown_below=%g' % limit)
    assert code == 0, stderr
    unknown = 0
    for number in range(3):
        mask, coloured = (np.asarray(Image.open(str(tmp_path / 'output' / (name % number)))) for name in (
            'prediction/%d_mask.png', 'visual_prediction/%d_mask_visual.png'))
        with np.load(str(tmp_path / 'output' / 'probabilities' / ('%d.npz' % number))) as arrays:
            probabilities = arrays['probabilities']  # float16
        highest = probabilities.max(axis=0)
        assert (mask[highest < limit - 1e-3] == 255).all() and (mask[highest > limit + 1e-3] < 6).all()
        assert (coloured[mask == 255] == palette.VOID_COLOUR).all()
        unknown += (mask == 255).sum()
    assert unknown


def test_unknown_needs_a_label_that_fits_and_no_test(predict, tmp_path):  # noqa: F811
    photo(tmp_path / 'a.jpg')
    code, _, stderr = predict('--image=%s' % (tmp_path / 'a.jpg'), '--unknown_below=0.5', '--ignore_label=-1')
    assert code == 1 and '--ignore_label=-1 does not fit into a mask' in stderr
    assert '--option=test does not read --unknown_below' in refused('--option=test', '--unknown_below=0.5')


# scores ----------------------------------------------------------------------------------------------------------

def test_precision_recall_and_f1_agree_with_sklearn(tmp_path, capsys):
    random = np.random.RandomState(0)
    label = random.choice([0, 1, 2, 4], 500)
    prediction = np.where(random.uniform(size=500) < 0.5, label, random.choice([0, 1, 3], 500))
    matrix = metrics.confusion_matrix(label, prediction, 6)  # 2 and 4 are missed sometimes, 3 has no label, 5 nothing
    matrix[4] = [9, 0, 0, 0, 0, 0]
    label, prediction = np.repeat(np.indices([6, 6]).reshape(2, -1), matrix.ravel(), axis=1)
    result, options = metrics.scores(matrix), {'labels': range(6), 'average': None, 'zero_division': 0}
    for name, function, undefined in (('precision', precision_score, [4, 5]), ('recall', recall_score, [3, 5]),
                                      ('f1', f1_score, [5])):
        wanted = function(label, prediction, **options)
        wanted[undefined] = np.nan
        np.testing.assert_allclose(result[name], wanted, atol=1e-12)
        assert result['mean_' + name] == pytest.approx(np.nanmean(wanted))
        assert result['mean_%s_without_0' % name] == pytest.approx(np.nanmean(wanted[1:]))
    assert result['mean_iou_without_0'] == pytest.approx(np.nanmean(result['iou'][1:])) != result['mean_iou']
    np.testing.assert_array_equal(result['recall'], result['accuracy'])
    np.testing.assert_allclose(result['f1'], 2 * result['iou'] / (1 + result['iou']))
    conf = types.SimpleNamespace(out_dir=str(tmp_path), valid_data_list='val.txt')
    metrics.write_scores(conf, matrix, 'model.ckpt-1', palette.load_classes(6))
    text = (tmp_path / 'metrics.json').read_text()
    assert 'NaN' not in text and json.loads(text)['precision'][4:] == [None, None]
    table = capsys.readouterr().out.splitlines()
    assert table[5].split()[:2] == ['4', '0.00'] and table[5].split()[3] == '-'
    assert max(map(len, table[:18])) <= 80
    assert table[8].split() == ['without', 'class', '0', '%.2f' % (100 * result['mean_iou_without_0'])]
    assert 'note: the network never predicts 1 class that has labels: 4.' in table


@pytest.mark.parametrize('matrix, ignore_label, sentence', [
    ([[7, 0, 0], [3, 0, 0], [2, 0, 0]], 255,
     'the network predicts a single class everywhere, 0 road, though the labels have 1 car, 2 sky.'),
    ([[0, 7], [0, 0]], 255, 'the network predicts a single class everywhere, 1 car, though the labels have 0 road.'),
    ([[7, 1, 0], [3, 0, 0], [2, 0, 0]], 255, 'the network never predicts 1 class that has labels: 2 sky.'),
    ([[0, 0, 0], [3, 0, 0], [2, 0, 1]], 0, 'the network never predicts 1 class that has labels: 1 car.'),
    ([[7, 0, 0], [0, 0, 0], [0, 0, 0]], 255, ''),  # which another note explains
    ([[0, 0], [0, 0]], 255, ''), ([[1, 0], [1, 1]], 255, '')])
def test_classes_that_are_never_predicted_are_named(matrix, ignore_label, sentence):
    names = ['road', 'car', 'sky'][:len(matrix)]
    classes = palette.load_classes(len(matrix), ignore_label)
    classes = classes._replace(palette=classes.palette._replace(names=names))
    assert metrics.describe_predictions(np.array(matrix), classes) == sentence
    many = palette.load_classes(200)._replace(palette=palette.Palette(palette.voc_colours(), ['x' * 99] * 200))
    assert len(metrics.describe_predictions(np.eye(200, k=1) + np.eye(200)[[0]] * 0, many)) < errors.MOST_TOLD
    assert len(metrics.describe_predictions(np.eye(200)[[0]] + np.zeros([200, 1]), many)) < errors.MOST_TOLD


# the validation loss and patience --------------------------------------------------------------------------------

@pytest.mark.parametrize('window', [None, (33, 40)])
def test_the_loss_is_the_cross_entropy_of_the_merged_logits(make, window):  # noqa: F811
    image = recipe.image(1, *SIZE)[0]
    label = np.random.RandomState(0).choice([0, 1, 2, 3, 4, 5, -1, 77, 255], SIZE).astype(np.int32)
    predictor, sess = predictor_of(make(), window=window, with_loss=True, ignore_label=2)
    with sess:
        one = predictor.predict(sess, LoadedImage(0, image, label), lambda *_: None)
        again = predictor.predict(sess, LoadedImage(0, image, label), lambda *_: None)
    counts = (label >= 0) & (label < 5) & (label != 2)
    losses = -np.log(crf.softmax(one.scores.astype(np.float64)))
    wanted = np.take_along_axis(losses, np.where(counts, label, 0)[..., np.newaxis], axis=2)[..., 0][counts].sum()
    assert one.loss == pytest.approx(wanted, rel=1e-5) and one.loss == again.loss
    assert metrics.confusion_matrix(label, one.classes, 5, 2).sum() == counts.sum()


@pytest.fixture
def run(settings, tmp_path, narrow):
    """Returns a function of changed flags that gives all flags of a training on the sample, validated in every step."""
    narrow({'res50': (0, 0, 0, 1)})

    def flags(**changed):
        values = {flag: str(tmp_path / flag) for flag in ('modeldir', 'logdir', 'logfile', 'out_dir')}
        values.update(data_list=os.path.join(SAMPLE, 'train.txt'), valid_data_list=os.path.join(SAMPLE, 'val.txt'),
                      data_dir=SAMPLE, num_classes=6, encoder_name='res50', input_height=33, input_width=33,
                      batch_size=1, num_steps=6, save_interval=100, check_labels=False, valid_num_steps=1,
                      valid_interval=1)
        return settings(**dict(values, **changed))

    return flags


def rows_of(conf):
    with open(os.path.join(conf.modeldir, 'metrics.csv'), newline='') as file:
        return list(csv.DictReader(file))


def test_validations_record_loss_precision_recall_and_f1(run, capsys):
    conf = run(num_steps=1, palette='')
    Model(conf).train()
    row, scores = rows_of(conf)[1], Model(conf).test()
    for name in ('mean_iou', 'mean_iou_without_0', 'mean_precision', 'mean_recall_without_0', 'mean_f1'):
        np.testing.assert_equal(float(row[name]), scores[name])
    for name in ('precision', 'recall', 'f1', 'iou'):
        np.testing.assert_equal([float(row['%s/class %d' % (name, index)]) for index in range(6)], scores[name])
    assert 0 < float(row['validation_loss']) < 50
    assert ', loss %.4f' % float(row['validation_loss']) in capsys.readouterr().out
    events = {}
    for name in os.listdir(conf.logdir):
        for event in tf.train.summary_iterator(os.path.join(conf.logdir, name)):
            events.update({value.tag: value.simple_value for value in event.summary.value if event.step == 1})
    assert events['validation/loss'] == pytest.approx(float(row['validation_loss']))
    assert events['validation/f1/class 0'] == pytest.approx(scores['f1'][0])
    assert events['validation/mean_f1_without_0'] == pytest.approx(scores['mean_f1_without_0'])


def scores_of(values):
    """Returns a stand-in for metrics.scores that gives these mean IoUs, one after the other."""
    values = iter(values)
    return lambda matrix, ignore_label=None: {
        'mean_iou': next(values), 'pixel_accuracy': 0.5, 'iou': np.full(6, 0.5)}


def test_patience_ends_a_training_and_so_does_the_same_command_again(run, monkeypatch, capsys):
    conf = run(patience=2)
    monkeypatch.setattr('model.metrics.scores', scores_of([0.1, 0.3, 0.3, 0.2]))
    Model(conf).train()
    told = capsys.readouterr().out
    assert 'stopped by --patience=2: the best mean IoU, 30.00 % in step 1, is 2 validations old' in told
    assert sorted(name[:-6] for name in os.listdir(conf.modeldir) if name.endswith('.index')) == [
        'best.ckpt-1', 'model.ckpt-0', 'model.ckpt-3']
    for _ in range(2):
        Model(conf).train()
        told = capsys.readouterr().out
        assert '--patience=2 ended after step 3: the best mean IoU, 30.00 % in step 1' in told and 'resumed' not in told
    monkeypatch.setattr('model.metrics.scores', scores_of([0.25, 0.1]))  # the earlier validations count
    conf.patience = 4
    Model(conf).train()
    told = capsys.readouterr().out
    assert 'step 4 of 6 is next' in told and 'stopped by --patience=4' in told and 'is 4 validations old' in told
    assert len(rows_of(conf)) == 6
    conf.patience = 0
    monkeypatch.setattr('model.metrics.scores', scores_of([0.1]))
    Model(conf).train()
    told = capsys.readouterr().out
    assert 'stopped by' not in told and len(rows_of(conf)) == 7
    conf.patience = 1
    Model(conf).train()
    assert 'finished training' in capsys.readouterr().out


def test_patience_that_ends_with_the_validation_a_stopped_run_lacks(run, monkeypatch, capsys):
    conf = run(patience=1, save_interval=1)
    monkeypatch.setattr('model.metrics.scores', scores_of([0.3]))
    validate = Model.validate

    def dying(model, *args):
        if args[-1] == 1:
            raise KeyboardInterrupt
        validate(model, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Model, 'validate', dying)
        with pytest.raises(KeyboardInterrupt):
            Model(conf).train()
    monkeypatch.setattr('model.metrics.scores', scores_of([0.2]))
    capsys.readouterr()
    Model(conf).train()
    assert 'stopped by --patience=1' in capsys.readouterr().out and len(rows_of(conf)) == 2


def test_patience_needs_validations():
    assert '--patience needs --valid_interval' in refused('--option=train', '--valid_interval=0', '--patience=3')


def test_unknown_means_do_not_count_as_best(settings, tmp_path):
    records = Records(settings(modeldir=str(tmp_path)), 'x', palette.load_classes(6))
    assert records.best() is None
    records.mean_iou = {2: float('nan'), 0: float('nan')}
    assert records.best() is None
    records.mean_iou = {2: 0.5, 0: 0.1, 4: 0.5, 6: float('nan')}
    assert records.best() == (2, 0.5, 2)


def test_a_run_of_an_older_version_gets_the_new_columns(old_run, capsys):  # noqa: F811
    conf = old_run()
    before = rows_of(conf)
    with open(os.path.join(OLD, 'metrics.csv')) as file:
        assert 'validation_loss' not in file.read()
    Model(conf).train()
    rows = rows_of(conf)
    assert 'has new columns' in capsys.readouterr().out
    for old, new in zip(before[:3], rows):
        assert {name: new[name] for name in old} == old and new['validation_loss'] == new['f1/class 5'] == ''
    assert all(rows[6][name] for name in rows[6])


# videos ----------------------------------------------------------------------------------------------------------

VIDEOS = {
    'clip.mp4': b'\0\0\0\x20ftypisom\0\0\2\0', 'clip.mov': b'\0\0\0\x14ftypqt  \0\0\0\0',
    'a b.avi': b'RIFF\0\0\0\0AVI LIST', 'clip.mkv': b'\x1a\x45\xdf\xa3' + bytes(20), 'clip.webm': b'unknown',
    'clip.wmv': bytes.fromhex('3026b2758e66cf11'), 'clip.flv': b'FLV\1', 'clip.mpg': b'\0\0\1\xba',
    'clip': b'OggS', 'clip.ts': b'G' + bytes(187) + b'G',
    'clip.jpg': b'\0\0\0\x18ftypmp42\0\0\0\0'}


@pytest.mark.parametrize('name', sorted(VIDEOS))
def test_a_video_is_named_with_the_command_that_makes_frames(trained, tmp_path, name):  # noqa: F811
    (tmp_path / name).write_bytes(VIDEOS[name] + bytes(100))
    told = refused('--option=predict', '--modeldir=' + trained, '--image=%s' % (tmp_path / name),
                   '--out_dir=%s' % (tmp_path / 'output'))
    shown = errors.quoted(str(tmp_path / name), 60)
    assert 'ffmpeg -i %s frames/%%05d.png' % ('"%s"' % shown if ' ' in name else shown) in told
    assert '--image_dir=frames' in told and not (tmp_path / 'output').exists()


def test_a_video_in_a_list_and_a_folder_of_videos(predict, trained, tmp_path):  # noqa: F811
    (tmp_path / 'clip.jpg').write_bytes(VIDEOS['clip.mp4'] + bytes(100))
    photo(tmp_path / 'a.jpg')
    (tmp_path / 'list.txt').write_text('a.jpg\nclip.jpg\n')
    code, _, stderr = predict('--flagfile=dataset/sample.flags', '--test_data_list=%s' % (tmp_path / 'list.txt'),
                              '--data_dir=%s' % tmp_path)
    assert code == 1 and 'clip.jpg: a video' in stderr and 'ffmpeg' in stderr
    assert 'prediction/a_mask.png' in written(tmp_path)
    (tmp_path / 'videos').mkdir()
    shutil.copy(str(tmp_path / 'clip.jpg'), str(tmp_path / 'videos' / 'clip.mp4'))
    assert 'there are videos' in refused(
        '--option=predict', '--modeldir=' + trained, '--image_dir=%s' % (tmp_path / 'videos'))


def test_images_with_odd_names_and_animations_are_no_videos(predict, tmp_path):  # noqa: F811
    photo(tmp_path / 'a.jpg').rename(tmp_path / 'a.mp4')
    frames = [Image.fromarray(np.full([30, 40], value, np.uint8)) for value in (0, 99)]
    frames[0].save(str(tmp_path / 'b.gif'), save_all=True, append_images=frames[1:])
    code, stdout, stderr = predict('--image=%s' % (tmp_path / 'a.mp4'), '--image=%s' % (tmp_path / 'b.gif'))
    assert code == 0, stderr
    assert '2 predictions in' in stdout and 'video' not in stderr
    with pytest.raises(UserError, match='no such file'):
        sources.named_images([str(tmp_path / 'absent.mp4')])


def test_the_plot_shows_the_validation_loss(tmp_path):
    (tmp_path / 'metrics.csv').write_text('step,total,validation_loss,mean_iou\n0,3,2.5,0.1\n1,2.8,,\n2,2.6,2.25,0.2\n')
    figure = plot_training_curve.draw([plot_training_curve.read_run(str(tmp_path))], ['run'], None)
    dashed, = [line for line in figure.axes[0].lines if line.get_linestyle() == '--']
    assert (list(dashed.get_xdata()), list(dashed.get_ydata())) == ([0, 2], [2.5, 2.25])
    assert 'dashed: validation' in figure.axes[0].get_legend().get_texts()[0].get_text()
