"""dataset/sample, and tools/make_sample.py, which paints it."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tools import make_sample

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')
NUM_CLASSES = 6


def read_list(name):
    """Returns pairs of absolute paths of an image and its label."""
    with open(os.path.join(SAMPLE, name)) as file:
        return [[SAMPLE + part for part in line.split()] for line in file]


def start_script(*arguments):
    script = os.path.join(ROOT, 'tools', 'make_sample.py')
    return subprocess.Popen([sys.executable, script] + list(arguments), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True)


def run_script(*arguments):
    """Runs make_sample.py; returns its exit code and stderr."""
    process = start_script(*arguments)
    _, err = process.communicate()
    return process.returncode, err


def test_lists_name_every_file_once_and_in_order():
    train, val = read_list('train.txt'), read_list('val.txt')
    assert (len(train), len(val)) == (60, 20)
    assert train == sorted(train)
    assert val == sorted(val)
    for column, folder in enumerate(('JPEGImages', 'SegmentationClassAug')):
        found = sorted(os.path.join(SAMPLE, folder, name) for name in os.listdir(os.path.join(SAMPLE, folder)))
        assert found == sorted(pair[column] for pair in train + val)


def test_sample_is_small():
    sizes = [os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(SAMPLE) for name in names]
    assert sum(sizes) < 2e6


def test_images_and_labels_fit():
    shapes = set()
    for image_path, label_path in read_list('train.txt') + read_list('val.txt'):
        image, label = Image.open(image_path), Image.open(label_path)
        assert (image.mode, label.mode) == ('RGB', 'P')
        assert image.size == label.size
        shapes.add(image.size)
        values = set(np.unique(np.asarray(label)).tolist())
        assert values <= set(range(NUM_CLASSES)) | {255}
        assert {0, 255} < values
    assert len(shapes) > 2


def test_palette_is_that_of_classes_txt():
    with open(os.path.join(SAMPLE, 'classes.txt')) as file:
        rows = [line.split() for line in file]
    assert len(rows) == NUM_CLASSES
    assert rows[0] == ['background', '0', '0', '0']
    colours = [int(value) for row in rows for value in row[1:]]
    for _, label_path in read_list('val.txt'):
        assert Image.open(label_path).getpalette()[:3 * NUM_CLASSES] == colours


@pytest.mark.parametrize('name', ['train.txt', 'val.txt'])
def test_classes_are_balanced(name):
    counts = sum(np.bincount(np.asarray(Image.open(label)).ravel(), minlength=256) for _, label in read_list(name))
    shares = counts / counts.sum()
    assert 0.40 < shares[0] < 0.55
    assert (shares[1:NUM_CLASSES] > 0.06).all()
    assert (shares[1:NUM_CLASSES] < 0.13).all()
    assert 0.03 < shares[255] < 0.10


def test_border_lies_exactly_between_differing_instances():
    instances = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 1, 2]])
    labels = make_sample.add_border(np.minimum(instances, 1), instances)
    assert labels.tolist() == [[0, 0, 255, 255, 255], [0, 0, 255, 255, 255]]


def test_the_seed_repaints_the_committed_sample():
    """Floating-point rounding may depend on the machine, so a few pixels may differ slightly."""
    painted = zip(read_list('train.txt')[:3], make_sample.scenes(0))
    for (image_path, label_path), (name, image, labels) in painted:
        assert name in image_path
        assert (labels != np.asarray(Image.open(label_path))).mean() < 0.001
        assert np.abs(image - np.asarray(Image.open(image_path)).astype(float)).mean() < 8  # the loss of JPEG


def test_other_seed_paints_other_scenes():
    first, second = (next(make_sample.scenes(seed)) for seed in (0, 1))
    assert first[1].shape != second[1].shape or (first[1] != second[1]).any()


def test_script_writes_what_main_needs_and_leaves_no_temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(make_sample, 'NUM_TRAIN', 2)
    monkeypatch.setattr(make_sample, 'NUM_VAL', 1)
    (tmp_path / 'work').mkdir()
    make_sample.write_sample(str(tmp_path / 'work'), 5)
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine.txt').write_text('kept')
    make_sample.move_files(str(tmp_path / 'work'), str(tmp_path / 'out'))
    assert sorted(os.listdir(str(tmp_path / 'out'))) == [
        'JPEGImages', 'SegmentationClassAug', 'classes.txt', 'mine.txt', 'train.txt', 'val.txt']
    assert len((tmp_path / 'out' / 'train.txt').read_text().splitlines()) == 2
    assert len(os.listdir(str(tmp_path / 'out' / 'JPEGImages'))) == 3


def test_interrupted_script_leaves_nothing(tmp_path):
    process = start_script('--out_dir=%s' % tmp_path)
    while process.poll() is None and not list(tmp_path.glob('.sample-*/JPEGImages/*.jpg')):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert 'Traceback' not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('tail', ['', '/below'])
def test_bad_out_dir_ends_with_a_sentence(tmp_path, tail):
    (tmp_path / 'file').write_text('kept')
    code, err = run_script('--out_dir=%s%s' % (tmp_path / 'file', tail))
    assert code == 1
    assert err.startswith('error: --out_dir=')
    assert len(err.strip().splitlines()) == 1
    assert (tmp_path / 'file').read_text() == 'kept'


@pytest.mark.parametrize('argument', ['--seed=-1', '--seed=x', '--out=there'])
def test_bad_flag_ends_with_a_sentence(argument):
    code, err = run_script(argument)
    assert code == 1
    assert err.startswith('error: ')
    assert 'Traceback' not in err
