"""Prepares Cityscapes for training: writes missing labels with train ids, and the data lists.

    python convert_cityscapes.py --cityscapes_dir=ROOT

ROOT contains leftImg8bit, and gtFine, gtCoarse or both, with any of their splits. Missing *_labelTrainIds.png are
written next to their *_labelIds.png or *_polygons.json, and a list for each existing split is written to --list_dir.
"""

import glob
import json
import os
import sys

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from utils.data import data_check, image_files
from utils.data.data_lists import warn, write_list
from utils.data.palette import IGNORE_LABEL, MAX_CLASSES, cityscapes_frame, load_classes
from utils.system import command_line, output_files, runtime
from utils.system.errors import UserError, quoted, reason

FLAGS = flags.FLAGS

# {name of the list: (split, folder of the labels, number of images in the complete data set)}
LISTS = {
    'train_fine': ('train', 'gtFine', 2975),
    'val_fine': ('val', 'gtFine', 500),
    'train_coarse': ('train', 'gtCoarse', 2975),
    'val_coarse': ('val', 'gtCoarse', 500),
    'train_extra': ('train_extra', 'gtCoarse', 19998),
    'test': ('test', None, 1525),
}
JOINED = ('train_fine', 'train_extra')  # the list 'train' combines these two


def main():
    root = FLAGS.cityscapes_dir
    if not os.path.isdir(os.path.join(root, 'leftImg8bit')):
        raise UserError('--cityscapes_dir=%s does not contain leftImg8bit: give the folder that does.' % quoted(root))
    output_files.make_dir(FLAGS.list_dir, 'list_dir')
    pairs = {name: pair_split(root, split, kind) for name, (split, kind, _) in LISTS.items()}
    if not any(pairs.values()):
        raise UserError('--cityscapes_dir=%s: no image in leftImg8bit has a label in gtFine or gtCoarse: unpack these '
                        'into the same folder.' % quoted(root))
    make_labels(root, [label for name in pairs for _, label in pairs[name] if label])
    write_lists(pairs)


def pair_split(root, split, kind):
    """Matches the images of a split with their labels by city_sequence_frame.

    Args:
      root: the folder of Cityscapes.
      split: 'train', 'val', 'train_extra' or 'test'.
      kind: 'gtFine', 'gtCoarse', or None for images without labels.

    Returns:
      list of (image, label), sorted by image, as paths relative to root. The label is the *_labelTrainIds.png, which
      may not exist yet, or None if kind is None.
    """
    images = find_frames(root, 'leftImg8bit', split, ('_leftImg8bit.png',))
    if kind is None:
        return sorted((image, None) for image in images.values())
    labels = find_frames(root, kind, split, ('_labelTrainIds.png', '_labelIds.png', '_polygons.json'))
    if not images or not labels:
        return []
    where = {'split': split, 'kind': kind}
    warn('%%d images of leftImg8bit/%(split)s have no label in %(kind)s/%(split)s' % where,
         sorted(set(images) - set(labels)))
    warn('%%d labels of %(kind)s/%(split)s have no image in leftImg8bit/%(split)s' % where,
         sorted(set(labels) - set(images)))
    return sorted((images[key], label_path(labels[key])) for key in set(images) & set(labels))


def find_frames(root, folder, split, suffixes):
    """Returns {city_sequence_frame: path relative to root} for the files in root/folder/split/* with given suffixes."""
    frames = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(root), folder, split, '*', '*'))):
        key = cityscapes_frame(path)
        if key and path.endswith(suffixes):
            frames[key] = os.path.relpath(path, root).replace(os.sep, '/')
    return frames


def label_path(path):
    """Returns the path of the *_labelTrainIds.png for any of the files of a label."""
    return path[:path.rindex('_')] + '_labelTrainIds.png'


def make_labels(root, labels):
    """Makes the missing *_labelTrainIds.png among `labels`, a list of paths relative to root.

    Raises:
      UserError: some labels cannot be made; all others have been written.
    """
    missing = [label for label in labels if not os.path.exists(os.path.join(root, label))]
    if not missing:
        return
    table = load_label_table()

    def make(label):
        base = os.path.join(root, label[:-len('_labelTrainIds.png')])
        try:
            ids = base + '_labelIds.png'
            train_ids = from_label_ids(ids, table) if os.path.exists(ids) else draw(base + '_polygons.json', table)
        except UserError as error:
            return str(error)
        output_files.save_image(train_ids, os.path.join(root, label))
        return None

    results = data_check.map_with_progress(make, missing, runtime.usable_cores(), 'labels', 'file')
    problems = [problem for problem in results if problem]
    if problems:
        raise UserError('%d labels could not be made, so no list was written; fix their files and run again: %s' % (
            len(problems), ' '.join(problems[:3])))
    print('%d *_labelTrainIds.png written, %d already existed' % (len(missing), len(labels) - len(missing)))


def load_label_table():
    """Returns {name of a class: (label id, train id)} from the package cityscapesscripts.

    Classes that are not evaluated have train id 255.

    Raises:
      UserError: the package is not installed.
    """
    try:
        from cityscapesscripts.helpers.labels import labels
    except ImportError:
        raise UserError('*_labelTrainIds.png are missing, and making them needs the package cityscapesscripts: '
                        'pip install cityscapesscripts, and run again.')
    return {label.name: (label.id, label.trainId if 0 <= label.trainId < IGNORE_LABEL else IGNORE_LABEL)
            for label in labels}


def from_label_ids(path, table):
    """Reads a *_labelIds.png and converts it to train ids, uint8 [h, w]; raises UserError if it is not valid."""
    train_id_of = np.full(MAX_CLASSES, -1, np.int16)
    for label_id, train_id in table.values():
        train_id_of[label_id] = train_id  # index -1, for license plates, is 255, which the files contain
    label = image_files.load_label(path, load_classes(MAX_CLASSES))
    with Image.open(path) as image:  # load_label also accepts three equal channels, which are not label ids
        channels = len(image.getbands())
    if channels > 1 or label.dtype != np.uint8 or train_id_of[label].min() < 0:
        raise UserError('%s: not all of its values are Cityscapes label ids: get the file again.' % quoted(path))
    return train_id_of[label].astype(np.uint8)


def draw(path, table):
    """Draws the polygons of a *_polygons.json with train ids, uint8 [h, w]; later polygons cover earlier ones.

    Raises:
      UserError: the file is not a valid polygon file of Cityscapes.
      OSError: the file cannot be read.
    """
    try:
        annotation = json.loads(image_files.read_file(path).decode('utf-8-sig'))
        width, height = annotation['imgWidth'], annotation['imgHeight']
        if width * height > image_files.LARGE // 2:
            raise ValueError('%d x %d pixels' % (width, height))
        label = Image.new('L', (width, height), IGNORE_LABEL)
        canvas = ImageDraw.Draw(label)
        for item in annotation['objects']:
            name = item['label']
            if name not in table and name.endswith('group'):
                name = name[:-len('group')]
            label_id, train_id = table[name]
            if label_id >= 0 and not item.get('deleted'):  # license plates, -1, are not drawn and remain part of a car
                canvas.polygon([tuple(point) for point in item['polygon']], fill=train_id)
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError('%s is not a valid Cityscapes polygon file (%s: %s): get the file again.' % (
            quoted(path), type(error).__name__, reason(error)[:120]))
    return np.asarray(label)


def write_lists(pairs):
    """Writes a list for each split that has images, and 'train' if both of its parts have images.

    Args:
      pairs: {name of the list: result of pair_split}.
    """
    sizes = {name: size for name, (_, _, size) in LISTS.items()}
    if all(pairs[name] for name in JOINED):
        pairs = dict(pairs, train=[pair for name in JOINED for pair in pairs[name]])
        sizes['train'] = sum(sizes[name] for name in JOINED)
    paths = {name: os.path.join(FLAGS.list_dir, name + '.txt') for name in list(LISTS) + ['train']}
    for name, path in paths.items():
        if pairs.get(name):
            write_list(path, [' '.join('/' + part for part in pair if part) for pair in pairs[name]])
    for name, path in paths.items():
        if not pairs.get(name):
            print('%s: not written, as %s' % (path, why_absent(name)))
            continue
        print('%s: %d images' % (path, len(pairs[name])))
        if len(pairs[name]) != sizes[name]:
            print('warning: %s has %d images, but the complete data set has %d.' % (
                path, len(pairs[name]), sizes[name]), file=sys.stderr)


def why_absent(name):
    """Returns a clause that names the folders or lists that a list needs."""
    if name == 'train':
        return 'it combines %s and %s' % JOINED
    split, kind, _ = LISTS[name]
    return 'it needs leftImg8bit/%s%s' % (split, ' and %s/%s' % (kind, split) if kind else '')


if __name__ == '__main__':
    command_line.DEFINE_path('cityscapes_dir', '', 'folder that contains leftImg8bit, gtFine and gtCoarse')
    command_line.DEFINE_path('list_dir', './dataset/cityscapes', 'folder for the lists', output=True)
    sys.exit(command_line.run(main))
