"""Class names and colours: VOC's, Cityscapes', COCO-Stuff's or a text file's; what Cityscapes' benchmark expects."""

import functools
import os
import re
from typing import Callable, List, NamedTuple, Optional, Tuple

import numpy as np

from utils.data.image_files import read_file, text_lines
from utils.system.errors import UserError, quoted

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of red, green and blue, ITU-R BT.601
MAX_CLASSES = 256

# The value of pixels without a class in VOC labels, converted SBD labels and Cityscapes' train ids.
IGNORE_LABEL = 255

# VOC's colour for these pixels, which is also entry 255 of VOC's palette.
VOID_COLOUR = (224, 224, 192)
BLACK = (0, 0, 0)

MAX_PALETTE_BYTES = 1 << 20

VOC_NAMES = [
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
    'tvmonitor',
]

# The 19 evaluated classes of Cityscapes as (name, label id, colour), in the order of the train ids 0..18.
# Source: cityscapesscripts.helpers.labels, https://github.com/mcordts/cityscapesScripts
CITYSCAPES_CLASSES = [
    ('road', 7, (128, 64, 128)),
    ('sidewalk', 8, (244, 35, 232)),
    ('building', 11, (70, 70, 70)),
    ('wall', 12, (102, 102, 156)),
    ('fence', 13, (190, 153, 153)),
    ('pole', 17, (153, 153, 153)),
    ('traffic light', 19, (250, 170, 30)),
    ('traffic sign', 20, (220, 220, 0)),
    ('vegetation', 21, (107, 142, 35)),
    ('terrain', 22, (152, 251, 152)),
    ('sky', 23, (70, 130, 180)),
    ('person', 24, (220, 20, 60)),
    ('rider', 25, (255, 0, 0)),
    ('car', 26, (0, 0, 142)),
    ('truck', 27, (0, 0, 70)),
    ('bus', 28, (0, 60, 100)),
    ('train', 31, (0, 80, 100)),
    ('motorcycle', 32, (0, 0, 230)),
    ('bicycle', 33, (119, 11, 32)),
]

# COCO-Stuff's 182 classes, as a palette file.
COCOSTUFF = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'dataset', 'cocostuff.txt')

NUM_LABEL_IDS = 34  # Cityscapes' label ids are 0..33, and -1 for license plates, which files store as 255

# The colours of classes in *_color.png that are not evaluated; these pixels are ignored in training.
CITYSCAPES_VOID_COLOURS = [
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180),
    (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
]

_FRAME = re.compile(r'(.+_\d{6}_\d{6})(?:_.*)?$')


class Palette(NamedTuple):
    """Colours and names of classes."""
    colours: np.ndarray  # uint8 [256, 3]
    names: Optional[List[str]]  # None if they are unknown
    # The colours of pixels without a class in colour-coded labels, unless a class has the same colour.
    void: Tuple[Tuple[int, int, int], ...] = (BLACK, VOID_COLOUR)
    named: bool = False  # whether the user gave --palette, which is needed to read colour-coded labels


class Classes(NamedTuple):
    """The meaning of the values in labels."""
    num_classes: int  # the values 0..num_classes-1 are classes
    ignore_label: int  # the value of ignored pixels; it may be in 0..num_classes-1
    palette: Palette
    label_map: Optional[Callable] = None  # maps an index label [h, w], as stored, to these values


@functools.lru_cache(maxsize=None)
def voc_colours(n=MAX_CLASSES):
    """Returns the first n colours of PASCAL VOC, uint8 [n, 3], read-only.

    As in VOCdevkit's VOClabelcolormap.m, bits 0, 3 and 6 of the class index become bits 7, 6 and 5 of red; bits 1, 4
    and 7 become these bits of green; and bits 2 and 5 become bits 7 and 6 of blue.
    """
    index = np.arange(n)
    colours = np.zeros([n, 3], np.uint8)
    for channel in range(3):
        for bit in range(8):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colours.setflags(write=False)  # all callers share the array
    return colours


def load_classes(num_classes, ignore_label=IGNORE_LABEL, palette_spec='', label_map_spec=''):
    """Returns the Classes for --num_classes, --ignore_label, --palette and --label_map.

    Raises:
      UserError: as in load_palette and load_label_map; or ignore_label does not fit into 32 bits.
    """
    from utils.data.label_maps import load_label_map  # not at the top: it imports Cityscapes' table from here

    if not -2 ** 31 <= ignore_label < 2 ** 31:
        raise UserError('--ignore_label=%d: labels have 32 bits: give -2147483648 to 2147483647.' % ignore_label)
    return Classes(num_classes, ignore_label, load_palette(palette_spec, num_classes),
                   load_label_map(label_map_spec, num_classes, ignore_label))


def load_palette(spec, num_classes):
    """Returns the Palette for --palette.

    Args:
      spec: '', 'voc', 'cityscapes', 'cocostuff', or the path of a text file with one class per line: `name r g b` (the
        name may contain spaces; # starts a comment line). Lines after the first num_classes define void colours.
      num_classes: the number of classes. VOC has colours for 256 classes, but names only for 21.

    Raises:
      UserError: the file is missing or malformed or has fewer than num_classes classes, or num_classes is not 1..256.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError('--num_classes=%d: masks have 8 bits: give 1 to %d.' % (num_classes, MAX_CLASSES))
    if spec in ('', 'voc'):
        names = list(VOC_NAMES) if num_classes == len(VOC_NAMES) else None
        return Palette(voc_colours(), names, named=bool(spec))
    if spec == 'cityscapes':
        classes = [(name, colour) for name, _, colour in CITYSCAPES_CLASSES]
        void = tuple(CITYSCAPES_VOID_COLOURS)
    else:
        classes = read_palette_file(COCOSTUFF if spec == 'cocostuff' else spec)
        void = tuple(colour for _, colour in classes[num_classes:])
    if len(classes) < num_classes:
        raise UserError('palette %s has %d classes, fewer than --num_classes=%d: add classes or lower --num_classes.'
                        % (quoted(spec), len(classes), num_classes))
    colours = np.full([MAX_CLASSES, 3], 255, np.uint8)
    colours[:num_classes] = [colour for _, colour in classes[:num_classes]]
    return Palette(colours, [name for name, _ in classes[:num_classes]], (BLACK, VOID_COLOUR) + void, named=True)


def read_palette_file(path):
    """Reads a palette file as a list of (name, (r, g, b)); raises UserError if the file is missing or malformed."""
    try:
        lines = text_lines(read_file(path, MAX_PALETTE_BYTES))
    except OSError as error:
        raise UserError("--palette=%s is neither 'voc', 'cityscapes' or 'cocostuff' nor a readable file: %s." % (
            quoted(path), error.strerror))
    except UnicodeDecodeError:
        raise UserError('palette %s is not UTF-8 text: save it as UTF-8.' % quoted(path))
    classes, line_of = [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        where = 'palette %s, line %d' % (quoted(path), number)
        name, colour = _parse_class(line, where)
        if colour in line_of:
            raise UserError('%s: line %d has the same colour, %d %d %d: give each class a different colour.' % (
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


# ---- Cityscapes' benchmark ----

def cityscapes_frame(path):
    """Returns the `city_sequence_frame` at the start of a file name; None if it is not a Cityscapes file name."""
    match = _FRAME.match(os.path.splitext(os.path.basename(path))[0])
    return match.group(1) if match else None


def benchmark_name(image_path):
    """Returns the file name under which the Cityscapes benchmark expects the prediction of an image.

    The official evaluation expects exactly one `{city}_{sequence}_{frame}*.png` per frame, in any subfolder of the
    results.

    Raises:
      UserError: the name of the image does not start with city_sequence_frame.
    """
    frame = cityscapes_frame(image_path)
    if frame is None:
        raise UserError('%s: the benchmark needs names of the form city_000000_000000_leftImg8bit.png: rename the '
                        'image or leave out --id_format=labelIds.' % quoted(image_path))
    return frame + '_pred_labelIds.png'


def train_ids_to_label_ids(mask):
    """Converts Cityscapes' train ids 0..18 to label ids; all other values become 0 (unlabeled).

    Args:
      mask: integer array of any shape.

    Returns:
      uint8 array of the same shape.
    """
    mask = np.asarray(mask)
    table = np.array([label_id for _, label_id, _ in CITYSCAPES_CLASSES] + [0], np.uint8)
    known = (mask >= 0) & (mask < len(CITYSCAPES_CLASSES))
    return table[np.where(known, mask, len(CITYSCAPES_CLASSES))]
