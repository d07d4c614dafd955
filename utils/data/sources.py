"""Finds the data that the flags name: lists with labels, and images to predict. Also checks the three lists.

Images to predict come from a list, from a folder with its subfolders, or from file names on the command line.
"""

import collections
import os
import sys
from typing import List, NamedTuple

from utils.data import data_check, data_lists
from utils.data.image_files import (
    VIDEO_SUFFIXES,
    find_missing,
    has_decoder,
    is_colour_coded,
    is_video,
    mark_as_printed,
    video_remedy,
)
from utils.data.palette import NUM_LABEL_IDS
from utils.data.pixels import format_from_flags
from utils.system.command_line import RECORDS, is_picture
from utils.system.errors import UserError, quoted, reason, some


class Images(NamedTuple):
    """Images without labels."""
    paths: List[str]
    names: List[str]  # unique names for the output files; for images in a folder, they include the subfolder


MOST_SUFFIX = 16  # the most characters of a file extension in a message
# Reading takes most of the time if images are, on average, larger than LARGE pixels and than MANY_CROPS crops.
LARGE = 8e6
MANY_CROPS = 25
MAX_CHECKED = 2000  # a list with more images is not read completely before the work begins
# Subfolders of out_dir to which predictions are written.
PREDICTED = ('prediction', 'visual_prediction', 'overlay_prediction', 'probabilities', 'logits')
VOC_RESULTS = os.path.join('results', 'VOC2012', 'Segmentation', 'comp6_test_cls')  # for masks with --id_format=voc

# {flag: whether the list that it names needs labels}
NEEDS_LABELS = {'data_list': True, 'valid_data_list': True, 'test_data_list': False}

_VOID_NAMES = ('ignore', 'ignored', 'unlabeled', 'unlabelled', 'void')


# ---- lists and images that a run reads ----

def labelled_list(conf, classes, flag, num_steps=None):
    """Returns the images and labels of the list that a flag names.

    All files must exist. If the list has at most MAX_CHECKED images and --check_labels is on, all images and labels are
    read and checked.

    Args:
      conf: an object with the flags as attributes.
      classes: a Classes.
      flag: the name of the flag, such as 'data_list'.
      num_steps: the number of lines to use, starting with the first; None for all.

    Returns:
      a data_lists.Source.

    Raises:
      UserError: the list or one of its files is missing, damaged or does not match the flags.
    """
    source = data_lists.read_labeled_image_list(conf.data_dir, getattr(conf, flag))
    _report_if_fewer(source.name, source.images, num_steps)
    source = data_lists.first_lines(source, num_steps)
    data_lists.check_files_exist(source, need_labels=True)
    warnings = _label_ids(classes, source) + _train_ids(conf, source)
    if conf.check_labels and len(source.images) <= MAX_CHECKED:
        result = _check(conf, classes, source, flag)
        data_check.raise_on_problems(result, 'list ' + quoted(source.name, 40))
        if flag == 'data_list' and not result.histogram.any():
            raise UserError('list %s: all pixels of all labels are --ignore_label=%d, so there is nothing to learn: '
                            'fix the labels%s or --ignore_label.' % (
                                quoted(source.name, 40), classes.ignore_label,
                                ' (in black-and-white masks, save white as 1, or give --label_map=binary)'
                                if classes.ignore_label == 255 and not classes.label_map else ''))
        # A missing class is worth a warning in the training data, but not in a few validation images: there, the test
        # reports it with the scores.
        warnings += _other_colours(classes, result) + (
            _unlikely_classes(classes, source, result) + _hard_to_train(conf, classes, result)
            if flag == 'data_list' else []) + _turned_images(result) + result.warnings
        mark_as_printed(result.kinds.union(['orientation'] if result.turned else []))
    _print_warnings(source, warnings)
    return source


def images_to_predict(conf):
    """Returns the images of the first of --image, --image_dir and --test_data_list that is given.

    The images are not read here; damaged ones are reported when they are predicted.

    Args:
      conf: an object with the flags image, image_dir, out_dir, data_dir, test_data_list and test_num_steps as
        attributes.

    Returns:
      an Images.

    Raises:
      UserError: no image is given, or none of the images exists.
    """
    if conf.image_dir and not conf.image:
        written = [os.path.join(conf.out_dir, kind) for kind in ('', VOC_RESULTS) + PREDICTED]
        relative = images_below(conf.image_dir, written)
        _report_if_fewer(conf.image_dir, relative, conf.test_num_steps)
        images = Images([os.path.join(conf.image_dir, path) for path in relative], data_lists.folder_names(relative))
    else:
        paths = named_images(conf.image) if conf.image else _listed_images(conf)
        images = Images(paths, data_lists.output_names(paths))
    return Images(*(column[:conf.test_num_steps] for column in images))


def _listed_images(conf):
    """Returns the paths of the images of --test_data_list; raises UserError if none of them exists."""
    source = data_lists.read_labeled_image_list(conf.data_dir, conf.test_data_list)
    _report_if_fewer(source.name, source.images, conf.test_num_steps)
    if len(find_missing(set(source.images))) == len(set(source.images)):
        data_lists.check_files_exist(source._replace(labels=[''] * len(source.images)), need_labels=False)
    return source.images


def named_images(names):
    """Returns the paths that --image names. Unless a value is an existing file, it is split at commas.

    Args:
      names: the list of the values of the flag.

    Returns:
      list of paths, without duplicates.

    Raises:
      UserError: one of the paths is a folder or a video, or none of them exists.
    """
    paths = []
    for name in names:
        parts = [name] if os.path.lexists(name) else name.split(',')
        paths += [os.path.expanduser(part) for part in parts if part]
    paths = list(dict.fromkeys(paths))
    folders = [path for path in paths if os.path.isdir(path)]
    if folders:
        raise UserError('--image=%s is a folder: give it with --image_dir.' % quoted(folders[0]))
    videos = [path for path in paths if is_video(path)]
    if videos:
        raise UserError('--image=%s is %s.' % (quoted(videos[0], 60), video_remedy(videos[0])))
    if len(find_missing(paths)) == len(paths):
        raise UserError('--image=%s: %s; check the name.' % (quoted(names[0]), (
            'no such file' if len(paths) == 1 else 'none of the %d images exists' % len(paths))))
    return paths


def images_below(folder, left_out=(), flag='image_dir'):
    """Returns the images in a folder and its subfolders, recognised by their extensions.

    Names that start with a dot are skipped. Links to folders are followed, and each folder is listed once even if
    several links lead to it. Folders that cannot be read, and the extensions of other files, are reported on stderr.

    Args:
      folder: the folder.
      left_out: folders whose contents are skipped; they need not exist.
      flag: the flag that names the folder, for messages.

    Returns:
      sorted list of paths relative to the folder.

    Raises:
      UserError: there is no such folder, or it holds no image.
    """
    if not os.path.isdir(folder):
        raise UserError('--%s=%s %s.' % (flag, quoted(folder), 'is not a folder: give images with --image' if (
            os.path.lexists(folder)) else 'does not exist: give the folder of the images'))
    seen = {_identity(path) for path in left_out} - {_identity(folder), None}
    found, waiting, others = [], collections.deque(['']), collections.Counter()
    while waiting:
        below = waiting.popleft()  # '' or a relative path that ends with a slash
        path = os.path.join(folder, below)
        identity = _identity(path)
        if identity in seen:
            continue
        seen.update([identity] if identity else [])
        for name, is_dir, is_link in _entries(path):
            if is_dir:  # links come last, so that a folder is listed under its own name and not the name of a link
                (waiting.append if is_link else waiting.appendleft)(below + name + '/')
            elif is_picture(name) and has_decoder(name):
                found.append(below + name)
            else:
                others[os.path.splitext(name)[1].lower() or 'without suffix'] += 1
    suffixes = some(sorted(others, key=lambda suffix: (-others[suffix], suffix)), 4, show=lambda suffix: '%d %s' % (
        others[suffix], quoted(suffix, MOST_SUFFIX)))
    if not found and set(VIDEO_SUFFIXES) & set(others):
        raise UserError('--%s=%s: there is no image in it, but there are videos: make images of their frames, as in '
                        '`mkdir frames && ffmpeg -i clip.mp4 frames/%%05d.png`.' % (flag, quoted(folder)))
    if not found:
        raise UserError('--%s=%s contains no images%s: give a folder with files that end in .jpg, .png or similar.' % (
            flag, quoted(folder), ' (other files: %s)' % suffixes if others else ''))
    if {'.heic', '.heif'} & set(others):
        suffixes += '; to read HEIC: pip install -r requirements-heif.txt'
    if others:
        print('note: --%s=%s: files skipped, as their extensions are not those of images: %d (%s)' % (
            flag, quoted(folder), sum(others.values()), suffixes), file=sys.stderr)
    return sorted(found)


def _identity(path):
    """Returns (device, inode), which identifies a file or folder under all its names; None if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _entries(folder):
    """Returns the sorted entries of a folder as (name, is a folder, is a link), without hidden entries."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries
                          if not entry.name.startswith('.'))
    except OSError as error:
        print('warning: folder %s cannot be read (%s): its images are skipped.' % (quoted(folder), reason(error)),
              file=sys.stderr)
        return []


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _report_if_fewer(name, images, num_steps):
    """Prints a line if a list or folder has fewer images than requested."""
    if num_steps is not None and num_steps > len(images):
        print('%s has only %d images, so each of them is used once' % (quoted(name), len(images)), file=sys.stderr)


def _print_warnings(source, warnings, shown=3):
    for sentence in warnings[:shown]:
        print('warning: list %s: %s' % (quoted(source.name), sentence), file=sys.stderr)
    if warnings[shown:]:
        print('... and %d more warnings; --option=check lists them all' % len(warnings[shown:]), file=sys.stderr)


# ---- --option=check ----

def check_lists(conf, classes):
    """Reads every file of the three lists and prints a report.

    Args:
      conf, classes: as for labelled_list.

    Raises:
      UserError: training, testing or predicting would fail.
    """
    sources, results = {}, {}
    warnings = []
    for flag, need_labels in NEEDS_LABELS.items():
        name = getattr(conf, flag)
        if flag != 'data_list' and not os.path.lexists(name):
            if flag not in RECORDS or name != RECORDS[flag].default:
                warnings.append('--%s=%s does not exist.' % (flag, quoted(name)))
            continue
        sources[flag] = data_lists.read_labeled_image_list(conf.data_dir, name)
        if name not in results:
            print('%s (--%s)' % (quoted(name), flag))
            results[name] = _report(conf, classes, sources[flag], flag, need_labels)
    warnings += _shared_images(sources) + _assumed_names(classes, sources)
    if warnings:
        data_check.print_sentences('general warnings', warnings)
    problems = sum(len(result.problems) for result in results.values())
    count = len(warnings) + sum(len(result.warnings) for result in results.values())
    if problems:
        raise UserError('the data has %d problem%s, listed above: fix the files, lists or flags.' % (
            problems, 's' if problems > 1 else ''))
    print('no problems; %d warning%s above' % (count, 's' if count > 1 else '') if count else 'no problems')


def _report(conf, classes, source, flag, need_labels):
    """Checks a list, prints the findings and returns the CheckResult, including problems in the list itself."""
    result = _check(conf, classes, source, flag)
    if need_labels:
        result.problems.extend('line %d: %s has no label in the list.' % (line, quoted(image)) for line, image, label
                               in zip(source.lines, source.images, source.labels) if not label)
    result.warnings.extend(_label_ids(classes, source) + _train_ids(conf, source) + _turned_images(result) +
                           _unlikely_classes(classes, source, result) + _other_colours(classes, result))
    weights = None
    if flag == 'data_list':
        weights = data_check.balanced_class_weights(result.histogram)
        sentence = data_check.describe_large_weights(weights, classes)
        result.warnings.extend(_hard_to_train(conf, classes, result) + ([sentence] if sentence else []))
    data_check.print_report(result, classes.palette.names, weights)
    if result.num_images:
        rgb = ['%.3f' % value for value in result.mean]
        print('mean of the images: --channel_order=rgb --img_mean=%s or --channel_order=bgr --img_mean=%s' % (
            ','.join(rgb), ','.join(rgb[::-1])))
    if flag == 'data_list' and result.percentiles and not conf.image_range:
        print('note: images have more than 8 bits; --image_range=%s covers the 0.5th to the 99.5th percentile of '
              'their values' % _range(*result.percentiles))
    mistake = data_lists.likely_mistake(source, find_missing(set(source.images + source.labels) - {''}))
    if mistake:
        print('note: list %s: %s' % (quoted(source.name), mistake))
    last = classes.num_classes - 1
    if last > 1 and result.histogram.all() and not result.ignored and not classes.palette.named:
        print('note: no pixels are ignored; if class %d is void, give --num_classes=%d --ignore_label=%d' % (
            last, last, last))
    return result


def _check(conf, classes, source, flag):
    scaled = flag == 'data_list' and conf.random_scale and conf.random_scale_range
    scale = sum(conf.random_scale_range) / 2 if scaled else 1.0
    return data_check.check_pairs(source.images, source.labels, classes, conf.num_threads,
                                  'check ' + quoted(source.name), source.lines, format_from_flags(conf), scale)


def _range(low, high):
    """Returns the value of --image_range for two numbers; if they are equal, 1 is added to the second."""
    if low == int(low) and high == int(high):
        return '%d,%d' % (low, max(high, low + 1))
    return '%.6g,%.6g' % (low, high) if low < high else '%.6g,%.6g' % (low, low + 1)


def _turned_images(result):
    """Returns a list with a sentence about the images whose EXIF orientation is not applied, if any."""
    if not result.turned:
        return []
    return ['images with an EXIF orientation that is not applied: %d, %s; if the labels match the upright images, '
            'give --apply_exif.' % (len(result.turned), some(result.turned, 2, show=quoted))]


def _other_colours(classes, result):
    """Returns a list with a sentence about label files whose palettes contradict --palette, if any."""
    if not result.contradictions:
        return []
    _, index, colour = result.contradictions[0]
    return ['palette PNGs whose colours contradict --palette: %d, %s (class %d is %s there, but %s in --palette); only '
            'the indices are used: give the palette of the files, or renumber their classes.' % (
                len(result.contradictions), some(
                    [label for label, _, _ in result.contradictions], 2, show=lambda label: quoted(label, 40)),
                index, '%d %d %d' % colour, '%d %d %d' % tuple(classes.palette.colours[index]))]


def _hard_to_train(conf, classes, result):
    """Returns a list of sentences about classes that are too thin to learn and images that are slow to read."""
    sentences = [data_check.describe_thin_classes(result, classes)]
    pixels = sum(height * width * count for (height, width), count in result.sizes.items()) / max(1, result.num_images)
    crop = conf.input_height * conf.input_width
    if pixels > LARGE and pixels > MANY_CROPS * crop:
        sentences.append(
            'images have %.0f million pixels on average, much more than the crops of %dx%d (--input_width, '
            '--input_height), so reading takes most of the time: cut images and labels into tiles of about %dx%d.' % (
                pixels / 1e6, conf.input_width, conf.input_height, 2 * conf.input_width, 2 * conf.input_height))
    return [sentence for sentence in sentences if sentence]


def _unlikely_classes(classes, source, result):
    """Returns a list of sentences about class frequencies that suggest a mistake in labels or flags."""
    if not result.num_labels:
        return []
    absent = data_check.describe_classes(result.histogram, classes)
    present = result.histogram.nonzero()[0].tolist()
    if result.ignored and classes.ignore_label == data_check.WHITE and present in ([], [0]):
        return ([absent] if absent else []) + _white_masks(classes, source, result)
    return _number_of_classes(classes, source, result, absent) if present else [absent]


def _white_masks(classes, source, result):
    """Returns a list with a sentence if labels with only 255, or 0 and 255, seem to be black-and-white masks."""
    if classes.num_classes == 1 or classes.label_map or result.problems or is_colour_coded(
            next(filter(None, source.labels)), classes):
        return []
    return ['labels contain only %s255, like black-and-white masks, but 255 is ignored (--ignore_label): save white as '
            '1 or give --label_map=binary.' % ('0 and ' if result.histogram.any() else '')]


def _number_of_classes(classes, source, result, absent):
    """Returns a list of sentences: `absent`, about the classes without pixels, unless it is '', and doubts about
    --num_classes.
    """
    sentences, names, num_classes = [absent] if absent else [], classes.palette.names, classes.num_classes
    last = int(result.histogram.nonzero()[0][-1])
    gaps = any(index < last for index in data_check.absent_classes(result.histogram, classes))
    if last > 0 and num_classes - 1 - last >= max(2, num_classes // 4):
        if not classes.label_map and _names_of_label_ids(source):  # changing --num_classes would not help
            return sentences + ([] if _label_ids(classes, source) else _names_of_label_ids(source))
        # If an earlier class is also missing, the last one is unlikely to be void, as most data sets have void pixels.
        void = '' if result.ignored or not result.histogram[:last].all() else (
            ', or %d with --ignore_label=%d if %d is void' % (last, last, last))
        # This explains the sentence about absent classes, so it is appended to it.
        sentences = [absent[:-1] + '; %s: is --num_classes=%d meant%s?' % (
            'no label has a class above %d' % last if gaps else 'labels contain only 0..%d' % last, last + 1, void)]
    elif last == num_classes - 1 and classes.palette.named and names and names[-1].lower() in _VOID_NAMES:
        sentences.append("class %d is called '%s': is --num_classes=%d with --ignore_label=%d meant?" % (
            last, names[-1], last, last))
    return sentences


def _label_ids(classes, source):
    """Returns _names_of_label_ids, but an empty list if --num_classes allows all ids or a label map is given."""
    return _names_of_label_ids(source) if classes.num_classes < NUM_LABEL_IDS and not classes.label_map else []


def _names_of_label_ids(source):
    """Returns a list with a sentence if the names of labels say that they contain Cityscapes' label ids."""
    found = [path for path in source.labels if data_check.has_name_of_label_ids(path)]
    if not found:
        return []
    return ["labels that seem to contain Cityscapes' label ids, not train ids: %d, %s; convert them with "
            'convert_cityscapes.py, or give --label_map=cityscapes.' % (len(found), quoted(found[0]))]


def _train_ids(conf, source):
    """Returns a list with a sentence if --label_map=cityscapes is given for labels that seem to contain train ids."""
    found = [path for path in source.labels if 'labeltrainids' in os.path.basename(path).lower()]
    if not found or conf.label_map != 'cityscapes':
        return []
    return ["labels that seem to contain Cityscapes' train ids, which --label_map=cityscapes treats as label ids: %d, "
            '%s; leave out --label_map.' % (len(found), some(found, 2, show=quoted))]


def _shared_images(sources):
    """Returns a list with a sentence about the images that are in both the training and the validation list, if any."""
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
    """Returns a list with a sentence if VOC's class names are used for images that do not have VOC's names."""
    images = [path for source in sources.values() for path in source.images]
    if classes.palette.named or not classes.palette.names:
        return []
    if all(data_lists.VOC_ID.match(os.path.splitext(os.path.basename(path))[0]) for path in images):
        return []
    return ["VOC's names are assumed for the 21 classes; give --palette for other names."]
