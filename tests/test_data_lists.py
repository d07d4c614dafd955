"""utils/data_lists.py: the forms that a list's lines take, what is refused, and names for outputs."""

import os

import pytest

from utils.data.data_lists import check_files_exist, output_names, read_labeled_image_list, warn, write_list
from utils.data.palette import load_palette
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def write(folder, data, name='list.txt'):
    path = str(folder / name)
    with open(path, 'wb') as file:
        file.write(data if isinstance(data, bytes) else data.encode('utf-8'))
    return path


def read(folder, data, data_dir='/data'):
    return read_labeled_image_list(data_dir, write(folder, data))


def touch(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, 'w').close()
    return path


def refused(function, *words):
    with pytest.raises(UserError) as caught:
        function()
    for word in words:
        assert word in str(caught.value)


# reading


@pytest.mark.parametrize('line, image, label', [
    ('/a.jpg /b.png', '/data/a.jpg', '/data/b.png'),
    ('a.jpg b.png', '/data/a.jpg', '/data/b.png'),
    ('a.jpg\tb.png', '/data/a.jpg', '/data/b.png'),
    ('  a.jpg    b.png  ', '/data/a.jpg', '/data/b.png'),
    ('a.jpg \t b.png', '/data/a.jpg', '/data/b.png'),
    ('a.jpg\t\tb.png\t', '/data/a.jpg', '/data/b.png'),
    ('"my a.jpg" "my b.png"', '/data/my a.jpg', '/data/my b.png'),
    ("'my a.jpg' b.png", '/data/my a.jpg', '/data/b.png'),
    ('"my a.jpg"\t"my b.png"', '/data/my a.jpg', '/data/my b.png'),
    ('my a.jpg\tmy b.png', '/data/my a.jpg', '/data/my b.png'),
    ('"/my a.jpg" /b.png', '/data/my a.jpg', '/data/b.png'),
    ("John's.jpg Mary's.png", "/data/John's.jpg", "/data/Mary's.png"),
    ("'John\"s.jpg' b.png", '/data/John"s.jpg', '/data/b.png'),
    ('a\\b.jpg c\\d.png', '/data/a\\b.jpg', '/data/c\\d.png'),
    ('"a\\b c.jpg" d.png', '/data/a\\b c.jpg', '/data/d.png'),
    ('a.jpg b.png # a comment', '/data/a.jpg', '/data/b.png'),
    ('a.jpg\tb.png\t# a comment', '/data/a.jpg', '/data/b.png'),
    ('a#1.jpg b#1.png', '/data/a#1.jpg', '/data/b#1.png'),
    ('"#1.jpg" b.png', '/data/#1.jpg', '/data/b.png'),
    ('b\u00e4r.jpg \u72d7.png', '/data/b\u00e4r.jpg', '/data/\u72d7.png'),
    ('a.jpg', '/data/a.jpg', ''),
    ('a.jpg\t', '/data/a.jpg', ''),
    ('"my a.jpg"', '/data/my a.jpg', ''),
    ('a.jpg # no label', '/data/a.jpg', ''),
    ('a\u2028b.jpg', '/data/a\u2028b.jpg', ''),
    ('a\u00a0b.jpg c.png', '/data/a\u00a0b.jpg', '/data/c.png'),
    ("a.jpg b.png # isn't it \"odd", '/data/a.jpg', '/data/b.png'),
    ('my #1.jpg\tb.png', '/data/my #1.jpg', '/data/b.png'),
    ('"#1.jpg"\t"#1.png"', '/data/#1.jpg', '/data/#1.png'),
])
def test_one_line(tmp_path, line, image, label):
    assert read(tmp_path, line) == ([image], [label])


@pytest.mark.parametrize('data', [
    '/1.jpg /1.png\n/2.jpg /2.png\n',
    '/1.jpg /1.png\n/2.jpg /2.png',
    '/1.jpg /1.png\r\n/2.jpg /2.png\r\n',
    '\ufeff/1.jpg /1.png\r\n\r\n  \r\n# comment\r\n/2.jpg /2.png',
    '\n\n\t\n   # comment /0.jpg /0.png\n/1.jpg /1.png\n\n/2.jpg\t/2.png\n\n',
])
def test_line_ends_blank_lines_and_comments(tmp_path, data):
    assert read(tmp_path, data) == (['/data/1.jpg', '/data/2.jpg'], ['/data/1.png', '/data/2.png'])


def test_lines_with_and_without_labels(tmp_path):
    assert read(tmp_path, 'a.jpg\nb.jpg b.png\n') == (['/data/a.jpg', '/data/b.jpg'], ['', '/data/b.png'])


def test_leading_slash_means_data_dir_first(tmp_path):
    outside = touch(str(tmp_path / 'outside' / 'a.jpg'))
    data_dir = str(tmp_path / 'data')
    os.makedirs(data_dir)
    assert read(tmp_path, outside, data_dir)[0] == [outside]
    inside = touch(data_dir + outside)
    assert read(tmp_path, outside, data_dir)[0] == [inside]
    assert read(tmp_path, '/absent.jpg', data_dir)[0] == [os.path.join(data_dir, 'absent.jpg')]


@pytest.mark.parametrize('data_dir, expected', [('', 'a/b.jpg'), ('data', 'data/a/b.jpg'), ('data/', 'data/a/b.jpg')])
def test_data_dir(tmp_path, data_dir, expected):
    assert read(tmp_path, 'a/b.jpg\n', data_dir)[0] == [expected]
    assert read(tmp_path, '/a/b.jpg\n', data_dir)[0] == [expected]


@pytest.mark.parametrize('data, words', [
    (b'', ['names no image']),
    (b'\n# nothing\n\n', ['names no image']),
    (b'a.jpg b.png\nmy image.jpg my label.png\n', ['line 2', '4 fields', 'quote', 'tab']),
    (b'a.jpg\tb.png\tc.png\n', ['line 1', '3 fields']),
    (b'\n"a b.jpg c.png\n', ['line 2', 'quote', '"a b.jpg c.png']),
    (b'"a b.jpg"c.png\n', ['line 1', 'quote']),
    (b'a.jpg b.png\nb\xe4r.jpg b.png\n', ['line 2', 'UTF-8']),
    ('a.jpg b.png\n'.encode('utf-16'), ['line 1', 'UTF-8']),
])
def test_bad_lists(tmp_path, data, words):
    path = write(tmp_path, data)
    refused(lambda: read_labeled_image_list('/data', path), path, *words)


def test_missing_list(tmp_path):
    path = str(tmp_path / 'absent.txt')
    refused(lambda: read_labeled_image_list('', path), path, 'does not exist', 'convert_voc.py',
            'convert_cityscapes.py', '--data_list', '--valid_data_list', '--test_data_list')
    refused(lambda: read_labeled_image_list('', str(tmp_path)), str(tmp_path), 'cannot be read')


def test_duplicates_are_told(tmp_path, capsys):
    images, _ = read(tmp_path, 'a.jpg a.png\nb.jpg b.png\n\n/a.jpg a.png\na.jpg\n')
    assert len(images) == 4
    told = capsys.readouterr().err
    assert told.count('\n') == 1
    assert all(words in told for words in ('list.txt', '2 images', 'line 4 repeats line 1', 'line 5 repeats line 1'))
    read(tmp_path, 'a.jpg a.png\nb.jpg a.png\n')
    assert capsys.readouterr().err == ''


def test_duplicates_in_a_list_with_a_percent_sign(tmp_path, capsys):
    read_labeled_image_list('', write(tmp_path, 'a.jpg\na.jpg\n', '50%d.txt'))
    assert '50%d.txt' in capsys.readouterr().err


def test_write_list(tmp_path):
    path = str(tmp_path / 'list.txt')
    write_list(path, ['a.jpg b.png', '/\u72d7.jpg'])
    assert read_labeled_image_list('', path) == (['a.jpg', '\u72d7.jpg'], ['b.png', ''])
    assert os.listdir(str(tmp_path)) == ['list.txt']
    refused(lambda: write_list(str(tmp_path / 'absent' / 'list.txt'), []), 'absent')


def test_warn(capsys):
    warn('%d cats', [])
    assert capsys.readouterr().err == ''
    warn('%d cats', ['a', 'b'])
    assert capsys.readouterr().err == 'warning: 2 cats (a, b).\n'
    warn('%d cats', list('abcd'))
    assert capsys.readouterr().err == 'warning: 4 cats (a, b, c, ...).\n'


# files


def test_files_that_exist(tmp_path):
    image, label = touch(str(tmp_path / 'a.jpg')), touch(str(tmp_path / 'a.png'))
    check_files_exist([image], [label], True)
    check_files_exist([image, image], [label, ''], False)


def test_missing_files(tmp_path):
    image = touch(str(tmp_path / 'a.jpg'))
    absent = [str(tmp_path / ('%d.png' % i)) for i in range(5)]
    refused(lambda: check_files_exist([image] * 5, absent, True), '5 of 6 files', absent[0], absent[2], '...',
            '--data_dir', 'quote')
    refused(lambda: check_files_exist(absent[:1], [''], False), '1 of 1 files', absent[0])
    refused(lambda: check_files_exist([str(tmp_path)], [''], False), str(tmp_path))  # a folder is no file
    with pytest.raises(UserError) as caught:
        check_files_exist([image] * 5, absent, True)
    assert absent[3] not in str(caught.value)


def test_missing_labels(tmp_path):
    image, label = touch(str(tmp_path / 'a.jpg')), touch(str(tmp_path / 'a.png'))
    refused(lambda: check_files_exist([image, image], [label, ''], True), '1 of 2 images', 'no label', image)


# output names


@pytest.mark.parametrize('images, names', [
    (['/d/a.jpg', '/d/b.png'], ['a', 'b']),
    (['/d/a.b.jpg'], ['a.b']),
    (['/x/i.jpg', '/y/i.jpg', '/y/j.jpg'], ['x_i', 'y_i', 'j']),
    (['/d/p/s/i.jpg', '/d/q/s/i.jpg'], ['p_s_i', 'q_s_i']),
    (['/d/i.jpg', '/d/i.png'], ['i_jpg', 'i_png']),
    (['/x/i.jpg', '/x/i.png', '/y/i.jpg'], ['i_jpg', 'i_png', 'i']),
    (['/d/i.jpg', '/d/./i.jpg', '/d/j.jpg'], ['i', 'i', 'j']),
    (['i.jpg', 'x/i.jpg'], None),
    (['/x/i.jpg', '/y/i.jpg', '/z/x_i.jpg'], None),
    (['/a_b/c.jpg', '/a/b_c.jpg', '/z/c.jpg', '/z/b_c.jpg'], None),
    (['a_b/c.jpg', 'a/b_c.jpg', 'c.jpg', 'b_c.jpg', 'a_b_c.jpg'], None),
    (['../x/i.jpg', '../../x/i.jpg'], None),
    (['i.jpg', 'i', 'i.'], None),
])
def test_output_names(images, names):
    made = output_names(images)
    assert names is None or made == names
    of_path = {os.path.normpath(image): name for image, name in zip(images, made)}
    assert len(set(of_path.values())) == len(of_path)
    assert made == [of_path[os.path.normpath(image)] for image in images]
    assert all(name and os.path.basename(name) == name for name in made)


def test_output_names_of_cityscapes_are_the_images_own():
    images = ['/d/leftImg8bit/val/%s/%s_000000_0000%d_leftImg8bit.png' % (city, city, frame)
              for city in ('ulm', 'bonn') for frame in (19, 38)]
    assert output_names(images) == [os.path.basename(image)[:-4] for image in images]


def test_output_names_of_many_images():
    images = ['/data/%d/%d/frame.jpg' % (i % 7, i) for i in range(2000)]
    assert output_names(images) == ['%d_frame' % i for i in range(2000)]


# flag files


@pytest.mark.parametrize('name, num_classes, lists', [
    ('voc2012', 21, ('train', 'val', 'val')),
    ('cityscapes', 19, ('cityscapes/train_fine', 'cityscapes/val_fine', 'cityscapes/val_fine')),
])
def test_flag_files_name_flags_of_main_and_lists_of_the_converters(settings, name, num_classes, lists):
    from absl import flags

    known = vars(settings())
    with open(os.path.join(ROOT, 'dataset', name + '.flags')) as file:
        given = dict(line.strip()[2:].split('=') for line in file if line.strip() and not line.startswith('#'))
    assert set(given) <= set(known)
    values = {flag: flags.FLAGS[flag].parser.parse(value) for flag, value in given.items()}
    assert values['num_classes'] == num_classes
    assert len(load_palette(values['palette'], num_classes).names) == num_classes
    paths = tuple(values[flag] for flag in ('data_list', 'valid_data_list', 'test_data_list'))
    assert paths == tuple('./dataset/%s.txt' % path for path in lists)
