"""Makes data lists from two folders, one of images and one of labels.

    python convert_annotations.py --make_list IMAGES LABELS [--val_fraction=0.2] [--seed=0] [--list_dir=FOLDER]

An image and a label are a pair if they lie in the same subfolder and their names agree, without the extension and
without a usual ending such as _mask. Writes train.txt and val.txt, with paths relative to the folder that holds both.
"""

import collections
import os
import random
import re
import shlex
import sys

from absl import flags

from utils.data.data_lists import list_line, warn, write_list
from utils.data.sources import images_below
from utils.system import command_line, output_files
from utils.system.errors import UserError, quoted, some

FLAGS = flags.FLAGS

ENDINGS = re.compile(r'(?i)(?:[_-](?:gt(?:Fine|Coarse)_label(?:Train)?Ids|label(?:Train)?Ids|leftImg8bit|masks?|'
                     r'labels?|seg|segmentation|gt|annotations?|image|img|L))$')


def main():
    if not FLAGS.make_list or not FLAGS.image_dir or not FLAGS.label_dir:
        raise UserError('give two folders: --make_list IMAGES LABELS.')
    folders = {flag: os.path.abspath(FLAGS[flag].value) for flag in ('image_dir', 'label_dir')}
    for flag, folder in folders.items():
        if not os.path.isdir(folder):
            raise UserError('--%s=%s: there is no such folder; check the name.' % (flag, quoted(folder)))
    image_dir, label_dir = folders.values()
    if os.path.realpath(image_dir) == os.path.realpath(label_dir):
        raise UserError('%s is named twice: give a folder of images and another one of labels.' % quoted(image_dir))
    pairs = match(images_below(image_dir, [label_dir]), images_below(label_dir, [image_dir]))
    data_dir = os.path.commonpath([image_dir, label_dir])
    lines = [list_line(*(os.path.relpath(os.path.join(folder, name), data_dir).replace(os.sep, '/')
                         for folder, name in zip((image_dir, label_dir), pair))) for pair in pairs]
    write_lists(split(lines, FLAGS.val_fraction, FLAGS.seed), FLAGS.list_dir or data_dir, data_dir)


def match(images, labels):
    """Pairs images with labels: first those of equal names, then those whose names agree without the usual ENDINGS.

    Args:
      images, labels: lists of paths, each relative to its folder.

    Returns:
      list of (image, label), sorted by image; what has no partner is named on stderr.

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
            raise UserError('images %s and labels %s: it is not clear which belong together; move the files that are '
                            'not meant out of the folders.' % (
                                some(by_key[key], 2, show=lambda path: quoted(path, 40)),
                                some([label_of[image] for image in by_key[key] if image in label_of] + candidates, 2,
                                     show=lambda path: quoted(path, 40))))
    if not label_of:
        raise UserError('no image has a label of its name: %s and %s, for example, do not agree; rename one of the two '
                        'kinds.' % (quoted(images[0]), quoted(labels[0])))
    warn('%d images have no label', [image for image in images if image not in label_of])
    warn('%d labels have no image', [label for label in labels if label not in taken])
    return sorted(label_of.items())


def group(paths, key):
    """Returns {key(path without extension): list of such paths}."""
    groups = collections.OrderedDict()
    for path in paths:
        groups.setdefault(key(os.path.splitext(path)[0]), []).append(path)
    return groups


def strip(stem):
    """Returns a path without a usual ending of an image's or label's name."""
    return ENDINGS.sub('', stem)


def split(lines, val_fraction, seed):
    """Returns {'train': lines, 'val': lines}, drawn with a seed, each in the order given; both get one if possible."""
    count = int(round(val_fraction * len(lines)))
    if val_fraction:
        count = min(max(count, 1), len(lines) - 1)
    drawn = set(random.Random(seed).sample(range(len(lines)), count))
    return {'train': [line for i, line in enumerate(lines) if i not in drawn],
            'val': [line for i, line in enumerate(lines) if i in drawn]}


def write_lists(lists, list_dir, data_dir):
    """Writes the lists that have lines, keeps earlier ones under another name, and prints the command to check them."""
    output_files.make_dir(list_dir, 'list_dir')
    paths = {name: os.path.join(list_dir, name + '.txt') for name in lists}
    for name, path in paths.items():
        kept = output_files.set_aside(path, 'list_dir', inside=True)
        if kept:
            print('%s: there was one, which is now %s' % (path, kept))
        if lists[name]:
            write_list(path, lists[name])
        print('%s: %d images' % (path, len(lists[name])) if lists[name] else '%s: not written, no image is left' % path)
    val = paths['val'] if lists['val'] else paths['train']
    flags_of = [('data_dir', data_dir), ('data_list', paths['train']), ('valid_data_list', val),
                ('test_data_list', val)]
    print('next, with your number of classes in place of N:\npython main.py --option=check --num_classes=N ' + ' '.join(
        '--%s=%s' % (flag, shlex.quote(value)) for flag, value in flags_of))


def with_folders(argv):
    """Returns the command line with the two words after --make_list as --image_dir and --label_dir."""
    at = argv.index('--make_list') + 1 if '--make_list' in argv else len(argv)
    words = argv[at:at + 2]
    if len(words) < 2 or any(word.startswith('-') for word in words):
        return argv
    return argv[:at] + ['--image_dir=' + words[0], '--label_dir=' + words[1]] + argv[at + 2:]


if __name__ == '__main__':
    command_line.DEFINE_switch('make_list', False, 'write lists: --make_list IMAGES LABELS')
    command_line.DEFINE_path('image_dir', '', 'folder of the images')
    command_line.DEFINE_path('label_dir', '', 'folder of the labels')
    command_line.DEFINE_path('list_dir', '', 'folder for the lists; the one around both folders if empty', output=True)
    command_line.DEFINE_number('val_fraction', 0.2, 'share of the pairs that go into val.txt', upper_bound=0.9)
    command_line.DEFINE_whole('seed', 0, 'seed of the draw')
    sys.exit(command_line.run(main, with_folders(sys.argv)))
