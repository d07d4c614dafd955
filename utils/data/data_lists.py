"""Data lists: text files with an image, or an image and its label, on each line. Also names for the output files."""

import collections
import contextlib
import functools
import itertools
import os
import re
import sys
from typing import List, NamedTuple

from utils.data.image_files import find_missing, read_file, text_lines
from utils.system import output_files
from utils.system.command_line import file_name
from utils.system.errors import UserError, quoted, some


class Source(NamedTuple):
    """The images and labels of a data list."""
    name: str  # of the list, for messages
    images: List[str]  # paths
    labels: List[str]  # the paths of their labels; '' for an image without a label
    lines: List[int]  # their line numbers in the list, from 1


# An apostrophe within a word is part of the path, which shlex would not allow.
_FIELD = re.compile(r' *("[^"]*"|\'[^\']*\'|[^ "\'][^ ]*)(?= |$)')
_COMMA = re.compile(r'(?:\.[A-Za-z]\w*|["\'])[ \t]*([,;])')  # after a file extension or a quote
VOC_ID = re.compile(r'\d{4}_\d{6}$')  # the name of a VOC image without its extension
_UNUSUAL = re.compile('["\'#\t\0]')

MAX_LINE = 1 << 16  # characters
SOME = 1000  # the most missing paths in which a common mistake is looked for
MOST_PATH = 60  # the most characters of the path of a missing file in a message


def read_labeled_image_list(data_dir, data_list):
    """Reads a data list.

    Each line contains an image and its label, separated by spaces or a tab, or only an image. Paths that contain spaces
    must be quoted or separated by a tab. Blank lines and # comments are skipped. Paths are relative to data_dir, with
    or without a leading '/'; if a path with a leading '/' does not exist in data_dir, it is tried as an absolute path.
    Images that are listed twice are reported on stderr.

    Args:
      data_dir: the folder that contains the data; may be ''.
      data_list: the list's path.

    Returns:
      a Source.

    Raises:
      UserError: the list is missing, empty, not a regular file or not UTF-8 text, or a line is malformed.
    """
    prefix, is_folder = os.path.join(data_dir, ''), functools.lru_cache(maxsize=1024)(os.path.isdir)
    images, labels, numbers, slashed = [], [], [], {}
    for number, line in enumerate(_list_lines(data_list), 1):
        try:
            fields = _split_line(line)
        except ValueError as error:
            raise UserError('list %s, line %d: %s.' % (quoted(data_list), number, error))
        if not fields:
            continue
        paths = [prefix + field.lstrip('/') for field in fields]
        slashed.update((path, field) for path, field in zip(paths, fields) if field[:1] == '/' and is_folder(
            field[:field.rfind('/') + 1]))
        images.append(paths[0])
        labels.append(paths[1] if len(paths) == 2 else '')
        numbers.append(number)
    if not images:
        raise UserError('list %s contains no images: write one image and its label per line.' % quoted(data_list))
    outside = _outside(slashed)
    if outside:
        images, labels = ([outside.get(path, path) for path in paths] for paths in (images, labels))
    _report_duplicates(data_list, images, numbers)
    return Source(data_list, images, labels, numbers)


def first_lines(source, count):
    """Returns a Source with the first `count` lines; all of them if count is None."""
    return Source(source.name, source.images[:count], source.labels[:count], source.lines[:count])


def check_files_exist(source, need_labels):
    """Checks that all files of a list exist and are regular files.

    Args:
      source: a Source.
      need_labels: whether an image without a label is an error.

    Raises:
      UserError: files are missing, or images have no label; the message gives the first ones and their number.
    """
    bare = [image for image, label in zip(source.images, source.labels) if not label]
    if need_labels and bare:
        raise UserError('list %s: %d of %d images have no label (%s): %s.' % (
            quoted(source.name), len(bare), len(source.images), some(bare, 3, show=quoted),
            likely_mistake(source, find_missing(bare)) or 'write the label after the image on the same line'))
    paths = set(source.images)
    paths.update(source.labels)
    paths.discard('')
    missing = set(find_missing(paths))
    if missing:
        pairs = zip(source.lines, source.images, source.labels)
        places = [(line, path) for line, image, label in pairs for path in (image, label) if path in missing]
        raise UserError('list %s: %d of %d files are missing or not regular files (%s): %s.' % (
            quoted(source.name), len(missing), len(paths), some(
                places, 3, show=lambda place: 'line %d: %s' % (place[0], quoted(place[1], MOST_PATH))),
            likely_mistake(source, missing) or 'check the list and --data_dir, and quote paths with spaces'))


def likely_mistake(source, missing):
    """Returns a clause that says how to fix a list in an unsupported format; '' if no likely mistake is found.

    Args:
      source: a Source.
      missing: the paths in `source` that do not exist.
    """
    missing = set(missing)
    if any(image in missing and VOC_ID.match(os.path.basename(image)) for image in source.images):
        return 'these are VOC image ids: make the list with convert_voc.py'
    absent = (path for pair in zip(source.images, source.labels) for path in pair if path in missing)
    ends = [_part_not_there(path) for path in itertools.islice(absent, SOME)]
    advice = next(filter(None, map(_separator_advice, ends)), '')
    if advice:
        return advice
    if os.sep == '/' and any('\\' in end for end in ends):
        return 'write / in paths, not \\'
    first = [os.path.basename(paths[0]) for paths in (source.images, source.labels)]
    if source.images[0] in missing and '.' not in ''.join(first) and any(
            '.' in os.path.basename(image) for image in source.images):
        return 'remove line %d, which looks like a header' % source.lines[0]
    return ''


def _part_not_there(path):
    """Returns the part of a path below its deepest existing folder."""
    parts = path.split('/')
    for count in range(len(parts) - 1, 0, -1):
        with contextlib.suppress(ValueError):  # a NUL in the name
            if os.path.isdir('/'.join(parts[:count]) or '/'):
                return '/'.join(parts[count:])
    return path


def output_names(images):
    """Returns a base name for the output files of each image, unique within the list.

    This is the name of the image without its extension. If several images have the same name, as many parent folders as
    needed are prepended (`a_b_name`). If paths differ only in the extension, it is appended (`name_jpg`). Equal paths
    get equal names.

    Args:
      images: list of paths.

    Returns:
      list of names, in the order of images.
    """
    paths = list(dict.fromkeys(os.path.normpath(image) for image in images))
    shared = collections.Counter(os.path.splitext(path)[0] for path in paths)
    name_of = dict(zip(paths, _unique([_name_choices(path, shared[os.path.splitext(path)[0]] > 1)
                                       for path in paths])))
    return [name_of[os.path.normpath(image)] for image in images]


def folder_names(paths):
    """Returns names for the output files of images in a folder: their relative paths without the extension.

    If paths differ only in the extension, it is appended, as in `sub/name_jpg`.

    Args:
      paths: list of different paths relative to the folder.

    Returns:
      list of different names, in the order of paths.
    """
    parts = [os.path.splitext(path) for path in paths]
    shared = collections.Counter(stem for stem, _ in parts)
    return _unique([[stem] * (shared[stem] == 1) + [stem + '_' + extension[1:]] for stem, extension in parts])


def _unique(choices):
    """Chooses a name from each list of possible names, sorted from short to long, such that all names are unique."""
    depth = [0] * len(choices)
    while True:
        names = [names_of_path[d] for names_of_path, d in zip(choices, depth)]
        count = collections.Counter(names)
        clashes = [i for i, name in enumerate(names) if count[name] > 1]
        if not clashes:
            return names
        for i in clashes:
            depth[i] += 1
            if depth[i] == len(choices[i]):  # even names with all folders may be equal: a_b/c and a/b_c
                choices[i].append('%s_%d' % (choices[i][-1], i))


def write_list(path, lines):
    """Writes lines to a data list; the file appears under its name only when it is complete."""
    with output_files.new_file(path) as temporary, open(
            temporary, 'w', encoding='utf-8', errors='surrogateescape', newline='\n') as file:
        file.writelines(line + '\n' for line in lines)


def list_line(image, label):
    """Returns the line of a data list for an image and its label; raises UserError if a list cannot contain the paths.
    """
    quotes = ['%s', '"%s"', "'%s'"]
    choices = [first % image + ' ' + second % label for first in quotes for second in quotes] + [image + '\t' + label]
    with contextlib.suppress(UnicodeDecodeError):
        os.fsencode(image + label).decode('utf-8')
        for line in choices if not re.search('[\r\n]', image + label) else ():
            with contextlib.suppress(ValueError):
                if _split_line(line) == [image, label]:
                    return line
    raise UserError('%s, %s: a list cannot contain these paths: rename the files, using UTF-8 and no tabs, line breaks '
                    'or quotes.' % (quoted(image), quoted(label)))


def warn(sentence, items, show=quoted):
    """Prints a warning on stderr if there are items: the sentence, with their number in place of %d, and the first few.
    """
    if items:
        print('warning: %s (%s).' % (sentence % len(items), some(items, 3, show=show)), file=sys.stderr)


def read_lines(path):
    """Returns an iterator over the lines of a text file.

    Raises:
      OSError: as in read_file.
      UserError: the file is not UTF-8 text.
    """
    data = read_file(path)
    try:
        return text_lines(data)
    except UnicodeDecodeError as error:
        raise UserError('list %s, line %d is not UTF-8 text: save the list as UTF-8.' % (
            quoted(path), data.count(b'\n', 0, error.start) + 1))


def _list_lines(data_list):
    try:
        return map(file_name, read_lines(data_list))
    except FileNotFoundError:
        raise UserError('list %s does not exist: make it with convert_voc.py or convert_cityscapes.py, or give your '
                        'own list with --data_list, --valid_data_list or --test_data_list.' % quoted(data_list))
    except OSError as error:
        raise UserError('list %s cannot be read: %s.' % (quoted(data_list), error.strerror))


def _split_line(line):
    """Returns the fields of a line, [], [image] or [image, label]; raises ValueError if it is malformed."""
    if len(line) > MAX_LINE:
        raise ValueError('%d characters are too many for an image and its label; give a text file' % len(line))
    if _UNUSUAL.search(line) is None:
        fields = line.split(' ')
        if '' in fields:
            fields = [field for field in fields if field]
    else:
        fields = _split_unusual_line(line.strip(' \t'))
    if len(fields) > 2:
        raise ValueError('%d fields instead of an image and a label: %s%s' % (
            len(fields), _separator_advice(line) or 'quote paths that contain spaces or put a tab between the two',
            '' if '.' in line else '; remove the line if it is a header'))
    return fields


def _separator_advice(text):
    """Returns advice if a comma or a semicolon separates image and label; '' otherwise."""
    separator = _COMMA.search(text)
    return "put a space or a tab between image and label, not '%s'" % separator.group(1) if separator else ''


def _split_unusual_line(line):
    """Returns the fields of a line that may contain quotes, tabs or a comment."""
    if '\0' in line:
        raise ValueError('the line contains a NUL character; save the list as text')
    fields, end = [], 0
    if '\t' in line:
        fields = [field.strip(' ') for field in line.split('\t')]
        end = len(line)
    while end < len(line):
        match = _FIELD.match(line, end)
        if match is None:
            raise ValueError('%s: %s' % (_separator_advice(line) or 'a quote is not closed', quoted(line)))
        fields.append(match.group(1))
        end = len(line) if fields[-1].startswith('#') else match.end()
    comment = next((i for i, field in enumerate(fields) if field.startswith('#')), len(fields))
    return [re.sub(r'^(["\'])(.*)\1$', r'\2', field) for field in fields[:comment] if field]


def _outside(slashed):
    """Returns the items of {path in data_dir: absolute path} for which only the absolute path exists."""
    absent = find_missing(slashed)
    nowhere = set(find_missing(slashed[path] for path in absent))
    return {path: slashed[path] for path in absent if slashed[path] not in nowhere}


def _report_duplicates(data_list, images, numbers):
    if len(set(images)) == len(images):
        return
    first = {}
    repeats = [place for place, image in enumerate(images) if first.setdefault(image, place) != place]
    warn('list %s: images listed twice: %%d' % quoted(data_list).replace('%', '%%'), repeats,
         lambda place: 'line %d repeats line %d' % (numbers[place], numbers[first[images[place]]]))


def _name_choices(path, with_extension):
    """Returns the possible output names for a path, the shortest first."""
    stem, extension = os.path.splitext(path)
    parts = [part for part in re.split(r'[/\\:]+', stem) if part not in ('', '.', '..')]
    if with_extension:
        parts[-1] += '_' + extension[1:]
    return ['_'.join(parts[-count:]) for count in range(1, len(parts) + 1)]
