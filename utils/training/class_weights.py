"""How much each class counts in the loss: from a file, or balanced by how often it occurs."""

import numpy as np

from utils.data import data_check
from utils.data.image_files import read_file
from utils.system.errors import UserError, quoted, reason

MOST_BYTES = 1 << 20


def load(spec, classes, images, labels, num_threads):
    """The weights that --class_weights names.

    Args:
      spec: '' for none, 'balanced', or the path of a text file with a number for each class, a line each.
      classes: a Classes.
      images, labels: the paths of the training set, which 'balanced' counts.
      num_threads: files read at a time.

    Returns:
      float32 [num_classes], or None.

    Raises:
      UserError: the file is no list of num_classes numbers, none of them negative and not all 0.
    """
    if not spec:
        return None
    if spec == 'balanced':
        result = data_check.check_pairs(images, labels, classes, num_threads, 'count classes')
        data_check.raise_on_problems(result)
        return balanced(result.histogram)
    return read(spec, classes.num_classes)


def balanced(histogram):
    """Median frequency balancing: the median of the classes' shares of the pixels by each one's own share.

    Eigen and Fergus (2015), section 6.3.2, but for shares of all pixels instead of those of the images that have the
    class. Classes without a pixel have weight 1 and do not count in the median.
    """
    shares = np.asarray(histogram, np.float64) / max(np.sum(histogram), 1)
    present = shares > 0
    weights = np.ones(len(shares))
    weights[present] = np.median(shares[present]) / shares[present]
    return weights.astype(np.float32)


def read(path, num_classes):
    """The numbers of a file, float32 [num_classes]."""
    try:
        weights = np.array([float(word) for word in read_file(path, MOST_BYTES).decode('utf-8').split()], np.float32)
    except (OSError, ValueError) as error:
        raise UserError("--class_weights=%s: neither 'balanced' nor a file of numbers (%s)." % (
            quoted(path), reason(error)))
    if len(weights) != num_classes or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError('--class_weights=%s: give %d numbers (--num_classes), none negative and not all 0; it has %d.'
                        % (quoted(path), num_classes, len(weights)))
    return weights
