"""What a run leaves to read: lines of log.txt, and scalars and pictures for TensorBoard."""

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

SUMMARY_IMAGES = 4
FLUSH_SECONDS = 120
RECORD_FRAME = 16  # bytes that a TFRecord adds to an event: its length and two checksums


def write_log(text, logfile):
    """Appends one line to the log file, handed to the operating system when this returns.

    Raises:
      UserError: the line cannot be written whole; then nothing of it is left.
    """
    try:
        write_line((text + '\n').encode('utf-8'), logfile)
    except OSError as error:
        raise UserError("log '%s' cannot be written (%s): free space or give another --logfile." % (
            quoted(logfile), reason(error)))


def write_line(line, path, start=None):
    """Writes bytes at the end of a file, made if there is none, or over what begins at `start` and is not longer.

    Returns:
      where the bytes start.

    Raises:
      OSError: they cannot be written whole; then nothing of them is left at the end.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0), 0o666)
    try:
        size = os.fstat(file).st_size
        start = size if start is None else start
        written = 0
        try:
            while written < len(line):  # one call but on a full disk, where the next one has the reason
                written += os.pwrite(file, line[written:], start + written)
        except OSError:
            os.ftruncate(file, size)
            raise
        return start
    finally:
        os.close(file)


class SummaryWriter(object):
    """Writes an event file for TensorBoard into logdir, as tf.summary.FileWriter does, but reports a failed write.

    FileWriter writes in a thread of its own, whose errors reach nobody. Every method raises UserError, naming
    --logdir, if the events cannot be written; the file then ends with the last event that was flushed.
    """

    def __init__(self, logdir, graph=None, suffix=None):
        """Opens a file of a new name in the existing folder logdir.

        Args:
          graph: a tf.Graph to show, or None.
          suffix: what the file's name ends with, after a dot.
        """
        self.path, self.records = None, None
        self.size, self.flushed_size, self.flushed = 0, 0, time.time()  # bytes, bytes, seconds
        with self._reported(logdir):
            self.path = _new_event_file(logdir, '.' + suffix if suffix else '')
            self.records = tf.python_io.TFRecordWriter(self.path)
        self._add(tf.Event(wall_time=time.time(), file_version='brain.Event:2'))
        if graph is not None:
            self._add(tf.Event(wall_time=time.time(),
                               graph_def=graph.as_graph_def(add_shapes=True).SerializeToString()))
        self.flush()

    def add_summary(self, summary, step):
        """Adds a tf.Summary of a step; what is written reaches the file within FLUSH_SECONDS of further calls."""
        self._add(tf.Event(wall_time=time.time(), step=step, summary=summary))
        if time.time() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Hands all events to the operating system."""
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
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if self.path is not None:
                with contextlib.suppress(OSError, tf.errors.OpError):
                    self._close_records()
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self.flushed_size)
            raise UserError('%s: events cannot be written (%s): free space or give another --logdir.' % (
                quoted(place), reason(error)))


def truncate_events(path, counts):
    """Cuts an event file before its first torn or damaged event or the first for which counts(tf.Event) is false."""
    size = 0
    with contextlib.suppress(tf.errors.DataLossError):
        for record in tf.python_io.tf_record_iterator(path):
            if not counts(tf.Event.FromString(record)):
                break
            size += len(record) + RECORD_FRAME
    os.truncate(path, size)


def _new_event_file(logdir, suffix):
    """Makes an empty file that TensorBoard knows as events; its name is that of no other run."""
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
    """A tf.Summary of {tag: number}."""
    return tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=float(value))
                             for tag, value in sorted(values.items())])


def image_summary(tag, pictures):
    """A tf.Summary of uint8 RGB pictures [N, h, w, 3], each under tag/i."""
    values = []
    for i, picture in enumerate(pictures):
        png = io.BytesIO()
        Image.fromarray(picture).save(png, format='PNG')
        values.append(tf.Summary.Value(tag='%s/%d' % (tag, i), image=tf.Summary.Image(
            height=picture.shape[0], width=picture.shape[1], colorspace=3, encoded_image_string=png.getvalue())))
    return tf.Summary(value=values)


def panel(pictures, classes, net_input):
    """Input | label | prediction of the first images of a batch, in colour.

    Args:
      pictures: (images [N, h, w, 3] as the network gets them, labels [N, h, w, 1], class maps [N, h, w]), arrays.
      classes: a Classes.
      net_input: a compat.Input.

    Returns:
      uint8 RGB array [at most SUMMARY_IMAGES, h, 3 * w, 3].
    """
    images, labels, predictions = pictures
    colours = [label_utils.decode_labels(mask, SUMMARY_IMAGES, classes.num_classes, classes.palette)
               for mask in (labels, predictions)]
    inputs = label_utils.inv_preprocess(images, SUMMARY_IMAGES, net_input.img_mean, net_input.channel_order)
    return np.concatenate([inputs] + colours, axis=2)
