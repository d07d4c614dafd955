"""Draws the loss over the training steps from the log that training writes, a `step, loss` on each line."""

import os
import re
import sys

import numpy as np
from absl import flags

from utils.system import command_line
from utils.system.errors import UserError, quoted
from utils.system.output_files import check_figure, save_figure

FLAGS = flags.FLAGS

LINE = re.compile(r'\s*(\d{1,15})\s*,\s*(\S+)\s*$')


def parse_line(line):
    """(step, loss) of one line, or None if it is not `step, loss`."""
    match = LINE.match(line)
    try:
        return match and (int(match.group(1)), float(match.group(2)))
    except ValueError:
        return None


def read_log(path):
    """Reads a log; where a run was resumed or restarted, its later lines replace the earlier ones.

    Returns:
      steps, increasing, and losses: int64 [n] and float64 [n], n > 0.

    Raises:
      UserError: the file is missing or empty, a line is not `step, loss`, or no loss is finite.
    """
    if not os.path.isfile(path):
        raise UserError("log '%s' is not a file: give --logfile the log of a training run." % quoted(path))
    points = []
    with open(path, encoding='utf-8', errors='replace') as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            point = parse_line(line)
            if point is None:
                raise UserError("log '%s', line %d is not `step, loss`: '%s'." % (
                    quoted(path), number, quoted(line.strip()[:60])))
            while points and points[-1][0] >= point[0]:
                points.pop()
            points.append(point)
    if not points:
        raise UserError("log '%s' is empty: wait until training has written a line." % quoted(path))
    steps, losses = zip(*points)
    if not np.isfinite(losses).any():
        raise UserError("log '%s' has no finite loss to draw: training has diverged." % quoted(path))
    return np.array(steps), np.array(losses)


def moving_average(values, window):
    """Centred mean of the finite values among `window` neighbours (fewer at the ends): float64 [n]."""
    kernel = np.ones(min(window, len(values)))
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), kernel, 'same')
    count = np.convolve(finite.astype(float), kernel, 'same')
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def draw(steps, losses, window):
    """A matplotlib Figure of the raw and the smoothed loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    axes = figure.add_subplot(1, 1, 1)
    marker = '.' if len(steps) < 50 else None
    axes.plot(steps, losses, color='C0', alpha=0.3, linewidth=0.8, marker=marker, label='loss')
    if window > 1:
        axes.plot(steps, moving_average(losses, window), color='C0', linewidth=1.8,
                  label='mean of %d' % window)
    axes.set(xlabel='training step', ylabel='loss')
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    return figure


def main():
    check_figure(FLAGS.output, 'output')
    steps, losses = read_log(FLAGS.logfile)
    window = FLAGS.smooth or max(1, len(steps) // 40)
    save_figure(draw(steps, losses, min(window, len(steps))), FLAGS.output)
    print('The curve of %d losses, steps %d to %d, is saved in %s' % (
        len(steps), steps[0], steps[-1], FLAGS.output))


if __name__ == '__main__':
    command_line.DEFINE_path('logfile', 'log.txt', 'log of a training run, a `step, loss` on each line')
    command_line.DEFINE_path('output', 'training_curve.png', 'figure to write; its suffix chooses the format',
                             output=True)
    command_line.DEFINE_whole('smooth', None, 'lines in the moving average; by default a fortieth of all lines', 1)
    sys.exit(command_line.run(main))
