"""Writes the records of a run: log.txt, metrics.csv and TensorBoard's events, with each step once, even if resumed."""

import csv
import glob
import io
import os
import re

import numpy as np

from utils import label_utils, write_to_log
from utils.system import output_files
from utils.system.errors import UserError, quoted, reason

METRICS = 'metrics.csv'
RATES = ['learning_rate', 'images_per_second']  # columns and tags of a step, after its losses
SCORES = ['mean_iou', 'pixel_accuracy']  # columns of a validation, before the IoU of each class
# Columns of a validation before SCORES, which older versions lack: one for each of MORE, one per class for OF_CLASSES.
MORE = {'validation_loss': 'loss'}  # {column: key of the scores}
MORE.update((name, name) for name in (
    'mean_iou_without_0', 'mean_precision', 'mean_precision_without_0', 'mean_recall', 'mean_recall_without_0',
    'mean_f1', 'mean_f1_without_0'))
OF_CLASSES = ['precision', 'recall', 'f1']
TOTAL = 'total'  # the column of the loss that is also in log.txt


class Records(object):
    """Writes the three records of one run; each step is added as soon as it is done."""

    def __init__(self, conf, run_id, classes):
        """
        Args:
          conf: the flags as attributes, of which modeldir, logfile and logdir are used.
          run_id: the end of the event files' names, because several runs may share a logdir.
          classes: a Classes, which decides the columns of each class.
        """
        self.logfile, self.logdir, self.run_id = conf.logfile, conf.logdir, run_id
        self.metrics = os.path.join(conf.modeldir, METRICS)
        self._classes = classes
        names = classes.palette.names or ['class %d' % index for index in range(classes.num_classes)]
        self.class_names = [name if names.count(name) == 1 else '%s (class %d)' % (name, index)
                            for index, name in enumerate(names)]  # each class needs a curve of its own
        # Read by position, because names of classes may change, or be equal for several classes.
        self._score_columns = (list(MORE) + self._of_classes(OF_CLASSES, names) + SCORES +
                               self._of_classes(['iou'], names))
        self._old_scores = len(SCORES) + len(names)  # older versions have only this many, the last ones
        self._tags = []  # the tags of a step's values, in the order of their columns
        self.header = None  # of metrics.csv; before `open`, the header of the existing file, or None if there is none
        self.mean_iou = {}  # {step: mean IoU of its validation}
        self._rows, self._end = [], 0  # earlier rows of metrics.csv, without the header, and the offset of their end
        self._row, self._row_start = [], 0  # the last row of metrics.csv and the offset of its start
        self._writer = None

    def read(self, first_step):
        """Reads the steps before first_step, and their scores into mean_iou; writes nothing."""
        self._rows = self._read_rows(first_step) if first_step else []

    def open(self, first_step, graph, losses):
        """Opens all three records, cut so that they end with the step before first_step; read() must come first.

        If first_step is 0, new records are started, and older ones are kept under another name.

        Args:
          first_step: the step to be added next.
          graph: a tf.Graph for TensorBoard.
          losses: the tags of the losses of a step, such as 'loss/total'; each has a column and a curve.

        Raises:
          UserError: a record cannot be written.
        """
        header = ['step'] + [tag.split('/')[-1] for tag in losses] + RATES + self._score_columns
        if self._rows is None:
            print('%s does not hold all steps up to %d: new files replace it and the log, and the old ones are kept' % (
                quoted(self.metrics), first_step - 1))
        elif self._rows and self.header != header:
            self._change_columns(header)
        self.header, self._tags = header, list(losses) + RATES
        self._open_metrics()
        self._open_log()
        events = glob.glob(os.path.join(glob.escape(self.logdir), 'events.out.tfevents.*.' + self.run_id))
        for path in events:
            write_to_log.truncate_events(path, lambda event: self._counts(event, first_step))
            if not first_step:  # left by a run that ended before its first checkpoint
                os.remove(path)
        events = events if first_step else []
        if not events and glob.glob(os.path.join(glob.escape(self.logdir), 'events.out.tfevents.*')):
            print('note: %s holds events of other trainings too, which TensorBoard joins to one curve; give each '
                  'training its own --logdir' % quoted(self.logdir))
        self._writer = write_to_log.SummaryWriter(self.logdir, None if events else graph, self.run_id)
        if not events:
            picture = label_utils.legend(range(self._classes.num_classes), self._classes.palette)
            self._writer.add_summary(write_to_log.image_summary('classes', picture[np.newaxis]), first_step)

    def add(self, step, values, pictures=()):
        """Adds a step to the three records.

        Args:
          step: its number.
          values: {tag: number} of its losses and of RATES.
          pictures: uint8 RGB [n, h, w, 3], for TensorBoard.

        Raises:
          UserError: a record cannot be written.
        """
        write_to_log.write_log('%d, %f' % (step, values['loss/total']), self.logfile)
        row = [step] + [repr(float(values[tag])) for tag in self._tags]
        self._append(row + [''] * (len(self.header) - len(row)))
        self._writer.add_summary(write_to_log.scalar_summary(values), step)
        if len(pictures):
            self._writer.add_summary(write_to_log.image_summary('input_label_prediction', pictures), step)

    def add_scores(self, step, result):
        """Adds the scores of a validation, a dict from metrics.scores, to the step that was added last."""
        absent = np.full(len(self.class_names), np.nan)
        values = [result.get(key, np.nan) for key in MORE.values()]
        values += [value for name in OF_CLASSES for value in result.get(name, absent)]
        values += [result[name] for name in SCORES] + list(result['iou'])
        tags = list(MORE.values()) + self._of_classes(OF_CLASSES, self.class_names) + SCORES + (
            self._of_classes(['iou'], self.class_names))
        curves = {'validation/' + name: value for name, value in zip(tags, values)}
        self._writer.add_summary(write_to_log.scalar_summary(
            {tag: value for tag, value in curves.items() if not np.isnan(value)}), step)
        self._writer.flush()
        step_cells = self._row[:len(self.header) - len(values)]
        self._append(step_cells + [repr(float(value)) for value in values], replaced=True)
        self.mean_iou[step] = result['mean_iou']

    @staticmethod
    def _of_classes(scores, names):
        """Returns the columns SCORE/CLASS of some scores and the names of the classes."""
        return ['%s/%s' % (score, name) for score in scores for name in names]

    def best(self):
        """Returns (step, mean IoU, number of validations after it) of the first best validation; None without any."""
        known = {step: value for step, value in self.mean_iou.items() if not np.isnan(value)}
        if not known:
            return None
        step = min(known, key=lambda step: (-known[step], step))
        return step, known[step], sum(other > step for other in self.mean_iou)

    def lacks_scores(self, step):
        """Returns whether the last step that was read, `step`, has a row without scores."""
        return bool(self._rows) and step not in self.mean_iou

    def sync(self):
        """Flushes all records to the disk."""
        self._writer.flush()
        output_files.sync([self._writer.path, self.metrics, self.logfile])

    def close(self):
        """Flushes and closes the event file."""
        if self._writer is not None:
            self._writer.close()

    def _counts(self, event, first_step):
        """Returns whether to keep an event: events of first_step and later steps are dropped.

        Scores of the last step are kept only if they are also in metrics.csv, which is written after the events.
        """
        scores = any(value.tag.startswith('validation/') for value in event.summary.value)
        return event.step < first_step - 1 or event.step == first_step - 1 and (
            not scores or event.step in self.mean_iou)

    def _read_rows(self, first_step):
        """Returns the rows of metrics.csv before first_step, without the header; None if one is missing or damaged."""
        try:
            with open(self.metrics, newline='', encoding='utf-8') as file:
                lines = [line for line, _ in zip(file, range(first_step + 1))]
        except (OSError, UnicodeDecodeError):
            return None
        rows = list(csv.reader(lines))
        header = rows[0] if rows else []
        start = rows[1][0] if rows[1:] and rows[1] else ''  # not 0 if earlier steps were lost, see open()
        start = int(start) if re.fullmatch('[0-9]{1,10}', start) else 0
        count = 1 + max(0, first_step - start)
        rows, lines = rows[:count], lines[:count]
        known = header[:1] == ['step'] and TOTAL in header and (
            header[-self._old_scores:][:len(SCORES)] == SCORES)  # the names of the classes may have changed
        whole = known and 1 < len(rows) == count and lines[-1].endswith('\n')
        if not whole or any(row[:1] != [str(step)] or len(row) != len(header) or not _numbers(row)
                            for step, row in enumerate(rows[1:], start)):
            return None
        self.header, column = header, header.index('mean_iou')
        self.mean_iou = {int(row[0]): float(row[column]) for row in rows[1:] if row[column]}
        self._row = rows[-1]
        self._row_start = len(''.join(lines[:-1]).encode('utf-8'))
        self._end = len(''.join(lines).encode('utf-8'))
        return rows[1:]

    def _open_metrics(self):
        if self._rows:
            os.truncate(self.metrics, self._end)
            return
        output_files.set_aside(self.metrics, 'modeldir', inside=True)
        self._append(self.header)

    def _change_columns(self, header):
        """Rewrites metrics.csv with new columns, for another --loss, palette or version; the old file is kept."""
        scores = len(self._score_columns)  # matched by position; a run of an older version has only the last of them
        held = scores if self.header[-scores:][:len(MORE)] == list(MORE) else self._old_scores
        self._rows = [[dict(zip(self.header[:-held], row)).get(name, '') for name in header[:-scores]]
                      + [''] * (scores - held) + row[-held:] for row in self._rows]
        lines = io.StringIO()
        csv.writer(lines, lineterminator='\n').writerows([header] + self._rows)
        text = lines.getvalue().encode('utf-8')
        kept = output_files.set_aside(self.metrics, 'modeldir', inside=True)
        with output_files.new_file(self.metrics) as temporary, open(temporary, 'wb') as file:
            file.write(text)
        self._row = self._rows[-1]
        self._end, self._row_start = len(text), text[:-1].rindex(b'\n') + 1
        print('%s has new columns; the old file is kept as %s' % (quoted(self.metrics), quoted(kept)))

    def _open_log(self):
        """Cuts the log after the last step that was read; a log of another run is set aside and replaced."""
        rows = self._rows
        total = self.header.index(TOTAL)
        expected = ''.join('%s, %f\n' % (row[0], float(row[total])) for row in rows or []).encode()
        output_files.check_file(self.logfile, 'logfile')
        if rows and os.path.exists(self.logfile):
            with open(self.logfile, 'rb') as file:
                if file.read(len(expected)) == expected:
                    os.truncate(self.logfile, len(expected))
                    return
        kept = output_files.set_aside(self.logfile, 'logfile')
        if kept:
            print('note: the earlier %s is kept as %s' % (quoted(self.logfile), quoted(kept)))
        if rows:
            with output_files.new_file(self.logfile) as temporary, open(temporary, 'wb') as file:
                file.write(expected)

    def _append(self, row, replaced=False):
        """Appends a row to metrics.csv or, if `replaced`, overwrites the last row, which must not be longer.

        The row is overwritten in a single write, so that it cannot be lost if the process stops.
        """
        line = io.StringIO()
        csv.writer(line, lineterminator='\n').writerow(row)
        try:
            start = self._row_start if replaced else None
            self._row_start = write_to_log.write_line(line.getvalue().encode('utf-8'), self.metrics, start)
        except OSError as error:
            raise UserError("'%s' cannot be written (%s): free space or give another --modeldir." % (
                quoted(self.metrics), reason(error)))
        self._row = row


def _numbers(row):
    """Returns whether all cells that are not empty are numbers."""
    try:
        return all(isinstance(float(cell or 0), float) for cell in row)
    except ValueError:
        return False
