"""Class colours and names: VOC's by formula, Cityscapes' 19, or a text file's."""

import functools
from collections import namedtuple

import numpy as np

from utils.data import cityscapes_labels
from utils.data.image_files import read_file, text_lines
from utils.system.errors import UserError, quoted

MAX_CLASSES = 256

# The label value that VOC, SBD's conversion and Cityscapes' train ids give to pixels that belong to no class.
IGNORE_LABEL = 255

# What PASCAL VOC paints on those pixels; it is also entry 255 of VOC's colours.
VOID_COLOUR = (224, 224, 192)
BLACK = (0, 0, 0)

MAX_PALETTE_BYTES = 1 << 20

VOC_NAMES = [
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
    'tvmonitor',
]

# colours: uint8 [256, 3]; names: a list of class names or None;
# void: colours that a colour-coded label may use for pixels without a class, unless they are a class's own;
# named: whether the user chose it, so that colour-coded labels are read by it.
Palette = namedtuple('Palette', 'colours names void named')
Palette.__new__.__defaults__ = ((BLACK, VOID_COLOUR), False)

# What label values mean: 0..num_classes-1 are classes, ignore_label is the one value that does not count (it may be one
# of the classes' values), and a Palette has the colours.
Classes = namedtuple('Classes', 'num_classes ignore_label palette')


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


def load_classes(num_classes, ignore_label=IGNORE_LABEL, palette_spec=''):
    """The Classes that --num_classes, --ignore_label and --palette name.

    Raises:
      UserError: as load_palette, or ignore_label is beyond 32 bits.
    """
    if not -2 ** 31 <= ignore_label < 2 ** 31:
        raise UserError('--ignore_label=%d: labels are of 32 bits, give -2147483648 to 2147483647.' % ignore_label)
    return Classes(num_classes, ignore_label, load_palette(palette_spec, num_classes))


def load_palette(spec, num_classes):
    """The Palette that --palette names.

    Args:
      spec: '' or 'voc', 'cityscapes', or the path of a text file with one class a line: `name r g b` (the
        name may contain spaces; # starts a comment line). Lines beyond num_classes are void colours.
      num_classes: the classes that need a colour. VOC's colours serve any number up to 256, its names go with
        21 classes only.

    Raises:
      UserError: the file is missing, malformed or shorter than num_classes, or num_classes is out of 1..256.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError('--num_classes=%d: masks are 8-bit, give 1 to %d.' % (num_classes, MAX_CLASSES))
    if spec in ('', 'voc'):
        names = list(VOC_NAMES) if num_classes == len(VOC_NAMES) else None
        return Palette(voc_colours(), names, named=bool(spec))
    if spec == 'cityscapes':
        classes = [(name, colour) for name, _, colour in cityscapes_labels.CLASSES]
        void = tuple(cityscapes_labels.VOID_COLOURS)
    else:
        classes = read_palette_file(spec)
        void = tuple(colour for _, colour in classes[num_classes:])
    if len(classes) < num_classes:
        raise UserError('palette %s has %d classes, fewer than --num_classes=%d.' % (
            quoted(spec), len(classes), num_classes))
    colours = np.full([MAX_CLASSES, 3], 255, np.uint8)
    colours[:num_classes] = [colour for _, colour in classes[:num_classes]]
    return Palette(colours, [name for name, _ in classes[:num_classes]], (BLACK, VOID_COLOUR) + void, named=True)


def read_palette_file(path):
    """The lines of a palette file, a list of (name, (r, g, b))."""
    try:
        lines = text_lines(read_file(path, MAX_PALETTE_BYTES))
    except OSError as error:
        raise UserError("--palette=%s: neither 'voc' nor 'cityscapes', and as a file: %s." % (
            quoted(path), error.strerror))
    except UnicodeDecodeError:
        raise UserError('palette %s is not UTF-8 text.' % quoted(path))
    classes, line_of = [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        where = 'palette %s, line %d' % (quoted(path), number)
        name, colour = _parse_class(line, where)
        if colour in line_of:
            raise UserError('%s: line %d has the same colour %d %d %d; each class needs its own.' % (
                (where, line_of[colour]) + colour))
        line_of[colour] = number
        classes.append((name, colour))
    return classes


def _parse_class(line, where):
    fields = line.split()
    rgb = fields[-3:]
    if len(fields) < 4 or not all(value.isdecimal() and len(value) <= 3 and int(value) <= 255 for value in rgb):
        raise UserError("%s: '%s' is not `name r g b` with r, g and b from 0 to 255." % (where, quoted(line.strip())))
    return ' '.join(fields[:-3]), tuple(int(value) for value in rgb)
