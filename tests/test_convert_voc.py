"""Runs convert_voc.py as a command, on small trees with the real layouts of VOCdevkit and benchmark_RELEASE."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image

from utils.data.data_lists import check_files_exist, read_labeled_image_list
from utils.data.palette import voc_colours

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

TRAIN = ['2007_000032', '2008_000008', '2011_003271']
VAL = ['2007_000033', '2009_000012']
TEST = ['2008_000006', '2007_000061']
SBD_TRAIN = ['2008_000002', '2008_000008', '2009_000012']  # one is in VOC's train as well, one in VOC's val
SBD_VAL = ['2010_000001', '2007_000033']


def label_of(key, author):
    """Returns a label whose values tell which image it belongs to and who made it."""
    height, width = 6 + int(key[-1]) % 3, 9
    label = np.zeros([height, width], np.uint8)
    label[1:3] = int(key[-2:]) % 20 + 1
    label[3:5, 2:] = {'voc': 20, 'sbd': 19}[author]
    if author == 'voc':
        label[0] = 255
    return label


def write_ids(path, ids):
    with open(path, 'w') as file:
        file.writelines(key + '\n' for key in ids)


def make_voc(folder, test=True):
    voc = os.path.join(str(folder), 'VOCdevkit', 'VOC2012')
    for name in ('Annotations', 'ImageSets/Segmentation', 'JPEGImages', 'SegmentationClass', 'SegmentationObject'):
        os.makedirs(os.path.join(voc, name))
    lists = {'train': TRAIN, 'val': VAL, 'trainval': sorted(TRAIN + VAL)}
    if test:
        lists['test'] = TEST
    for name, ids in lists.items():
        write_ids(os.path.join(voc, 'ImageSets', 'Segmentation', name + '.txt'), ids)
    for key in set(TRAIN + VAL + TEST + SBD_TRAIN + SBD_VAL):
        image = Image.new('RGB', label_of(key, 'voc').shape[::-1])
        image.save(os.path.join(voc, 'JPEGImages', key + '.jpg'))
    for key in TRAIN + VAL:
        image = Image.fromarray(label_of(key, 'voc'))
        image.putpalette(voc_colours().ravel().tolist())
        image.save(os.path.join(voc, 'SegmentationClass', key + '.png'))
    return voc


def make_sbd(folder):
    sbd = os.path.join(str(folder), 'benchmark_RELEASE', 'dataset')
    for name in ('cls', 'img', 'inst'):
        os.makedirs(os.path.join(sbd, name))
    write_ids(os.path.join(sbd, 'train.txt'), SBD_TRAIN)
    write_ids(os.path.join(sbd, 'val.txt'), SBD_VAL)
    for key in SBD_TRAIN + SBD_VAL:
        label = label_of(key, 'sbd')
        boundaries = np.empty([20, 1], object)
        for i in range(20):
            boundaries[i, 0] = scipy.sparse.csc_matrix(label == i + 1, dtype=np.float64)
        present = np.array(sorted(set(label.ravel()) - {0}), np.uint8).reshape(-1, 1)
        scipy.io.savemat(os.path.join(sbd, 'cls', key + '.mat'), {
            'GTcls': {'Boundaries': boundaries, 'Segmentation': label, 'CategoriesPresent': present}},
            do_compression=True)
        open(os.path.join(sbd, 'img', key + '.jpg'), 'w').close()
    return sbd


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path)


@pytest.fixture
def sbd(tmp_path):
    return make_sbd(tmp_path)


def convert(folder, *args):
    """Runs the script with --list_dir=folder/lists; returns (exit code, stdout, stderr)."""
    process = subprocess.run([sys.executable, 'convert_voc.py', '--list_dir=%s' % (folder / 'lists')] + list(args),
                             cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert 'Traceback' not in process.stderr, process.stderr
    return process.returncode, process.stdout, process.stderr


def converted(folder, *args):
    code, out, err = convert(folder, *args)
    assert code == 0, err
    return out, err


def refused(folder, *args):
    """Returns the one sentence of a run that must fail and leave no list."""
    code, _, err = convert(folder, *args)
    assert code == 1
    messages = [line for line in err.replace('\r', '\n').split('\n') if line.startswith('error: ')]
    assert len(messages) == 1, err
    assert not os.path.isdir(str(folder / 'lists')) or os.listdir(str(folder / 'lists')) == []
    return messages[0]


def lines(folder, name):
    with open(str(folder / 'lists' / (name + '.txt'))) as file:
        return file.read().split('\n')


def pair_lines(ids):
    return ['/JPEGImages/%s.jpg /SegmentationClassAug/%s.png' % (key, key) for key in sorted(ids)] + ['']


def labels(voc):
    """Returns {id: (Pillow mode, array)} of the labels that the script wrote."""
    made = {}
    for name in os.listdir(os.path.join(voc, 'SegmentationClassAug')):
        assert name.endswith('.png'), name
        with Image.open(os.path.join(voc, 'SegmentationClassAug', name)) as image:
            made[name[:-4]] = image.mode, np.array(image)
    return made


def test_voc_alone(tmp_path, voc):
    out, err = converted(tmp_path, '--voc_dir=' + voc)
    assert sorted(os.listdir(str(tmp_path / 'lists'))) == ['test.txt', 'train.txt', 'trainval.txt', 'val.txt']
    assert lines(tmp_path, 'train') == pair_lines(TRAIN)
    assert lines(tmp_path, 'val') == pair_lines(VAL)
    assert lines(tmp_path, 'trainval') == pair_lines(TRAIN + VAL)
    assert lines(tmp_path, 'test') == ['/JPEGImages/%s.jpg' % key for key in sorted(TEST)] + ['']
    made = labels(voc)
    assert sorted(made) == sorted(TRAIN + VAL)
    for key, (mode, label) in made.items():
        assert mode == 'L'
        np.testing.assert_array_equal(label, label_of(key, 'voc'))
    assert 'train.txt: 3 images' in out
    assert 'with --sbd_dir there are 10582' in out
    for name, count, published in [('train', 3, 1464), ('val', 2, 1449), ('trainval', 5, 2913), ('test', 2, 1456)]:
        assert '%s.txt has %d images, but the published list has %d' % (name, count, published) in err


def test_with_sbd(tmp_path, voc, sbd):
    out, err = converted(tmp_path, '--voc_dir=' + voc, '--sbd_dir=' + sbd)
    train = (set(TRAIN) | set(SBD_TRAIN) | set(SBD_VAL)) - set(VAL)
    assert lines(tmp_path, 'train') == pair_lines(train)
    assert lines(tmp_path, 'val') == pair_lines(VAL)
    assert lines(tmp_path, 'trainval') == pair_lines(train | set(VAL))
    assert lines(tmp_path, 'test') == ['/JPEGImages/%s.jpg' % key for key in sorted(TEST)] + ['']
    made = labels(voc)
    assert set(made) == train | set(VAL)
    for key, (mode, label) in made.items():
        assert mode == 'L'
        np.testing.assert_array_equal(label, label_of(key, 'voc' if key in TRAIN + VAL else 'sbd'))
    assert '7 labels written, 0 already existed' in out
    assert '--sbd_dir' not in out
    for name, count, published in [('train', 5, 10582), ('val', 2, 1449), ('trainval', 7, 12031)]:
        assert '%s.txt has %d images, but the published list has %d' % (name, count, published) in err
    assert 'missing' not in err


def test_lists_can_be_read_and_name_files_that_exist(tmp_path, voc, sbd):
    converted(tmp_path, '--voc_dir=' + voc, '--sbd_dir=' + sbd)
    for name in ('train', 'val', 'trainval', 'test'):
        source = read_labeled_image_list(voc, str(tmp_path / 'lists' / (name + '.txt')))
        check_files_exist(source, need_labels=name != 'test')


def test_published_counts_are_not_reported(tmp_path, voc):
    ids = ['2006_%06d' % i for i in range(1449)]
    write_ids(os.path.join(voc, 'ImageSets', 'Segmentation', 'val.txt'), ids)
    for key in ids:
        shutil.copy(os.path.join(voc, 'SegmentationClass', VAL[0] + '.png'),
                    os.path.join(voc, 'SegmentationClass', key + '.png'))
        open(os.path.join(voc, 'JPEGImages', key + '.jpg'), 'w').close()
    out, err = converted(tmp_path, '--voc_dir=' + voc)
    assert 'val.txt: 1449 images' in out
    assert '/val.txt has' not in err


def test_second_run_makes_only_what_is_missing(tmp_path, voc, sbd):
    args = '--voc_dir=' + voc, '--sbd_dir=' + sbd
    converted(tmp_path, *args)
    label_dir = os.path.join(voc, 'SegmentationClassAug')
    os.remove(os.path.join(label_dir, TRAIN[0] + '.png'))
    with open(os.path.join(label_dir, SBD_VAL[0] + '.png'), 'r+b') as file:  # cut the file short
        file.truncate(30)
    shutil.copy(os.path.join(voc, 'SegmentationClass', VAL[0] + '.png'), label_dir)  # colour-mapped
    kept = os.path.join(label_dir, TRAIN[1] + '.png')
    os.utime(kept, (1, 1))
    out, _ = converted(tmp_path, *args)
    assert '3 labels written, 4 already existed' in out
    assert os.stat(kept).st_mtime == 1
    for key, (mode, label) in labels(voc).items():
        assert mode == 'L'
        np.testing.assert_array_equal(label, label_of(key, 'voc' if key in TRAIN + VAL else 'sbd'))


def test_adding_sbd_later(tmp_path, voc, sbd):
    converted(tmp_path, '--voc_dir=' + voc)
    out, _ = converted(tmp_path, '--voc_dir=' + voc, '--sbd_dir=' + sbd)
    assert '2 labels written, 5 already existed' in out
    assert len(lines(tmp_path, 'train')) == 6


def test_folders_above_are_understood(tmp_path, voc, sbd):
    above = [os.path.dirname(voc), os.path.dirname(os.path.dirname(voc))]
    for folder in above:
        converted(tmp_path, '--voc_dir=' + folder, '--sbd_dir=' + os.path.dirname(sbd))
        assert len(lines(tmp_path, 'train')) == 6


def test_colour_coded_voc_labels(tmp_path, voc):
    path = os.path.join(voc, 'SegmentationClass', TRAIN[0] + '.png')
    Image.open(path).convert('RGB').save(path)
    converted(tmp_path, '--voc_dir=' + voc)
    np.testing.assert_array_equal(labels(voc)[TRAIN[0]][1], label_of(TRAIN[0], 'voc'))


def test_without_test_images(tmp_path):
    voc = make_voc(tmp_path, test=False)
    _, err = converted(tmp_path, '--voc_dir=' + voc)
    assert sorted(os.listdir(str(tmp_path / 'lists'))) == ['train.txt', 'trainval.txt', 'val.txt']
    assert 'test.txt is not written' in err


def test_images_that_are_missing_are_reported(tmp_path, voc, sbd):
    os.remove(os.path.join(voc, 'JPEGImages', SBD_VAL[0] + '.jpg'))
    _, err = converted(tmp_path, '--voc_dir=' + voc, '--sbd_dir=' + sbd)
    assert '1 images in the lists are missing in JPEGImages (%s)' % SBD_VAL[0] in err


def test_labels_that_are_missing_are_reported_and_left_out(tmp_path, voc, sbd):
    for key in (TRAIN[0], TRAIN[1], VAL[1]):  # SBD labels the last two
        os.remove(os.path.join(voc, 'SegmentationClass', key + '.png'))
    os.remove(os.path.join(sbd, 'cls', SBD_VAL[0] + '.mat'))
    _, err = converted(tmp_path, '--voc_dir=' + voc, '--sbd_dir=' + sbd)
    assert "3 VOC images without a label in SegmentationClass" in err
    assert 'SBD lists 1 images without a file in cls (%s)' % SBD_VAL[0] in err
    assert lines(tmp_path, 'train') == pair_lines([TRAIN[1], TRAIN[2], SBD_TRAIN[0]])
    assert lines(tmp_path, 'val') == pair_lines(VAL[:1])  # images that only SBD labels are not used for validation
    np.testing.assert_array_equal(labels(voc)[TRAIN[1]][1], label_of(TRAIN[1], 'sbd'))


def test_windows_line_ends_in_the_id_lists(tmp_path, voc):
    path = os.path.join(voc, 'ImageSets', 'Segmentation', 'train.txt')
    with open(path, 'wb') as file:
        file.write('\r\n'.join(TRAIN + ['', '']).encode())
    converted(tmp_path, '--voc_dir=' + voc)
    assert lines(tmp_path, 'train') == pair_lines(TRAIN)


def test_wrong_folders(tmp_path, voc, sbd):
    message = refused(tmp_path, '--voc_dir=%s' % (tmp_path / 'absent'))
    assert '--voc_dir' in message
    assert 'ImageSets/Segmentation' in message
    assert '--voc_dir' in refused(tmp_path)
    assert '--voc_dir' in refused(tmp_path, '--voc_dir=' + sbd)
    message = refused(tmp_path, '--voc_dir=' + voc, '--sbd_dir=' + voc)
    assert '--sbd_dir' in message
    assert 'cls' in message


def test_unknown_flags_are_refused(tmp_path, voc):
    message = refused(tmp_path, '--voc=' + voc)
    assert '--voc_dir' in message


def test_missing_id_list(tmp_path, voc):
    os.remove(os.path.join(voc, 'ImageSets', 'Segmentation', 'val.txt'))
    assert 'val.txt' in refused(tmp_path, '--voc_dir=' + voc)


@pytest.mark.parametrize('kind', ['fifo', 'binary'])
def test_bad_id_list(tmp_path, voc, kind):
    path = os.path.join(voc, 'ImageSets', 'Segmentation', 'val.txt')
    if kind == 'fifo':
        fifo(path)
    else:
        with open(path, 'wb') as file:
            file.write(bytes(bytearray(range(256))))
    assert 'val.txt' in refused(tmp_path, '--voc_dir=' + voc)


def break_mat(sbd):
    with open(os.path.join(sbd, 'cls', SBD_VAL[0] + '.mat'), 'r+b') as file:
        file.truncate(200)


def empty_mat(sbd):
    open(os.path.join(sbd, 'cls', SBD_VAL[0] + '.mat'), 'w').close()


def other_mat(sbd):
    scipy.io.savemat(os.path.join(sbd, 'cls', SBD_VAL[0] + '.mat'), {'GTinst': {'Segmentation': np.zeros([2, 2])}})


def flat_mat(sbd):
    scipy.io.savemat(os.path.join(sbd, 'cls', SBD_VAL[0] + '.mat'), {'GTcls': np.zeros([2, 2], np.uint8)})


def strange_mat(sbd):
    scipy.io.savemat(os.path.join(sbd, 'cls', SBD_VAL[0] + '.mat'), {
        'GTcls': {'Segmentation': np.full([2, 2], 33, np.uint8)}})


def half_mat(sbd):
    scipy.io.savemat(os.path.join(sbd, 'cls', SBD_VAL[0] + '.mat'), {
        'GTcls': {'Segmentation': np.full([2, 2], 0.5)}})


def test_sbd_labels_saved_as_floating_point(tmp_path, voc, sbd):
    label = label_of(SBD_VAL[0], 'sbd')
    scipy.io.savemat(os.path.join(sbd, 'cls', SBD_VAL[0] + '.mat'), {'GTcls': {'Segmentation': label.astype(float)}})
    converted(tmp_path, '--voc_dir=' + voc, '--sbd_dir=' + sbd)
    np.testing.assert_array_equal(labels(voc)[SBD_VAL[0]][1], label)


@pytest.mark.parametrize('damage', [break_mat, empty_mat, other_mat, flat_mat, strange_mat, half_mat])
def test_bad_labels_of_sbd(tmp_path, voc, sbd, damage):
    damage(sbd)
    message = refused(tmp_path, '--voc_dir=' + voc, '--sbd_dir=' + sbd)
    assert SBD_VAL[0] + '.mat' in message
    assert '1 labels' in message
    assert len(labels(voc)) == 6  # the other labels are kept for the next run
    shutil.rmtree(sbd)
    make_sbd(tmp_path / 'again')
    out, _ = converted(tmp_path, '--voc_dir=' + voc, '--sbd_dir=%s' % (tmp_path / 'again'))
    assert '1 labels written, 6 already existed' in out


def truncated(path):
    with open(path, 'r+b') as file:
        file.truncate(60)


def unknown_colour(path):
    Image.fromarray(voc_colours()[np.array([[0, 1, 99]])]).save(path)


def fifo(path):
    os.remove(path)
    os.mkfifo(path)


@pytest.mark.parametrize('damage', [truncated, unknown_colour, fifo])
def test_bad_label_of_voc(tmp_path, voc, damage):
    damage(os.path.join(voc, 'SegmentationClass', VAL[0] + '.png'))
    assert VAL[0] + '.png' in refused(tmp_path, '--voc_dir=' + voc)


def test_place_that_cannot_be_written(tmp_path, voc):
    (tmp_path / 'lists').write_text('a file')
    code, _, err = convert(tmp_path, '--voc_dir=' + voc)
    assert code == 1
    assert '--list_dir' in err
