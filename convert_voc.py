"""Prepares PASCAL VOC 2012, with or without SBD, for training: writes labels with class indices and four data lists.

    python convert_voc.py --voc_dir=VOCdevkit/VOC2012 [--sbd_dir=benchmark_RELEASE/dataset]

Writes the folder SegmentationClassAug to --voc_dir, and train.txt, val.txt, trainval.txt and test.txt to --list_dir.
"""

import io
import os
import sys

import numpy as np
import scipy.io
from absl import flags
from PIL import Image

from utils.data import data_check, image_files
from utils.data.data_lists import read_lines, warn, write_list
from utils.data.palette import IGNORE_LABEL, VOC_NAMES, load_classes
from utils.system import command_line, output_files, runtime
from utils.system.errors import UserError, quoted, reason

FLAGS = flags.FLAGS

# {list: number of images in the published list (with SBD, without SBD)}
PUBLISHED = {'train': (10582, 1464), 'val': (1449, 1449), 'trainval': (12031, 2913), 'test': (1456, 1456)}

LABEL_DIR = 'SegmentationClassAug'


def main():
    voc_dir = find_dir(FLAGS.voc_dir, 'voc_dir', 'ImageSets/Segmentation', ['VOC2012', 'VOCdevkit/VOC2012'])
    sbd_dir = FLAGS.sbd_dir and find_dir(FLAGS.sbd_dir, 'sbd_dir', 'cls', ['dataset', 'benchmark_RELEASE/dataset'])
    output_files.make_dir(FLAGS.list_dir, 'list_dir')
    ids = {name: read_ids(voc_dir, name) for name in ('train', 'val', 'test')}
    sources = find_labels(voc_dir, sbd_dir, ids)
    convert_labels(sources, output_files.make_dir(os.path.join(voc_dir, LABEL_DIR), 'voc_dir'))
    write_lists(voc_dir, bool(sbd_dir), ids, set(sources))


def find_dir(path, flag, marker, below):
    """Returns the first folder that contains `marker`: path or one of its subfolders `below`.

    Args:
      path: the value of the flag.
      flag: the name of the flag, for messages.
      marker: the relative path of a folder.
      below: relative paths of subfolders.

    Raises:
      UserError: no path is given, or none of the folders contains `marker`.
    """
    if not path:
        raise UserError('give --%s, the folder that contains %s.' % (flag, marker))
    candidates = [path] + [os.path.join(path, name) for name in below]
    for candidate in candidates:
        if os.path.isdir(os.path.join(candidate, marker)):
            return candidate
    raise UserError('--%s=%s does not contain %s: give the folder that does.' % (flag, quoted(path), marker))


def read_ids(voc_dir, name):
    """Returns the image ids in a VOC list; an empty set if test.txt, which comes with the test images, is missing."""
    path = os.path.join(voc_dir, 'ImageSets', 'Segmentation', name + '.txt')
    if name == 'test' and not os.path.exists(path):
        return set()
    return first_words(path)


def first_words(path):
    """Returns the set of the first words of a text file's lines."""
    return {line.split()[0] for line in read_lines(path) if line.strip()}


def find_labels(voc_dir, sbd_dir, ids):
    """Returns {image id: path of its label}: VOC's label if it exists, otherwise SBD's; for val images only VOC's."""
    sources = {}
    if sbd_dir:
        names = os.listdir(os.path.join(sbd_dir, 'cls'))
        sources = {name[:-4]: os.path.join(sbd_dir, 'cls', name) for name in names if name.endswith('.mat')}
        warn('SBD lists %d images without a file in cls', sorted(read_sbd_ids(sbd_dir) - set(sources)))
    labels = {key: os.path.join(voc_dir, 'SegmentationClass', key + '.png') for key in ids['train'] | ids['val']}
    missing = {key for key in labels if not os.path.exists(labels[key])}
    warn('%d VOC images without a label in SegmentationClass are left out, except train images with SBD labels',
         sorted(missing))
    for key in missing:
        del labels[key]
    for key in ids['val']:
        sources.pop(key, None)
    sources.update(labels)
    return sources


def read_sbd_ids(sbd_dir):
    """Returns the image ids in SBD's lists."""
    ids = set()
    for name in ('train.txt', 'val.txt'):
        path = os.path.join(sbd_dir, name)
        if os.path.exists(path):
            ids |= first_words(path)
    return ids


def convert_labels(sources, label_dir):
    """Writes each label as a PNG with class indices, unless label_dir has it already.

    Args:
      sources: {image id: path of its label}.
      label_dir: the folder for the PNGs.

    Raises:
      UserError: some labels cannot be converted; all others have been written.
    """
    classes = load_classes(len(VOC_NAMES), IGNORE_LABEL, 'voc')

    def convert(key):
        target = os.path.join(label_dir, key + '.png')
        if is_index_png(target):
            return False, None
        try:
            label = read_label(sources[key], classes)
        except UserError as error:
            return False, str(error)
        output_files.save_image(label, target)
        return True, None

    results = list(data_check.map_with_progress(convert, sorted(sources), runtime.usable_cores(), 'labels', 'file'))
    problems = [problem for _, problem in results if problem]
    if problems:
        raise UserError('%d labels could not be converted, so no list was written; fix them and run again: %s' % (
            len(problems), ' '.join(problems[:3])))
    made = sum(done for done, _ in results)
    print('%s: %d labels written, %d already existed' % (label_dir, made, len(results) - made))


def is_index_png(path):
    """Returns whether the file is a complete grey PNG."""
    try:
        with Image.open(io.BytesIO(image_files.read_file(path))) as image:
            image.verify()
            return image.mode == 'L'
    except Exception:  # missing or damaged; Pillow raises errors of many types
        return False


def read_label(path, classes):
    """Returns the class indices, with 255 for void, uint8 [h, w], from a PNG of VOC or a .mat file of SBD.

    Raises:
      UserError: the file cannot be read, or contains values or colours that are not classes of VOC.
    """
    label, unknown = (read_mat(path), []) if path.endswith('.mat') else image_files.read_label(path, classes)
    strange = data_check.count_labels(label, classes)[2]
    if strange or unknown:
        what = strange[:5] or 'colours (r g b: %s)' % image_files.show_colours(unknown)
        raise UserError('%s contains %s, which are not classes of VOC: get the file again.' % (quoted(path), what))
    return label.astype(np.uint8)


def read_mat(path):
    """Returns the class indices in an SBD file, int64 [h, w], from the field Segmentation of the struct GTcls.

    Raises:
      UserError: the file is missing or does not contain a valid field.
    """
    try:
        content = scipy.io.loadmat(io.BytesIO(image_files.read_file(path)), variable_names=['GTcls'])
        label = content['GTcls']['Segmentation'].flat[0]
        indices = label.astype(np.int64)
        if indices.ndim != 2 or not np.array_equal(indices, label):
            raise ValueError('shape %s, type %s' % (label.shape, label.dtype))
    except Exception as error:  # scipy raises errors of many types for damaged files
        raise UserError('%s is not an SBD label, as GTcls.Segmentation cannot be read (%s): get the file again.' % (
            quoted(path), reason(error)[:120]))
    return indices


def write_lists(voc_dir, with_sbd, ids, labelled):
    """Writes the lists, sorted by image id, and compares their lengths with the published ones.

    Args:
      voc_dir: VOC's folder.
      with_sbd: whether SBD is used.
      ids: {'train', 'val' or 'test': image ids in the VOC list}.
      labelled: the ids of all images that have a label.
    """
    val = ids['val'] & labelled
    train = labelled - ids['val'] if with_sbd else ids['train'] & labelled
    lists = {'train': train, 'val': val, 'trainval': train | val, 'test': ids['test']}
    paths = {name: os.path.join(FLAGS.list_dir, name + '.txt') for name in lists}
    for name, keys in lists.items():
        label = '' if name == 'test' else ' /%s/{0}.png' % LABEL_DIR
        if keys:
            write_list(paths[name], [
                '/JPEGImages/{0}.jpg'.format(key) + label.format(key) for key in sorted(keys)])
    for name, keys in lists.items():
        path = paths[name]
        if not keys:
            print('warning: %s is not written, as VOC has no images for it.' % path, file=sys.stderr)
            continue
        published = PUBLISHED[name][0 if with_sbd else 1]
        print('%s: %d images' % (path, len(keys)))
        if name == 'train' and not with_sbd:
            print('  this is only VOC; with --sbd_dir there are %d' % PUBLISHED[name][0])
        if len(keys) != published:
            print('warning: %s has %d images, but the published list has %d.' % (path, len(keys), published),
                  file=sys.stderr)
    wanted = sorted(set().union(*lists.values()))
    warn('%d images in the lists are missing in JPEGImages',
         [key for key in wanted if not os.path.exists(os.path.join(voc_dir, 'JPEGImages', key + '.jpg'))])


if __name__ == '__main__':
    command_line.DEFINE_path('voc_dir', '', 'folder of VOC 2012: VOCdevkit/VOC2012')
    command_line.DEFINE_path('sbd_dir', '', 'folder of SBD: benchmark_RELEASE/dataset; only VOC is used if empty')
    command_line.DEFINE_path('list_dir', './dataset', 'folder for the lists', output=True)
    sys.exit(command_line.run(main))
