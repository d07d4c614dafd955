"""Checks images and labels: reads every file of a list and reports problems that would make a run fail or go wrong."""

import collections
import contextlib
import dataclasses
import os
import re
from multiprocessing.pool import ThreadPool
from typing import List, NamedTuple, Optional, Set, Tuple

import numpy as np
from tqdm import tqdm

from utils.data.image_files import own_palette, read_image, read_label, show_colours, stored_values
from utils.data.palette import CITYSCAPES_CLASSES, NUM_LABEL_IDS
from utils.data.pixels import AS_STORED, SWAPPED_SIDES
from utils.system import runtime
from utils.system.errors import MOST_TOLD, UserError, printable, quoted, some


@dataclasses.dataclass
class CheckResult(object):
    """The findings about a list of images and labels."""
    num_images: int  # number of images that could be read
    num_labels: int  # number of labels that could be read
    sizes: collections.Counter  # of (height, width) of the images
    histogram: np.ndarray  # number of pixels of each class, int64 [num_classes]
    ignored: int  # number of pixels of ignore_label
    problems: List[str]  # sentences about faults that would stop a run, in the order of the list
    warnings: List[str]  # sentences about things that may be unintended, in the order of the list
    turned: List[str]  # paths of the images whose EXIF orientation is not applied
    percentiles: Optional[Tuple[float, float]]  # the 0.5th and 99.5th of the values of images of more than 8 bits
    mean: np.ndarray  # of the images' pixels, float64 [3], RGB
    thick: np.ndarray  # number of pixels of each class in thick regions, see thick_pixels, int64 [num_classes]
    contradictions: List[Tuple[str, int, Tuple[int, int, int]]]  # (label's path, class, its colour in the label's file)
    kinds: Set[str]  # kinds of remarks on images, as in LoadedImage.remarks, that `warnings` holds


_LABEL_IDS = re.compile(r'(?i)(label|instance)Ids')  # not labelTrainIds, which are classes
MOST_NAMED = 5  # absent classes that are listed with their names
VALUES = 2000000  # about as many values of images of more than 8 bits are kept for their percentiles
THIN = 0.05  # a class with a smaller share of its pixels in thick regions is thin
SMALL = 17  # pixels; labels with a smaller side, less than the least crop, are not searched for thin classes
MOST_WEIGHT = 100  # a larger weight of a class is warned of
WHITE = 255  # the value of the object in black-and-white masks, where a class index is needed


class PairResult(NamedTuple):
    """The findings about an image and its label."""
    size: Optional[Tuple[int, int]]  # (height, width) of the image; None if it cannot be read
    histogram: Optional[np.ndarray]  # number of pixels of each class, int64 [num_classes]; None if no label is readable
    ignored: int  # number of pixels of ignore_label
    problems: List[str]
    warnings: List[str]
    orientation: int = 1  # EXIF orientation of the image that is not applied
    values: Optional[np.ndarray] = None  # a sample of the values of an image of more than 8 bits, [n]
    colour_sums: np.ndarray = np.zeros(3)  # of the image's pixels, float64 [3], RGB
    kinds: Tuple[str, ...] = ()  # of the image's remarks
    thick: Optional[np.ndarray] = None  # number of pixels of each class in thick regions, int64 [num_classes]
    contradiction: Optional[Tuple[int, Tuple[int, int, int]]] = None  # (class, its colour in the label's file)


def check_pairs(images, labels, classes, num_threads=4, desc='check', lines=None, image_format=AS_STORED, scale=1.0):
    """Reads and checks all images and labels.

    Args:
      images, labels: lists of paths; the label is '' for an image without one.
      classes: a Classes.
      num_threads: how many files are read at the same time.
      desc: the text of the progress bar on stderr.
      lines: the line number of each pair in its list, to be named in the sentences; or None.
      image_format: the ImageFormat of the images.
      scale: the mean of the random scales of training, for which thin classes are searched.

    Returns:
      a CheckResult.
    """
    sampled = max(20, VALUES // max(1, len(images)))  # values of each image

    def check(pair):
        return _check_pair(pair[0], pair[1], classes, image_format, sampled, scale)

    sizes, problems, warnings = collections.Counter(), [], []
    histogram, thick = np.zeros([2, classes.num_classes], np.int64)
    ignored, num_labels = 0, 0
    with runtime.held_stderr() as held:
        held.drop = True
        results = list(map_with_progress(check, list(zip(images, labels)), num_threads, desc, 'image', held.stderr))
    if held.text:
        results = [_add_decoder_lines(image, result, image_format) for image, result in zip(images, results)]
    for i, result in enumerate(results):
        where = 'line %d: ' % lines[i] if lines else ''
        sizes.update([result.size] if result.size else [])
        problems += [where + sentence for sentence in result.problems]
        warnings += [where + sentence for sentence in result.warnings]
        if result.histogram is not None:
            num_labels += 1
            histogram += result.histogram
            ignored += result.ignored
            thick += result.thick
    turned = [image for image, result in zip(images, results) if result.orientation != 1]
    values = [result.values for result in results if result.values is not None]
    pixels = sum(height * width * count for (height, width), count in sizes.items())
    mean = sum(result.colour_sums for result in results) / max(1, pixels)
    contradictions = [(label,) + result.contradiction for label, result in zip(labels, results) if result.contradiction]
    return CheckResult(
        sum(sizes.values()), num_labels, sizes, histogram, ignored, problems, warnings, turned,
        np.percentile(np.concatenate(values), [0.5, 99.5]).tolist() if values else None, mean, thick,
        contradictions, {kind for result in results for kind in result.kinds})


def _add_decoder_lines(image_path, result, image_format):
    """Returns the PairResult, with a warning that names the image if its decoder prints lines, which do not name it."""
    with runtime.held_stderr() as held, contextlib.suppress(UserError):
        held.drop = True
        read_image(image_path, image_format)
    lines = [line for line in held.text.splitlines() if line.strip()]
    if not lines or result.problems:
        return result
    warning = '%s: its decoder finds damage but continues (%s).' % (quoted(image_path), printable(lines[0])[:80])
    return result._replace(warnings=result.warnings + [warning])


def map_with_progress(function, items, num_threads, desc, unit, file=None):
    """Yields function(item) for a list of items, in order, computed by threads, with a progress bar on stderr."""
    pool = ThreadPool(num_threads)
    try:
        yield from tqdm(pool.imap(function, items), desc=desc, total=len(items), unit=unit, file=file)
    finally:  # after Ctrl-C too: calls that have started are finished, the others are dropped
        pool.terminate()
        pool.join()


def raise_on_problems(result, name='the data'):
    """Raises UserError if there are problems, with their number and as many of the first three as fit into MOST_TOLD.

    Args:
      result: a CheckResult.
      name: the name of the data in the message.
    """
    count = len(result.problems)
    if not count:
        return
    start = '%s has %d problem%s:' % (name, count, 's' if count > 1 else '')
    more = ' ... --option=check lists them all.'
    sentences = [start + ' ' + ' '.join(result.problems[:shown]) + (more if shown < count else '')
                 for shown in range(1, min(count, 3) + 1)]
    fitting = [sentence for sentence in sentences if len(sentence) <= MOST_TOLD]
    raise UserError(fitting[-1] if fitting else start + ' ' + result.problems[0])


def print_report(result, names=None, weights=None):
    """Prints a CheckResult on stdout: numbers, sizes, a table of the classes' pixels, problems and warnings.

    Args:
      result: a CheckResult.
      names: names of the classes, or None.
      weights: a weight for each class, for a column of the table, or None.
    """
    print('images %d, labels %d' % (result.num_images, result.num_labels))
    common = ['%dx%d (%d)' % (width, height, count) for (height, width), count in result.sizes.most_common(5)]
    print('sizes, width x height (images): %s%s' % (
        ', '.join(common) or '-', ', ... %d in all' % len(result.sizes) if len(result.sizes) > 5 else ''))
    if result.num_labels:
        _print_histogram(result, names, weights)
    print_sentences('problems', result.problems)
    print_sentences('warnings', result.warnings)


def print_sentences(title, sentences, shown=50):
    """Prints the number of sentences, and the first of them, one per line."""
    print('%s %d' % (title, len(sentences)))
    for sentence in sentences[:shown]:
        print('  ' + sentence)
    if len(sentences) > shown:
        print('  ... and %d more' % (len(sentences) - shown))


def _print_histogram(result, names, weights):
    total = max(1, int(result.histogram.sum()) + result.ignored)
    rows = [(str(index), names[index] if names else '', int(count))
            for index, count in enumerate(result.histogram)]
    rows.append(('-', 'ignored', result.ignored))
    width = max(len(name) for _, name, _ in rows)
    shown = [''] * len(rows) if weights is None else ['  %8.3g' % weight for weight in weights] + [' ' * 9 + '-']
    print('class  %s  %15s%s  share' % ('name'.ljust(width), 'pixels', '' if weights is None else '    weight'))
    for (index, name, count), weight in zip(rows, shown):
        print('%5s  %s  %15d%s  %6.2f%%' % (index, name.ljust(width), count, weight, 100.0 * count / total))


def _check_pair(image_path, label_path, classes, image_format, sampled, scale):
    """Returns the PairResult of an image and its label; label_path is '' for an image without one."""
    found = PairResult(None, None, 0, problems=[], warnings=[])
    try:
        image = read_image(image_path, image_format)
        found = found._replace(size=image.pixels.shape[:2], orientation=image.orientation,
                               warnings=list(image.remarks.values()), kinds=tuple(image.remarks),
                               colour_sums=image.pixels.sum((0, 1), dtype=np.float64))
        if image.is_wide:
            found = found._replace(values=_sample(stored_values(image_path, image_format), sampled))
    except UserError as error:
        found.problems.append(str(error))
        if not image_format.value_range:  # which may be what the image needs
            with contextlib.suppress(UserError):
                found = found._replace(values=_sample(stored_values(image_path, image_format), sampled))
    if not label_path:
        return found
    try:
        label, unknown = read_label(label_path, classes)
    except UserError as error:
        return found._replace(problems=found.problems + [str(error)])
    counts, ignored, problems = inspect_label(
        image_path, found.size or label.shape, label_path, label, classes, found.orientation)
    found = found._replace(histogram=counts, ignored=ignored, problems=found.problems + problems,
                           thick=thick_pixels(label, classes, scale),
                           contradiction=_contradiction(label_path, counts, classes))
    if unknown:
        white = [colour for _, colour in unknown] == [(WHITE,) * 3]
        found.warnings.append('%s: %d pixels are ignored, as the palette does not have their colours (r g b: %s%s).' % (
            quoted(label_path), sum(pixels for pixels, _ in unknown), show_colours(unknown),
            '; a black-and-white mask needs a palette file that names white, or --label_map=binary' if white else ''))
    return found


def _contradiction(label_path, counts, classes):
    """Returns (class, its colour in the palette of the label's file) if that is not --palette's, otherwise None.

    A palette says nothing about the classes if it is grey or black in all entries that the label uses, and so does a
    black entry, as tools write where no colour is known.

    Args:
      label_path: a label that can be read.
      counts: the number of pixels of each class in it, [num_classes].
      classes: a Classes.
    """
    if not classes.palette.named or classes.label_map:  # with a map, the entries are not those of classes
        return None
    colours = own_palette(label_path)
    used = np.flatnonzero(counts[:len(colours)]) if colours is not None else []
    if not len(used) or (colours[used] == colours[used, :1]).all():
        return None
    wrong = (colours[used] != classes.palette.colours[used]).any(1) & colours[used].any(1)
    return next(((int(index), tuple(colours[index].tolist())) for index in used[wrong]), None)


def thick_pixels(label, classes, scale=1.0):
    """Returns about how many pixels of each class are in regions that are more than 4 pixels wide, in any direction.

    The loss takes the label of every 8th pixel in each direction, as 8 is the stride of the network's output, and
    predictions are as coarse. It sees too few pixels of lines up to 4 pixels wide to learn them: after training on a
    class of lines 3 pixels wide, its IoU was 0.

    To be fast (0.1 ms for 480 x 360 pixels), this looks at every second row and column, and counts the squares of 3 x 3
    of these pixels that are of one class. None fits into a line of 4 pixels, but a few may where lines cross. Of the
    pixels of squares of 10 x 10, a third are the centre of one.

    Args:
      label: integer array [h, w].
      classes: a Classes.
      scale: of training images, on average; from 2, every pixel is counted, and the regions are those of more than 2.

    Returns:
      int64 [num_classes]; all pixels of a label that is SMALL.
    """
    if min(label.shape) < SMALL:
        return count_labels(label, classes)[0]
    step = 1 if scale >= 2 else 2
    label = np.ascontiguousarray(label[::step, ::step])  # which is compared five times as fast
    below, beside = label[1:] == label[:-1], label[1:-1, 1:] == label[1:-1, :-1]
    column, row = below[1:] & below[:-1], beside[:, 1:] & beside[:, :-1]  # of three pixels of one class
    square = column[:, :-2] & column[:, 1:-1] & column[:, 2:] & row
    return count_labels(label[1:-1, 1:-1][square], classes)[0] * step ** 2


def describe_thin_classes(result, classes):
    """Returns a sentence on the classes of a CheckResult that have nearly no thick regions; '' if there is none."""
    thin = np.flatnonzero(result.thick < THIN * result.histogram).tolist()
    if not thin:
        return ''
    return ('%d class%s drawn only in lines or specks a few pixels wide, which the loss hardly sees, as it takes one '
            'pixel of 8x8: %s; scale images and labels up, draw wider, or give a larger --random_scale_range such as '
            '2,3.' % (
                len(thin), 'es are' if len(thin) > 1 else ' is',
                some(thin, MOST_NAMED, show=lambda index: class_name(index, classes.palette.names))))


def balanced_class_weights(histogram):
    """Returns a weight for each class: the median of the classes' pixel frequencies, divided by that of the class.

    This is median frequency balancing (Eigen and Fergus 2015, section 6.3.2), except that frequencies are relative to
    all pixels rather than to the pixels of images that contain the class. Classes without a pixel get weight 1 and are
    left out of the median.

    Args:
      histogram: [num_classes], the number of pixels of each class.

    Returns:
      float32 [num_classes].
    """
    shares = np.asarray(histogram, np.float64) / max(np.sum(histogram), 1)
    present = shares > 0
    weights = np.ones(len(shares))
    if present.any():
        weights[present] = np.median(shares[present]) / shares[present]
    return weights.astype(np.float32)


def describe_large_weights(weights, classes):
    """Returns a sentence on the balanced weights, [num_classes], above MOST_WEIGHT; '' if there is none."""
    large = sorted(np.flatnonzero(weights > MOST_WEIGHT).tolist(), key=lambda index: -weights[index])
    if not large:
        return ''
    return ('--class_weights=balanced gives %d class%s a weight above %d: %s; a few pixels then decide the loss: give '
            'a file with smaller weights, or label more of %s.' % (
                len(large), 'es' if len(large) > 1 else '', MOST_WEIGHT,
                some(large, MOST_NAMED, show=lambda index: '%s (%.0f)' % (
                    class_name(index, classes.palette.names), weights[index])), 'them' if len(large) > 1 else 'it'))


def _sample(values, count):
    """Returns the finite ones of `count` random values, or of all if there are fewer, of any array: float64 [n]."""
    values = values.reshape(-1)
    if values.size > count:  # evenly spaced ones may all be of one channel or column
        values = values[np.random.RandomState(0).randint(values.size, size=count)]
    values = values.astype(np.float64)
    return values[np.isfinite(values)]


def inspect_label(image_path, size, label_path, label, classes, orientation=1):
    """Checks a label against its image and the classes.

    Args:
      image_path, label_path: the paths, for the sentences.
      size: (height, width) of the image.
      label: integer array [h, w].
      classes: a Classes.
      orientation: the image's EXIF orientation that is not applied.

    Returns:
      (number of pixels of each class, int64 [num_classes]; number of pixels of ignore_label; list of sentences about
      problems).
    """
    problems = []
    if label.shape != tuple(size):
        problems.append('%s is %dx%d and its label %s %dx%d (width x height): they must be the same size%s.' % (
            quoted(image_path), size[1], size[0], quoted(label_path), label.shape[1], label.shape[0],
            '; the image has an EXIF orientation that turns it: give --apply_exif' if (
                orientation in SWAPPED_SIDES and label.shape == tuple(size)[::-1]) else ''))
    counts, ignored, strange = count_labels(label, classes)
    unmapped = not classes.label_map
    if unmapped and strange == [WHITE] and classes.num_classes > 1 and not counts[1:].any():
        problems.append('%s holds 0 and 255 only: it looks like a black-and-white mask, but the values must be '
                        'classes: save white as 1 or give --label_map=binary.' % quoted(label_path))
    elif unmapped and strange and (has_name_of_label_ids(label_path) or classes.num_classes == len(CITYSCAPES_CLASSES)
                                   and 0 <= strange[0] <= strange[-1] < NUM_LABEL_IDS):
        problems.append("%s holds Cityscapes' label ids (%s%s): convert_cityscapes.py turns them into the train ids "
                        '0..18 and writes the lists, and --label_map=cityscapes reads them as such.' % (
                            quoted(label_path), ' '.join(str(v) for v in strange[:5]), ' ...' if strange[5:] else ''))
    elif strange:
        remedy = ' or --label_map'
        if unmapped:
            remedy = ', give --label_map=reduce_zero if 0 is void,' if strange == [classes.num_classes] else (
                ' or --label_map=FILE')
        problems.append('%s holds the value%s %s%s, neither 0..%d (--num_classes=%d) nor --ignore_label=%d%s: set '
                        'these flags%s or fix the label.' % (
                            quoted(label_path), 's' if len(strange) > 1 else '', ' '.join(str(v) for v in strange[:5]),
                            ' ...' if len(strange) > 5 else '', classes.num_classes - 1, classes.num_classes,
                            classes.ignore_label, '' if unmapped else ', after --label_map', remedy))
    return counts, ignored, problems


def describe_classes(pixels, classes):
    """Returns a sentence on the classes that have no pixel in the labels, or if only one has; '' if there is none.

    Args:
      pixels: the number of pixels of each class, [num_classes]; those of ignore_label are not counted.
      classes: a Classes.
    """
    names, clauses = classes.palette.names, []
    present = [index for index, count in enumerate(pixels) if count]
    if not present:
        return 'no label has a pixel of any class.'
    absent = absent_classes(pixels, classes)
    if absent:
        few = some(absent, MOST_NAMED, show=lambda index: class_name(index, names))
        many = ' '.join(map(str, absent[:20])) + (' ...' if absent[20:] else '')
        clauses.append('%d of %d classes %s no pixel: %s' % (
            len(absent), classes.num_classes, 'have' if len(absent) > 1 else 'has',
            many if absent[MOST_NAMED:] else few))
    if len(present) == 1:
        clauses.append('only one class counts (%s), so predicting it everywhere scores 100 %%' % class_name(
            present[0], names))
    return '; '.join(clauses) + '.' if clauses else ''


def absent_classes(pixels, classes):
    """Returns the list of the classes that have no pixel, without ignore_label; arguments as for describe_classes."""
    return [index for index, count in enumerate(pixels) if not count and index != classes.ignore_label]


def class_name(index, names):
    return '%d %s' % (index, quoted(names[index], 40)) if names else str(index)


def has_name_of_label_ids(label_path):
    """Returns whether a label's name is that of a file of Cityscapes' label ids."""
    return bool(_LABEL_IDS.search(os.path.basename(label_path)))


def count_labels(label, classes):
    """Counts the pixels of each class.

    Args:
      label: integer array [h, w].
      classes: a Classes.

    Returns:
      (number of pixels of each class, int64 [num_classes]; number of pixels of ignore_label; sorted list of all other
      values).
    """
    num_classes, ignore_label = classes.num_classes, classes.ignore_label
    if label.dtype == np.uint8:
        pixels = np.bincount(label.ravel(), minlength=256)
        values = np.flatnonzero(pixels)
        pixels = pixels[values]
    else:
        values, pixels = np.unique(label, return_counts=True)
    counts = np.zeros(num_classes, np.int64)
    is_void = values == ignore_label
    is_class = (values >= 0) & (values < num_classes) & ~is_void
    counts[values[is_class]] = pixels[is_class]
    return counts, int(pixels[is_void].sum()), [int(value) for value in values[~is_class & ~is_void]]
