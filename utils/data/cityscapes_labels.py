"""Cityscapes' 19 evaluated classes (train ids, label ids, names, colours) and the names of its files."""

import os
import re

import numpy as np

from utils.system.errors import UserError, quoted

# (name, label id, colour), in the order of the train ids 0..18.
# Source: cityscapesscripts.helpers.labels, https://github.com/mcordts/cityscapesScripts
CLASSES = [
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

# Colours that *_color.png shows for labels outside the evaluation: they train as ignore.
VOID_COLOURS = [
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180),
    (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
]

_FRAME = re.compile(r'(.+_\d{6}_\d{6})(?:_.*)?$')


def frame_key(path):
    """The `city_sequence_frame` that starts the file's name, or None if the name is not Cityscapes'."""
    match = _FRAME.match(os.path.splitext(os.path.basename(path))[0])
    return match.group(1) if match else None


def server_name(image_path):
    """The file name under which the benchmark looks for the prediction of this image.

    The official evaluation pairs a ground truth with `{city}_{sequence}_{frame}*.png`, exactly one per frame
    anywhere below the results folder.

    Raises:
      UserError: the image's name is not of the form city_sequence_frame_leftImg8bit.png.
    """
    key = frame_key(image_path)
    if key is None:
        raise UserError('%s: the name is not of the form city_000000_000000_leftImg8bit.png, by which the '
                        'benchmark finds predictions; leave out --id_format=labelIds.' % quoted(image_path))
    return key + '_pred_labelIds.png'


def train_ids_to_label_ids(mask):
    """Maps train ids 0..18 to Cityscapes label ids; any other value becomes 0 (unlabeled).

    Args:
      mask: integer array of any shape.

    Returns:
      uint8 array of the same shape.
    """
    mask = np.asarray(mask)
    table = np.array([label_id for _, label_id, _ in CLASSES] + [0], np.uint8)
    known = (mask >= 0) & (mask < len(CLASSES))
    return table[np.where(known, mask, len(CLASSES))]
