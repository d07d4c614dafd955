"""Converts annotations to labels, and makes data lists from a folder of images and a folder of labels.

    python convert_annotations.py --annotations=FILE|FOLDER --label_dir=NEW_FOLDER [--image_dir=FOLDER]
    python convert_annotations.py --make_list IMAGES LABELS
    (both: [--val_fraction=0.2] [--seed=0] [--list_dir=FOLDER])

The first command reads a folder of LabelMe .json files, or a COCO or Datumaro .json file (CVAT exports both). It paints
polygons, rectangles, circles and run-length masks as index masks, and writes the names and colours of the classes to
classes.txt. The second command pairs images with labels in the same subfolder if their names are equal, apart from the
extension and common endings such as _mask.

Both write train.txt and val.txt, with paths relative to the folder that contains both images and labels.
"""

import collections
import json
import os
import random
import re
import shlex
import sys
import zlib

import numpy as np
from absl import flags

from utils.data import annotations as annotation_files
from utils.data import image_files
from utils.data.data_check import map_with_progress
from utils.data.data_lists import folder_names, list_line, read_lines, warn, write_list
from utils.data.palette import BLACK, IGNORE_LABEL, load_classes, read_palette_file, voc_colours
from utils.data.sources import images_below
from utils.system import command_line, output_files, runtime
from utils.system.errors import UserError, printable, quoted, reason, some

FLAGS = flags.FLAGS

# MADE contains the checksums of the files of a conversion. It is hidden so that it is not mistaken for annotations.
CLASSES, MADE = 'classes.txt', '.conversion.json'
BACKGROUND, IGNORED = 'background', ('ignore', 'ignored', 'void', 'unlabeled', 'unlabelled')
MOST_CLASSES = IGNORE_LABEL  # 0..254; 255 is ignored
MOST_READ = 5000  # if there are more labels, they are not read to find the number of classes

ENDINGS = re.compile(r'(?i)(?:[_-](?:gt(?:Fine|Coarse)_label(?:Train)?Ids|label(?:Train)?Ids|leftImg8bit|masks?|'
                     r'labels?|seg|segmentation|gt|annotations?|image|img|L))$')


def main():
    if bool(FLAGS.annotations) == FLAGS.make_list:
        raise UserError('give either --annotations=FILE and --label_dir=NEW_FOLDER, or --make_list IMAGES LABELS.')
    (make_list if FLAGS.make_list else convert)()


# ---- annotations to labels ----

def convert():
    """Writes label_dir, completely or not at all, replacing an earlier conversion; then writes the lists."""
    if not FLAGS.label_dir:
        raise UserError('give --label_dir, the name of a new folder for the labels.')
    if not os.path.exists(FLAGS.annotations):
        raise UserError('--annotations=%s does not exist: check the name.' % quoted(FLAGS.annotations))
    if FLAGS.image_dir and not os.path.isdir(FLAGS.image_dir):
        raise UserError('--image_dir=%s is not an existing folder: check the name.' % quoted(FLAGS.image_dir))
    label_dir = os.path.abspath(FLAGS.label_dir)
    if FLAGS.list_dir and (os.path.abspath(FLAGS.list_dir) + os.sep).startswith(label_dir + os.sep):
        raise UserError('--list_dir=%s is inside --label_dir, which the next conversion replaces: give another folder.'
                        % quoted(FLAGS.list_dir))
    if FLAGS.list_dir:
        output_files.make_dir(FLAGS.list_dir, 'list_dir')
    check_own(label_dir)
    annotations = annotation_files.read(FLAGS.annotations, FLAGS.image_dir, FLAGS.keep_crowds)
    report(annotations)
    classes, value_of = class_table(annotations.labels, FLAGS.classes)
    names = mask_names(annotations.pictures)
    sizes, turned = check_sizes(annotations.pictures)
    write_labels(annotations.pictures, names, sizes, value_of, classes, label_dir)
    print('%s: %s, %s and background' % (label_dir, counted(len(names), 'label'), counted(
        len(classes) - 1, 'class', 'classes')))
    pairs = sorted((os.path.abspath(picture.image), os.path.join(label_dir, name))
                   for picture, name in zip(annotations.pictures, names) if picture.image)
    if not pairs:
        print('warning: none of the images was found, so no list is written; give their folder with --image_dir.',
              file=sys.stderr)
        return
    data_dir = os.path.commonpath([label_dir] + [os.path.dirname(image) for image, _ in pairs])
    lists = split(list_lines(pairs, data_dir), FLAGS.val_fraction, FLAGS.seed)
    write_lists(lists, FLAGS.list_dir or data_dir, data_dir,
                [('num_classes', str(len(classes))), ('palette', os.path.join(label_dir, CLASSES))] + (
                    [('apply_exif', 'true')] if turned else []))


def check_own(label_dir):
    """Checks that label_dir does not exist, is empty, or contains only files of an earlier conversion.

    Returns:
      the set of names in label_dir.

    Raises:
      UserError: label_dir contains a file that no conversion wrote, or that was changed since.
    """
    names = set(os.listdir(label_dir)) if os.path.isdir(label_dir) else set()
    found = [os.path.relpath(os.path.join(folder, name), label_dir).replace(os.sep, '/')
             for folder, _, files in os.walk(label_dir) for name in files]
    if MADE in names:
        try:
            made = json.loads(image_files.read_file(os.path.join(label_dir, MADE)))
            other = sorted(name for name in found if name != MADE and (
                made.get(name) != checksum(os.path.join(label_dir, name))))
        except (AttributeError, OSError, ValueError):
            other = [MADE]
        if other:
            raise UserError('--label_dir=%s contains %s, which was changed or added after the conversion, so it is not '
                            'replaced: give another folder.' % (quoted(label_dir), quoted(other[0], 60)))
    output_files.check_new_folder(label_dir, 'label_dir', {MADE}, names if MADE in names else {MADE})
    return names


def checksum(path):
    """Returns the CRC-32 of a file."""
    return zlib.crc32(image_files.read_file(path))


def class_table(labels, path):
    """Assigns values to labels: 0 to background, 255 to the names in IGNORED, and 1, 2, ... to all others.

    Args:
      labels: list of labels in the order of their values; may contain duplicates.
      path: a file that lists the classes in their order, each line with a name or with `name r g b`; '' to use the
        order of `labels`.

    Returns:
      (classes, value_of): a list of (name, (r, g, b)), beginning with the background, and {label: value}.

    Raises:
      UserError: the file is missing or lacks a label, or there are more than MOST_CLASSES classes.
    """
    listed = read_classes(path) if path else []
    known = {name for name, _ in listed}
    added = [label for label in dict.fromkeys(labels) if label not in known]
    unknown = [label for label in added if special_value(label) is None] if path else []
    if unknown:
        raise UserError('--classes=%s lacks %s that the annotations use: %s; add a line for each.' % (
            quoted(path), counted(len(unknown), 'label'), some(unknown, 5, show=lambda name: quoted(name, 30))))
    classes, value_of = [(BACKGROUND, None)], {}
    for name, colour in listed + [(label, None) for label in added]:
        value = special_value(name)
        if value is None and name not in value_of:
            value = len(classes)
            classes.append((name, colour))
        if value == 0 and colour:
            classes[0] = (BACKGROUND, colour)
        value_of.setdefault(name, value)
    if len(classes) > MOST_CLASSES:
        raise UserError('%s: there are %d classes, including background, but 8-bit labels can only have %d, as 255 is '
                        'ignored: remove some from the annotations.' % (
                            quoted(path or FLAGS.annotations), len(classes), MOST_CLASSES))
    if len(classes) == 1:
        raise UserError('%s: there are no labels other than background and ignored: check that it contains '
                        'annotations.' % quoted(path or FLAGS.annotations))
    cases = collections.Counter(name.lower() for name, _ in classes)
    warn('labels that differ only in case are treated as different classes: %d', [
        name for name, _ in classes if cases[name.lower()] > 1])
    return coloured(classes), value_of


def special_value(label):
    """Returns the value of a label that means background or ignored, such as _background_ or __ignore__; else None."""
    word = label.strip('_').lower()
    return 0 if word == BACKGROUND else IGNORE_LABEL if word in IGNORED else None


def read_classes(path):
    """Reads --classes as a list of (name, colour); the colours are None unless all lines have a colour."""
    try:
        lines = [' '.join(line.split()) for line in read_lines(path)
                 if line.strip() and not line.lstrip().startswith('#')]
    except OSError as error:
        raise UserError('--classes=%s cannot be read (%s).' % (quoted(path), reason(error)))
    if lines and all(re.match(r'.+ \d{1,3} \d{1,3} \d{1,3}$', line) for line in lines):
        return read_palette_file(path)
    return [(line, None) for line in lines]


def coloured(classes):
    """Returns the classes with missing colours filled in: VOC's colour of the class, or another if it is taken."""
    taken = {colour for _, colour in classes if colour}
    spare = [tuple(colour) for colour in voc_colours().tolist()]
    result = []
    for value, (name, colour) in enumerate(classes):
        if not colour:
            wanted = spare[value] if value else BLACK
            colour = next(one for one in [wanted] + spare[::-1] if one not in taken)
            taken.add(colour)
        result.append((printable(name).lstrip('#').strip() or 'class %d' % value, colour))
    return result


def mask_names(pictures):
    """Returns the relative path of each picture's label; raises UserError if two pictures have the same name."""
    shared = collections.Counter(os.path.normcase(picture.name) for picture in pictures)
    twice = sorted(name for name, count in shared.items() if count > 1)
    if twice:
        raise UserError('%s: %s listed more than once (%s); merge their annotations.' % (
            quoted(FLAGS.annotations), counted(len(twice), 'image is', 'images are'), some(twice, 2, show=lambda name: (
                quoted(name, 40)))))
    if not pictures:
        raise UserError('%s contains no images: check that it is the right file.' % quoted(FLAGS.annotations))
    return [name + '.png' for name in folder_names([picture.name for picture in pictures])]


def check_sizes(pictures):
    """Determines the sizes of the labels, and checks that images and annotations agree.

    Returns:
      (list of (height, width), list of the paths of images whose size agrees only after their EXIF orientation is
      applied).

    Raises:
      UserError: an image has another size than its annotations, or the size is unknown.
    """
    turning = image_files.AS_STORED._replace(apply_exif=True)

    def check(picture):
        try:
            stored = image_files.image_size(picture.image) if picture.image else picture.size
            if stored is None:
                raise UserError('%s: the image is missing and the annotations do not give its size: give --image_dir.'
                                % picture.where)
            if picture.size in (None, stored):
                if stored[0] * stored[1] > annotation_files.MOST_PIXELS:
                    raise UserError('%s: %d x %d pixels are too many; cut it into tiles.' % ((picture.where,) + stored))
                return stored, False, ''
            if image_files.image_size(picture.image, turning) == picture.size:
                return picture.size, True, ''
            raise UserError('%s: annotations are for %d x %d pixels (height x width), but %s has %d x %d: give the '
                            'image that was annotated.' % (
                                (picture.where,) + picture.size + (quoted(picture.image, 60),) + stored))
        except UserError as error:
            return None, False, str(error)

    results = list(map_with_progress(check, pictures, runtime.usable_cores(), 'images', 'image'))
    raise_first([problem for _, _, problem in results if problem])
    turned = [picture.image for picture, (_, is_turned, _) in zip(pictures, results) if is_turned]
    warn('images that were annotated with their EXIF orientation applied, so --apply_exif is needed: %d', turned)
    return [size for size, _, _ in results], turned


def raise_first(problems):
    """Raises UserError with the first problem and the number of problems, if there are any."""
    if problems:
        raise UserError(problems[0] if len(problems) == 1 else '%s (%d such problems)' % (problems[0], len(problems)))


def report(annotations):
    """Reports annotations that are left out or ignored; raises UserError if nothing can be converted."""
    regions = [region for picture in annotations.pictures for region in picture.regions]
    left_out = some(sorted(annotations.left_out.items()), 3, show=lambda item: '%s: %d' % item)
    if not regions:
        raise UserError('%s contains no polygon, rectangle, circle or mask%s.' % (
            quoted(FLAGS.annotations), left_out and ' (%s)' % left_out))
    if left_out:
        print('warning: some annotations are skipped (%s).' % left_out, file=sys.stderr)
    crowds = sum(region.label is None for region in regions)
    if crowds == len(regions):
        raise UserError('%s: all regions are crowds (iscrowd), which are ignored; CVAT marks all brush masks as '
                        'crowds: to keep their classes, give --keep_crowds.' % quoted(FLAGS.annotations))
    if crowds:
        print('warning: crowds (iscrowd) that are ignored, with value %d: %d; CVAT marks all brush masks as crowds: to '
              'keep their classes, give --keep_crowds.' % (IGNORE_LABEL, crowds), file=sys.stderr)
    warn('images without annotations, which become background: %d', [
        picture.name for picture in annotations.pictures if not picture.regions])
    shared = collections.Counter(picture.image for picture in annotations.pictures if picture.image)
    warn('images with several annotation files, which are listed several times: %d', [
        image for image, count in shared.items() if count > 1])
    warn('images that do not exist, for which labels are written but not listed: %d', [
        picture.name for picture in annotations.pictures if not picture.image])


def write_labels(pictures, names, sizes, value_of, classes, label_dir):
    """Writes all labels, CLASSES and MADE to label_dir.

    Args:
      pictures: list of annotation_files.Picture.
      names, sizes: lists of the relative path and the (height, width) of each label.
      value_of: {label: value}.
      classes: list of (name, (r, g, b)).
      label_dir: the folder, which check_own has accepted.
    """
    with output_files.new_folder(label_dir, 'label_dir', {MADE}, check_own(label_dir) | {MADE}) as folder:
        for below in sorted({os.path.dirname(name) for name in names}):
            os.makedirs(os.path.join(folder, below), exist_ok=True)

        def write(item):
            picture, name, size = item
            try:
                output_files.save_image(annotation_files.paint(picture, size, value_of), os.path.join(folder, name))
                return ''
            except UserError as error:
                return str(error)

        items = list(zip(pictures, names, sizes))
        raise_first([problem for problem in map_with_progress(
            write, items, runtime.usable_cores(), 'labels', 'label') if problem])
        write_list(os.path.join(folder, CLASSES), ['%s %d %d %d' % ((name,) + colour) for name, colour in classes])
        output_files.save_json({name: checksum(os.path.join(folder, name)) for name in names + [CLASSES]},
                               os.path.join(folder, MADE))


# ---- lists ----

def make_list():
    """Pairs the files in two folders and writes the lists."""
    if not FLAGS.image_dir or not FLAGS.label_dir:
        raise UserError('give two folders: --make_list IMAGES LABELS.')
    folders = {flag: os.path.abspath(FLAGS[flag].value) for flag in ('image_dir', 'label_dir')}
    for flag, folder in folders.items():
        if not os.path.isdir(folder):
            raise UserError('--%s=%s is not an existing folder: check the name.' % (flag, quoted(folder)))
    image_dir, label_dir = folders.values()
    if os.path.realpath(image_dir) == os.path.realpath(label_dir):
        raise UserError('%s is given twice: give a folder of images and another folder of labels.' % quoted(image_dir))
    pairs = match(images_below(image_dir, [label_dir]), images_below(label_dir, [image_dir], 'label_dir'))
    data_dir = os.path.commonpath([image_dir, label_dir])
    pairs = [(os.path.join(image_dir, image), os.path.join(label_dir, label)) for image, label in pairs]
    lists = split(list_lines(pairs, data_dir), FLAGS.val_fraction, FLAGS.seed)
    write_lists(lists, FLAGS.list_dir or data_dir, data_dir, class_flags([label for _, label in pairs]))


def list_lines(pairs, data_dir):
    """Returns the lines of a list for pairs of absolute paths, made relative to data_dir."""
    return [list_line(*(os.path.relpath(path, data_dir).replace(os.sep, '/') for path in pair)) for pair in pairs]


def class_flags(labels):
    """Returns flags for the classes in the labels, as a list of (name, value); the value is N if it is unknown."""
    unknown = [('num_classes', 'N')]
    if len(labels) > MOST_READ:
        return unknown
    classes = load_classes(1)

    def values_of(label):
        try:
            return np.unique(image_files.load_label(label, classes._replace(num_classes=256)))
        except UserError:
            return None

    values = list(map_with_progress(values_of, labels, runtime.usable_cores(), 'values', 'label'))
    if any(one is None for one in values):
        return unknown
    values = np.unique(np.concatenate(values)).tolist()
    counted_values = [value for value in values if value != IGNORE_LABEL]
    if values == [0, IGNORE_LABEL]:
        return [('num_classes', '2'), ('label_map', 'binary')]
    if not counted_values or not 1 <= max(counted_values) < IGNORE_LABEL:
        return unknown
    return [('num_classes', str(max(counted_values) + 1))]


def match(images, labels):
    """Pairs images and labels with equal names, and then those whose names are equal without the ENDINGS.

    Args:
      images, labels: lists of paths, each relative to its folder.

    Returns:
      list of (image, label), sorted by image; files without a partner are reported on stderr.

    Raises:
      UserError: there is no pair, or a file has several possible partners.
    """
    exact = group(images, lambda stem: stem), group(labels, lambda stem: stem)
    label_of = {exact[0][stem][0]: exact[1][stem][0] for stem in exact[0]
                if len(exact[0][stem]) == len(exact[1].get(stem, ())) == 1}
    taken = set(label_of.values())
    by_key, free_labels = group(images, strip), group([label for label in labels if label not in taken], strip)
    for key, candidates in free_labels.items():
        free = [image for image in by_key.get(key, ()) if image not in label_of]
        if len(candidates) == len(free) == 1:
            label_of[free[0]] = candidates[0]
            taken.add(candidates[0])
        elif by_key.get(key):
            raise UserError('images %s and labels %s: it is not clear which belong together: move the files that you '
                            'do not need out of the folders.' % (
                                some(by_key[key], 2, show=lambda path: quoted(path, 40)),
                                some([label_of[image] for image in by_key[key] if image in label_of] + candidates, 2,
                                     show=lambda path: quoted(path, 40))))
    if not label_of:
        raise UserError('no image has a label with a matching name (for example, %s and %s): rename the images or the '
                        'labels.' % (quoted(images[0]), quoted(labels[0])))
    warn('images without a label: %d', [image for image in images if image not in label_of])
    warn('labels without an image: %d', [label for label in labels if label not in taken])
    return sorted(label_of.items())


def group(paths, key):
    """Groups paths by key(path without extension); returns {key: list of paths}."""
    groups = collections.OrderedDict()
    for path in paths:
        groups.setdefault(key(os.path.splitext(path)[0]), []).append(path)
    return groups


def strip(stem):
    """Returns a path without the common endings of names of images and labels (ENDINGS)."""
    return ENDINGS.sub('', stem)


def split(lines, val_fraction, seed):
    """Splits lines at random into {'train': lines, 'val': lines}, keeping their order.

    Unless val_fraction is 0, each gets at least one line, if there are two or more.
    """
    count = int(round(val_fraction * len(lines)))
    if val_fraction:
        count = min(max(count, 1), len(lines) - 1)
    drawn = set(random.Random(seed).sample(range(len(lines)), count))
    return {'train': [line for i, line in enumerate(lines) if i not in drawn],
            'val': [line for i, line in enumerate(lines) if i in drawn]}


def write_lists(lists, list_dir, data_dir, class_flags):
    """Writes the lists that are not empty, renames earlier ones, and prints the command that checks them.

    Args:
      lists: {name: lines}.
      list_dir: the folder of the lists.
      data_dir: the folder to which the paths in the lists are relative.
      class_flags: list of (flag, value) for the command; the value N stands for an unknown number.
    """
    output_files.make_dir(list_dir, 'list_dir')
    paths = {name: os.path.join(list_dir, name + '.txt') for name in lists}
    for name, path in paths.items():
        kept = output_files.set_aside(path, 'list_dir', inside=True)
        if kept:
            print('%s: the earlier list is kept as %s' % (path, kept))
        if lists[name]:
            write_list(path, lists[name])
        print('%s: %s' % (path, counted(len(lists[name]), 'image') if lists[name] else 'not written, no image is left'))
    train = paths['train']
    val = paths['val'] if lists['val'] else train
    given = class_flags + [('data_dir', data_dir), ('data_list', train), ('valid_data_list', val),
                           ('test_data_list', val)]
    print('next%s:\npython main.py --option=check %s' % (
        ', with your number of classes in place of N' if ('num_classes', 'N') in given else '',
        ' '.join('--%s=%s' % (flag, shlex.quote(value)) for flag, value in given)))


def counted(number, noun, plural=''):
    """Returns a number with a noun, such as '1 image' or '2 images'."""
    return '%d %s' % (number, noun if number == 1 else plural or noun + 's')


def with_folders(argv):
    """Returns the command line with the two arguments after --make_list as --image_dir and --label_dir."""
    at = argv.index('--make_list') + 1 if '--make_list' in argv else len(argv)
    words = argv[at:at + 2]
    if len(words) < 2 or any(word.startswith('-') for word in words):
        return argv
    return argv[:at] + ['--image_dir=' + words[0], '--label_dir=' + words[1]] + argv[at + 2:]


if __name__ == '__main__':
    command_line.DEFINE_path('annotations', '', 'a COCO or Datumaro .json file, or a folder of LabelMe .json files')
    command_line.DEFINE_switch('make_list', False, 'write lists of images and labels: --make_list IMAGES LABELS')
    command_line.DEFINE_path('image_dir', '', 'folder of the images; if empty, they are searched near the annotations')
    command_line.DEFINE_path('label_dir', '', 'folder of the labels; with --annotations, a new folder', output=True)
    command_line.DEFINE_path('classes', '', 'with --annotations, a file that lists the classes in their order, with '
                             '`name` or `name r g b` on each line; by default sorted, or in the order of the COCO or '
                             'Datumaro file')
    command_line.DEFINE_switch('keep_crowds', False, 'paint COCO crowds (iscrowd) as their classes; by default they '
                               'are ignored')
    command_line.DEFINE_path('list_dir', '', 'folder for the lists; by default the folder that contains images and '
                             'labels', output=True)
    command_line.DEFINE_number('val_fraction', 0.2, 'fraction of the pairs for val.txt', upper_bound=0.9)
    command_line.DEFINE_whole('seed', 0, 'seed for choosing the pairs of val.txt')
    sys.exit(command_line.run(main, with_folders(sys.argv)))
