"""Maps the values of index labels to classes, as --label_map says."""

import functools
import re

import numpy as np

from utils.data.image_files import read_file, text_lines
from utils.data.palette import CITYSCAPES_CLASSES, NUM_LABEL_IDS
from utils.system.errors import UserError, quoted

MAX_MAP_BYTES = 1 << 20
LEAST, MOST = -2 ** 31, 2 ** 31 - 1  # bounds of label values, which are int32

_LINE = re.compile(r'(-?[0-9]{1,10})(?:-(-?[0-9]{1,10}))?(?:\s*[:=,]\s*|\s+)(-?[0-9]{1,10}|ignore)$', re.IGNORECASE)


def binary(label, ignore_label):
    """Returns an integer label [h, w] as uint8, with every value other than 0 replaced by 1."""
    return (label != 0).astype(np.uint8)


def reduce_zero(label, ignore_label):
    """Returns an integer label [h, w] in which 0 becomes ignore_label and k becomes k - 1, as for ADE20K.

    Pixels that already have the value ignore_label are not changed.
    """
    wide = label.astype(np.int64)
    return _narrow(np.where((wide == 0) | (wide == ignore_label), ignore_label, wide - (wide > 0)))


def cityscapes(label, ignore_label):
    """Converts Cityscapes' label ids, integer [h, w], to train ids; ids without a train id become ignore_label."""
    train_ids = {label_id: index for index, (_, label_id, _) in enumerate(CITYSCAPES_CLASSES)}
    label_ids = list(range(-1, NUM_LABEL_IDS)) + [255]  # the license plate is -1, or 255 in 8 bits
    return map_ranges(label, [(value, value, train_ids.get(value, ignore_label)) for value in label_ids])


LABEL_MAPS = {'binary': binary, 'reduce_zero': reduce_zero, 'cityscapes': cityscapes}
CLASSES = {'binary': 2, 'cityscapes': len(CITYSCAPES_CLASSES)}  # the number of classes to which a map leads


def load_label_map(spec, num_classes, ignore_label):
    """Returns the function that --label_map names, from an integer label [h, w] to a mapped one; None for no map.

    Args:
      spec: '' or 'none', a key of LABEL_MAPS, or the path of a text file of lines `FROM TO` or `FROM-FROM TO`, where TO
        is a class or the word `ignore`. All lines apply at the same time; values without a line are not changed.
      num_classes: the classes are 0..num_classes-1.
      ignore_label: the value of ignored pixels.

    Raises:
      UserError: the file is missing or malformed, or num_classes or ignore_label does not fit the map.
    """
    if spec in (None, '', 'none'):
        return None
    if spec not in LABEL_MAPS:
        return functools.partial(map_ranges, ranges=read_map_file(spec, num_classes, ignore_label))
    classes = CLASSES.get(spec, num_classes)
    if num_classes < classes:
        raise UserError('--label_map=%s maps to %d classes, more than --num_classes=%d: give --num_classes=%d.' % (
            spec, classes, num_classes, classes))
    if spec != 'binary' and 0 <= ignore_label < classes:
        raise UserError('--label_map=%s maps some values to ignore_label, but --ignore_label=%d is one of its classes: '
                        'give another value, such as --ignore_label=255.' % (spec, ignore_label))
    return functools.partial(LABEL_MAPS[spec], ignore_label=ignore_label)


def map_ranges(label, ranges):
    """Returns a label with ranges of values replaced by new values.

    Args:
      label: integer array [h, w].
      ranges: list of (lowest value, highest value, new value); the ranges do not overlap.

    Returns:
      integer array [h, w], uint8 if its values fit.
    """
    lows, highs, targets = np.array(sorted(ranges), np.int64).T

    def mapped(values):
        at = np.searchsorted(lows, values, 'right') - 1  # -1 for a value below all ranges
        return np.where((at >= 0) & (values <= highs[at]), targets[at], values)

    if label.dtype in (np.uint8, np.uint16):  # a table of all values is several times as fast
        return _narrow(mapped(np.arange(np.iinfo(label.dtype).max + 1)).astype(np.int32)[label])
    return _narrow(mapped(label.astype(np.int64)))


def _narrow(label):
    """Converts a label to uint8 if its values fit, else to int32 if they fit; otherwise returns it unchanged."""
    low, high = label.min(), label.max()
    for dtype in (np.uint8, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return label.astype(dtype)
    return label


def read_map_file(path, num_classes, ignore_label):
    """Reads the ranges for map_ranges from a file; the arguments and errors are as for load_label_map."""
    try:
        lines = text_lines(read_file(path, MAX_MAP_BYTES))
    except OSError as error:
        raise UserError('--label_map=%s is neither %s nor a readable file: %s.' % (
            quoted(path), ', '.join(map(repr, LABEL_MAPS)), error.strerror))
    except UnicodeDecodeError:
        raise UserError('label map %s is not UTF-8 text: save it as UTF-8.' % quoted(path))
    numbered = []  # (lowest value, highest value, new value, number of the line)
    for number, line in enumerate(lines, 1):
        text = line.partition('#')[0].strip()
        if text:
            where = 'label map %s, line %d' % (quoted(path), number)
            numbered.append(_parse(text, where, num_classes, ignore_label) + (number,))
    if not numbered:
        raise UserError('label map %s has no line `FROM TO`: add the values, or leave out --label_map.' % quoted(path))
    numbered.sort()
    for (_, high, _, one), (low, _, _, other) in zip(numbered, numbered[1:]):
        if low <= high:
            raise UserError('label map %s, line %d: the value %d is also in line %d: map each value only once.' % (
                quoted(path), max(one, other), low, min(one, other)))
    return [entry[:3] for entry in numbered]


def _parse(text, where, num_classes, ignore_label):
    """Parses a line, without its comment, as (lowest value, highest value, new value)."""
    match = _LINE.match(text)
    if not match:
        raise UserError("%s: '%s' is neither `FROM TO` nor `FROM-FROM TO`, where FROM is a whole number and TO a class "
                        'or the word ignore.' % (where, quoted(text, 40)))
    low, to = int(match.group(1)), match.group(3).lower()
    high = low if match.group(2) is None else int(match.group(2))
    if not LEAST <= low <= high <= MOST:
        raise UserError("%s: '%s': give values from %d to %d, the smaller one first." % (
            where, quoted(text, 40), LEAST, MOST))
    if to != 'ignore' and not 0 <= int(to) < num_classes:
        raise UserError("%s: %s is not one of the classes 0..%d (--num_classes=%d): write 'ignore' for pixels that are "
                        'to be ignored.' % (where, quoted(to, 20), num_classes - 1, num_classes))
    return low, high, ignore_label if to == 'ignore' else int(to)
