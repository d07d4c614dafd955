"""The scores of an image, whole or by windows, and the pass over a list that computes its images' classes."""

import collections
import contextlib
import functools
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from utils.prediction import windows
from utils.prediction.room import Room
from utils.system import memory

# What was computed of an image: its index in the list, its label [H, W] (ignore_label without one), its class map,
# int32 [H, W], and, where they are kept, its scores, float32 [H, W, num_classes]. fault: a sentence on why it could not
# be read, in which case the others are None, or None.
Prediction = collections.namedtuple('Prediction', 'index label classes scores fault')
Prediction.__new__.__defaults__ = (None, None)

# What computes scores. build: a function from images [1, H, W, 3] to (network with batch_norm 'folded', scores
# [1, H, W, num_classes]); restore: a function from a session and the network's variables that gives these their values,
# or None where Scorer.load gets it; session_config: a tf.ConfigProto; tiling: a Tiling; keep_scores: whether a
# Prediction holds them.
Setup = collections.namedtuple('Setup', 'build restore session_config tiling keep_scores')

# How images are cut. window: (h, w), or None for whole images where the memory allows; overlap: the fraction of a
# window that neighbours share; magnified: pixels that the network gets of a pixel, at the largest scale; devices: how
# many share the memory; sent: whether scores are sent from one machine to another.
Tiling = collections.namedtuple('Tiling', 'window overlap magnified devices sent')
Tiling.__new__.__defaults__ = (1, False)

# What was read of an image: its index in the list, float32 [H, W, 3] and its label [H, W]. fault: as a Prediction's.
Read = collections.namedtuple('Read', 'index image label fault')

VALIDATION = 'validation'  # a pass in the middle of a training, whose progress bar vanishes
REFRESH_SECONDS = 1.0


def class_map(scores):
    """The class with the highest score: [N, H, W, num_classes] -> int32 [N, H, W]."""
    return tf.argmax(scores, axis=3, output_type=tf.int32)


class Scorer(object):
    """Scores images one at a time by one graph of the network, which an image or a window is fed to."""

    def __init__(self, setup, room=None):
        """Adds the network to the current graph; it is used after load().

        Args:
          setup: a Setup.
          room: the Room of another Scorer on this machine.
        """
        self._setup, self._tiling, self._keep_scores = setup, setup.tiling, setup.keep_scores
        self._images = tf.placeholder(tf.float32, [1, None, None, 3])
        self.net, scores = setup.build(self._images)
        self._scores, self._classes, self._fold = scores[0], class_map(scores)[0], None
        self.room = room
        if not (room or self._tiling.window):
            self.room = Room(int(scores.shape[3]), self._tiling.magnified, self._tiling.devices, self._tiling.sent)

    def load(self, sess, restore=None):
        """Gives the variables their values in a session of the graph, by the setup's restore if by no other."""
        self._fold = self._fold or self.net.fold_ops()
        (restore or self._setup.restore)(sess, self.net.variables)
        sess.run(self._fold)

    def __call__(self, sess, image, report=lambda done, count: None):
        """Class map and scores of an image.

        Args:
          sess: a session of the graph.
          image: float32 [H, W, 3].
          report: called with the number of windows that are done and of all of them.

        Returns:
          (int32 [H, W], float32 [H, W, num_classes] or None unless they are kept).
        """
        size = image.shape[:2]
        while True:
            window = self._window(size)
            try:
                return self._whole(sess, image) if window == size else self._by_windows(sess, image, window, report)
            except tf.errors.ResourceExhaustedError:
                if not (self.room and self.room.exhausted(window)):
                    raise

    def _window(self, size):
        """(h, w) of the windows of an image, its own size where it is scored whole."""
        if self._tiling.window:
            return tuple(min(pair) for pair in zip(self._tiling.window, size))
        window = self.room.window(size)
        if window != size:
            self.room.tell(size, window)
        return window

    def _whole(self, sess, image):
        fetches = [self._classes] + ([self._scores] if self._keep_scores else [])
        found = sess.run(fetches, {self._images: image[np.newaxis]})
        return found[0], found[1] if self._keep_scores else None

    def _by_windows(self, sess, image, window, report):
        count, done = windows.number(image.shape[:2], window, self._tiling.overlap), []

        def score(pixels):
            report(len(done), count)
            done.append(True)
            return sess.run(self._scores, {self._images: pixels[np.newaxis]})

        classes, kept, top = np.empty(image.shape[:2], np.int32), None, 0
        for band in windows.blended(score, image, window, self._tiling.overlap):
            rows = slice(top, top + len(band))
            classes[rows] = band.argmax(axis=2)
            if self._keep_scores:
                kept = np.empty(image.shape[:2] + band.shape[2:], np.float32) if kept is None else kept
                kept[rows] = band
            top += len(band)
        return classes, kept


class Pass(object):
    """A pass over a reader's images that can be repeated with other weights: its graphs are built once.

    A graph that is given up keeps its memory until Python looks for garbage.
    """

    def __init__(self, reader, setup, tolerant=False):
        """
        Args:
          reader: an ImageReader.
          setup: a Setup.
          tolerant: an image that cannot be read is a Prediction with a fault; otherwise it is a UserError.
        """
        self._reader, self._setup = reader, setup
        self._images = Images(reader, setup.session_config, tolerant)
        self._graph, self._scorer = tf.Graph(), None

    def predictions(self, desc, restore=None):
        """Yields a Prediction of every image, in the reader's order.

        Args:
          desc: what the progress bar says.
          restore: that of Scorer.load.
        """
        with self._graph.as_default():
            self._scorer = self._scorer or Scorer(self._setup)  # now, as it asks for the free memory
            with tf.Session(config=self._setup.session_config) as sess:
                self._scorer.load(sess, restore)
                with self._images.reading() as images:
                    progress = bar(len(self._reader.images), desc, images)
                    for one in progress:
                        yield predicted(one, functools.partial(self._scorer, sess), shown(progress))
                        progress.set_postfix_str('', refresh=False)


class Images(object):
    """The images of a reader, one after another, by a graph of their own."""

    def __init__(self, reader, session_config, tolerant=False):
        """Arguments as Pass's; session_config: a tf.ConfigProto."""
        self._reader, self._config, self._faults = reader, session_config, {}  # {index: sentence}
        with tf.Graph().as_default() as self._graph:
            self._pair = reader.single(self._faults if tolerant else None)  # [1, H, W, 3], [1, H, W, 1]

    @contextlib.contextmanager
    def reading(self):
        """Gives a generator of the Reads; inside, exhausted memory, of the scoring too, is raised as a UserError."""
        with self._graph.as_default(), tf.Session(config=self._config) as sess, \
                memory.report_exhaustion('--window or --eval_scales'), self._reader.running(sess):
            yield self._reads(sess)

    def _reads(self, sess):
        for index in range(len(self._reader.images)):
            image, label = sess.run(self._pair)
            yield Read(index, image[0], label[0, :, :, 0], self._faults.pop(index, None))


def predicted(one, score, report):
    """The Prediction of a Read by a function as Scorer's call without the session."""
    if one.fault:
        return Prediction(one.index, None, None, None, one.fault)
    classes, scores = score(one.image, report)
    return Prediction(one.index, one.label, classes, scores)


def bar(total, desc, images=None):
    """The progress bar of a pass over so many images, an iterable if it is given any."""
    return tqdm(images, total=total, desc=desc, unit='image', mininterval=1.0, leave=desc != VALIDATION)


def shown(progress):
    """A function that shows at a progress bar how many windows of an image are done, once a second at most."""
    last = [time.time()]

    def report(done, count):
        if time.time() - last[0] >= REFRESH_SECONDS:
            last[0] = time.time()
            progress.set_postfix_str('window %d of %d' % (done, count))

    return report
