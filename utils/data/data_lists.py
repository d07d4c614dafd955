"""Data lists: text files with one image, or one image and its label, a line."""

import collections
import os
import re
import sys

from utils.system import output_files
from utils.system.errors import UserError

# An apostrophe inside a word belongs to the path, which the shell's rules (shlex) would not allow.
_FIELD = re.compile(r' *("[^"]*"|\'[^\']*\'|[^ "\'][^ ]*)(?= |$)')

_REMEDY = 'check the list and --data_dir'


def read_labeled_image_list(data_dir, data_list):
    """Reads a data list.

    A line holds an image and its label, separated by spaces or a tab, or an image alone; paths with spaces
    are quoted or tab-separated; blank lines and # comments are skipped. A path is relative to data_dir, with
    or without a leading '/'; one that is absent there and present as an absolute path is taken as such.
    Duplicate images are told on stderr.

    Args:
      data_dir: the folder that holds the data; may be ''.
      data_list: the list's path.

    Returns:
      (images, labels): two lists of equal length of paths; a label is '' where the line has none.

    Raises:
      UserError: the list is missing, empty or not UTF-8 text, or a line is malformed.
    """
    images, labels, numbers = [], [], []
    for number, line in enumerate(_read_lines(data_list), 1):
        where = 'list %s, line %d' % (data_list, number)
        try:
            fields = _split_line(line.decode('utf-8').strip(' \t'))
        except UnicodeDecodeError:
            raise UserError('%s: not UTF-8 text; save the list as UTF-8.' % where)
        except ValueError as error:
            raise UserError('%s: %s.' % (where, error))
        if not fields:
            continue
        images.append(_full_path(data_dir, fields[0]))
        labels.append(_full_path(data_dir, fields[1]) if len(fields) == 2 else '')
        numbers.append(number)
    if not images:
        raise UserError('list %s names no image: write one image and its label a line.' % data_list)
    _tell_duplicates(data_list, images, numbers)
    return images, labels


def check_files_exist(images, labels, need_labels):
    """Checks that every file of a list exists.

    Args:
      images, labels: what read_labeled_image_list returns.
      need_labels: whether an image without a label is an error.

    Raises:
      UserError: names the first files that are missing, or the images that lack a label, and their count.
    """
    bare = [image for image, label in zip(images, labels) if not label]
    if need_labels and bare:
        raise UserError('%d of %d images have no label in the list (%s): write the label after the image on '
                        'the same line.' % (len(bare), len(images), _first(bare)))
    paths = list(dict.fromkeys(images + [label for label in labels if label]))
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError('%d of %d files are missing (%s): %s, and quote paths with spaces.' % (
            len(missing), len(paths), _first(missing), _REMEDY))


def output_names(images):
    """A base name for the outputs of each image, unique over the list.

    It is the image's name without extension (with it, as in `name_jpg`, where two images differ in nothing
    else); where two images share it, as many of their folders go in front (`a_b_name`) as tell them apart.
    Equal paths get equal names.

    Args:
      images: list of paths.

    Returns:
      list of names, in the order of images.
    """
    paths = list(dict.fromkeys(os.path.normpath(image) for image in images))
    shared = collections.Counter(os.path.splitext(path)[0] for path in paths)
    choices = [_name_choices(path, shared[os.path.splitext(path)[0]] > 1) for path in paths]
    depth = [0] * len(paths)
    while True:
        names = [names_of_path[d] for names_of_path, d in zip(choices, depth)]
        count = collections.Counter(names)
        clashes = [i for i, name in enumerate(names) if count[name] > 1]
        if not clashes:
            break
        for i in clashes:
            depth[i] += 1
            if depth[i] == len(choices[i]):  # folders joined by '_' can still be alike: a_b/c and a/b_c
                choices[i].append('%s_%d' % (choices[i][-1], i))
    name_of = dict(zip(paths, names))
    return [name_of[os.path.normpath(image)] for image in images]


def write_list(path, lines):
    """Writes a data list, under its name only once it is whole."""
    with output_files.whole(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        file.writelines(line + '\n' for line in lines)


def warn(sentence, items):
    """Prints a sentence with %d for the number of items, and the first of them, on stderr; nothing for none."""
    if items:
        print('warning: %s (%s).' % (sentence % len(items), _first(items)), file=sys.stderr)


def _read_lines(data_list):
    try:
        with open(data_list, 'rb') as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError('list %s does not exist: make it with convert_voc.py or convert_cityscapes.py, or '
                        'name yours with --data_list, --valid_data_list or --test_data_list.' % data_list)
    except OSError as error:
        raise UserError('list %s cannot be read: %s.' % (data_list, error.strerror))
    if data.startswith(b'\xef\xbb\xbf'):
        data = data[3:]
    return data.splitlines()


def _split_line(line):
    """The fields of a line: [], [image] or [image, label]; ValueError tells what is wrong."""
    fields, end = [], 0
    if '\t' in line:
        fields = [field.strip(' ') for field in line.split('\t')]
        end = len(line)
    while end < len(line):
        match = _FIELD.match(line, end)
        if match is None:
            raise ValueError('a quote is not closed: %s' % line)
        fields.append(match.group(1))
        end = len(line) if fields[-1].startswith('#') else match.end()
    comment = next((i for i, field in enumerate(fields) if field.startswith('#')), len(fields))
    fields = [re.sub(r'^(["\'])(.*)\1$', r'\2', field) for field in fields[:comment] if field]
    if len(fields) > 2:
        raise ValueError('%d fields instead of an image and a label: quote paths with spaces or put a tab '
                         'between the two' % len(fields))
    return fields


def _full_path(data_dir, path):
    if not path.startswith('/'):
        return os.path.join(data_dir, path)
    inside = os.path.join(data_dir, path.lstrip('/'))
    return path if not os.path.exists(inside) and os.path.exists(path) else inside


def _tell_duplicates(data_list, images, numbers):
    first, repeats = {}, []
    for image, number in zip(images, numbers):
        if first.setdefault(image, number) != number:
            repeats.append('line %d repeats line %d' % (number, first[image]))
    warn('list %s: %%d images stand there again' % data_list.replace('%', '%%'), repeats)


def _name_choices(path, with_extension):
    """The path's possible output names, shortest first."""
    stem, extension = os.path.splitext(path)
    parts = [part for part in re.split(r'[/\\:]+', stem) if part not in ('', '.', '..')]
    if with_extension:
        parts[-1] += '_' + extension[1:]
    return ['_'.join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _first(paths, count=3):
    return ', '.join(paths[:count]) + (', ...' if len(paths) > count else '')
