"""Reads every file of a list and tells what would make training fail or go wrong."""

import collections
from multiprocessing.pool import ThreadPool

import numpy as np
from tqdm import tqdm

from utils.data.image_files import load_image, load_label
from utils.system.errors import UserError

# num_images: images read; num_labels: labels read; sizes: Counter of (height, width);
# histogram: int64 [num_classes], pixels of each class; ignored: pixels of ignore_label;
# problems: sentences, in the order of the list.
CheckResult = collections.namedtuple('CheckResult', 'num_images num_labels sizes histogram ignored problems')


def check_pairs(images, labels, num_classes, ignore_label, palette, num_threads=4, desc='check'):
    """Decodes all images and labels.

    Args:
      images, labels: lists of paths; a label is '' where an image has none.
      num_classes: label values 0..num_classes-1 are classes.
      ignore_label: the one label value that is ignored; it may be one of the classes' values.
      palette: a Palette for colour-coded labels, or None.
      num_threads: files read at a time.
      desc: what the progress bar on stderr says.

    Returns:
      CheckResult.
    """
    def check(pair):
        return _check_pair(pair[0], pair[1], num_classes, ignore_label, palette)

    sizes, problems = collections.Counter(), []
    histogram = np.zeros(num_classes, np.int64)
    ignored, num_labels = 0, 0
    pairs = list(zip(images, labels))
    for size, counts, void, sentences in map_with_progress(check, pairs, num_threads, desc, 'image'):
        sizes.update([size] if size else [])
        problems += sentences
        if counts is not None:
            num_labels += 1
            histogram += counts
            ignored += void
    return CheckResult(sum(sizes.values()), num_labels, sizes, histogram, ignored, problems)


def map_with_progress(function, items, num_threads, desc, unit):
    """Yields function(item) for each of a list of items, in order, from threads, with a progress bar on stderr."""
    pool = ThreadPool(num_threads)
    try:
        yield from tqdm(pool.imap(function, items), desc=desc, total=len(items), unit=unit)
    finally:  # after Ctrl-C too: what is begun is finished, the rest dropped
        pool.terminate()
        pool.join()


def raise_on_problems(result, shown=3):
    """Raises UserError with the number of problems and the first few, if the CheckResult has any."""
    count = len(result.problems)
    if count:
        raise UserError('the data has %d problem%s: %s%s' % (
            count, 's' if count > 1 else '', ' '.join(result.problems[:shown]),
            ' ... --option=check lists them all.' if count > shown else ''))


def print_report(result, palette=None, shown=50):
    """Prints a CheckResult as a table on stdout: counts, sizes, pixels of each class, problems."""
    print('images %d, labels %d' % (result.num_images, result.num_labels))
    common = ['%dx%d (%d)' % (width, height, count) for (height, width), count in result.sizes.most_common(5)]
    print('sizes, width x height (images): %s%s' % (
        ', '.join(common) or '-', ', ... %d in all' % len(result.sizes) if len(result.sizes) > 5 else ''))
    if result.num_labels:
        _print_histogram(result, palette.names if palette else None)
    print('problems %d' % len(result.problems))
    for problem in result.problems[:shown]:
        print('  ' + problem)
    if len(result.problems) > shown:
        print('  ... and %d more' % (len(result.problems) - shown))


def _print_histogram(result, names):
    total = max(1, int(result.histogram.sum()) + result.ignored)
    rows = [(str(index), names[index] if names else '', int(count))
            for index, count in enumerate(result.histogram)]
    rows.append(('-', 'ignored', result.ignored))
    width = max(len(name) for _, name, _ in rows)
    print('class  %s  %15s  share' % ('name'.ljust(width), 'pixels'))
    for index, name, count in rows:
        print('%5s  %s  %15d  %6.2f%%' % (index, name.ljust(width), count, 100.0 * count / total))


def _check_pair(image_path, label_path, num_classes, ignore_label, palette):
    """((height, width) or None, int64 [num_classes] or None, ignored pixels, sentences) of one pair."""
    size, counts, ignored, problems = None, None, 0, []
    try:
        size = load_image(image_path).shape[:2]
    except UserError as error:
        problems.append(str(error))
    if not label_path:
        return size, counts, ignored, problems
    try:
        label = load_label(label_path, palette)
    except UserError as error:
        return size, counts, ignored, problems + [str(error)]
    counts, ignored, sentences = inspect_label(image_path, size or label.shape, label_path, label, num_classes,
                                               ignore_label)
    problems += sentences
    return size, counts, ignored, problems


def inspect_label(image_path, size, label_path, label, num_classes, ignore_label):
    """(int64 [num_classes] pixels of each class, pixels of ignore_label, sentences on what is wrong) of a label.

    Args:
      size: (height, width) of the image.
      label: integer array [h, w].
    """
    problems = []
    if label.shape != tuple(size):
        problems.append('%s is %dx%d and its label %s %dx%d (width x height): they must be the same size.' % (
            image_path, size[1], size[0], label_path, label.shape[1], label.shape[0]))
    counts, ignored, strange = count_labels(label, num_classes, ignore_label)
    if strange:
        problems.append('%s holds the value%s %s%s, neither 0..%d (--num_classes=%d) nor --ignore_label=%d: set these '
                        'flags to the data or mend the label.' % (
                            label_path, 's' if len(strange) > 1 else '', ' '.join(str(v) for v in strange[:5]),
                            ' ...' if len(strange) > 5 else '', num_classes - 1, num_classes, ignore_label))
    return counts, ignored, problems


def count_labels(label, num_classes, ignore_label):
    """Counts the pixels of each class.

    Args:
      label: integer array [h, w].
      num_classes, ignore_label: as check_pairs.

    Returns:
      (int64 [num_classes] pixels of each class, pixels of ignore_label, sorted list of all other values).
    """
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
