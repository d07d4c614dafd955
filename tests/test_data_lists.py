"""utils/data/data_lists.py: the format of lists, errors in them, and the names of outputs."""

import os

import pytest

from utils.data import data_lists
from utils.data.data_lists import check_files_exist, output_names, read_labeled_image_list, warn, write_list
from utils.data.palette import load_palette
from utils.system.errors import UserError, quoted

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def write(folder, data, name='list.txt'):
    path = str(folder / name)
    with open(path, 'wb') as file:
        file.write(data if isinstance(data, bytes) else data.encode('utf-8'))
    return path


def read(folder, data, data_dir='/data'):
    """Writes a list, reads it and returns (images, labels)."""
    source = read_labeled_image_list(data_dir, write(folder, data))
    assert len(source.images) == len(source.labels) == len(source.lines)
    return source.images, source.labels


def touch(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, 'w').close()
    return path


def refused(function, *words):
    """Calls function(), which must fail, and returns its one sentence, which must contain the words."""
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    for word in words:
        assert word in message
    assert message.isprintable()
    return message


def made(images, labels):
    return data_lists.Source('list.txt', images, labels, list(range(1, len(images) + 1)))


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
    (b'', ['contains no images']),
    (b'\n# nothing\n\n', ['contains no images']),
    (b'a.jpg b.png\nmy image.jpg my label.png\n', ['line 2', '4 fields', 'quote', 'tab']),
    (b'a.jpg\tb.png\tc.png\n', ['line 1', '3 fields']),
    (b'\n"a b.jpg c.png\n', ['line 2', 'quote', '"a b.jpg c.png']),
    (b'"a b.jpg"c.png\n', ['line 1', 'quote']),
    (b'a.jpg b.png\nb\xe4r.jpg b.png\n', ['line 2', 'UTF-8']),
    ('a.jpg b.png\n'.encode('utf-16'), ['line 1', 'UTF-8']),
])
def test_bad_lists(tmp_path, data, words):
    path = write(tmp_path, data)
    refused(lambda: read_labeled_image_list('/data', path), quoted(path), *words)


@pytest.mark.parametrize('data, words', [
    (b'a.jpg b.png\na\0.jpg b.png\n', ['line 2', 'NUL']),
    (bytes(bytearray(range(128))), ['line']),
    (b'x' * 5000000, ['line 1', '5000000 characters']),
    (b'"' + b'x y ' * 1000000, ['line 1', '4000001 characters']),
    (b'a ' * 2000000, ['line 1', '4000000 characters']),
    (b'a ' * 20000, ['line 1', '20000 fields']),
    (b'a.jpg b.png\n\xed\xa0\x80.jpg\n', ['line 2', 'UTF-8']),
    (b'a \x1b[31mb c\n', ['line 1', '3 fields']),
    (b'"a \x1b[31mb\n', ['line 1', '\\x1b[31m']),
    (b'"' + b'\x1b' * 60000, ['line 1', '...', '\\x1b']),
])
def test_hostile_lists_are_refused_in_few_characters(tmp_path, data, words):
    path = write(tmp_path, data)
    assert len(refused(lambda: read_labeled_image_list('', path), *words)) <= 300


def test_long_paths_are_refused_in_few_characters():
    paths = ['/%s/%d.jpg' % ('folder' * 20, i) for i in range(10)]
    source = made(paths, [''] * len(paths))._replace(name=paths[0], lines=[10 ** 6 + i for i in range(10)])
    assert len(refused(lambda: check_files_exist(source, True), 'no label', '0.jpg', 'and 9 more')) <= 300
    assert len(refused(lambda: check_files_exist(source, False), 'are missing', '0.jpg', 'and 9 more')) <= 300


def test_odd_line_ends_and_control_characters_stay_in_paths(tmp_path):
    assert read(tmp_path, 'a.jpg b.png\rc.jpg\n') == (['/data/a.jpg', '/data/c.jpg'], ['/data/b.png', ''])
    assert read(tmp_path, 'a\x0b.jpg \x1c.png') == (['/data/a\x0b.jpg'], ['/data/\x1c.png'])
    image, _ = read(tmp_path, 'a\x1b[31m.jpg')
    refused(lambda: check_files_exist(made(image, ['']), False), 'a\\x1b[31m.jpg')


@pytest.mark.parametrize('kind', ['fifo', 'device', 'folder', 'large'])
def test_lists_that_are_no_regular_files_are_refused_at_once(tmp_path, kind):
    path = str(tmp_path / 'list.txt')
    if kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'folder':
        os.mkdir(path)
    elif kind == 'large':
        with open(path, 'wb') as file:
            file.truncate(1 << 40)
    else:
        path = '/dev/zero'
    refused(lambda: read_labeled_image_list('', path), quoted(path), 'cannot be read')
    if kind == 'fifo':
        refused(lambda: check_files_exist(made([path], ['']), False), 'not regular files')


def test_lines_are_those_of_the_file(tmp_path):
    source = read_labeled_image_list('', write(tmp_path, '# c\na.jpg\n\nb.jpg b.png\nc.jpg\n'))
    assert (source.name, source.lines) == (str(tmp_path / 'list.txt'), [2, 4, 5])
    assert data_lists.first_lines(source, 2)[1:] == (['a.jpg', 'b.jpg'], ['', 'b.png'], [2, 4])
    assert data_lists.first_lines(source, None) == source


def test_many_files_of_one_folder(tmp_path, monkeypatch):
    (tmp_path / 'images').mkdir()
    names = ['%04d.jpg' % i for i in range(1200)]
    for name in names[1:]:
        touch(str(tmp_path / 'images' / name))
    os.symlink(names[1], str(tmp_path / 'images' / 'link.jpg'))
    os.symlink('nowhere', str(tmp_path / 'images' / 'broken.jpg'))
    os.mkfifo(str(tmp_path / 'images' / 'fifo.jpg'))
    names += ['link.jpg', 'broken.jpg', 'fifo.jpg']
    text = ''.join('/images/%s\n' % name for name in names)
    monkeypatch.chdir(str(tmp_path))
    source = read_labeled_image_list('', write(tmp_path, text))
    refused(lambda: check_files_exist(source, False), '3 of 1203 files', 'line 1: ', 'line 1202: ', 'line 1203: ')


def test_missing_list(tmp_path):
    path = str(tmp_path / 'absent.txt')
    refused(lambda: read_labeled_image_list('', path), quoted(path), 'does not exist', 'convert_voc.py',
            'convert_cityscapes.py', '--data_list', '--valid_data_list', '--test_data_list')
    refused(lambda: read_labeled_image_list('', str(tmp_path)), quoted(tmp_path), 'cannot be read')


def test_duplicates_are_reported(tmp_path, capsys):
    images, _ = read(tmp_path, 'a.jpg a.png\nb.jpg b.png\n\n/a.jpg a.png\na.jpg\n')
    assert len(images) == 4
    reported = capsys.readouterr().err
    assert reported.count('\n') == 1
    assert all(words in reported for words in ('list.txt', 'images listed twice: 2',
                                               'line 4 repeats line 1', 'line 5 repeats line 1'))
    read(tmp_path, 'a.jpg a.png\nb.jpg a.png\n')
    assert capsys.readouterr().err == ''


def test_duplicates_in_a_list_with_a_percent_sign(tmp_path, capsys):
    read_labeled_image_list('', write(tmp_path, 'a.jpg\na.jpg\n', '50%d.txt'))
    assert '50%d.txt' in capsys.readouterr().err


def test_write_list(tmp_path):
    path = str(tmp_path / 'list.txt')
    write_list(path, ['a.jpg b.png', '/\u72d7.jpg'])
    assert read_labeled_image_list('', path)[1:] == (['a.jpg', '\u72d7.jpg'], ['b.png', ''], [1, 2])
    assert os.listdir(str(tmp_path)) == ['list.txt']
    refused(lambda: write_list(str(tmp_path / 'absent' / 'list.txt'), []), 'absent')


def test_warn(capsys):
    warn('%d cats', [])
    assert capsys.readouterr().err == ''
    warn('%d cats', ['a', 'b'])
    assert capsys.readouterr().err == 'warning: 2 cats (a, b).\n'
    warn('%d cats', list('abcd'))
    assert capsys.readouterr().err == 'warning: 4 cats (a, b, c and 1 more).\n'


# files


def test_files_that_exist(tmp_path):
    image, label = touch(str(tmp_path / 'a.jpg')), touch(str(tmp_path / 'a.png'))
    check_files_exist(made([image], [label]), True)
    check_files_exist(made([image, image], [label, '']), False)


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    image = touch(str(tmp_path / 'a.jpg'))
    absent = ['%d.png' % i for i in range(5)]
    message = refused(lambda: check_files_exist(made([image] * 5, absent), True), 'list list.txt: 5 of 6 files',
                      'line 1: 0.png', 'line 3: 2.png and 2 more', '--data_dir', 'quote')
    assert '3.png' not in message
    refused(lambda: check_files_exist(made(absent[:1], ['']), False), '1 of 1 files', '0.png')
    refused(lambda: check_files_exist(made([str(tmp_path)], ['']), False), quoted(tmp_path))  # a folder is not a file
    refused(lambda: check_files_exist(made(['a\0b'], ['']), False), 'a\\x00b')


def test_missing_labels(tmp_path):
    image, label = touch(str(tmp_path / 'a.jpg')), touch(str(tmp_path / 'a.png'))
    refused(lambda: check_files_exist(made([image, image], [label, '']), True), 'list.txt', '1 of 2 images',
            'no label', quoted(image))


@pytest.mark.parametrize('lines, told', [
    ('2007_000032\n2007_000039\n', "these are VOC image ids: make the list with convert_voc.py"),
    ('2007_000032 -1\n2007_000039  1\n', "these are VOC image ids"),
    ('a.jpg,a.png\nb.jpg,b.png\n', "put a space or a tab between image and label, not ','"),
    ('a.jpg, a.png\n', "label, not ','"),
    ('a.jpg;a.png\n', "label, not ';'"),
    ('image,label\na.jpg,a.png\n', "label, not ','"),
    ('sub\\b.jpg sub\\b.png\n', 'write / in paths, not \\'),
    ('C:\\data\\a.jpg C:\\data\\a.png\n', 'write / in paths, not \\'),
    ('# mine\nimage label\na.jpg a.png\n', 'remove line 2, which looks like a header'),
    ('image\na.jpg a.png\n', 'remove line 1, which looks like a header'),
    ('a.jpg a.png\nc.jpg a.png\n', 'check the list and --data_dir'),
    ('a.jpg\n', 'write the label after the image on the same line'),
    ('img1 a.png\nimg2 a.png\n', 'check the list and --data_dir'),
])
def test_lists_written_in_another_way(tmp_path, lines, told):
    """The folder's own name contains a comma and a backslash, which must not be reported."""
    folder = tmp_path / 'a.jpg,\\b'
    for name in ('a.jpg', 'a.png'):
        touch(str(folder / name))
    source = read_labeled_image_list(str(folder), write(tmp_path, lines))
    assert len(refused(lambda: check_files_exist(source, True), told)) <= 300


@pytest.mark.parametrize('line, told', [
    ('"a.jpg","a.png"', "put a space or a tab between image and label, not ','"),
    ('a.jpg , a.png', "label, not ','"),
    ('0 a.jpg, a.png', "label, not ','"),
    ('image path label path', '4 fields instead of an image and a label: quote paths that contain spaces or put a tab '
                              'between the two; remove the line if it is a header'),
])
def test_lines_written_in_another_way(tmp_path, line, told):
    path = write(tmp_path, line)
    assert len(refused(lambda: read_labeled_image_list('', path), 'line 1', told)) <= 300


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


@pytest.mark.parametrize('paths, names', [
    (['a.jpg', 'b/a.jpg', 'b/c/a.jpg'], ['a', 'b/a', 'b/c/a']),
    (['a.jpg', 'a.png', 'b/a.png'], ['a_jpg', 'a_png', 'b/a']),
    (['a.jpg', 'a.png', 'a_jpg.png'], ['a_jpg_0', 'a_png', 'a_jpg_png']),
    (['a.b.jpg', 'a b.jpg', 'c.d/a.jpg'], ['a.b', 'a b', 'c.d/a']),
])
def test_names_of_the_images_of_a_folder(paths, names):
    assert data_lists.folder_names(paths) == names


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
