"""Runs convert_cityscapes.py as a command, on small trees with Cityscapes' real folders and names."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from utils.data.data_lists import check_files_exist, read_labeled_image_list
from utils.data.palette import CITYSCAPES_CLASSES
from utils.system.errors import quoted

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

SUFFIX = '_labelTrainIds.png'
LISTS = ['test', 'train', 'train_coarse', 'train_extra', 'train_fine', 'val_coarse', 'val_fine']

# Replaces the package's table if that is not installed: a few labels, with one of each special kind.
LABELS = [('unlabeled', 0, 255), ('ego vehicle', 1, 255), ('static', 4, 255), ('parking', 9, 255), ('caravan', 29, 255),
          ('polegroup', 18, 255), ('license plate', -1, -1)]
LABELS += [(name, label_id, train_id) for train_id, (name, label_id, _) in enumerate(CITYSCAPES_CLASSES)]
STAND_IN = 'import collections\nLabel = collections.namedtuple("Label", "name id trainId")\n' \
           'labels = [Label(*label) for label in %r]\n' % LABELS

LABEL_IDS = np.array([[0, 7, 26], [33, 4, 29], [24, 11, 1]], np.uint8)
TRAIN_IDS = np.array([[255, 0, 13], [18, 255, 255], [11, 2, 255]], np.uint8)

ANNOTATION = {'imgHeight': 40, 'imgWidth': 60, 'objects': [
    {'label': 'road', 'polygon': [[0, 20], [59, 20], [59, 39], [0, 39]]},
    {'label': 'car', 'polygon': [[10, 10], [30, 10], [30, 30], [10, 30]]},
    {'label': 'license plate', 'polygon': [[15, 24], [20, 24], [20, 26], [15, 26]]},
    {'label': 'sky', 'deleted': 1, 'polygon': [[0, 0], [59, 0], [59, 9], [0, 9]]},
    {'label': 'persongroup', 'polygon': [[40, 5], [50, 5], [45, 25]]},
    {'label': 'polegroup', 'polygon': [[52, 0], [56, 0], [56, 39], [52, 39]]},
    {'label': 'caravan', 'polygon': [[-5, 32], [8, 32], [8, 45], [-5, 45]]},
]}


def path_of(root, folder, split, frame, suffix):
    path = os.path.join(str(root), folder, split, frame.split('_')[0], '%s_%s%s' % (frame, folder, suffix))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def add_image(root, split, frame):
    Image.new('RGB', (3, 3)).save(path_of(root, 'leftImg8bit', split, frame, '.png'))


def add_label(root, kind, split, frame, form='_labelIds.png'):
    path = path_of(root, kind, split, frame, form)
    if form.endswith('.json'):
        with open(path, 'w') as file:
            json.dump(ANNOTATION, file)
    else:
        Image.fromarray(TRAIN_IDS if form == SUFFIX else LABEL_IDS).save(path)
    return path


def add(root, kind, split, *frames):
    for frame in frames:
        add_image(root, split, frame)
        add_label(root, kind, split, frame, SUFFIX)


@pytest.fixture
def package(tmp_path):
    """Returns a folder with a stand-in for the package cityscapesscripts."""
    helpers = tmp_path / 'package' / 'cityscapesscripts' / 'helpers'
    helpers.mkdir(parents=True)
    for folder in (helpers, helpers.parent):
        (folder / '__init__.py').write_text('')
    (helpers / 'labels.py').write_text(STAND_IN)
    return str(tmp_path / 'package')


@pytest.fixture
def no_package(tmp_path):
    """Returns a folder that hides the package cityscapesscripts."""
    folder = tmp_path / 'hidden' / 'cityscapesscripts'
    folder.mkdir(parents=True)
    (folder / '__init__.py').write_text("raise ImportError('hidden')")
    return str(tmp_path / 'hidden')


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'cityscapes'


def convert(root, *args, **env):
    """Runs the script with --list_dir=root/../lists; returns (exit code, stdout, stderr)."""
    args = ['--cityscapes_dir=%s' % root, '--list_dir=%s' % (root.parent / 'lists')] + list(args)
    process = subprocess.run([sys.executable, 'convert_cityscapes.py'] + args, cwd=ROOT, env=dict(os.environ, **env),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert 'Traceback' not in process.stderr, process.stderr
    return process.returncode, process.stdout, process.stderr


def converted(root, package=''):
    code, out, err = convert(root, PYTHONPATH=package)
    assert code == 0, err
    return out, err


def refused(root, *args, **env):
    """Returns the one sentence of a run that must fail and leave no list."""
    code, _, err = convert(root, *args, **env)
    assert code == 1
    messages = [line for line in err.replace('\r', '\n').split('\n') if line.startswith('error: ')]
    assert len(messages) == 1, err
    assert not (root.parent / 'lists').is_dir() or os.listdir(str(root.parent / 'lists')) == []
    return messages[0]


def lists(root):
    """Returns {name of the list: its lines}."""
    folder = str(root.parent / 'lists')
    found = {}
    for name in os.listdir(folder):
        with open(os.path.join(folder, name)) as file:
            found[name[:-len('.txt')]] = file.read().split('\n')
    return found


def line(kind, split, frame):
    city = frame.split('_')[0]
    return '/leftImg8bit/{1}/{2}/{3}_leftImg8bit.png /{0}/{1}/{2}/{3}_{0}_labelTrainIds.png'.format(
        kind, split, city, frame)


def read(path):
    with Image.open(path) as image:
        assert image.mode == 'L'
        return np.array(image)


def test_all_lists(root):
    fine = ['aachen_000001_000019', 'bad-honnef_000000_000019']
    add(root, 'gtFine', 'train', *fine)
    add(root, 'gtCoarse', 'train', fine[0])
    add(root, 'gtFine', 'val', 'frankfurt_000000_000294')
    add(root, 'gtCoarse', 'val', 'frankfurt_000000_000294')
    add(root, 'gtCoarse', 'train_extra', 'augsburg_000000_000000', 'augsburg_000000_000001')
    add_image(root, 'test', 'berlin_000001_000019')
    add_image(root, 'test', 'berlin_000000_000019')
    add_label(root, 'gtFine', 'test', 'berlin_000000_000019')  # the benchmark's dummy labels must not be used
    out, err = converted(root)
    extra = [line('gtCoarse', 'train_extra', 'augsburg_000000_00000%d' % i) for i in range(2)]
    assert lists(root) == {
        'train_fine': [line('gtFine', 'train', frame) for frame in fine] + [''],
        'train_coarse': [line('gtCoarse', 'train', fine[0]), ''],
        'val_fine': [line('gtFine', 'val', 'frankfurt_000000_000294'), ''],
        'val_coarse': [line('gtCoarse', 'val', 'frankfurt_000000_000294'), ''],
        'train_extra': extra + [''],
        'train': [line('gtFine', 'train', frame) for frame in fine] + extra + [''],
        'test': ['/leftImg8bit/test/berlin/berlin_00000%d_000019_leftImg8bit.png' % i for i in range(2)] + [''],
    }
    assert sorted(lists(root)) == LISTS
    for name, count, complete in [
            ('train_fine', 2, 2975), ('val_fine', 1, 500), ('train_coarse', 1, 2975), ('val_coarse', 1, 500),
            ('train_extra', 2, 19998), ('test', 2, 1525), ('train', 4, 22973)]:
        assert '%s.txt: %d images' % (name, count) in out
        assert '%s.txt has %d images, but the complete data set has %d.' % (name, count, complete) in err
    for name in LISTS:
        source = read_labeled_image_list(str(root), str(root.parent / 'lists' / (name + '.txt')))
        check_files_exist(source, need_labels=name != 'test')


def test_complete_counts_are_not_reported(root):
    for i in range(500):
        frame = 'ulm_%06d_000019' % i
        for folder, suffix in (('leftImg8bit', '.png'), ('gtFine', SUFFIX)):
            open(path_of(root, folder, 'val', frame, suffix), 'w').close()
    out, err = converted(root)
    assert 'val_fine.txt: 500 images' in out
    assert err == ''


@pytest.mark.parametrize('kind, split, name', [
    ('gtFine', 'train', 'train_fine'), ('gtFine', 'val', 'val_fine'), ('gtCoarse', 'train', 'train_coarse'),
    ('gtCoarse', 'val', 'val_coarse'), ('gtCoarse', 'train_extra', 'train_extra'),
])
def test_one_split_alone(root, kind, split, name):
    add(root, kind, split, 'ulm_000000_000019')
    out, _ = converted(root)
    assert lists(root) == {name: [line(kind, split, 'ulm_000000_000019'), '']}
    absent = [line for line in out.splitlines() if 'not written' in line]
    assert len(absent) == 6
    assert any('train.txt: not written, as it combines train_fine and train_extra' in line for line in absent)


def test_test_images_alone(root):
    add_image(root, 'test', 'berlin_000000_000019')
    converted(root)
    assert list(lists(root)) == ['test']


def test_frames_without_partner_are_named(root):
    add(root, 'gtFine', 'train', 'ulm_000000_000019')
    add_image(root, 'train', 'ulm_000001_000019')
    add_label(root, 'gtFine', 'train', 'ulm_000002_000019', SUFFIX)
    add_label(root, 'gtFine', 'train', 'ulm_000003_000019', SUFFIX)
    _, err = converted(root)
    assert '1 images of leftImg8bit/train have no label in gtFine/train (ulm_000001_000019)' in err
    assert '2 labels of gtFine/train have no image in leftImg8bit/train (ulm_000002_000019, ulm_000003_000019)' in err
    assert lists(root)['train_fine'] == [line('gtFine', 'train', 'ulm_000000_000019'), '']


def test_other_files_are_passed_over(root):
    add(root, 'gtFine', 'val', 'ulm_000000_000019')
    for suffix in ('_color.png', '_instanceIds.png'):
        add_label(root, 'gtFine', 'val', 'ulm_000000_000019', suffix)
        add_label(root, 'gtFine', 'val', 'ulm_000009_000019', suffix)
    open(os.path.join(str(root), 'leftImg8bit', 'val', 'ulm', 'Thumbs.db'), 'w').close()
    open(os.path.join(str(root), 'leftImg8bit', 'val', 'ulm', 'holiday_leftImg8bit.png'), 'w').close()
    _, err = converted(root)
    assert lists(root)['val_fine'] == [line('gtFine', 'val', 'ulm_000000_000019'), '']
    assert 'have no' not in err


@pytest.mark.parametrize('kind', ['gtFine', 'gtCoarse'])
def test_labels_from_label_ids(root, package, kind):
    for frame in ('ulm_000000_000019', 'ulm_000001_000019'):
        add_image(root, 'train', frame)
        add_label(root, kind, 'train', frame)
        add_label(root, kind, 'train', frame, '_polygons.json')  # not read where there is a labelIds file
    out, _ = converted(root, package)
    made = read(path_of(root, kind, 'train', 'ulm_000000_000019', SUFFIX))
    np.testing.assert_array_equal(made, TRAIN_IDS)
    assert '2 *_labelTrainIds.png written, 0 already existed' in out
    folder = os.path.join(str(root), kind, 'train', 'ulm')
    assert len(os.listdir(folder)) == 6  # no other file is left


def test_second_run_makes_only_what_is_missing(root, package):
    for i in range(3):
        add_image(root, 'train', 'ulm_00000%d_000019' % i)
        add_label(root, 'gtFine', 'train', 'ulm_00000%d_000019' % i)
    converted(root, package)
    made = [path_of(root, 'gtFine', 'train', 'ulm_00000%d_000019' % i, SUFFIX) for i in range(3)]
    os.utime(made[0], (1, 1))
    os.remove(made[1])
    out, _ = converted(root, package)
    assert '1 *_labelTrainIds.png written, 2 already existed' in out
    assert os.stat(made[0]).st_mtime == 1
    np.testing.assert_array_equal(read(made[1]), TRAIN_IDS)


def test_labels_from_polygons(root, package):
    add_image(root, 'val', 'ulm_000000_000019')
    add_label(root, 'gtCoarse', 'val', 'ulm_000000_000019', '_polygons.json')
    converted(root, package)
    label = read(path_of(root, 'gtCoarse', 'val', 'ulm_000000_000019', SUFFIX))
    assert label.shape == (40, 60)
    assert label[0, 0] == 255  # nothing is drawn there; the sky was deleted
    assert label[25, 5] == 0  # road
    assert label[15, 15] == label[25, 17] == 13  # a car and its license plate
    assert label[8, 45] == 11  # a group of persons
    assert label[25, 54] == label[37, 3] == 255  # poles in a group, caravan
    expected = Image.new('L', (60, 40), 255)
    draw = ImageDraw.Draw(expected)
    for i, value in [(0, 0), (1, 13), (4, 11), (5, 255), (6, 255)]:
        draw.polygon([tuple(point) for point in ANNOTATION['objects'][i]['polygon']], fill=value)
    np.testing.assert_array_equal(label, np.asarray(expected))


def test_labels_are_the_packages_own(root):
    json2label = pytest.importorskip('cityscapesscripts.preparation.json2labelImg',
                                     reason='cityscapesscripts is not installed')
    add_image(root, 'val', 'ulm_000000_000019')
    polygons = add_label(root, 'gtFine', 'val', 'ulm_000000_000019', '_polygons.json')
    converted(root, os.environ.get('PYTHONPATH', ''))
    official = str(root / 'official.png')
    json2label.json2labelImg(polygons, official, 'trainIds')
    np.testing.assert_array_equal(read(polygons.replace('_polygons.json', SUFFIX)), np.asarray(Image.open(official)))


def test_without_the_package(root, no_package):
    add_image(root, 'train', 'ulm_000000_000019')
    add_label(root, 'gtFine', 'train', 'ulm_000000_000019')
    assert 'pip install cityscapesscripts' in refused(root, PYTHONPATH=no_package)
    add_label(root, 'gtFine', 'train', 'ulm_000000_000019', SUFFIX)
    converted(root, no_package)  # no label is missing, so the package is not needed


def truncate(path):
    with open(path, 'r+b') as file:
        file.truncate(30)


def unknown_id(path):
    Image.fromarray(np.full([3, 3], 77, np.uint8)).save(path)


def colours(path):
    Image.new('RGB', (3, 3)).save(path)


def sixteen_bits(path):
    Image.fromarray(np.full([3, 3], 700, np.uint16)).save(path)


@pytest.mark.parametrize('damage', [truncate, unknown_id, colours, sixteen_bits])
def test_bad_label_ids(root, package, damage):
    for i in range(3):
        add_image(root, 'train', 'ulm_00000%d_000019' % i)
        path = add_label(root, 'gtFine', 'train', 'ulm_00000%d_000019' % i)
    damage(path)
    message = refused(root, PYTHONPATH=package)
    assert quoted(path) in message
    assert '1 labels' in message
    assert not os.path.exists(path.replace('_labelIds.png', SUFFIX))
    np.testing.assert_array_equal(read(path_of(root, 'gtFine', 'train', 'ulm_000000_000019', SUFFIX)), TRAIN_IDS)


@pytest.mark.parametrize('text', [
    '', '[]', '{}', '{"imgWidth": 3, "imgHeight"', '{"imgWidth": 3, "imgHeight": 3, "objects": 7}', '\xff',
    '{"imgWidth": 3, "imgHeight": 3, "objects": [{"label": "unicorn", "polygon": [[0, 0], [1, 1], [0, 1]]}]}',
    '{"imgWidth": 3, "imgHeight": 3, "objects": [{"label": "road", "polygon": [[0], [1, 1], [0, 1]]}]}',
    '{"imgWidth": 3, "imgHeight": 3, "objects": [{"label": "road", "polygon": [["a", "b"], [1, 1], [0, 1]]}]}',
    '{"imgWidth": 3, "imgHeight": 3, "objects": [{"label": "road", "polygon": []}]}',
    '{"imgWidth": "3", "imgHeight": 3, "objects": []}', '{"imgWidth": -3, "imgHeight": 3, "objects": []}',
    '{"imgWidth": 200000, "imgHeight": 200000, "objects": []}', '[' * 100000,
], ids=range(14))
def test_bad_polygons(root, package, text):
    add_image(root, 'train', 'ulm_000000_000019')
    path = path_of(root, 'gtFine', 'train', 'ulm_000000_000019', '_polygons.json')
    with open(path, 'w', encoding='latin-1') as file:
        file.write(text)
    assert quoted(path) in refused(root, PYTHONPATH=package)


def test_a_label_that_is_no_regular_file(root, package):
    add_image(root, 'train', 'ulm_000000_000019')
    path = path_of(root, 'gtFine', 'train', 'ulm_000000_000019', '_labelIds.png')
    os.mkfifo(path)
    message = refused(root, PYTHONPATH=package)
    assert quoted(path) in message
    assert 'FIFO' in message


def test_wrong_folders(root, tmp_path):
    assert '--cityscapes_dir' in refused(root)
    (root / 'leftImg8bit').mkdir(parents=True)
    message = refused(root)
    assert '--cityscapes_dir' in message
    assert 'gtFine' in message
    add_image(root, 'train', 'ulm_000000_000019')
    assert 'gtFine' in refused(root)  # images alone are not enough for training
    script = [sys.executable, 'convert_cityscapes.py', '--list_dir=%s' % (tmp_path / 'lists')]
    process = subprocess.run(script, cwd=ROOT, stderr=subprocess.PIPE, universal_newlines=True)
    assert process.returncode == 1
    assert 'error: --cityscapes_dir' in process.stderr


def test_brackets_in_the_path(tmp_path):
    root = tmp_path / 'city [1]' / 'cityscapes'
    add(root, 'gtFine', 'train', 'ulm_000000_000019')
    converted(root)
    assert lists(root)['train_fine'] == [line('gtFine', 'train', 'ulm_000000_000019'), '']
