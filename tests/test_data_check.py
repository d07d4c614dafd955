"""utils/data/data_check.py: what it counts, and each fault that it must find."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from utils.data.data_check import (
    balanced_class_weights,
    check_pairs,
    count_labels,
    describe_large_weights,
    describe_thin_classes,
    map_with_progress,
    print_report,
    raise_on_problems,
)
from utils.data.palette import VOC_NAMES, load_classes, voc_colours
from utils.system.errors import UserError, quoted


def pair(folder, name, label, size=None):
    """Saves a label and an image of the same size; returns their paths."""
    label = np.asarray(label, np.uint8)
    paths = str(folder / (name + '.jpg')), str(folder / (name + '.png'))
    Image.fromarray(np.zeros(tuple(size or label.shape[:2]) + (3,), np.uint8)).save(paths[0])
    Image.fromarray(label).save(paths[1])
    return paths


def check(pairs, num_classes=21, ignore_label=255, palette='', **options):
    images, labels = zip(*pairs)
    return check_pairs(list(images), list(labels), load_classes(num_classes, ignore_label, palette), **options)


@pytest.mark.parametrize('num_threads', [1, 3])
def test_counts(tmp_path, num_threads):
    result = check([pair(tmp_path, 'a', [[0, 1, 1], [20, 255, 255]]), pair(tmp_path, 'b', [[0, 1, 0], [0, 2, 0]]),
                    pair(tmp_path, 'c', [[3, 3]])], num_threads=num_threads)
    assert (result.num_images, result.num_labels, result.ignored, result.problems) == (3, 3, 2, [])
    assert result.sizes == {(2, 3): 2, (1, 2): 1}
    assert result.histogram.dtype == np.int64
    expected = np.zeros(21)
    expected[[0, 1, 2, 3, 20]] = 5, 3, 1, 2, 1
    np.testing.assert_array_equal(result.histogram, expected)
    raise_on_problems(result)


def test_images_without_labels(tmp_path):
    image, label = pair(tmp_path, 'a', [[1, 1]])
    result = check([(image, ''), (image, label)])
    assert (result.num_images, result.num_labels, result.problems) == (2, 1, [])
    assert result.histogram.sum() == 2


def test_values_outside_the_classes(tmp_path):
    good, bad = pair(tmp_path, 'a', [[0, 20, 255]]), pair(tmp_path, 'b', [[0, 21, 254]])
    result = check([good, bad])
    problem, = result.problems
    assert all(words in problem for words in (
        quoted(bad[1]), '21 254', '0..20', '--num_classes=21', '--ignore_label=255'))
    assert check([bad], ignore_label=21, num_classes=256).problems == []
    assert len(check([bad], ignore_label=21).problems) == 1
    assert check([bad], num_classes=22, ignore_label=254).problems == []


def test_ignore_label_inside_the_classes(tmp_path):
    result = check([pair(tmp_path, 'a', [[0, 0, 1, 2]])], num_classes=3, ignore_label=0)
    np.testing.assert_array_equal(result.histogram, [0, 1, 1])
    assert (result.ignored, result.problems) == (2, [])


def test_sizes_that_differ(tmp_path):
    image, label = pair(tmp_path, 'a', [[0, 1, 2], [0, 1, 2]], size=(2, 4))
    problem, = check([(image, label)]).problems
    assert all(words in problem for words in (quoted(image), quoted(label), '4x2', '3x2'))


def test_broken_files(tmp_path):
    good = pair(tmp_path, 'a', [[0, 1]])
    (tmp_path / 'text.png').write_bytes(b'not an image at all')
    text, absent = str(tmp_path / 'text.png'), str(tmp_path / 'absent.png')
    result = check([(text, good[1]), good, (good[0], text), (absent, absent)])
    named = [quoted(path) for path in (text, text, absent, absent)]
    assert [problem.split(':')[0] for problem in result.problems] == named
    assert (result.num_images, result.num_labels) == (2, 2)


def test_colour_coded_labels(tmp_path):
    pixels = voc_colours()[np.array([[1, 2, 255]])]
    paths = pair(tmp_path, 'a', pixels)
    problem, = check([paths]).problems
    assert '--palette' in problem
    for ignore_label in (255, 11, 21, -1, 1000):
        result = check([paths], palette='voc', ignore_label=ignore_label)
        assert (result.histogram[1], result.histogram[2], result.ignored, result.problems) == (1, 1, 1, [])
        assert result.warnings == []


def test_unknown_colours_are_a_warning(tmp_path):
    pixels = voc_colours()[np.array([[1, 2, 255, 1]])]
    pixels[0, 3] = 9, 9, 9
    paths = pair(tmp_path, 'a', pixels)
    result = check([paths], palette='voc')
    assert (result.ignored, result.problems) == (2, [])
    warning, = result.warnings
    assert all(words in warning for words in (quoted(paths[1]), '1 pixels', '9 9 9'))


def test_lines_are_named(tmp_path):
    good, bad = pair(tmp_path, 'a', [[0]]), pair(tmp_path, 'b', [[77]])
    problem, = check([good, bad], lines=[3, 8]).problems
    assert problem.startswith('line 8: ')


def test_raise_on_problems_names_the_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = [pair(Path(), str(i), [[99]]) for i in range(5)]
    with pytest.raises(UserError) as caught:
        raise_on_problems(check(bad))
    message = str(caught.value)
    assert message.startswith('the data has 5 problems: 0.png has') and len(message) <= 300
    assert [path in message for _, path in bad] == [True, False, False, False, False]
    assert message.endswith(' ... --option=check lists them all.')
    with pytest.raises(UserError, match='the data has 2 problems: 0.png has .*label. 1.png has .*the label.$'):
        raise_on_problems(check(bad[:2]))
    with pytest.raises(UserError) as caught:
        raise_on_problems(check(bad[:1]), 'list a.txt')
    assert str(caught.value).startswith('list a.txt has 1 problem: ')
    assert '--option=check' not in str(caught.value)


def test_one_long_problem_is_told_alone(tmp_path):
    """The stress suite found that a label with another size and unknown values gave a message of 335 characters."""
    result = check([pair(tmp_path, str(i), [[99, 98]], size=(1, 1)) for i in range(2)])
    assert len(result.problems) == 4
    with pytest.raises(UserError) as caught:
        raise_on_problems(result, 'list a.txt')
    assert len(str(caught.value)) <= 300 and 'must have the same size' in str(caught.value)
    name = 'x' * (300 - len(' has 4 problems: ' + result.problems[0]))
    with pytest.raises(UserError) as caught:
        raise_on_problems(result, name)
    assert str(caught.value) == name + ' has 4 problems: ' + result.problems[0]


def test_report(tmp_path, capsys):
    result = check([pair(tmp_path, 'a', [[0, 0, 15, 255]]), pair(tmp_path, 'b', [[77, 0]])])
    print_report(result, VOC_NAMES)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'images 2, labels 2'
    assert '4x1 (1)' in lines[1]
    rows = {line.split()[0]: line.split() for line in lines[3:3 + 22]}
    assert rows['0'] == ['0', 'background', '3', '60.00%']
    assert rows['15'] == ['15', 'person', '1', '20.00%']
    assert rows['20'] == ['20', 'tvmonitor', '0', '0.00%']
    assert rows['-'] == ['-', 'ignored', '1', '20.00%']
    assert lines[25] == 'problems 1'
    assert lines[26].strip() == result.problems[0]


def test_report_without_names_labels_or_files(tmp_path, capsys):
    image, _ = pair(tmp_path, 'a', [[0]])
    print_report(check([(image, '')]))
    assert 'labels 0' in capsys.readouterr().out
    print_report(check([pair(tmp_path, 'b', [[1, 1]])], num_classes=2))
    assert '1  ' in capsys.readouterr().out
    print_report(check([(str(tmp_path / 'x'), '')]))
    assert 'images 0' in capsys.readouterr().out


def test_long_reports_are_cut(tmp_path, capsys):
    result = check([(str(tmp_path / str(i)), '') for i in range(60)])
    print_report(result)
    out = capsys.readouterr().out
    assert 'problems 60' in out
    assert '... and 10 more' in out


def test_progress_is_on_stderr(tmp_path, capfd):
    check([pair(tmp_path, 'a', [[0]])], desc='reading train.txt')
    captured = capfd.readouterr()
    assert captured.out == ''
    assert 'reading train.txt' in captured.err
    assert '1/1' in captured.err


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.int64])
def test_count_labels(dtype):
    top = 255 if dtype == np.uint8 else 40000
    counts, ignored, strange = count_labels(np.array([[0, 1, 1, 5, 7, top]], dtype), load_classes(6, 7))
    np.testing.assert_array_equal(counts, [1, 2, 0, 0, 0, 1])
    assert (counts.dtype, ignored, strange) == (np.int64, 1, [top])


def test_count_labels_of_wild_values():
    label = np.array([[-5, 2 ** 31 - 1, 0, -1]], np.int32)  # a table of 2**31 entries would be too large
    counts, ignored, strange = count_labels(label, load_classes(2, -1))
    np.testing.assert_array_equal(counts, [1, 0])
    assert (ignored, strange) == (1, [-5, 2 ** 31 - 1])


def test_map_with_progress_keeps_the_order_and_raises():
    assert list(map_with_progress(lambda x: x * x, list(range(50)), 4, 'squares', 'one')) == [x * x for x in range(50)]
    with pytest.raises(UserError, match='seven'):
        list(map_with_progress(fail_at_seven, list(range(50)), 4, 'squares', 'one'))


def fail_at_seven(x):
    if x == 7:
        raise UserError('seven')


def test_damage_that_the_decoder_only_prints_of_is_reported_by_name(tmp_path):
    """After surplus bytes in the coded data, libjpeg continues and prints a line that does not name the file."""
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    paths = [str(tmp_path / name) for name in ('good.jpg', 'surplus.jpg')]
    for path in paths:
        Image.fromarray(pixels).save(path)
    with open(paths[1], 'rb') as file:
        content = file.read()
    with open(paths[1], 'wb') as file:
        file.write(content[:-2] + bytes(40) + content[-2:])
    result = check_pairs(paths, ['', ''], load_classes(6))
    assert result.problems == [] and result.num_images == 2
    assert len(result.warnings) == 1 and 'surplus.jpg: ' in result.warnings[0]
    assert 'extraneous bytes' in result.warnings[0]


def drawn(kind, width, count=8):
    """Returns a label [360, 480] with lines, upright lines, circles or squares of class 1, `width` pixels wide."""
    random, image = np.random.RandomState(width), Image.new('L', (480, 360))
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        x, y = random.randint(460), random.randint(340)
        if kind == 'lines':
            draw.line([x, 0, random.randint(480), 360], fill=1, width=width)
        elif kind == 'upright':
            draw.rectangle([x, 0, x + width - 1, 360], fill=1)
        elif kind == 'circles':
            draw.ellipse([x - 99, y - 99, x + 99, y + 99], outline=1, width=width)
        else:
            draw.rectangle([x, y, x + width - 1, y + width - 1], fill=1)
    return np.asarray(image)


@pytest.mark.parametrize('kind', ['lines', 'upright', 'circles', 'squares'])
@pytest.mark.parametrize('width, scale, thin', [
    (1, 1, True), (3, 1, True), (4, 1, True), (10, 1, False), (16, 1, False), (1, 2.5, True), (2, 2.5, True),
    (4, 2.5, False)])
def test_thin_classes(tmp_path, kind, width, scale, thin):
    """With one loss pixel in 8x8, shapes 3 pixels wide are too thin; those 10 pixels wide are not."""
    result = check([pair(tmp_path, str(i), drawn(kind, width)) for i in range(2)], 3, scale=scale)
    sentence = describe_thin_classes(result, load_classes(3))
    assert ('1 class is drawn only as lines or specks' in sentence and ': 1; enlarge' in sentence) if thin else (
        sentence == '')


def test_a_class_is_thin_in_all_labels_or_not_at_all(tmp_path):
    label = np.zeros([40, 50], np.uint8)
    label[:, 10:13], label[5:15, 20:30] = 1, 2
    thin, both = pair(tmp_path, 'a', label), pair(tmp_path, 'b', np.where(label == 2, np.uint8(1), label))
    assert ': 1 aeroplane; enlarge' in describe_thin_classes(check([thin]), load_classes(21))
    assert describe_thin_classes(check([thin, both]), load_classes(21)) == ''
    assert describe_thin_classes(check([thin], 3, ignore_label=1), load_classes(3, 1)) == ''
    tiny = pair(tmp_path, 'c', label[:16, :16])  # no shape in it can be wide
    assert describe_thin_classes(check([tiny]), load_classes(21)) == ''
    Image.fromarray(label.astype(np.uint16)).save(thin[1])
    assert ': 1; enlarge' in describe_thin_classes(check([thin], 3), load_classes(3))


PALETTE = 'sky 0 0 0\nsea 0 0 200\nland 0 200 0\n'
SWAPPED = [0, 0, 0, 0, 200, 0, 0, 0, 200]


@pytest.mark.parametrize('colours, label, found', [
    (SWAPPED, [0, 1, 2], (1, (0, 200, 0))),
    (SWAPPED, [0, 2, 2], (2, (0, 0, 200))),
    (SWAPPED, [0, 255], None),  # the class that is used is black in both
    ([0, 0, 0, 0, 0, 200, 0, 200, 0], [0, 1, 2], None),  # the same colours
    ([0, 0, 0, 0, 0, 200, 0, 200, 0, 9, 9, 200], [1, 2, 255], None),
    ([0, 0, 0, 0, 0, 200] + [0, 0, 0] * 9, [0, 1, 2], None),  # black, so that class 2 has no colour
    ([value for value in range(256) for _ in range(3)], [0, 1, 2], None),  # grey
    ([0] * 768, [0, 1, 2], None),
    (None, [0, 1, 2], None),
])
def test_palettes_that_contradict(tmp_path, colours, label, found):
    (tmp_path / 'p.txt').write_text(PALETTE)
    image, path = pair(tmp_path, 'a', [label])
    if colours:
        label = Image.fromarray(np.array([label], np.uint8))
        label.putpalette(colours)
        label.save(path)
        assert Image.open(path).mode == 'P'
    palette = str(tmp_path / 'p.txt')
    assert check([(image, path)], 3, palette=palette).contradictions == ([(path,) + found] if found else [])
    assert check([(image, path)], 3).contradictions == []  # no palette is named


def test_other_labels_contradict_no_palette(tmp_path):
    (tmp_path / 'p.txt').write_text(PALETTE)
    image, path = pair(tmp_path, 'a', [[(0, 0, 200), (0, 200, 0)]])  # a colour-coded label
    assert check([(image, path)], 3, palette=str(tmp_path / 'p.txt')).contradictions == []
    label = Image.fromarray(np.array([[0, 1]], np.uint8))
    label.putpalette(SWAPPED)
    label.save(path)
    mapped = load_classes(3, 255, str(tmp_path / 'p.txt'), 'binary')
    assert check_pairs([image], [path], mapped).contradictions == []


def test_balanced_weights_in_the_report(tmp_path, capsys):
    result = check([pair(tmp_path, 'a', [[0, 0, 1, 255]])], 3)
    weights = balanced_class_weights(result.histogram)
    np.testing.assert_allclose(weights, [0.75, 1.5, 1])
    print_report(result, None, weights)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:7]] == [
        ['class', 'name', 'pixels', 'weight', 'share'], ['0', '2', '0.75', '50.00%'], ['1', '1', '1.5', '25.00%'],
        ['2', '0', '1', '0.00%'], ['-', 'ignored', '1', '-', '25.00%']]
    assert len({len(line) for line in lines[3:7]}) == 1
    np.testing.assert_array_equal(balanced_class_weights([0, 0]), [1, 1])


def test_large_weights():
    assert describe_large_weights(balanced_class_weights([10000, 10000, 100]), load_classes(3)) == ''
    sentence = describe_large_weights(balanced_class_weights([10000, 10000, 99, 0]), load_classes(4))
    assert '--class_weights=balanced gives 1 class a weight above 100: 2 (101);' in sentence
    sentence = describe_large_weights(np.linspace(99, 119, 21), load_classes(21))
    assert 'gives 19 classes a weight above 100: 20 tvmonitor (119), 19 train (118)' in sentence
    assert len(sentence) <= 300
