"""Reads every file of a list and reports what would make training fail or go wrong."""

import collections
import contextlib
from multiprocessing.pool import ThreadPool

import numpy as np
from tqdm import tqdm

from utils.data.image_files import load_image, read_label, show_colours
from utils.system import runtime
from utils.system.errors import MOST_TOLD, UserError, printable, quoted

# num_images: images read; num_labels: labels read; sizes: Counter of (height, width);
# histogram: int64 [num_classes], pixels of each class; ignored: pixels of ignore_label;
# problems, warnings: sentences on what would stop a run, and on what may be meant otherwise, in the order of the list.
CheckResult = collections.namedtuple('CheckResult', 'num_images num_labels sizes histogram ignored problems warnings')


def check_pairs(images, labels, classes, num_threads=4, desc='check', lines=None):
    """Decodes all images and labels.

    Args:
      images, labels: lists of paths; a label is '' where an image has none.
      classes: a Classes.
      num_threads: files read at a time.
      desc: what the progress bar on stderr says.
      lines: the number of each pair's line in its list, which the sentences then name; or None.

    Returns:
      CheckResult.
    """
    def check(pair):
        return _check_pair(pair[0], pair[1], classes)

    sizes, problems, warnings = collections.Counter(), [], []
    histogram = np.zeros(classes.num_classes, np.int64)
    ignored, num_labels = 0, 0
    with runtime.held_stderr() as held:
        held.drop = True
        results = list(map_with_progress(check, list(zip(images, labels)), num_threads, desc, 'image', held.stderr))
    if held.text:
        results = [add_decoder_lines(image, result) for image, result in zip(images, results)]
    for i, (size, counts, void, faults, remarks) in enumerate(results):
        where = 'line %d: ' % lines[i] if lines else ''
        sizes.update([size] if size else [])
        problems += [where + sentence for sentence in faults]
        warnings += [where + sentence for sentence in remarks]
        if counts is not None:
            num_labels += 1
            histogram += counts
            ignored += void
    return CheckResult(sum(sizes.values()), num_labels, sizes, histogram, ignored, problems, warnings)


def add_decoder_lines(image_path, result):
    """The result of a pair with a warning on what the image's decoder prints, which names no file."""
    with runtime.held_stderr() as held, contextlib.suppress(UserError):
        held.drop = True
        load_image(image_path)
    lines = [line for line in held.text.splitlines() if line.strip()]
    if not lines or result[3]:
        return result
    warning = '%s: its decoder finds damage but goes on (%s).' % (quoted(image_path), printable(lines[0])[:80])
    return result[:4] + (result[4] + [warning],)


def map_with_progress(function, items, num_threads, desc, unit, file=None):
    """Yields function(item) for each of a list of items, in order, from threads, with a progress bar on stderr."""
    pool = ThreadPool(num_threads)
    try:
        yield from tqdm(pool.imap(function, items), desc=desc, total=len(items), unit=unit, file=file)
    finally:  # after Ctrl-C too: what is begun is finished, the rest dropped
        pool.terminate()
        pool.join()


def raise_on_problems(result, name='the data'):
    """Raises UserError with the number of problems and the first one, two or three, as fit into MOST_TOLD characters.

    Args:
      result: a CheckResult.
      name: what the sentence calls its data.
    """
    count = len(result.problems)
    if not count:
        return
    start = '%s has %d problem%s:' % (name, count, 's' if count > 1 else '')
    more = ' ... --option=check lists them all.'
    sentences = [start + ' ' + ' '.join(result.problems[:shown]) + (more if shown < count else '')
                 for shown in range(1, min(count, 3) + 1)]
    raise UserError(([sentence for sentence in sentences if len(sentence) <= MOST_TOLD] or sentences[:1])[-1])


def print_report(result, names=None):
    """Prints a CheckResult as a table on stdout: counts, sizes, pixels of each class, problems and warnings.

    Args:
      result: a CheckResult.
      names: the classes' names, or None.
    """
    print('images %d, labels %d' % (result.num_images, result.num_labels))
    common = ['%dx%d (%d)' % (width, height, count) for (height, width), count in result.sizes.most_common(5)]
    print('sizes, width x height (images): %s%s' % (
        ', '.join(common) or '-', ', ... %d in all' % len(result.sizes) if len(result.sizes) > 5 else ''))
    if result.num_labels:
        _print_histogram(result, names)
    print_sentences('problems', result.problems)
    print_sentences('warnings', result.warnings)


def print_sentences(title, sentences, shown=50):
    """Prints how many sentences there are, and the first of them, each on its line."""
    print('%s %d' % (title, len(sentences)))
    for sentence in sentences[:shown]:
        print('  ' + sentence)
    if len(sentences) > shown:
        print('  ... and %d more' % (len(sentences) - shown))


def _print_histogram(result, names):
    total = max(1, int(result.histogram.sum()) + result.ignored)
    rows = [(str(index), names[index] if names else '', int(count))
            for index, count in enumerate(result.histogram)]
    rows.append(('-', 'ignored', result.ignored))
    width = max(len(name) for _, name, _ in rows)
    print('class  %s  %15s  share' % ('name'.ljust(width), 'pixels'))
    for index, name, count in rows:
        print('%5s  %s  %15d  %6.2f%%' % (index, name.ljust(width), count, 100.0 * count / total))


def _check_pair(image_path, label_path, classes):
    """((height, width) or None, int64 [num_classes] or None, ignored pixels, problems, warnings) of one pair."""
    size, counts, ignored, problems = None, None, 0, []
    try:
        size = load_image(image_path).shape[:2]
    except UserError as error:
        problems.append(str(error))
    if not label_path:
        return size, counts, ignored, problems, []
    try:
        label, unknown = read_label(label_path, classes)
    except UserError as error:
        return size, counts, ignored, problems + [str(error)], []
    counts, ignored, sentences = inspect_label(image_path, size or label.shape, label_path, label, classes)
    warnings = ['%s: %d pixels are ignored, as the palette does not have their colours (r g b: %s).' % (
        quoted(label_path), sum(pixels for pixels, _ in unknown), show_colours(unknown))] if unknown else []
    return size, counts, ignored, problems + sentences, warnings


def inspect_label(image_path, size, label_path, label, classes):
    """(int64 [num_classes] pixels of each class, pixels of ignore_label, sentences on what is wrong) of a label.

    Args:
      image_path, label_path: for the sentences.
      size: (height, width) of the image.
      label: integer array [h, w].
      classes: a Classes.
    """
    problems = []
    if label.shape != tuple(size):
        problems.append('%s is %dx%d and its label %s %dx%d (width x height): they must be the same size.' % (
            quoted(image_path), size[1], size[0], quoted(label_path), label.shape[1], label.shape[0]))
    counts, ignored, strange = count_labels(label, classes)
    if strange:
        problems.append('%s holds the value%s %s%s, neither 0..%d (--num_classes=%d) nor --ignore_label=%d: set these '
                        'flags to the data or fix the label.' % (
                            quoted(label_path), 's' if len(strange) > 1 else '', ' '.join(str(v) for v in strange[:5]),
                            ' ...' if len(strange) > 5 else '', classes.num_classes - 1, classes.num_classes,
                            classes.ignore_label))
    return counts, ignored, problems


def count_labels(label, classes):
    """Counts the pixels of each class.

    Args:
      label: integer array [h, w].
      classes: a Classes.

    Returns:
      (int64 [num_classes] pixels of each class, pixels of ignore_label, sorted list of all other values).
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
