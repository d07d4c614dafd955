"""convert_annotations.py through its command line."""

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from utils.data.data_lists import check_files_exist, list_line, read_labeled_image_list
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(script, *args):
    process = subprocess.run([sys.executable, script] + list(args), cwd=ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, universal_newlines=True)
    assert 'Traceback' not in process.stderr, process.stderr
    return process.returncode, process.stdout, process.stderr


def paint(folder, *names):
    for name in names:
        os.makedirs(os.path.dirname(str(folder / name)), exist_ok=True)
        pixels = np.zeros([8, 9] + [3] * name.startswith('images'), np.uint8)
        pixels[2:] = 1
        Image.fromarray(pixels).save(str(folder / name))


def make_list(folder, *args):
    return run('convert_annotations.py', '--make_list', str(folder / 'images'), str(folder / 'labels'), *args)


def read(folder, name):
    source = read_labeled_image_list(str(folder), str(folder / (name + '.txt')))
    check_files_exist(source, True)
    return [tuple(os.path.relpath(path, str(folder)) for path in pair) for pair in zip(source.images, source.labels)]


def test_lists_pair_by_name_and_subfolder_and_are_read_back(tmp_path):
    wanted = [('images/a b.jpg', 'labels/a b_mask.png'), ('images/c.jpg', 'labels/c.png'),
              ("images/it's 'one' x.jpg", "labels/it's 'one' x.png"), ('images/s/c.jpg', 'labels/s/c-label.png'),
              ('images/z_000000_000019_leftImg8bit.png', 'labels/z_000000_000019_gtFine_labelTrainIds.png')]
    paint(tmp_path, *[name for pair in wanted for name in pair] + ['images/alone.jpg', 'labels/single.png'])
    code, out, err = make_list(tmp_path)
    assert code == 0, err
    train, val = read(tmp_path, 'train'), read(tmp_path, 'val')
    assert len(val) == 1 and sorted(train + val) == sorted(wanted)
    assert '1 images have no label (alone.jpg)' in err and '1 labels have no image (single.png)' in err
    command = shlex.split(out.splitlines()[-1].replace('=N ', '=2 '))
    code, checked, err = run(*command[1:])
    assert code == 0 and 'images 4, labels 4' in checked, err


def test_the_seed_decides_the_split_and_earlier_lists_are_kept(tmp_path):
    paint(tmp_path, *['%s/%d.png' % (folder, i) for folder in ('images', 'labels') for i in range(20)])
    drawn = []
    for seed in '001':
        code, out, err = make_list(tmp_path, '--seed=' + seed, '--val_fraction=0.3')
        assert code == 0, err
        drawn.append(read(tmp_path, 'val'))
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 6
    assert 'train.txt.old2' in out and (tmp_path / 'val.txt.old').exists()
    assert make_list(tmp_path, '--val_fraction=0')[0] == 0
    assert len(read(tmp_path, 'train')) == 20 and not (tmp_path / 'val.txt').exists()


@pytest.mark.parametrize('names, told', [
    (['images/a.jpg', 'labels/a.png', 'labels/a_mask.png'], 'not clear'),
    (['images/a.jpg', 'labels/a_label.png', 'labels/a_mask.png'], 'not clear'),
    (['images/a.jpg', 'images/a.png', 'labels/a.png'], 'not clear'),
    (['images/a.jpg', 'labels/b.png'], 'no image has a label'),
    (['images/a.jpg'], '--label_dir'),
])
def test_what_cannot_be_paired_is_refused_and_no_list_written(tmp_path, names, told):
    paint(tmp_path, *names)
    code, _, err = make_list(tmp_path)
    message = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 1 and len(message) == 1 and told in message[0] and len(message[0]) < 300, err
    assert not list(tmp_path.glob('*.txt'))


def test_a_path_that_no_line_can_hold_is_refused():
    assert list_line('a b', '#c') == '"a b" "#c"'
    for path in ('a\nb', 'a\tb', 'a\0b'):
        with pytest.raises(UserError, match='rename'):
            list_line(path, 'c')
