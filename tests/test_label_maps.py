"""utils/data/label_maps.py: the rules and files of --label_map, up to a training with them."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
from absl.testing import flagsaver
from narrow_main import UNITS
from PIL import Image

import main
from utils.data import data_check, image_files
from utils.data.label_maps import load_label_map
from utils.data.palette import CITYSCAPES_CLASSES, load_classes
from utils.system import command_line
from utils.system.errors import UserError


def mapped(spec, values, num_classes=21, ignore_label=255, dtype=np.uint8):
    label = load_label_map(spec, num_classes, ignore_label)(np.array([values], dtype))
    return label[0].tolist(), label.dtype


def file_of(folder, text):
    path = folder / 'map.txt'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refused(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    assert len(str(caught.value)) <= 300
    return str(caught.value)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize('spec, num_classes, values, expected', [
    ('binary', 2, [0, 1, 7, 255], [0, 1, 1, 1]),
    ('reduce_zero', 150, [0, 1, 150, 151, 255], [255, 0, 149, 150, 255]),
    ('cityscapes', 19, [label_id for _, label_id, _ in CITYSCAPES_CLASSES], list(range(19))),
    ('cityscapes', 19, [0, 6, 9, 10, 14, 18, 29, 30, 255, 34, 200], [255] * 9 + [34, 200]),
])
def test_words(spec, num_classes, values, expected, dtype):
    assert mapped(spec, values, num_classes, dtype=dtype) == (expected, np.uint8)


def test_values_beyond_8_bits():
    assert mapped('reduce_zero', [-1, 0, 1, 70000], 150, -1, np.int32) == ([-1, -1, 0, 69999], np.int32)
    assert mapped('cityscapes', [-1, 7, 0], 19, 1000, np.int32) == ([1000, 0, 1000], np.int32)
    assert mapped('binary', [-3, 0, 70000], 2, -1, np.int32) == ([1, 0, 1], np.uint8)


@pytest.mark.parametrize('spec', ['', None, 'none'])
def test_no_map(spec):
    assert load_label_map(spec, 2, 255) is None


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32])
def test_a_file_maps_all_values_at_once(tmp_path, dtype):
    path = file_of(tmp_path, '\ufeff# swapped\r\n\r\n0 1\n1\t0  # here too\n 3-5 2\n6: 3\n7=4\n8,5\n9-9 IGNORE\n')
    assert mapped(path, range(12), dtype=dtype) == ([1, 0, 2, 2, 2, 2, 3, 4, 5, 255, 10, 11], np.uint8)
    path = file_of(tmp_path, '200 1')
    assert mapped(path, [0, 199, 200, 201, 255], dtype=dtype)[0] == [0, 199, 1, 201, 255]


def test_a_file_of_wide_and_negative_values(tmp_path):
    path = file_of(tmp_path, '-1 ignore\n-9--7 1\n24000-24999 2\n')
    assert mapped(path, [-10, -9, -7, -6, -1, 23999, 24000, 24999, 25000], dtype=np.int32)[0] == [
        -10, 1, 1, -6, 255, 23999, 2, 2, 25000]
    assert mapped(path, [24000, 24999, 65535], dtype=np.uint16)[0] == [2, 2, 65535]
    assert mapped(path, [24000, 0], dtype=np.uint16) == ([2, 0], np.uint8)
    assert mapped(file_of(tmp_path, '3 ignore'), [3, 1], ignore_label=-1) == ([-1, 1], np.int32)


@pytest.mark.parametrize('text, told', [
    ('0 1\n0 2\n', 'line 2: the value 0 is also in line 1'), ('4 2\n1 0\n0-5 1\n', 'is also in line'),
    ('\n0 21\n', 'line 2: 21 is not one of the classes 0..20 (--num_classes=21)'), ('0 -1', '-1 is not one'),
    ('0 255', "write 'ignore'"), ('5-3 1', 'the smaller one first'), ('9999999999 1', 'from -2147483648'),
    ('0 1 2', 'neither `FROM TO`'), ('road 1', 'neither'), ('0 1.0', 'neither'), ('0', 'neither'),
    ('0 - 5 1', 'neither'), ('x' * 500, 'neither'), ('', 'has no line'),
    ('# only\n\n', 'has no line'), (b'\xff\xfe0 1', 'is not UTF-8'),
])
def test_a_malformed_file(tmp_path, text, told):
    path = file_of(tmp_path, text)
    message = refused(load_label_map, path, 21, 255)
    assert told in message and 'map.txt' in message


def test_a_missing_file(tmp_path):
    assert "nor a readable file: No such file" in refused(load_label_map, str(tmp_path / ('n' * 200)), 21, 255)
    assert 'nor a readable file' in refused(load_label_map, str(tmp_path), 21, 255)


def test_flags_that_do_not_fit_a_word():
    assert '--num_classes=19' in refused(load_label_map, 'cityscapes', 18, 255)
    assert '--num_classes=2' in refused(load_label_map, 'binary', 1, 255)
    for ignore_label in (0, 149):
        assert '--ignore_label=255' in refused(load_label_map, 'reduce_zero', 150, ignore_label)
    assert load_label_map('reduce_zero', 150, 150) and load_label_map('cityscapes', 34, 33)


# through read_label


KINDS = {
    'L': lambda label: Image.fromarray(label),
    'P': lambda label: palette_image(label),
    '1': lambda label: Image.fromarray(label).convert('1'),
    'RGB': lambda label: Image.fromarray(label).convert('RGB'),
    'RGBA': lambda label: Image.fromarray(label).convert('RGBA'),
    'I;16': lambda label: Image.fromarray(label.astype(np.uint16)),
    'I': lambda label: Image.fromarray(label.astype(np.int32)),
}


def palette_image(label):
    image = Image.fromarray(label)
    image.putpalette([0] * 765 + [255] * 3)
    return image


@pytest.mark.parametrize('palette', ['', 'voc'])
@pytest.mark.parametrize('kind', sorted(KINDS))
def test_index_labels_of_all_kinds(tmp_path, kind, palette):
    path = str(tmp_path / ('a.tif' if kind == 'I' else 'a.png'))
    KINDS[kind](np.array([[0, 255, 0], [255, 255, 0]], np.uint8)).save(path)
    label, unknown = image_files.read_label(path, load_classes(2, 255, palette, 'binary'))
    np.testing.assert_array_equal(label, [[0, 1, 0], [1, 1, 0]])
    assert label.dtype == np.uint8 and unknown == []
    assert not image_files.is_colour_coded(path, load_classes(2, 255, palette, 'binary'))


def test_values_beyond_16_bits_of_a_file(tmp_path):
    Image.fromarray(np.array([[100000, -5, 7]], np.int32)).save(str(tmp_path / 'a.tif'))
    classes = load_classes(3, 255, '', file_of(tmp_path, '100000 1\n-5 ignore\n7 2\n'))
    assert image_files.load_label(str(tmp_path / 'a.tif'), classes).tolist() == [[1, 255, 2]]


@pytest.mark.parametrize('palette', ['', 'voc'])
def test_colours_are_refused(tmp_path, palette):
    Image.new('RGB', (3, 3), (128, 0, 0)).save(str(tmp_path / 'a.png'))
    message = refused(image_files.read_label, str(tmp_path / 'a.png'), load_classes(2, 255, palette, 'binary'))
    assert 'a.png' in message and '--label_map maps only class indices' in message


# what the check says


def told(folder, values, num_classes, name='a', mode='L', **flags):
    """Returns the problems of an image whose label has these values."""
    label = np.array([values], np.uint8)
    Image.fromarray(label).convert(mode).save(str(folder / (name + '.png')))
    Image.new('RGB', label.shape[::-1]).save(str(folder / 'image.png'))
    result = data_check.check_pairs([str(folder / 'image.png')], [str(folder / (name + '.png'))], load_classes(
        num_classes, flags.get('ignore_label', 255), '', flags.get('label_map', '')))
    assert all(len(problem) <= 300 for problem in result.problems)
    return ' '.join(result.problems)


def test_messages_name_the_map_that_helps(tmp_path):
    for mode in ('L', 'RGB'):
        assert '--label_map=binary' in told(tmp_path, [0, 255], 2, mode=mode, ignore_label=-1)
        assert '--label_map=FILE' in told(tmp_path, [0, 9, 255], 2, mode=mode)
    assert '--label_map=cityscapes' in told(tmp_path, [7, 33], 19)
    assert '--label_map=cityscapes' in told(tmp_path, [7, 33], 12, 'aachen_000000_000019_gtFine_labelIds')
    assert '--label_map=reduce_zero if 0 is void' in told(tmp_path, [0, 1, 150], 150)
    for mode in ('L', 'RGB'):
        message = told(tmp_path, [0, 9, 255], 2, mode=mode, label_map='reduce_zero')
        assert 'has the value 8' in message and 'after --label_map' in message
    for label_map, values, num_classes in (('binary', [0, 255], 2), ('cityscapes', [0, 7, 33], 19),
                                           ('reduce_zero', [0, 150, 255], 150)):
        assert told(tmp_path, values, num_classes, 'labelIds', label_map=label_map) == ''


# through the command line


def run(*args):
    with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(
            io.StringIO()) as stderr:
        code = command_line.run(main.main, ['main.py'] + list(args), main.sample_args)
    return code, stdout.getvalue(), stderr.getvalue()


def data(folder, white):
    """Writes four images, labels of 0 and `white`, and a flag file; returns the flag that names it."""
    os.makedirs(str(folder))
    random = np.random.RandomState(0)
    lines = ''
    for name in 'abcd':
        label = np.zeros([40, 40], np.uint8)
        label[random.randint(20):, random.randint(20):] = 1
        Image.fromarray(np.uint8(label * 150 + random.randint(99, size=[40, 40]))).save(str(folder / (name + '_i.png')))
        Image.fromarray(label * np.uint8(white)).save(str(folder / (name + '.png')))
        lines += '%s_i.png %s.png\n' % (name, name)
    (folder / 'list.txt').write_text(lines)
    flags = ['data_dir=%s' % folder] + ['%s=%s' % (flag, folder / name) for flag, name in [
        ('data_list', 'list.txt'), ('valid_data_list', 'list.txt'), ('test_data_list', 'list.txt'),
        ('modeldir', 'model'), ('logdir', 'log'), ('logfile', 'log.txt'), ('out_dir', 'output')]]
    flags += ['encoder_name=res50', 'num_classes=2', 'num_steps=3', 'valid_interval=3', 'batch_size=2', 'palette=',
              'input_height=33', 'input_width=33', 'class_weights=balanced', 'learning_rate=0.01', 'visual=false',
              'report']
    (folder / 'my.flags').write_text(''.join('--%s\n' % flag for flag in flags))
    return '--flagfile=%s' % (folder / 'my.flags')


def test_masks_train_and_test_as_classes_do(tmp_path, narrow):
    narrow({'res50': UNITS})
    scores, losses = [], []
    for name, white, label_map in (('classes', 1, []), ('masks', 255, ['--label_map=binary'])):
        flags = [data(tmp_path / name, white)] + label_map
        for option in ('check', 'train', 'test'):
            code, stdout, stderr = run('--option=' + option, *flags)
            assert code == 0, stderr
            if option == 'check':
                assert 'no problems' in stdout
                table = [line for line in stdout.splitlines() if line.endswith('%')]
                scores.append(table)
        losses.append((tmp_path / name / 'log.txt').read_text())
        metrics = json.loads((tmp_path / name / 'output' / 'metrics.json').read_text())
        scores[-1] += [metrics['classes'], metrics['mean_iou'], metrics['pixel_accuracy']]
    assert len(scores[0]) > 4 and scores[0] == scores[1]
    assert losses[0].count('\n') >= 3 and losses[0] == losses[1]
    settings = tmp_path / 'masks' / 'model' / 'settings.json'
    known = json.loads(settings.read_text())
    assert known['flags']['label_map'] == 'binary'
    code, _, stderr = run('--option=train', flags[0], '--label_map=reduce_zero')
    assert code == 1 and 'label_map' in stderr
    del known['flags']['label_map']  # an earlier version did not write it
    settings.write_text(json.dumps(known))
    code, stdout, stderr = run('--option=train', flags[0], '--label_map=binary')
    assert code == 1 and 'label_map' in stderr
    settings = tmp_path / 'classes' / 'model' / 'settings.json'
    known = json.loads(settings.read_text())
    del known['flags']['label_map']
    settings.write_text(json.dumps(known))
    code, stdout, stderr = run('--option=train', '--flagfile=%s' % (tmp_path / 'classes' / 'my.flags'))
    assert code == 0, stderr
