"""Scores of a segmentation, all computed from one confusion matrix, and the files in which a test reports them."""

import contextlib
import os

import numpy as np

from utils import fonts
from utils.data import data_check
from utils.data.palette import IGNORE_LABEL
from utils.system import command_line, output_files


def confusion_matrix(label, prediction, num_classes, ignore_label=IGNORE_LABEL):
    """Counts the pixels of every (label, prediction) pair.

    Args:
      label, prediction: integer arrays of the same shape.
      num_classes: number of classes.
      ignore_label: pixels with this label or with a label outside 0..num_classes-1 are not counted.

    Returns:
      int64 [num_classes, num_classes], rows by label and columns by prediction.

    Raises:
      ValueError: the shapes differ, or a counted pixel's prediction is outside 0..num_classes-1.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.shape != prediction.shape:
        raise ValueError('label is %s but prediction is %s' % (label.shape, prediction.shape))
    counted = (label >= 0) & (label < num_classes) & (label != ignore_label)
    label, prediction = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
    if prediction.size and not 0 <= prediction.min() <= prediction.max() < num_classes:
        raise ValueError('prediction has values %d to %d, outside 0 to %d' % (
            prediction.min(), prediction.max(), num_classes - 1))
    pairs = np.bincount(num_classes * label + prediction, minlength=num_classes ** 2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64)


def count(predictions, classes, stopped=lambda: False):
    """Returns the confusion matrix of all Predictions of a generator.

    Args:
      predictions: a generator of Predictions; it is closed at the end.
      classes: a Classes.
      stopped: a function that is called after each Prediction; if it returns true, the rest is left out.

    Returns:
      int64 [num_classes, num_classes], rows by label and columns by prediction.
    """
    matrix = np.zeros([classes.num_classes, classes.num_classes], np.int64)
    with contextlib.closing(predictions):
        for one in predictions:
            matrix += confusion_matrix(one.label, one.classes, classes.num_classes, classes.ignore_label)
            if stopped():
                break
    return matrix


def ratio(part, whole):
    """Returns part / whole as float64, nan where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def mean_of_known(values):
    """Returns the mean of the values that are not nan; nan if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float('nan')


def scores(matrix, ignore_label=None):
    """Returns the scores of a confusion matrix, as Long, Shelhamer and Darrell (2015, section 5) define them.

    Args:
      matrix: [num_classes, num_classes], rows by label.
      ignore_label: if it is one of the classes, that class has no score and enters no mean, because its row is empty
        only as its pixels are not counted. Counted pixels that are predicted as it are still wrong.

    Returns:
      a dict of fractions, which are all nan if the matrix is all 0:
        iou: float64 [num_classes], true positives / pixels with the class in label or prediction; nan if in neither,
          and for ignore_label.
        accuracy: float64 [num_classes], true positives / pixels with the class in the label; nan if there are none.
        mean_iou, mean_accuracy: the means over the classes that are not nan, as in tf.metrics.mean_iou.
        pixel_accuracy: the fraction of correct pixels.
        frequency_weighted_iou: the mean IoU, weighted by the number of pixels with each label.
    """
    matrix = np.asarray(matrix, np.float64)
    hits, labelled, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    iou = ratio(hits, labelled + predicted - hits)
    accuracy = ratio(hits, labelled)
    if ignore_label is not None and 0 <= ignore_label < len(matrix):
        iou[ignore_label] = accuracy[ignore_label] = np.nan
    return {'pixel_accuracy': float(ratio(hits.sum(), matrix.sum())),
            'mean_accuracy': mean_of_known(accuracy),
            'mean_iou': mean_of_known(iou),
            'frequency_weighted_iou': float(ratio((labelled * np.nan_to_num(iou)).sum(), matrix.sum())),
            'iou': iou,
            'accuracy': accuracy}


def format_table(result, names=None):
    """Returns the dict of scores() as text, in per cent: a line for each class, with '-' for nan, then the totals."""
    def percent(value):
        return '-' if np.isnan(value) else '%.2f' % (100 * value)

    names = list(names or [])[:len(result['iou'])]
    width = max([len(name) for name in names] + [len('class')])
    lines = ['  #  %s    IoU %%  accuracy %%' % 'class'.ljust(width)]
    for index, (iou, accuracy) in enumerate(zip(result['iou'], result['accuracy'])):
        name = names[index] if index < len(names) else ''
        lines.append('%3d  %s  %7s  %10s' % (index, name.ljust(width), percent(iou), percent(accuracy)))
    for key in ('mean_iou', 'frequency_weighted_iou', 'mean_accuracy', 'pixel_accuracy'):
        lines.append('%-24s%6s' % (key.replace('_', ' ').replace('iou', 'IoU'), percent(result[key])))
    return '\n'.join(lines)


def plot_confusion_matrix(matrix, path, names=None):
    """Draws a confusion matrix with each row as fractions of the pixels with that label.

    Args:
      matrix: [num_classes, num_classes], rows by label.
      path: of the picture, with a suffix in output_files.FIGURE_FORMATS.
      names: of the classes; an index is shown for a class without a name.

    Raises:
      UserError: the suffix is unknown or the file cannot be written.
    """
    from matplotlib.figure import Figure

    matrix = np.asarray(matrix)
    count = len(matrix)
    shares = ratio(matrix, np.broadcast_to(matrix.sum(1, keepdims=True), matrix.shape))
    names = list(names or [])[:count]
    ticks = [fonts.plain(text) for text in fonts.labels(dict(enumerate(names)), fonts.characters_of_matplotlib())]
    ticks += ['%d' % index for index in range(len(names), count)]
    side = 3 + 0.42 * count  # inches
    figure = Figure(figsize=(side + 1, side))
    axes = figure.add_subplot(1, 1, 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap='Blues')
    axes.set(xticks=range(count), yticks=range(count), xlabel='prediction', ylabel='label')
    axes.set_xticklabels(ticks, rotation=90)
    axes.set_yticklabels(ticks)
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.005):
        share = shares[row, column]
        axes.text(column, row, '%.0f' % (100 * share), ha='center', va='center', fontsize=7,
                  color='white' if share > 0.5 else 'black')
    figure.colorbar(image, ax=axes, label="share of the label's pixels (cells: per cent)")
    figure.tight_layout()
    output_files.save_figure(figure, path)


def flags_of_test(conf):
    """Returns {name: value} of the flags that --option=test reads; a flag that conf lacks is left out."""
    return {name: getattr(conf, name) for name, record in command_line.RECORDS.items()
            if 'test' in record.options and hasattr(conf, name)}


def write_scores(conf, matrix, prefix, classes, trained=None):
    """Writes metrics.json and confusion_matrix.png to out_dir and prints the scores and the classes without pixels.

    Args:
      conf: the flags as attributes.
      matrix: [num_classes, num_classes], rows by label.
      prefix: the checkpoint that was scored.
      classes: a Classes.
      trained: {name: value}, the settings of the training; None if they are unknown.

    Returns:
      the dict of scores().

    Raises:
      UserError: a file cannot be written.
    """
    result, names = scores(matrix, classes.ignore_label), classes.palette.names
    numbers = {name: np.where(np.isnan(value), None, value).tolist() for name, value in result.items()}
    numbers.update(
        confusion_matrix=matrix.tolist(), classes=names, checkpoint=prefix, list=conf.valid_data_list,
        flags=flags_of_test(conf), training=trained)
    path, picture = (os.path.join(conf.out_dir, name) for name in ('metrics.json', 'confusion_matrix.png'))
    try:
        output_files.save_json(numbers, path)
        plot_confusion_matrix(matrix, picture, names)
    finally:  # even on a full disk, the scores must not be lost
        print(format_table(result, names))
        note = data_check.describe_classes(matrix.sum(1), classes)
        if note:
            print('note: in these labels ' + note)
    print('scores in %s and %s' % (path, picture))
    return result
