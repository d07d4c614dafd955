"""Scores of a segmentation, all computed from one confusion matrix, and the files in which a test reports them."""

import contextlib
import os

import numpy as np

from utils import fonts
from utils.data import data_check
from utils.data.palette import IGNORE_LABEL
from utils.system import command_line, output_files
from utils.system.errors import some

# Size in inches of the picture of a confusion matrix, and of the smallest cell in which a number is written: with all
# numbers, 182 classes took half a minute and 600 MB.
LARGEST_MATRIX, SMALLEST_CELL = 30.0, 0.2
# (text in the table that a test prints, key of scores())
TOTALS = (
    ('mean IoU', 'mean_iou'), ('  without class 0', 'mean_iou_without_0'),
    ('frequency weighted IoU', 'frequency_weighted_iou'),
    ('mean precision', 'mean_precision'), ('  without class 0', 'mean_precision_without_0'),
    ('mean F1 (Dice)', 'mean_f1'), ('  without class 0', 'mean_f1_without_0'),
    ('mean accuracy (recall)', 'mean_accuracy'), ('  without class 0', 'mean_recall_without_0'),
    ('pixel accuracy', 'pixel_accuracy'))


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
        raise ValueError('label has shape %s but prediction has shape %s' % (label.shape, prediction.shape))
    counted = (label >= 0) & (label < num_classes) & (label != ignore_label)
    label, prediction = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
    if prediction.size and not 0 <= prediction.min() <= prediction.max() < num_classes:
        raise ValueError('prediction has values %d to %d, outside 0 to %d' % (
            prediction.min(), prediction.max(), num_classes - 1))
    pairs = np.bincount(num_classes * label + prediction, minlength=num_classes ** 2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64)


def count(predictions, classes, stopped=lambda: False):
    """Adds up the confusion matrices and the losses of all Predictions of a generator.

    Args:
      predictions: a generator of Predictions; it is closed at the end.
      classes: a Classes.
      stopped: a function that is called after each Prediction; if it returns true, the rest is left out.

    Returns:
      (int64 [num_classes, num_classes], rows by label and columns by prediction; the sum of the losses, 0 if the
      Predictions have none).
    """
    matrix, loss = np.zeros([classes.num_classes, classes.num_classes], np.int64), 0.0
    with contextlib.closing(predictions):
        for one in predictions:
            matrix += confusion_matrix(one.label, one.classes, classes.num_classes, classes.ignore_label)
            loss += one.loss or 0.0
            if stopped():
                break
    return matrix, loss


def ratio(part, whole):
    """Returns part / whole as float64; nan where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def mean_of_known(values):
    """Returns the mean of the values that are not nan; nan if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float('nan')


def scores(matrix, ignore_label=None):
    """Returns the scores of a confusion matrix.

    With t true positives, f false positives and m missed pixels of a class: IoU t / (t + f + m), accuracy t / (t + m)
    and the totals follow Long, Shelhamer and Darrell (Fully Convolutional Networks for Semantic Segmentation,
    2015, section 5). Precision t / (t + f) and recall t / (t + m) follow van Rijsbergen (Information Retrieval,
    1979, chapter 7). F1, their harmonic mean, is 2 t / (2 t + f + m), the coefficient of Dice (Measures of the Amount
    of Ecologic Association Between Species, 1945).

    Args:
      matrix: [num_classes, num_classes], rows by label.
      ignore_label: if it is one of the classes, that class has no score and enters no mean, because its row is empty
        only because its pixels are not counted. Counted pixels that are predicted as it are still wrong.

    Returns:
      a dict of fractions, which are all nan if the matrix is all 0:
        iou: float64 [num_classes], true positives / pixels with the class in label or prediction; nan if in neither,
          and for ignore_label.
        accuracy: float64 [num_classes], true positives / pixels with the class in the label; nan if there are none.
        precision, recall, f1: float64 [num_classes], nan if the divisor is 0 and for ignore_label; recall is accuracy.
        mean_iou, mean_accuracy, mean_precision, mean_recall, mean_f1: the means over the classes that are not nan, as
          in tf.metrics.mean_iou.
        mean_iou_without_0 and the like: the same without class 0, which is the background in many data sets.
        pixel_accuracy: the fraction of correct pixels.
        frequency_weighted_iou: the mean IoU, weighted by the number of pixels with each label.
    """
    matrix = np.asarray(matrix, np.float64)
    hits, labelled, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    result = {'iou': ratio(hits, labelled + predicted - hits), 'accuracy': ratio(hits, labelled),
              'precision': ratio(hits, predicted), 'recall': ratio(hits, labelled),
              'f1': ratio(2 * hits, labelled + predicted)}
    if ignore_label is not None and 0 <= ignore_label < len(matrix):
        for values in result.values():
            values[ignore_label] = np.nan
    for name, values in list(result.items()):
        result['mean_' + name] = mean_of_known(values)
        if name != 'accuracy':
            result['mean_%s_without_0' % name] = mean_of_known(values[1:])
    return dict(result, pixel_accuracy=float(ratio(hits.sum(), matrix.sum())), frequency_weighted_iou=float(
        ratio((labelled * np.nan_to_num(result['iou'])).sum(), matrix.sum())))


def describe_predictions(matrix, classes):
    """Returns a sentence on the classes that have labels but are never predicted; '' if there is none.

    Args:
      matrix: [num_classes, num_classes], rows by label.
      classes: a Classes.
    """
    matrix, names = np.asarray(matrix), classes.palette.names
    labelled, predicted = np.flatnonzero(matrix.sum(1)).tolist(), np.flatnonzero(matrix.sum(0)).tolist()
    missed = [index for index in labelled if index not in predicted]

    def name(index):
        return data_check.class_name(index, names)

    if not missed:
        return ''
    if len(predicted) == 1:
        return 'the network predicts a single class everywhere, %s, though the labels have %s.' % (
            name(predicted[0]), some(missed, data_check.MOST_NAMED, show=name))
    return 'the network never predicts %d class%s that ha%s labels: %s.' % (
        len(missed), 'es' if missed[1:] else '', 've' if missed[1:] else 's',
        some(missed, data_check.MOST_NAMED, show=name))


def format_table(result, names=None):
    """Returns the dict of scores() as text, in per cent: a line for each class, with '-' for nan, then the totals.

    The mean recall is the mean accuracy.
    """
    def percent(value):
        return '-' if np.isnan(value) else '%.2f' % (100 * value)

    names = list(names or [])[:len(result['iou'])]
    width = max([len(name) for name in names] + [len('class')])
    lines = ['  #  %s    IoU %%  recall %%  precision %%     F1 %%' % 'class'.ljust(width)]
    for index, row in enumerate(zip(*[result[key] for key in ('iou', 'recall', 'precision', 'f1')])):
        name = names[index] if index < len(names) else ''
        lines.append('%3d  %s  %7s  %8s  %11s  %7s' % ((index, name.ljust(width)) + tuple(map(percent, row))))
    for text, key in TOTALS:
        lines.append('%-24s%6s' % (text, percent(result[key])))
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
    cell = min(0.42, LARGEST_MATRIX / count)  # inches
    side = 3 + cell * count
    figure = Figure(figsize=(side + 1, side))
    axes = figure.add_subplot(1, 1, 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap='Blues')
    axes.set(xticks=range(count), yticks=range(count), xlabel='prediction', ylabel='label')
    axes.set_xticklabels(ticks, rotation=90, fontsize=min(10, 60 * cell))
    axes.set_yticklabels(ticks, fontsize=min(10, 60 * cell))
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.005) if cell > SMALLEST_CELL else ():
        share = shares[row, column]
        axes.text(column, row, '%.0f' % (100 * share), ha='center', va='center', fontsize=7,
                  color='white' if share > 0.5 else 'black')
    figure.colorbar(image, ax=axes, label="share of the label's pixels" + (
        ' (cells: per cent)' if cell > SMALLEST_CELL else ''))
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
        for start, note in (('in these labels ', data_check.describe_classes(matrix.sum(1), classes)),
                            ('', describe_predictions(matrix, classes))):
            if note:
                print('note: ' + start + note)
    print('scores in %s and %s' % (path, picture))
    return result
