"""utils/data/sources.py: which data the flags give a run, and the report on the three lists."""

import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from utils.data import image_files, sources
from utils.data.palette import load_classes
from utils.system.errors import UserError, quoted

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BALANCED = np.arange(21, dtype=np.uint8).reshape(3, 7)


def conf(folder, **changed):
    values = {'data_dir': str(folder), 'data_list': str(folder / 'train.txt'), 'num_threads': 2, 'check_labels': True,
              'valid_data_list': str(folder / 'val.txt'), 'test_data_list': str(folder / 'test.txt')}
    values.update(image_range=None, image_bands=None, apply_exif=None, label_map='', input_height=321, input_width=321,
                  random_scale=True, random_scale_range=None)
    values.update(changed)
    return types.SimpleNamespace(**values)


def make(folder, lists):
    """Saves images, labels and lists from {name of the list: {name of the image: label or None}}."""
    for list_name, labels in lists.items():
        with open(str(folder / (list_name + '.txt')), 'w') as file:
            for name, label in labels.items():
                shape = np.shape(label)[:2] if label is not None else (3, 7)
                Image.fromarray(np.zeros(shape + (3,), np.uint8)).save(str(folder / (name + '.jpg')))
                file.write(name + '.jpg')
                if label is not None:
                    Image.fromarray(np.asarray(label, np.uint8)).save(str(folder / (name + '.png')))
                    file.write(' %s.png' % name)
                file.write('\n')


def reported(folder, capsys, num_classes=21, ignore_label=255, palette='voc', **changed):
    """Returns what check_lists prints for these flags."""
    sources.check_lists(conf(folder, **changed), load_classes(num_classes, ignore_label, palette))
    return capsys.readouterr().out


def refused(folder, capsys, *words, **options):
    """Returns what check_lists prints before it ends with a UserError that contains the words."""
    with pytest.raises(UserError) as caught:
        reported(folder, capsys, **options)
    for word in words:
        assert word in str(caught.value)
    return capsys.readouterr().out


# opening


def test_open_source(tmp_path, capsys):
    make(tmp_path, {'train': {'a': BALANCED, 'b': BALANCED, 'c': BALANCED}, 'test': {'d': None, 'e': BALANCED}})
    classes = load_classes(21)
    source = sources.labelled_list(conf(tmp_path), classes, 'data_list')
    assert source.name == str(tmp_path / 'train.txt')
    assert source.images == [str(tmp_path / name) for name in ('a.jpg', 'b.jpg', 'c.jpg')]
    assert source.labels == [str(tmp_path / name) for name in ('a.png', 'b.png', 'c.png')]
    assert sources.labelled_list(conf(tmp_path), classes, 'data_list', 2).lines == [1, 2]
    assert 'lines only' not in capsys.readouterr().err
    assert len(sources.labelled_list(conf(tmp_path), classes, 'data_list', 9).images) == 3
    assert 'has 3 images only' in capsys.readouterr().err


def predicted(folder, **changed):
    """Returns (paths below the folder, names of the outputs) of the images to predict with these flags."""
    flags = {'image': None, 'image_dir': '', 'out_dir': str(folder / 'output'), 'test_num_steps': None}
    images = sources.images_to_predict(conf(folder, **dict(flags, **changed)))
    return [os.path.relpath(path, str(folder)) for path in images.paths], images.names


def test_images_to_predict(tmp_path, capsys):
    """A flag that names images takes precedence over the list, whose labels and broken files do not matter."""
    make(tmp_path, {'test': {'a': BALANCED, 'b': None, 'c': None}})
    (tmp_path / 'a.png').rename(tmp_path / 'other.png')
    (tmp_path / 'c.jpg').unlink()
    (tmp_path / 'b.jpg').write_text('no image')
    assert predicted(tmp_path) == (['a.jpg', 'b.jpg', 'c.jpg'], ['a', 'b', 'c'])
    assert predicted(tmp_path, test_num_steps=2) == (['a.jpg', 'b.jpg'], ['a', 'b'])
    assert predicted(tmp_path, image=[str(tmp_path / 'b.jpg')]) == (['b.jpg'], ['b'])
    assert capsys.readouterr().err == ''
    found = predicted(tmp_path, image_dir=str(tmp_path), test_num_steps=9)
    assert found == (['a.jpg', 'b.jpg', 'other.png'], ['a', 'b', 'other'])
    assert 'has 3 images only' in capsys.readouterr().err


def test_a_list_of_which_nothing_is_there(tmp_path):
    make(tmp_path, {'test': {'a': None, 'b': None}})
    with pytest.raises(UserError, match='2 of 2 files are missing'):
        predicted(tmp_path, data_dir=str(tmp_path / 'elsewhere'))


def test_the_check_says_what_is_wrong_with_a_whole_list(tmp_path, capsys):
    make(tmp_path, {'train': {'a': BALANCED}})
    (tmp_path / 'train.txt').write_text('2007_000032\n2007_000039\n')
    with pytest.raises(UserError, match='problems, listed above'):
        sources.check_lists(conf(tmp_path), load_classes(21))
    assert "train.txt: these are VOC's ids: make the list with convert_voc.py" in capsys.readouterr().out


@pytest.mark.parametrize('flag', ['data_list', 'valid_data_list'])
def test_training_and_testing_need_labels(tmp_path, flag):
    make(tmp_path, {'train': {'a': BALANCED, 'b': None}, 'val': {'c': None}})
    with pytest.raises(UserError, match='no label'):
        sources.labelled_list(conf(tmp_path), load_classes(21), flag)


def test_files_are_checked_unless_they_are_many_or_it_is_switched_off(tmp_path, monkeypatch):
    make(tmp_path, {'train': {'a': BALANCED, 'b': BALANCED + 21}})
    with pytest.raises(UserError) as caught:
        sources.labelled_list(conf(tmp_path), load_classes(21), 'data_list')
    for words in ('list %s has 1 problem' % quoted(tmp_path / 'train.txt', 40), 'line 2: ', 'b.png'):
        assert words in str(caught.value)
    assert len(sources.labelled_list(conf(tmp_path), load_classes(21), 'data_list', 1).images) == 1
    assert len(sources.labelled_list(conf(tmp_path, check_labels=False), load_classes(21), 'data_list').images) == 2
    monkeypatch.setattr(sources, 'MAX_CHECKED', 1)
    assert len(sources.labelled_list(conf(tmp_path), load_classes(21), 'data_list').images) == 2


def test_unknown_colours_are_reported_before_the_work(tmp_path, capsys):
    label = np.zeros([3, 7, 3], np.uint8)
    label[0, 0] = 5, 6, 7
    make(tmp_path, {'train': {'a': label}})
    sources.labelled_list(conf(tmp_path), load_classes(21, 255, 'voc'), 'data_list')
    warning = capsys.readouterr().err.splitlines()[-1]
    assert all(words in warning for words in ('warning: list', 'train.txt', 'line 1: ', '5 6 7', 'a.png'))


def test_warnings_before_the_work_are_few(tmp_path, capsys):
    label = np.array([[(0, 0, 0), (5, 6, 7)]])
    make(tmp_path, {name: {str(i): label for i in range(5)} for name in ('train', 'val')})
    classes = load_classes(21, 255, 'voc')
    sources.labelled_list(conf(tmp_path), classes, 'data_list')
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith(('warning', '...'))]
    assert len(warnings) == 4
    assert '20 of 21 classes have no pixel' in warnings[0]
    assert '... and 3 more warnings' in warnings[3]
    sources.labelled_list(conf(tmp_path), classes, 'valid_data_list')  # a validation list may have a few images only
    assert 'have no pixel' not in capsys.readouterr().err


# the report


def test_good_lists(tmp_path, capsys):
    make(tmp_path, {'train': {'a': BALANCED}, 'val': {'b': BALANCED}, 'test': {'c': None}})
    out = reported(tmp_path, capsys)
    assert out.count('problems 0') == 3
    assert out.count('warnings 0') == 3
    assert out.endswith('all files are as they should be\n')
    assert out.index('--data_list') < out.index('--valid_data_list') < out.index('--test_data_list')


def test_a_list_of_two_flags_is_read_once(tmp_path, capsys):
    make(tmp_path, {'train': {'a': BALANCED}, 'val': {'b': BALANCED}})
    out = reported(tmp_path, capsys, test_data_list=str(tmp_path / 'val.txt'))
    assert out.count('problems 0') == 2


def test_a_list_that_does_not_exist_is_a_warning(tmp_path, capsys):
    make(tmp_path, {'train': {'a': BALANCED}, 'test': {'b': BALANCED}})
    out = reported(tmp_path, capsys)
    assert '--valid_data_list=%s does not exist' % quoted(tmp_path / 'val.txt') in out
    assert out.endswith('no file is broken; 1 warning above\n')
    refused(tmp_path, capsys, 'does not exist', data_list=str(tmp_path / 'absent.txt'))


@pytest.mark.parametrize('flag', ['data_list', 'valid_data_list'])
def test_missing_labels_are_problems_where_labels_are_needed(tmp_path, capsys, flag):
    make(tmp_path, {'train': {'a': BALANCED}, 'val': {'b': BALANCED}, 'test': {'c': None, 'd': None}})
    out = refused(tmp_path, capsys, '2 problems', **{flag: str(tmp_path / 'test.txt')})
    assert 'line 2: %s has no label' % quoted(tmp_path / 'd.jpg') in out


def test_missing_files_are_named_with_their_line(tmp_path, capsys):
    make(tmp_path, {'train': {'a': BALANCED, 'b': BALANCED}, 'val': {'c': BALANCED}, 'test': {'c': BALANCED}})
    os.remove(str(tmp_path / 'b.png'))
    out = refused(tmp_path, capsys, '1 problem,')
    assert 'line 2: %s: no such file' % quoted(tmp_path / 'b.png') in out


def test_most_classes_without_a_pixel(tmp_path, capsys):
    make(tmp_path, {'train': {'a': [[0, 3, 20, 255]]}, 'val': {'b': BALANCED}, 'test': {'c': None}})
    out = reported(tmp_path, capsys)
    assert '18 of 21 classes have no pixel: 1 2 4 ' in out
    assert out.endswith('no file is broken; 1 warning above\n')
    make(tmp_path, {'train': {'a': [[255, 255]]}})
    assert 'no label has a pixel of any class' in reported(tmp_path, capsys)


def test_camvid_with_the_default_flags(tmp_path, capsys):
    label = np.arange(12)[None]
    make(tmp_path, {'train': {'0001TP_1': label}, 'val': {'0001TP_2': label}, 'test': {'0001TP_3': label}})
    out = reported(tmp_path, capsys, palette='')
    hint = 'labels hold 0..11 only: is --num_classes=12 meant, or 11 with --ignore_label=11 if 11 is void?'
    assert out.count(hint) == 3
    assert out.count("VOC's names are assumed for the 21 classes; --palette names others.") == 1
    assert out.endswith('no file is broken; 4 warnings above\n')
    out = reported(tmp_path, capsys, palette='', num_classes=12)
    assert out.count('note: no pixel is ignored; if class 11 is void, give --num_classes=11 --ignore_label=11') == 3
    out = reported(tmp_path, capsys, palette='', num_classes=11, ignore_label=11)
    assert 'note' not in out
    assert out.endswith('all files are as they should be\n')


def test_every_absent_class_is_named(tmp_path, capsys):
    """A class missing in the middle is named, and the last one is not assumed to be void."""
    label = [[0, 1, 2, 4]]
    make(tmp_path, {'train': {'a': label}, 'val': {'b': label}, 'test': {'c': label}})
    out = reported(tmp_path, capsys, palette='', num_classes=5)
    assert out.count('1 of 5 classes has no pixel: 3.') == 3 and 'void' not in out
    assert out.endswith('no file is broken; 3 warnings above\n')
    out = reported(tmp_path, capsys, palette='', num_classes=9)
    assert out.count('5 of 9 classes have no pixel: 3, 5, 6, 7, 8; no label has a class above 4: '
                     'is --num_classes=5 meant?') == 3
    (tmp_path / 'p.txt').write_text(''.join('c%d 0 0 %d\n' % (i, i) for i in range(5)))
    sources.labelled_list(conf(tmp_path), load_classes(5, 255, str(tmp_path / 'p.txt')), 'data_list')
    assert '1 of 5 classes has no pixel: 3 c3.' in capsys.readouterr().err
    out = reported(tmp_path, capsys, palette='', num_classes=5, ignore_label=3)
    assert 'no pixel' not in out and 'void' not in out


def masks(folder, value, kind):
    """Saves lists of two labels with 0 and `value`, as grey, palette or RGB PNGs, or with one colour only."""
    label = np.full([4, 4], value, np.uint8)
    label[:2] = 0
    make(folder, {'train': {'a': label}, 'val': {'b': label}})
    for name in 'ab':
        image = Image.fromarray(label)
        if kind == 'palette':
            image.putpalette([0] * 765 + [255] * 3)
            assert image.mode == 'P'
        if kind == 'rgb':
            image = image.convert('RGB')
        image.save(str(folder / (name + '.png')))


@pytest.mark.parametrize('kind', ['grey', 'palette', 'rgb'])
@pytest.mark.parametrize('named', [True, False])
def test_black_and_white_masks_are_recognised(tmp_path, capsys, kind, named):
    """255 is the ignore_label: training would see only background, and test would score 100 %."""
    masks(tmp_path, 255, kind)
    (tmp_path / 'p.txt').write_text('ground 0 0 0\nroof 255 255 255\n')
    palette = str(tmp_path / 'p.txt') if named else ''
    if kind == 'rgb' and named:  # the values are colours
        assert reported(tmp_path, capsys, palette=palette, num_classes=2).count('warnings 0') == 2
        return
    out = reported(tmp_path, capsys, palette=palette, num_classes=2)
    start = '1 of 2 classes has no pixel: %s; only one class counts (%s), so predicting it everywhere scores 100 %%.'
    assert out.count(start % (('1 roof', '0 ground') if named else ('1', '0'))) == 2
    assert out.count('labels hold 0 and 255 only, as black-and-white masks') == 2 and 'save white as 1' in out
    sources.labelled_list(conf(tmp_path), load_classes(2, 255, palette), 'data_list')
    assert 'black-and-white masks' in capsys.readouterr().err
    out = refused(tmp_path, capsys, '2 problems', palette=palette, num_classes=2, ignore_label=-1)
    assert out.count('save one channel' if kind == 'rgb' else 'it looks like a black-and-white mask') == 2
    (tmp_path / 'a.png').write_bytes(b'damaged')
    assert '1 of 2 classes has no pixel' in refused(tmp_path, capsys, '1 problem', palette=palette, num_classes=2)


def test_labels_of_the_background_alone(tmp_path, capsys):
    masks(tmp_path, 0, 'grey')
    out = reported(tmp_path, capsys, palette='', num_classes=2)
    assert out.count('1 of 2 classes has no pixel: 1; only one class counts (0)') == 2 and 'white' not in out


def test_colours_are_no_black_and_white_masks(tmp_path, capsys):
    label = np.zeros([3, 7, 3], np.uint8)
    label[0] = 224, 224, 192
    make(tmp_path, {'train': {'a': label}, 'val': {'b': label}})
    out = reported(tmp_path, capsys, num_classes=2)
    assert 'only one class counts' in out and 'white' not in out
    label[0] = 255
    make(tmp_path, {'train': {'a': label}, 'val': {'b': label}})
    assert 'a black-and-white mask needs a palette file that names white' in reported(tmp_path, capsys, num_classes=2)


@pytest.mark.parametrize('ignore_label', [255, 0])
def test_training_needs_a_pixel_that_counts(tmp_path, ignore_label):
    make(tmp_path, {'train': {'a': np.full([3, 3], ignore_label)}})
    with pytest.raises(UserError) as caught:
        sources.labelled_list(conf(tmp_path), load_classes(3, ignore_label), 'data_list')
    message = str(caught.value)
    assert 'no label has a pixel of any class, all are --ignore_label=%d' % ignore_label in message
    assert len(message) <= 300 and ('white' in message) == (ignore_label == 255)
    sources.labelled_list(conf(tmp_path, valid_data_list=str(tmp_path / 'train.txt')), load_classes(3, ignore_label),
                          'valid_data_list')


def label_ids(folder, ids, name='aachen_000000_000019_gtFine_labelIds'):
    label = np.array([ids], np.uint8)
    make(folder, {'train': {name: label}, 'val': {name: label}})


def test_label_ids_of_cityscapes_are_named(tmp_path, capsys, monkeypatch):
    label_ids(tmp_path, [7, 8, 11])
    out = reported(tmp_path, capsys, palette='cityscapes', num_classes=19)
    assert out.count('convert_cityscapes.py') == 2 and 'is --num_classes' not in out
    for most in (2000, 0):  # if a list is too long to be read, the names decide
        monkeypatch.setattr(sources, 'MAX_CHECKED', most)
        for flag in ('data_list', 'valid_data_list'):
            sources.labelled_list(conf(tmp_path), load_classes(19), flag)
            assert 'convert_cityscapes.py' in capsys.readouterr().err
    out = reported(tmp_path, capsys, palette='', num_classes=34)
    assert out.count('convert_cityscapes.py') == 2 and 'is --num_classes' not in out
    label_ids(tmp_path, [7, 23, 33, 255])
    out = refused(tmp_path, capsys, '2 problems', num_classes=19)
    assert "labelIds.png holds Cityscapes' label ids (23 33): convert_cityscapes.py turns" in out
    label_ids(tmp_path, [7, 23, 33, 255], 'renamed')
    assert "renamed.png holds Cityscapes' label ids (23 33): convert" in refused(tmp_path, capsys, num_classes=19)
    assert 'convert' not in refused(tmp_path, capsys, num_classes=20)
    label_ids(tmp_path, range(34))
    assert 'convert' not in reported(tmp_path, capsys, num_classes=34)
    label_ids(tmp_path, range(19), 'aachen_000000_000019_gtFine_labelTrainIds')
    assert 'convert' not in reported(tmp_path, capsys, num_classes=19)


def test_last_class_of_a_palette_that_is_called_void(tmp_path, capsys):
    label = np.arange(12)[None]
    make(tmp_path, {'train': {'a': label}, 'val': {'b': label}, 'test': {'c': label}})
    (tmp_path / 'p.txt').write_text(''.join('c%d 0 0 %d\n' % (i, i) for i in range(11)) + 'Void 9 9 9\n')
    out = reported(tmp_path, capsys, palette=str(tmp_path / 'p.txt'), num_classes=12)
    assert "class 11 is called 'Void': is --num_classes=11 with --ignore_label=11 meant?" in out
    out = reported(tmp_path, capsys, palette=str(tmp_path / 'p.txt'), num_classes=11, ignore_label=11)
    assert out.endswith('all files are as they should be\n')


def difficult(folder, colours):
    """Saves lists with a line of class 1, few pixels of class 2, 16-bit images and labels with palettes."""
    label = np.zeros([100, 500], np.uint8)
    label[:, 50:53], label[:12, :12] = 1, 2
    make(folder, {'train': dict.fromkeys('abc', label), 'val': dict.fromkeys('def', label)})
    for name in 'abcdef':
        image = Image.fromarray(label)
        image.putpalette(colours)
        image.save(str(folder / (name + '.png')))
        values = np.random.RandomState(0).randint(0, 4096, label.shape).astype(np.uint16)
        Image.fromarray(values).save(str(folder / (name + '.jpg')), format='PNG')


def test_what_is_difficult_to_train(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_files, '_unsaid', {kind: [kind] for kind in ('levels', 'pages', 'orientation')})
    monkeypatch.setattr(sources, 'LARGE', 40000)
    difficult(tmp_path, [0, 0, 0, 0, 99, 0, 0, 0, 99])
    (tmp_path / 'p.txt').write_text('sky 0 0 0\nwire 0 0 99\nbird 0 99 0\n')
    flags = {'input_height': 33, 'input_width': 50}
    palette = str(tmp_path / 'p.txt')
    train, val = reported(tmp_path, capsys, 3, palette=palette, **flags).split('--valid_data_list')
    told = 'palette PNGs whose own colours contradict --palette: 3, '
    for out, name in ((train, 'a.png'), (val, 'd.png')):
        sentence, = [line for line in out.splitlines() if told in line]
        assert name in sentence and 'class 1 is 0 99 0 there, 0 0 99 in --palette' in sentence and len(sentence) <= 300
    for words in ('drawn only in lines or specks', ': 1 wire; ', 'tiles of about 100x66, twice the crop', '  weight'):
        assert words in train and words not in val
    assert 'a weight above' not in train

    conf_, classes = conf(tmp_path, **flags), load_classes(3, 255, palette)
    source = sources.labelled_list(conf_, classes, 'data_list')
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith(('warning', '...'))]
    assert len(warnings) == 4 and told in warnings[0] and '1 wire' in warnings[1] and '100x66' in warnings[2]
    assert warnings[3].startswith('... and 3 more warnings')  # about few levels, which the reader does not repeat
    image_files.load_image(source.images[0])
    assert capsys.readouterr().err == ''
    sources.labelled_list(conf_, classes, 'valid_data_list')
    err = capsys.readouterr().err
    assert told in err and '1 wire' not in err and '100x66' not in err

    monkeypatch.setattr(sources, 'LARGE', 60000)  # more pixels than an image has
    out = reported(tmp_path, capsys, 3, palette=palette, random_scale_range=[2, 3], **flags)
    assert '1 wire; ' not in out and 'tiles' not in out
    out = reported(tmp_path, capsys, 3, palette=palette, random_scale_range=[2, 3], random_scale=False, **flags)
    assert '1 wire; ' in out
    monkeypatch.setattr(sources, 'LARGE', 40000)
    assert 'tiles' not in reported(tmp_path, capsys, 3, palette=palette, input_height=40, input_width=50)


def test_the_check_warns_of_large_balanced_weights(tmp_path, capsys):
    label = np.zeros([200, 303], np.uint8)
    label[:, :101], label[:, 101:202], label[:10, :10] = 1, 2, 3
    make(tmp_path, {'train': {'a': label}, 'val': {'b': label}})
    out = reported(tmp_path, capsys, 4, palette='')
    assert out.count('--class_weights=balanced gives 1 class a weight above 100: 3 (202);') == 1
    sources.labelled_list(conf(tmp_path), load_classes(4), 'data_list')  # training need not use these weights
    assert 'class_weights' not in capsys.readouterr().err


def test_train_ids_under_a_map_of_label_ids(tmp_path, capsys):
    label_ids(tmp_path, range(19), 'aachen_000000_000019_gtFine_labelTrainIds')
    told = "names of Cityscapes' train ids already, which --label_map=cityscapes takes for label ids: 1, "
    classes = load_classes(19, 255, '', 'cityscapes')
    for label_map, count in (('cityscapes', 2), ('', 0)):
        sources.check_lists(conf(tmp_path, label_map=label_map), classes)
        assert capsys.readouterr().out.count(told) == count
        sources.labelled_list(conf(tmp_path, label_map=label_map), classes, 'valid_data_list')
        assert capsys.readouterr().err.count(told) == count / 2


def test_a_training_says_each_thing_once(tmp_path):
    difficult(tmp_path, [0, 0, 0, 0, 99, 0, 0, 0, 99])
    label = np.zeros([100, 500], np.uint8)
    label[:, 250:], label[:10, :10] = 1, 2
    for name in 'abc':
        Image.fromarray(label).save(str(tmp_path / (name + '.png')))
    command = [sys.executable, os.path.join(ROOT, 'tests', 'narrow_main.py'), 'main', '--option=train']
    command += ['--%s=%s' % (flag, tmp_path / name) for flag, name in (
        ('data_dir', ''), ('data_list', 'train.txt'), ('valid_data_list', 'val.txt'), ('modeldir', 'model'),
        ('logdir', 'log'), ('logfile', 'log.txt'))]
    command += ['--encoder_name=res50', '--num_classes=3', '--palette=', '--num_steps=1', '--batch_size=1',
                '--input_height=33', '--input_width=33', '--class_weights=balanced']
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stderr
    assert 'balanced weights of the classes, from 0: 1 0.996 249\n' in done.stdout
    assert done.stderr.count('a weight above 100: 2 (249);') == 1
    assert done.stderr.count('a.jpg: nearly all of its pixels') == 1
    assert done.stderr.count('nearly all of its pixels') == 3  # one for each image, from the check


def test_vocs_names_are_right_for_vocs_images(tmp_path, capsys):
    make(tmp_path, {'train': {'2007_000032': BALANCED}, 'val': {'2007_000033': BALANCED},
                    'test': {'2008_000006': None}})
    assert reported(tmp_path, capsys, palette='').endswith('all files are as they should be\n')


def test_images_in_training_and_validation_list(tmp_path, capsys):
    make(tmp_path, {'train': {'a': BALANCED, 'b': BALANCED}, 'val': {'b': BALANCED}, 'test': {'b': None}})
    out = reported(tmp_path, capsys)
    assert 'images in both the training and the validation list: 1, ' + quoted(tmp_path / 'b.jpg') in out
    out = reported(tmp_path, capsys, valid_data_list=str(tmp_path / 'train.txt'))
    assert 'validation list: 2, ' in out


def test_the_sample_has_no_fault(capsys):
    folder = pathlib.Path(ROOT, 'dataset', 'sample')
    flags = conf(folder, test_data_list=str(folder / 'val.txt'))
    sources.check_lists(flags, load_classes(6, 255, str(folder / 'classes.txt')))
    assert capsys.readouterr().out.endswith('all files are as they should be\n')
