"""What test leaves: the table on the terminal, metrics.json and confusion_matrix.png."""

import os

import numpy as np

from utils.prediction import metrics
from utils.system import command_line, output_files


def write(conf, matrix, prefix, classes):
    """Writes the scores of a confusion matrix with it to out_dir, then prints them.

    Args:
      conf: the flags as attributes.
      matrix: [num_classes, num_classes], rows by label.
      prefix: of the checkpoint that was scored.
      classes: a Classes.

    Returns:
      the dict of metrics.scores.
    """
    result, names = metrics.scores(matrix), classes.palette.names
    figures = {name: np.where(np.isnan(value), None, value).tolist() for name, value in result.items()}
    figures.update(
        confusion_matrix=matrix.tolist(), classes=names, checkpoint=prefix, list=conf.valid_data_list,
        flags={name: getattr(conf, name) for name in command_line.own_flags() if hasattr(conf, name)})
    path, picture = (os.path.join(conf.out_dir, name) for name in ('metrics.json', 'confusion_matrix.png'))
    output_files.save_json(figures, path)
    metrics.plot_confusion_matrix(matrix, picture, names)
    print(metrics.format_table(result, names))
    print('scores in %s and %s' % (path, picture))
    return result
