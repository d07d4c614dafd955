"""utils/data/palette.py: colours, names and label ids."""

import os

import numpy as np
import pytest

from utils.data.palette import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_VOID_COLOURS,
    VOC_NAMES,
    benchmark_name,
    cityscapes_frame,
    load_classes,
    load_palette,
    train_ids_to_label_ids,
    voc_colours,
)
from utils.system.errors import UserError, quoted

# The table in VOC 2012's development kit: the 21 classes, and void as entry 255.
VOC_TABLE = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
    (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128),
    (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
]


def write(folder, text, name='classes.txt'):
    path = str(folder / name)
    with open(path, 'wb') as file:
        file.write(text.encode('utf-8'))
    return path


def test_voc_colours_are_the_development_kits():
    colours = voc_colours()
    assert colours.dtype == np.uint8
    assert colours.shape == (256, 3)
    np.testing.assert_array_equal(colours[:21], VOC_TABLE)
    np.testing.assert_array_equal(colours[255], (224, 224, 192))


def test_voc_colours_differ():
    assert len({tuple(colour) for colour in voc_colours()}) == 256
    np.testing.assert_array_equal(voc_colours(7), voc_colours()[:7])


@pytest.mark.parametrize('spec', ['', 'voc'])
def test_voc_palette_has_names_for_21_classes_only(spec):
    palette = load_palette(spec, 21)
    np.testing.assert_array_equal(palette.colours, voc_colours())
    assert palette.names == VOC_NAMES
    assert (palette.names[0], palette.names[15], len(palette.names)) == ('background', 'person', 21)
    for num_classes in (2, 22, 256):
        assert load_palette(spec, num_classes).names is None
    assert palette.named == (spec == 'voc')


def test_cityscapes_palette():
    palette = load_palette('cityscapes', 19)
    assert (palette.colours.shape, palette.colours.dtype) == ((256, 3), np.uint8)
    assert (palette.names[0], palette.names[6], palette.names[18]) == ('road', 'traffic light', 'bicycle')
    np.testing.assert_array_equal(palette.colours[[0, 10, 18]], [(128, 64, 128), (70, 130, 180), (119, 11, 32)])
    assert (palette.colours[19:] == 255).all()
    assert not {tuple(colour) for colour in palette.colours[:19]} & set(palette.void)


def test_cocostuff_palette():
    """Class k has the official id k + 1: COCO's 91 things, then the stuff in alphabetic order."""
    palette = load_palette('cocostuff', 182)
    names = palette.names
    assert len(names) == len(set(names)) == 182 and names[91:] == sorted(names[91:])
    for official, name in {1: 'person', 12: 'street sign', 18: 'dog', 26: 'hat', 29: 'shoe', 44: 'bottle', 62: 'chair',
                           66: 'mirror', 72: 'tv', 83: 'blender', 90: 'toothbrush', 91: 'hair brush', 92: 'banner',
                           106: 'clouds', 124: 'grass', 149: 'road', 157: 'sky-other', 169: 'tree'}.items():
        assert names[official - 1] == name
    np.testing.assert_array_equal(palette.colours[:182], voc_colours()[1:183])
    assert not {tuple(colour) for colour in palette.colours[:182]} & set(palette.void)
    with pytest.raises(UserError, match='cocostuff has 182 classes, fewer than --num_classes=183'):
        load_palette('cocostuff', 183)


def test_file(tmp_path):
    path = write(tmp_path, '\ufeff# a comment\r\n\r\nroad 1 2 3\r\n  traffic light\t250 170  30\r\nsky 0 0 0\r\n')
    palette = load_palette(path, 3)
    assert palette.names == ['road', 'traffic light', 'sky']
    np.testing.assert_array_equal(palette.colours[:4], [(1, 2, 3), (250, 170, 30), (0, 0, 0), (255, 255, 255)])
    assert palette.named
    palette = load_palette(path, 2)
    assert palette.names == ['road', 'traffic light']
    assert (palette.colours[2:] == 255).all()
    assert (0, 0, 0) in palette.void


def test_lines_beyond_the_classes_are_void(tmp_path):
    path = write(tmp_path, ''.join('c %d %d 9\n' % divmod(i, 256) for i in range(300)))
    palette = load_palette(path, 250)
    assert len(palette.names) == 250
    assert {(0, 250, 9), (1, 43, 9)} <= set(palette.void)
    assert (0, 249, 9) not in palette.void


def test_load_classes():
    classes = load_classes(19, -1, 'cityscapes')
    assert (classes.num_classes, classes.ignore_label, classes.palette.names[18]) == (19, -1, 'bicycle')
    for ignore_label in (2 ** 31, -2 ** 31 - 1):
        with pytest.raises(UserError, match='--ignore_label=%d' % ignore_label):
            load_classes(21, ignore_label)


@pytest.mark.parametrize('text, words', [
    ('road 1 2 3\nsky 4 5\n', 'line 2'),
    ('road 1 2 256\n', 'line 1'),
    ('road 1 2 -3\n', 'line 1'),
    ('road 1 2 3.5\n', 'line 1'),
    ('road 1 2 \u00b2\n', 'line 1'),
    ('1 2 3\n', 'line 1'),
    ('# c\nroad 1 2 3\n\nsky 1 2 3\n', 'line 4: line 2 has the same colour, 1 2 3'),
    ('road 1 2 3\n', 'has 1 classes, fewer than --num_classes=2'),
    ('', 'has 0 classes'),
    ('road 1 2 3\nsky \x1b[31m 4 5 6000000000000000000000\n', 'line 2'),
    ('x' * 2000000, 'it has 2000000 bytes'),
])
def test_file_refused(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_palette(path, 2)
    message = str(caught.value)
    assert quoted(path) in message
    assert words in message
    assert message.isprintable()
    assert len(message) <= 300


def test_missing_file_names_the_other_choices(tmp_path):
    path = str(tmp_path / 'absent.txt')
    with pytest.raises(UserError) as caught:
        load_palette(path, 2)
    assert all(word in str(caught.value) for word in (quoted(path), 'voc', 'cityscapes', 'No such file'))


def test_file_that_is_not_text(tmp_path):
    (tmp_path / 'p').write_bytes(b'road\xff 1 2 3\n')
    with pytest.raises(UserError, match='not UTF-8'):
        load_palette(str(tmp_path / 'p'), 1)


def test_palettes_that_are_no_regular_files_are_refused_at_once(tmp_path):
    os.mkfifo(str(tmp_path / 'fifo'))
    for path in ('/dev/zero', str(tmp_path / 'fifo')):
        with pytest.raises(UserError, match='not a regular file'):
            load_palette(path, 2)
    with pytest.raises(UserError, match='irectory'):
        load_palette(str(tmp_path), 2)
    with pytest.raises(UserError, match='this is not a valid file name'):
        load_palette('a\0b', 2)


def test_too_many_classes():
    with pytest.raises(UserError, match='fewer than --num_classes=20'):
        load_palette('cityscapes', 20)
    for num_classes in (0, 257):
        with pytest.raises(UserError, match='--num_classes=%d' % num_classes):
            load_palette('voc', num_classes)


def test_train_ids_to_label_ids():
    mask = np.array([[0, 1, 18], [19, 255, 13]])
    for dtype in (np.uint8, np.int32, np.int64):
        ids = train_ids_to_label_ids(mask.astype(dtype))
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, [[7, 8, 33], [0, 0, 26]])
    np.testing.assert_array_equal(train_ids_to_label_ids(np.array([-1])), [0])


def test_server_name():
    for city in ('aachen', 'bad-honnef'):
        name = benchmark_name('/data/leftImg8bit/val/x/%s_000000_000019_leftImg8bit.png' % city)
        assert name.startswith(city + '_000000_000019')
        assert name.endswith('.png')
    with pytest.raises(UserError, match='holiday.png'):
        benchmark_name('/data/holiday.png')
    with pytest.raises(UserError) as caught:
        benchmark_name('/data/\x1b[2J' + 'x' * 500)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 300


def test_frame_key():
    for path in ('a/ulm_000001_000019_leftImg8bit.png', 'ulm_000001_000019_gtFine_labelIds.png',
                 'ulm_000001_000019_gtCoarse_polygons.json', 'ulm_000001_000019.png'):
        assert cityscapes_frame(path) == 'ulm_000001_000019'
    for path in ('ulm.png', '2007_000129.jpg', 'ulm_000001_000019x.png', ''):
        assert cityscapes_frame(path) is None


def test_table_is_the_packages():
    labels = pytest.importorskip('cityscapesscripts.helpers.labels', reason='cityscapesscripts is not installed').labels
    evaluated = sorted((label for label in labels if not label.ignoreInEval), key=lambda label: label.trainId)
    assert [(label.name, label.id, label.color) for label in evaluated] == CITYSCAPES_CLASSES
    assert [label.trainId for label in evaluated] == list(range(19))
    taken = {label.color for label in evaluated}
    assert set(CITYSCAPES_VOID_COLOURS) == {label.color for label in labels} - taken
