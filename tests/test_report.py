"""report.html: its contents, that it needs no other file, is safe to open, and keeps little of a long list."""

import base64
import html.parser
import io
import json
import os
import re
import types

import numpy as np
import pytest
from narrow_main import UNITS
from PIL import Image

import main  # noqa: F401  defines the flags
from model import Model
from utils.data.palette import Classes, Palette, load_classes, voc_colours
from utils.prediction import metrics, report
from utils.prediction.predictor import Prediction
from utils.system.command_line import RECORDS
from utils.system.errors import UserError

HOSTILE = '<script>alert(1)</script>"\'&\u202e\x1b'


@pytest.fixture
def conf(tmp_path):
    return types.SimpleNamespace(out_dir=str(tmp_path), valid_data_list='list<b>.txt', num_classes=3)


@pytest.fixture
def images(tmp_path):
    """Returns a function from a number to that many paths, all of the same image of 30x20 pixels."""
    path = str(tmp_path / 'image.png')
    Image.fromarray(np.random.RandomState(0).randint(0, 256, [20, 30, 3]).astype(np.uint8)).save(path)
    return lambda count: [path] * count


class Page(html.parser.HTMLParser):
    """Parses a page: its tags, each with its attributes, and the text between them."""

    def __init__(self, path):
        super(Page, self).__init__()
        self.tags, self.text, self.open = [], '', []
        with open(path, encoding='utf-8') as file:
            self.source = file.read()
        self.feed(self.source)
        assert self.open == []  # all tags are closed

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'img', 'br'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def pictures(self):
        """Returns (what it shows, pixels) of each picture that belongs to an image."""
        for tag, attributes in self.tags:
            if tag == 'img':
                kind, content = re.match(r'data:image/(\w+);base64,(.*)$', attributes['src']).groups()
                image = Image.open(io.BytesIO(base64.b64decode(content)))
                assert image.format.lower() == kind
                yield attributes['alt'], np.asarray(image)


def predictions(wrong, ignored=()):
    """Yields predictions of 20x30 images of class 1; the first wrong[i] pixels of image i are predicted as class 0."""
    for index, count in enumerate(wrong):
        label = np.full([20, 30], 255 if index in ignored else 1)
        classes = np.ones([20, 30], np.int32)
        classes.flat[:count] = 0
        yield Prediction(index, label, classes)


def written(conf, classes, images, stream):
    page = report.Report(conf, classes, images)
    matrix, _ = metrics.count(page.watched(stream), classes)
    page.write(matrix, 'model/model.ckpt-7')
    assert os.listdir(conf.out_dir).count('report.html') == 1
    return Page(os.path.join(conf.out_dir, 'report.html')), matrix


def shown(page):
    """Returns the IoU in percent of the images on the page, in the page's order."""
    return [float(number) for number in re.findall(r'IoU ([\d.]+) %', page.text)]


def iou(count):
    """Returns the mean IoU in percent of an image of `predictions` with `count` wrong pixels."""
    return 50 * (600 - count) / 600.0 if count else 100.0


def test_the_worst_and_the_best_images_in_order(conf, images):
    wrong = np.random.RandomState(0).permutation(400)[:60].tolist()
    page, _ = written(conf, load_classes(3), images(60), predictions(wrong))
    ordered = sorted(map(iou, wrong))
    assert shown(page) == [pytest.approx(value, abs=0.06) for value in ordered[:20] + ordered[:-6:-1]]
    assert 'The 20 worst images' in page.text and 'The 5 best images' in page.text


@pytest.mark.parametrize('count, worst, best', [(1, 1, 0), (20, 20, 0), (22, 20, 2), (25, 20, 5), (26, 20, 5)])
def test_no_image_is_shown_twice(conf, images, count, worst, best):
    page, _ = written(conf, load_classes(3), images(count), predictions(range(count)))
    ordered = sorted(map(iou, range(count)))
    assert shown(page) == [pytest.approx(value, abs=0.06)
                           for value in ordered[:worst] + ordered[::-1][:best]]


def test_images_without_a_counted_pixel_are_left_out_and_counted(conf, images):
    page, matrix = written(conf, load_classes(3), images(6), predictions([9] * 6, ignored=(1, 4)))
    assert len(shown(page)) == 4 and matrix.sum() == 4 * 600
    assert 'images: 6, of which 2 have no counted pixels' in page.text
    page, _ = written(conf, load_classes(3), images(2), predictions([9] * 2, ignored=(0, 1)))
    assert shown(page) == [] and 'nan' not in page.text


def test_the_page_says_that_one_class_only_counts(conf, images):
    page, _ = written(conf, load_classes(3), images(2), predictions([0, 0]))
    assert 'In these labels 2 of 3 classes have no pixels: 0, 2; only one class has pixels (1)' in page.text


def test_an_ignored_class_does_not_decide_the_worst(conf, images):
    page, _ = written(conf, load_classes(3, 0), images(3), predictions([300, 0, 600]))
    assert shown(page) == [0.0, 50.0, 100.0] and re.search(r'class 0\s+--', page.text)


def test_pictures_show_image_label_prediction_and_errors(conf, images):
    classes = load_classes(3)
    label, prediction = np.full([20, 30], 2), np.full([20, 30], 2)
    label[:, 20:], prediction[:10, :10] = 255, 1
    page, _ = written(conf, classes, images(1), (one for one in [Prediction(0, label, prediction)]))
    pictures = dict(page.pictures())
    assert list(pictures) == list(report.PICTURES)
    assert all(pixels.shape == (20, 30, 3) for pixels in pictures.values())
    photo = np.asarray(Image.open(images(1)[0])).astype(float)
    assert abs(pictures['image'] - photo).mean() < 12 < abs(pictures['image'] - photo[::-1]).mean()
    assert (pictures['label'][:, :20] == voc_colours()[2]).all()
    assert (pictures['label'][:, 20:] == (224, 224, 192)).all()
    assert (pictures['prediction'][:10, :10] == voc_colours()[1]).all()
    assert (pictures['prediction'][10:] == voc_colours()[2]).all()
    errors = pictures['errors'].astype(float)
    assert abs(errors[1:9, 1:9] - report.WRONG).max() < 60
    assert abs(errors[:, 24:] - report.NOT_COUNTED).max() < 25
    assert np.ptp(errors[12:, :16], axis=2).mean() < 8 and errors[12:, :16].mean() > 150  # the photo is faded there


@pytest.mark.parametrize('size, small', [((1000, 500), (480, 240)), ((100, 2000), (36, 720)), ((480, 10), (480, 10)),
                                         ((3000, 1), (480, 1))])
def test_large_pictures_are_made_smaller(size, small):
    kind, content = report.encoded(np.zeros([size[1], size[0], 3], np.uint8), 'PNG', Image.NEAREST)
    assert kind == 'image/png' and Image.open(io.BytesIO(content)).size == small


def test_pictures_are_kept_and_made_of_few_images_only(conf, images, monkeypatch):
    made = []
    pictures = report.Report._pictures
    monkeypatch.setattr(report.Report, '_pictures', lambda self, one: made.append(one.index) or pictures(self, one))
    page = report.Report(conf, load_classes(3), images(300))
    order = np.random.RandomState(1).permutation(300)
    for _ in page.watched(predictions(order.tolist())):
        kept = {shown.index for heap in (page._worst, page._best) for _, shown in heap}
        assert len(kept) <= report.WORST + report.BEST
    assert len(made) < 150
    assert {order[index] for index in kept} == set(range(280, 300)) | set(range(5))


def test_the_stream_passes_through_and_is_closed(conf, images):
    closed = []

    def stream():
        try:
            yield from predictions([1, 2, 3])
        finally:
            closed.append(True)

    watched = report.Report(conf, load_classes(3), images(3)).watched(stream())
    assert next(watched).index == 0
    watched.close()
    assert closed == [True]


def test_bars_and_matrix_hold_the_scores(conf, images):
    page, matrix = written(conf, load_classes(3), images(4), predictions([0, 60, 120, 300]))
    scores = metrics.scores(matrix)
    widths = [float(re.search(r'width:([\d.]+)%', attributes['style']).group(1))
              for tag, attributes in page.tags if tag == 'i']
    assert widths == [pytest.approx(value, abs=0.06) for value in np.nan_to_num(100 * scores['iou'])]
    for key in ('mean_iou', 'pixel_accuracy'):
        assert '%.2f %%' % (100 * scores[key]) in page.text
    assert 'class 1 predicted as class 0: 20.0\u00a0% of its pixels' in page.text
    cells = re.search(r'class="matrix">(.*?)</table>', page.source, re.S).group(1).split('<tr>')[3]
    assert re.findall(r'<td[^>]*>([^<]*)</td>', cells) == ['20', '80', '0']
    assert 'model/model.ckpt-7' in page.text and '--num_classes3' in page.text


def test_nothing_is_loaded_and_hostile_names_do_no_harm(conf, tmp_path):
    name = str(tmp_path / ('a<img src=x onerror=alert(1)> %s\udc80.png' % HOSTILE.replace('/', '')))
    Image.fromarray(np.zeros([20, 30, 3], np.uint8)).save(name)
    conf.num_classes = HOSTILE
    classes = Classes(3, 255, Palette(voc_colours(), [HOSTILE, 'b', HOSTILE]))
    page, _ = written(conf, classes, [name], predictions([5]))
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {'script', 'link', 'iframe', 'object', 'b>'} and 'alert(1)' in page.text
    for tag, attributes in page.tags:
        assert not any(key.startswith('on') for key in attributes)
        assert attributes.get('src', 'data:').startswith('data:') and 'href' not in attributes, tag
    assert 'url(' not in page.source and '@import' not in page.source
    assert not re.search('[\u202e\x1b]', page.source)
    assert page.text.count('<script>alert(1)</script>') >= 5  # as text: in bars, matrix, path and settings
    policies = [attributes['content'] for tag, attributes in page.tags
                if attributes.get('http-equiv') == 'Content-Security-Policy']
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")
    assert any(attributes.get('name') == 'viewport' for tag, attributes in page.tags if tag == 'meta')


def test_many_classes_make_a_picture_of_the_matrix(conf, images):
    page, _ = written(conf, load_classes(256), images(1), predictions([60]))
    pictures = dict(page.pictures())
    pixels = pictures['confusion matrix']  # 3 pixels per cell
    assert pixels.shape == (768, 768, 3) and (pixels[0, 0] == 255).all()
    assert pixels[4, 4].tolist() == [32, 68, 121]  # 90 % of the pixels of class 1
    assert len(page.source) < 300000


def test_what_cannot_be_replaced_is_told_before_the_work(conf, images, tmp_path):
    (tmp_path / 'report.html').mkdir()
    with pytest.raises(UserError, match='report.html.*is a folder'):
        report.Report(conf, load_classes(3), images(1))


def test_a_full_disk_leaves_no_part_of_a_page(conf, images, full_disk, tmp_path):
    page = report.Report(conf, load_classes(3), images(1))
    matrix, _ = metrics.count(page.watched(predictions([5])), load_classes(3))
    with full_disk(3000), pytest.raises(UserError, match='report.html.*cannot be written'):
        page.write(matrix, 'model.ckpt-7')
    assert sorted(os.listdir(str(tmp_path))) == ['image.png']


SAMPLE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'dataset', 'sample')


def test_test_writes_it_only_if_asked(tmp_path, settings, narrow):
    narrow({'res50': UNITS})
    values = {flag: str(tmp_path / flag) for flag in ('modeldir', 'logdir', 'logfile', 'out_dir')}
    values.update(data_dir=SAMPLE, num_classes=6, encoder_name='res50', input_height=33, input_width=33, batch_size=2,
                  num_steps=1, check_labels=False, valid_num_steps=3, data_list=os.path.join(SAMPLE, 'train.txt'),
                  valid_data_list=os.path.join(SAMPLE, 'val.txt'))
    Model(settings(**values)).train()
    without = Model(settings(**values)).test()
    assert sorted(os.listdir(values['out_dir'])) == ['confusion_matrix.png', 'metrics.json']
    scored = Model(settings(report=True, **values)).test()
    assert scored['mean_iou'] == without['mean_iou']
    page = Page(os.path.join(values['out_dir'], 'report.html'))
    assert len(shown(page)) == 3 and len(list(page.pictures())) == 12
    assert '%.2f %%' % (100 * scored['mean_iou']) in page.text
    assert '--reportTrue' in page.text and 'model.ckpt-1' in page.text
    with open(os.path.join(values['out_dir'], 'metrics.json'), encoding='utf-8') as file:
        written_scores = json.load(file)
    assert (written_scores['training']['num_steps'], written_scores['training']['batch_size']) == (1, 2)
    assert 'num_steps1' in page.text and 'num_steps20000' not in page.text
    unread = {name for name, record in RECORDS.items() if 'test' not in record.options}
    assert {'learning_rate', 'num_steps', 'batch_size'} <= unread and not unread & set(written_scores['flags'])
    assert not any('--%s<' % name in page.source for name in unread)
    assert written_scores['flags']['valid_num_steps'] == 3 and '--valid_num_steps3' in page.text
    os.remove(os.path.join(values['modeldir'], 'settings.json'))
    Model(settings(report=True, **values)).test()
    with open(os.path.join(values['out_dir'], 'metrics.json'), encoding='utf-8') as file:
        assert json.load(file)['training'] is None
    assert 'settings of the training are unknown' in Page(os.path.join(values['out_dir'], 'report.html')).text
