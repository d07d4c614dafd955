"""Plots loss, learning rate and mean IoU against the training step, from the logs of one or more training runs."""

import csv
import io
import os
import re
import sys

import numpy as np
from absl import flags

from utils import fonts
from utils.data.image_files import is_regular_file, read_file
from utils.system import command_line
from utils.system.errors import UserError, quoted
from utils.system.output_files import check_figure, save_figure

FLAGS = flags.FLAGS

LINE = re.compile(r'\s*(\d{1,15})\s*,\s*(\S+)\s*$')
METRICS = 'metrics.csv'
NEEDED = ('step', 'total')
SERIES = NEEDED + ('learning_rate', 'mean_iou', 'validation_loss')
# (name in SERIES, label of the y axis, height in inches)
PANELS = (('total', 'loss', 3), ('learning_rate', 'learning rate', 1.7), ('mean_iou', 'mean IoU (%)', 2.4))
FEW = 50  # if a curve has fewer points, markers are drawn
LONGEST_NAME = 45  # the most characters of the name of a run in the legend


def parse_line(path, number, line):
    """Parses a line of a log.txt as [step, loss]; raises UserError if it is not `step, loss`."""
    match = LINE.match(line)
    try:
        return [int(match.group(1)), float(match.group(2))]
    except (AttributeError, ValueError):  # no match, or a loss that is not a number
        raise UserError("log '%s', line %d is not `step, loss`: '%s'." % (
            quoted(path), number, quoted(line.strip()[:60])))


def parse_row(header, row):
    """Returns the values of SERIES in a row of a metrics.csv, nan for missing ones.

    Raises:
      ValueError: the row is malformed.
    """
    if len(row) != len(header):
        raise ValueError('the number of columns is %d, not %d' % (len(row), len(header)))
    values = {}
    for name, text in zip(header, row):
        try:
            values[name] = float(text if text or name in NEEDED else 'nan')
        except ValueError:
            raise ValueError("'%s' in the column '%s' is not a number" % (quoted(text[:40]), quoted(name[:40])))
    if not (0 <= values['step'] < 1e15 and values['step'].is_integer()):
        raise ValueError('%s is not a valid step' % values['step'])
    return [values.get(name, np.nan) for name in SERIES]


def read_rows(path, lines):
    """Returns the values of SERIES in each row of a metrics.csv; an incomplete last line is left out.

    Raises:
      UserError: a column is missing or a row is malformed.
    """
    reader = csv.reader(line for line in lines if line.endswith('\n'))
    try:
        header = next(reader, NEEDED)
        missing = [name for name in NEEDED if name not in header]
        if missing:
            raise ValueError("no column '%s'" % missing[0])
        return [parse_row(header, row) for row in reader if row]
    except (csv.Error, ValueError) as error:
        raise UserError("metrics '%s', line %d: %s: correct it or give another log with --logfile." % (
            quoted(path), reader.line_num, error))


def read_run(path):
    """Reads a log.txt, a metrics.csv (recognised by its header) or the metrics.csv in a folder.

    If a run was resumed or restarted, a line replaces all earlier lines with the same step or later ones.

    Returns:
      {name in SERIES: float64 [n]}, n > 0. Steps increase; values that are not in the file are nan.

    Raises:
      UserError: the file is missing or empty, a line or column is malformed, or no loss is finite.
    """
    file = next(filter(is_regular_file, (path, os.path.join(path, METRICS))), None)
    if file is None:
        raise UserError("log '%s' is neither a file nor a folder with a %s: give the log or the --modeldir of a "
                        'training run with --logfile.' % (quoted(path), METRICS))
    lines = list(io.StringIO(read_file(file).decode('utf-8-sig', 'replace'), newline=''))
    if lines and set(NEEDED) & set(lines[0].strip().split(',')):
        rows = read_rows(file, lines)
    else:
        rows = [parse_line(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    points = []
    for row in rows:
        while points and points[-1][0] >= row[0]:
            points.pop()
        points.append(row + [np.nan] * (len(SERIES) - len(row)))
    if not points:
        raise UserError("log '%s' is empty: wait until training has written a line." % quoted(file))
    values = np.array(points, np.float64)
    values[np.abs(np.nan_to_num(values)) > command_line.MOST_NUMBER] = np.nan  # matplotlib fails near 1e308
    run = dict(zip(SERIES, values.T))
    if not np.isfinite(run['total']).any():
        raise UserError("log '%s' has no finite loss, as training has diverged: lower --learning_rate and train again."
                        % quoted(file))
    return run


def moving_average(values, window):
    """Returns the centred moving average of the finite values over `window` points, fewer at the ends: float64 [n]."""
    kernel = np.ones(min(window, len(values)))
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), kernel, 'same')
    count = np.convolve(finite.astype(float), kernel, 'same')
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def best_score(run):
    """Returns (mean IoU in percent, step) of the best validation of a run; None if there was no validation."""
    scored = np.isfinite(run['mean_iou'])
    row = np.argmax(np.where(scored, run['mean_iou'], -1))
    return (100 * run['mean_iou'][row], run['step'][row]) if scored.any() else None


def best_text(run):
    """Returns a clause about the best validation of a run; '' if there was no validation."""
    return ', best mean IoU %.2f%% at step %d' % best_score(run) if best_score(run) else ''


def make_panels(runs):
    """Returns (Figure, {name in SERIES: Axes}) with those PANELS for which any run has data."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = [panel for panel in PANELS if any(np.isfinite(run[panel[0]]).any() for run in runs)]
    names, labels, heights = zip(*shown)
    figure = Figure(figsize=(9, 1.3 + sum(heights) + 0.2 * len(runs)))
    rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False, gridspec_kw={'height_ratios': heights})[:, 0]
    for axes, label in zip(rows, labels):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        for side in 'top', 'right':
            axes.spines[side].set_visible(False)
    rows[-1].set_xlabel('training step')
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    rows[-1].xaxis.set_major_formatter('{x:,.0f}')
    return figure, dict(zip(names, rows))


def draw_run(panels, run, label, window, color, width):
    """Draws a run on the panels.

    Args:
      panels: {name in SERIES: Axes}.
      run: a result of read_run.
      label: the text in the legend.
      window: number of rows in the moving average of the loss.
      color: the color of the curves.
      width: line width of the learning rate, in points.
    """
    steps, marker = run['step'], '.' if len(run['step']) < FEW else None
    panels['total'].plot(steps, run['total'], color=color, linewidth=0.8, alpha=0.3)
    panels['total'].plot(steps, moving_average(run['total'], window), color=color, linewidth=1.8, zorder=3,
                         marker=marker, label=label)
    scored = np.isfinite(run['validation_loss'])
    if scored.any():
        panels['total'].plot(steps[scored], run['validation_loss'][scored], '--', color=color, linewidth=1.4,
                             marker='.' if scored.sum() < FEW else None)
    if 'learning_rate' in panels:
        panels['learning_rate'].plot(steps, run['learning_rate'], color=color, linewidth=width, marker=marker)
    if best_score(run):
        scored, (best, step) = np.isfinite(run['mean_iou']), best_score(run)
        panels['mean_iou'].plot(steps[scored], 100 * run['mean_iou'][scored], color=color, linewidth=1.8,
                                marker='.' if scored.sum() < FEW else None)
        panels['mean_iou'].plot(step, best, '*', color=color, markersize=13, markeredgecolor='black', zorder=4)


def draw(runs, labels, smooth):
    """Returns a matplotlib Figure with the curves of all runs.

    Args:
      runs: a list of results of read_run.
      labels: a list of the names of the runs.
      smooth: number of rows in the moving average; None for a fortieth of the rows of each run.
    """
    from matplotlib import cm

    figure, panels = make_panels(runs)
    count = len(runs)
    colors = cm.tab10.colors if count <= 10 else cm.turbo(np.linspace(0, 1, count))
    has = fonts.characters_of_matplotlib()
    widths = np.linspace(3.2 if count > 1 else 1.8, 1.8, count)  # different widths, so that equal curves are visible
    for number, (run, label, color, width) in enumerate(zip(runs, labels, colors, widths), 1):
        length = len(run['step'])
        window = min(smooth or max(1, length // 40), length)
        name = label if len(label) <= LONGEST_NAME else '...' + label[3 - LONGEST_NAME:]
        name = quoted(name) if fonts.is_drawable(name, has) else 'run %d' % number
        text = ' ' + fonts.plain(name)  # with the space, because matplotlib hides names that start with _
        text += (', loss: mean of %d' % window if window > 1 else '') + (
            ', dashed: validation' if np.isfinite(run['validation_loss']).any() else '') + best_text(run)
        draw_run(panels, run, text, window, color, width)
    panels['total'].legend(loc='lower left', bbox_to_anchor=(0, 1.02), borderaxespad=0, frameon=False, fontsize='small')
    if 'learning_rate' in panels:
        panels['learning_rate'].ticklabel_format(axis='y', scilimits=(-2, 3), useMathText=True, useOffset=False)
        panels['learning_rate'].set_ylim(bottom=0)
    figure.align_ylabels()
    figure.tight_layout()
    return figure


def main():
    default = os.path.join('model', METRICS)
    paths = FLAGS.logfile or [default if os.path.exists(default) else 'log.txt']
    labels = paths if FLAGS.labels is None else FLAGS.labels
    if len(labels) != len(paths):
        raise UserError('there are %d --labels but %d logs: give a label for each log.' % (len(labels), len(paths)))
    check_figure(FLAGS.output, 'output')
    runs = [read_run(os.path.expanduser(path)) for path in paths]
    save_figure(draw(runs, labels, FLAGS.smooth), FLAGS.output)
    for path, run in zip(paths, runs):
        print('curve of %d losses, steps %d to %d%s, from %s saved in %s' % (
            len(run['step']), run['step'][0], run['step'][-1], best_text(run), quoted(path), FLAGS.output))


if __name__ == '__main__':
    flags.DEFINE_list('logfile', None, 'comma-separated logs of training runs, each a log.txt, a metrics.csv or a '
                      '--modeldir; by default model/metrics.csv if it exists, otherwise log.txt')
    flags.DEFINE_list('labels', None, "comma-separated names of the runs in the legend; by default the logs' paths")
    command_line.DEFINE_path('output', 'training_curve.png', 'figure to write; its suffix determines the format',
                             output=True)
    command_line.DEFINE_whole('smooth', None, 'number of log lines in the moving average of the loss; by default a '
                              'fortieth of all lines', 1)
    sys.exit(command_line.run(main))
