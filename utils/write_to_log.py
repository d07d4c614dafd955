"""Writes lines to log.txt, and scalars and pictures for TensorBoard."""

import contextlib
import io
import itertools
import os
import socket
import time

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from utils import label_utils
from utils.system.errors import UserError, quoted, reason

SUMMARY_IMAGES = 4  # the most images of a batch in a summary
FLUSH_SECONDS = 120
RECORD_FRAME = 16  # bytes that a TFRecord adds to an event: its length and two checksums
# Links are not followed if the system supports this. O_BINARY keeps Windows from writing \r\n for \n.
LINE_FLAGS = os.O_WRONLY | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0)


def write_log(text, logfile):
    """Appends one line to the log file.

    Raises:
      UserError: the line cannot be written completely; no part of it remains in the file.
    """
    try:
        write_line((text + '\n').encode('utf-8'), logfile)
    except OSError as error:
        raise UserError("log '%s' cannot be written (%s): free some space or give another --logfile." % (
            quoted(logfile), reason(error)))


def write_line(line, path, start=None):
    """Appends bytes to a file, or overwrites its end; creates the file if it does not exist.

    Args:
      line: bytes.
      path: the path of the file.
      start: the offset at which to write; the line must reach at least to the end of the file. None appends.

    Returns:
      the offset of the line in the file.

    Raises:
      OSError: the line cannot be written completely; the file then has its previous size.
    """
    file = os.open(path, LINE_FLAGS, 0o666)
    try:
        size = os.fstat(file).st_size
        start = size if start is None else start
        written = 0
        try:
            os.lseek(file, start, os.SEEK_SET)  # os.pwrite does not exist on Windows
            while written < len(line):  # a full disk accepts only a part; the next call then raises the error
                written += os.write(file, line[written:])
        except OSError:
            os.ftruncate(file, size)
            raise
        return start
    finally:
        os.close(file)


class SummaryWriter(object):
    """Writes an event file for TensorBoard, as tf.summary.FileWriter does, but reports write errors.

    FileWriter writes in a separate thread, whose errors get lost. Here, every method raises a UserError that names
    --logdir if events cannot be written; the file then ends with the last flushed event.
    """

    def __init__(self, logdir, graph=None, suffix=None):
        """Creates a file with a new name in the folder logdir, which must exist.

        Args:
          logdir: the folder.
          graph: a tf.Graph to show, or None.
          suffix: the end of the file name, after a dot; None for no suffix.
        """
        self.path, self.records = None, None
        self.size, self.flushed_size, self.flushed = 0, 0, time.time()  # bytes, bytes, seconds since the epoch
        with self._reported(logdir):
            self.path = _new_event_file(logdir, '.' + suffix if suffix else '')
            self.records = tf.python_io.TFRecordWriter(self.path)
        self._add(tf.Event(wall_time=time.time(), file_version='brain.Event:2'))
        if graph is not None:
            self._add(tf.Event(wall_time=time.time(),
                               graph_def=graph.as_graph_def(add_shapes=True).SerializeToString()))
        self.flush()

    def add_summary(self, summary, step):
        """Adds a tf.Summary of a step; flushes if the last flush was more than FLUSH_SECONDS ago."""
        self._add(tf.Event(wall_time=time.time(), step=step, summary=summary))
        if time.time() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Writes all buffered events to the file."""
        with self._reported(self.path):
            self.records.flush()
            if os.path.getsize(self.path) != self.size:
                raise OSError(None, 'the file is %d bytes instead of %d' % (os.path.getsize(self.path), self.size))
        self.flushed, self.flushed_size = time.time(), self.size

    def close(self):
        """Flushes and closes the file; a second call does nothing."""
        if self.records is not None:
            self.flush()
            with self._reported(self.path):
                self._close_records()

    def _add(self, event):
        record = event.SerializeToString()
        with self._reported(self.path):
            self.records.write(record)
        self.size += len(record) + RECORD_FRAME

    def _close_records(self):
        records, self.records = self.records, None
        if records is not None:
            records.close()

    @contextlib.contextmanager
    def _reported(self, place):
        """Turns a write error into a UserError that names `place`; truncates the file after the last flushed event."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if self.path is not None:
                with contextlib.suppress(OSError, tf.errors.OpError):
                    self._close_records()
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self.flushed_size)
            raise UserError('%s: events cannot be written (%s): free some space or give another --logdir.' % (
                quoted(place), reason(error)))


def truncate_events(path, accepts):
    """Truncates an event file before the first event that is incomplete, damaged or not accepted.

    Args:
      path: the path of the file.
      accepts: a function that returns whether to keep a tf.Event.
    """
    size = 0
    with contextlib.suppress(tf.errors.DataLossError):
        for record in tf.python_io.tf_record_iterator(path):
            if not accepts(tf.Event.FromString(record)):
                break
            size += len(record) + RECORD_FRAME
    os.truncate(path, size)


def _new_event_file(logdir, suffix):
    """Creates an empty file with a unique name that TensorBoard recognises as an event file; returns its path."""
    for number in itertools.count():
        path = os.path.join(logdir, 'events.out.tfevents.%010d.%s.%d.%d%s' % (
            time.time(), socket.gethostname(), os.getpid(), number, suffix))
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return path
        except FileExistsError:
            continue
    return None


def scalar_summary(values):
    """Returns a tf.Summary for {tag: number}."""
    return tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=float(value))
                             for tag, value in sorted(values.items())])


def image_summary(tag, pictures):
    """Returns a tf.Summary of uint8 RGB pictures [N, h, w, 3]; the tag of picture i is 'tag/i'."""
    values = []
    for i, picture in enumerate(pictures):
        png = io.BytesIO()
        Image.fromarray(picture).save(png, format='PNG')
        values.append(tf.Summary.Value(tag='%s/%d' % (tag, i), image=tf.Summary.Image(
            height=picture.shape[0], width=picture.shape[1], colorspace=3, encoded_image_string=png.getvalue())))
    return tf.Summary(value=values)


def panel(pictures, classes, net_input):
    """Returns pictures of input, label and prediction, side by side, for the first images of a batch.

    Args:
      pictures: arrays (network inputs [N, h, w, 3], labels [N, h, w, 1], class maps [N, h, w]).
      classes: a Classes.
      net_input: the compat.Input of the network.

    Returns:
      uint8 RGB array [at most SUMMARY_IMAGES, h, 3 * w, 3].
    """
    images, labels, predictions = pictures
    colours = [label_utils.decode_labels(mask, SUMMARY_IMAGES, classes.num_classes, classes.palette)
               for mask in (labels, predictions)]
    inputs = label_utils.inv_preprocess(images, SUMMARY_IMAGES, net_input.img_mean, net_input.channel_order)
    return np.concatenate([inputs] + colours, axis=2)
