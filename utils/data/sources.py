"""What a run reads, from the flags: images and labels of a list, images to predict, and the report on all lists."""

import collections
import os
import re
import sys

from utils.data import data_check, data_lists, image_folders
from utils.data.regular_files import find_missing
from utils.system.errors import UserError, quoted, some

# Images without labels. paths: of the files; names: what their outputs are called, all different for different images,
# with the sub-folder in front for those of a folder.
Images = collections.namedtuple('Images', 'paths names')

MAX_CHECKED = 2000
# Folders of out_dir that predictions go to.
PREDICTED = ('prediction', 'visual_prediction', 'overlay_prediction', 'probabilities', 'logits')

# flag: whether what it names needs labels
NEEDS_LABELS = {'data_list': True, 'valid_data_list': True, 'test_data_list': False}

_VOC_ID = re.compile(r'\d{4}_\d{6}$')
_VOID_NAMES = ('ignore', 'ignored', 'unlabeled', 'unlabelled', 'void')


def open_source(conf, classes, flag, num_steps=None):
    """The images and labels that a flag names; their files exist, and of up to MAX_CHECKED images all are read.

    Args:
      conf: an object with the flags data_dir, data_list, valid_data_list, num_threads and check_labels as attributes.
      classes: a Classes.
      flag: data_list or valid_data_list.
      num_steps: only the first that many lines, or None for all.

    Returns:
      a Source.

    Raises:
      UserError: the list or one of its files is missing, broken or does not fit the flags.
    """
    source = data_lists.read_labeled_image_list(conf.data_dir, getattr(conf, flag))
    _say_if_fewer(source.name, source.images, num_steps)
    source = data_lists.first_lines(source, num_steps)
    data_lists.check_files_exist(source, need_labels=True)
    if conf.check_labels and len(source.images) <= MAX_CHECKED:
        _raise_or_warn(_check(conf, classes, source), classes, source, whole=flag == 'data_list')
    return source


def open_images(conf):
    """The images to predict: those of --image, of --image_dir or of --test_data_list, the first of these that is given.

    They are not read: one that is broken is reported when it is met.

    Args:
      conf: an object with the flags image, image_dir, out_dir, data_dir, test_data_list and test_num_steps as
        attributes.

    Returns:
      an Images.

    Raises:
      UserError: there are no such images, or not one of them is there.
    """
    if conf.image_dir and not conf.image:
        written = [os.path.join(conf.out_dir, kind) for kind in ('', ) + PREDICTED]
        relative = image_folders.images_below(conf.image_dir, written)
        _say_if_fewer(conf.image_dir, relative, conf.test_num_steps)
        images = Images([os.path.join(conf.image_dir, path) for path in relative], data_lists.folder_names(relative))
    else:
        paths = image_folders.named_images(conf.image) if conf.image else _listed_images(conf)
        images = Images(paths, data_lists.output_names(paths))
    return Images(*(column[:conf.test_num_steps] for column in images))


def _listed_images(conf):
    """The images of --test_data_list; UserError if not one of them is there."""
    source = data_lists.read_labeled_image_list(conf.data_dir, conf.test_data_list)
    _say_if_fewer(source.name, source.images, conf.test_num_steps)
    if len(find_missing(set(source.images))) == len(set(source.images)):
        data_lists.check_files_exist(source._replace(labels=[''] * len(source.images)), need_labels=False)
    return source.images


def _say_if_fewer(name, images, num_steps):
    """A line if a list or folder has fewer images than were asked for."""
    if num_steps is not None and num_steps > len(images):
        print('%s has %d images only, so all of them are used once' % (quoted(name), len(images)), file=sys.stderr)


def _raise_or_warn(result, classes, source, whole, shown=3):
    """UserError for a CheckResult's problems; its warnings on stderr, those on classes too if it is of all data."""
    data_check.raise_on_problems(result, 'list ' + quoted(source.name, 40))
    warnings = (_unlikely_classes(classes, result) if whole else []) + result.warnings
    for sentence in warnings[:shown]:
        print('warning: list %s: %s' % (quoted(source.name), sentence), file=sys.stderr)
    if warnings[shown:]:
        print('... and %d more warnings, which --option=check lists' % len(warnings[shown:]), file=sys.stderr)


def check_lists(conf, classes):
    """Reads every file of the three lists and prints a report.

    Args:
      conf, classes: as open_source.

    Raises:
      UserError: training, testing or predicting would fail.
    """
    sources, results = {}, {}
    warnings = []
    for flag, need_labels in NEEDS_LABELS.items():
        name = getattr(conf, flag)
        if flag != 'data_list' and not os.path.lexists(name):
            warnings.append('--%s=%s does not exist.' % (flag, quoted(name)))
            continue
        sources[flag] = data_lists.read_labeled_image_list(conf.data_dir, name)
        if name not in results:
            print('%s (--%s)' % (quoted(name), flag))
            results[name] = _report(conf, classes, sources[flag], need_labels)
    warnings += _shared_images(sources) + _assumed_names(classes, sources)
    if warnings:
        data_check.print_sentences('general warnings', warnings)
    problems = sum(len(result.problems) for result in results.values())
    count = len(warnings) + sum(len(result.warnings) for result in results.values())
    if problems:
        raise UserError('the data has %d problem%s, listed above: fix files, lists or flags.' % (
            problems, 's' if problems > 1 else ''))
    print('no file is broken; %d warning%s above' % (count, 's' if count > 1 else '') if count
          else 'all files are as they should be')


def _report(conf, classes, source, need_labels):
    """Checks a list and prints what was found: a CheckResult with the list's own problems and warnings added."""
    result = _check(conf, classes, source)
    if need_labels:
        result.problems.extend('line %d: %s has no label in the list.' % (line, quoted(image)) for line, image, label
                               in zip(source.lines, source.images, source.labels) if not label)
    result.warnings.extend(_unlikely_classes(classes, result))
    data_check.print_report(result, classes.palette.names)
    last = classes.num_classes - 1
    if last > 1 and result.histogram[last] and not result.ignored and not classes.palette.named:
        print('note: no pixel is ignored; if class %d is void, give --num_classes=%d --ignore_label=%d' % (
            last, last, last))
    return result


def _check(conf, classes, source):
    return data_check.check_pairs(source.images, source.labels, classes, conf.num_threads,
                                  'check ' + quoted(source.name), source.lines)


def _unlikely_classes(classes, result):
    """Sentences on a histogram of classes that looks as if other flags were meant."""
    present, num_classes = result.histogram.nonzero()[0], classes.num_classes
    if not len(present):
        return ['no label has a pixel of any class.'] if result.num_labels else []
    sentences, last = [], int(present[-1])
    absent = sorted(set(range(num_classes)) - set(present.tolist()) - {classes.ignore_label})
    if 2 * len(absent) > num_classes:
        sentences.append('%d of %d classes have no pixel: %s%s.' % (
            len(absent), num_classes, ' '.join(map(str, absent[:20])), ' ...' if absent[20:] else ''))
    names = classes.palette.names
    if last > 0 and num_classes - 1 - last >= max(2, num_classes // 4):
        void = '' if result.ignored else ', or %d with --ignore_label=%d if %d is void' % (last, last, last)
        sentences.append('labels hold 0..%d only: is --num_classes=%d meant%s?' % (last, last + 1, void))
    elif last == num_classes - 1 and classes.palette.named and names and names[-1].lower() in _VOID_NAMES:
        sentences.append("class %d is called '%s': is --num_classes=%d with --ignore_label=%d meant?" % (
            last, names[-1], last, last))
    return sentences


def _shared_images(sources):
    """A sentence on the images that both training and validation list have."""
    if not {'data_list', 'valid_data_list'} <= set(sources):
        return []
    train, valid = ({os.path.realpath(path) for path in sources[flag].images}
                    for flag in ('data_list', 'valid_data_list'))
    shared = sorted(train & valid)
    if not shared:
        return []
    return ['images in both the training and the validation list: %d, %s.' % (
        len(shared), some(shared, 2, show=quoted))]


def _assumed_names(classes, sources):
    """A sentence if VOC's names are shown for what is not VOC's."""
    images = [path for source in sources.values() for path in source.images]
    if classes.palette.named or not classes.palette.names:
        return []
    if all(_VOC_ID.match(os.path.splitext(os.path.basename(path))[0]) for path in images):
        return []
    return ["VOC's names are assumed for the 21 classes; --palette names others."]
