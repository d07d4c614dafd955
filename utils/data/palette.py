"""Class colours and names: VOC's by formula, Cityscapes' 19, or a text file's."""

import functools
from collections import namedtuple

import numpy as np

from utils.data import cityscapes_labels
from utils.system.errors import UserError

MAX_CLASSES = 256

# What PASCAL VOC paints on pixels that belong to no class; it is also entry 255 of VOC's colours.
VOID_COLOUR = (224, 224, 192)

VOC_NAMES = [
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
    'tvmonitor',
]

# colours: uint8 [256, 3]; names: a list of class names or None;
# void: further colours that a colour-coded label may use for pixels without a class.
Palette = namedtuple('Palette', 'colours names void')
Palette.__new__.__defaults__ = ((),)


@functools.lru_cache(maxsize=None)
def voc_colours(n=MAX_CLASSES):
    """The first n colours of PASCAL VOC, uint8 [n, 3], not to be written to.

    Bits 0, 3, 6 of the class index become the top bits of red, 1, 4, 7 of green, 2, 5 of blue, the lowest
    first (VOCdevkit's VOClabelcolormap.m).
    """
    index = np.arange(n)
    colours = np.zeros([n, 3], np.uint8)
    for channel in range(3):
        for bit in range(8):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colours.setflags(write=False)  # all callers share it
    return colours


def load_palette(spec, num_classes):
    """The Palette that --palette names.

    Args:
      spec: '' or 'voc', 'cityscapes', or the path of a text file with one class a line: `name r g b` (the
        name may contain spaces; # starts a comment line).
      num_classes: the classes that need a colour. VOC's colours serve any number up to 256, its names go with
        21 classes only.

    Raises:
      UserError: the file is missing, malformed or shorter than num_classes, or num_classes is out of 1..256.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError('--num_classes=%d: masks are 8-bit, give 1 to %d.' % (num_classes, MAX_CLASSES))
    if spec in ('', 'voc'):
        return Palette(voc_colours(), list(VOC_NAMES) if num_classes == len(VOC_NAMES) else None)
    if spec == 'cityscapes':
        classes = [(name, colour) for name, _, colour in cityscapes_labels.CLASSES]
        void = tuple(cityscapes_labels.VOID_COLOURS)
    else:
        classes, void = read_palette_file(spec), ()
    if len(classes) < num_classes:
        raise UserError('palette %s has %d classes, fewer than --num_classes=%d.' % (
            spec, len(classes), num_classes))
    colours = np.full([MAX_CLASSES, 3], 255, np.uint8)
    colours[:len(classes)] = [colour for _, colour in classes]
    return Palette(colours, [name for name, _ in classes][:num_classes], void)


def read_palette_file(path):
    """The classes of a palette file, a list of (name, (r, g, b)) in the order of the class indices."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = file.read().split('\n')
    except OSError as error:
        raise UserError("--palette=%s: neither 'voc' nor 'cityscapes', and as a file: %s." % (
            path, error.strerror))
    except UnicodeDecodeError:
        raise UserError('palette %s is not UTF-8 text.' % path)
    classes, line_of = [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        where = 'palette %s, line %d' % (path, number)
        name, colour = _parse_class(line, where)
        if colour in line_of:
            raise UserError('%s: line %d has the same colour %d %d %d; each class needs its own.' % (
                (where, line_of[colour]) + colour))
        line_of[colour] = number
        classes.append((name, colour))
    if len(classes) > MAX_CLASSES:
        raise UserError('palette %s has %d classes; %d is the most.' % (path, len(classes), MAX_CLASSES))
    return classes


def _parse_class(line, where):
    fields = line.split()
    rgb = fields[-3:]
    if len(fields) < 4 or not all(value.isdecimal() and int(value) <= 255 for value in rgb):
        raise UserError("%s: '%s' is not `name r g b` with r, g and b from 0 to 255." % (where, line.strip()))
    return ' '.join(fields[:-3]), tuple(int(value) for value in rgb)
