"""Predicts class maps with a network at several scales, also mirrored, on whole images or overlapping windows.

    predictor = Predictor(Model(conf).scores, Scoring(scales=(0.75, 1.0), flip=True))
    for prediction in predictor.predictions(reader, 'model/model.ckpt-20000', 'predict'):
        prediction.classes  # int32 [H, W]
"""

import contextlib
import dataclasses
import time
from typing import Optional, Tuple

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from utils.data.palette import IGNORE_LABEL
from utils.net import layers
from utils.prediction import crf, windows
from utils.system import memory
from utils.weights import checkpoints

VALIDATION = 'validation'  # the description of validation during training, whose progress bar disappears at the end
REFRESH_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Scoring:
    """The way an image is scored; by default, in a single pass of the network over the whole image."""

    scales: Tuple[float, ...] = (1.0,)  # of the image; the network runs once for each
    flip: bool = False  # whether each scale has a second pass, over the mirrored image
    merge: str = 'mean'  # 'mean' of the passes' probabilities or 'max' of their logits, pixel by pixel
    window: Optional[Tuple[int, int]] = None  # (h, w) of overlapping windows; None for whole images if they fit
    overlap: float = 0.33  # the least fraction of a window that neighbours share
    keep_scores: bool = False  # whether a Prediction holds the scores
    ignore_label: int = IGNORE_LABEL  # the label of pixels that do not count, and of unknown ones in class maps
    unknown_below: float = 0.0  # pixels whose highest probability is below this become ignore_label
    with_loss: bool = False  # whether a Prediction holds its loss; the scores must be logits

    @property
    def passes(self):
        """Returns the passes of the network, [(scale, whether the image is mirrored)]."""
        return [(scale, mirrored) for scale in self.scales for mirrored in ([False, True] if self.flip else [False])]

    @property
    def gives_probabilities(self):
        """Returns whether the scores are probabilities. With a single pass, which needs no merging, they are logits."""
        return self.merge == 'mean' and len(self.passes) > 1


@dataclasses.dataclass
class LoadedImage:
    """An image of a list, as it is fed to the network."""

    index: int  # in the list
    image: np.ndarray  # float32 [H, W, 3], minus the mean
    label: np.ndarray  # int32 [H, W], ignore_label everywhere if the list has no label
    fault: Optional[str] = None  # a sentence on why the image cannot be read; image and label are then one pixel


@dataclasses.dataclass
class Prediction:
    """The result of predicting an image."""

    index: int  # of the image in the list
    label: Optional[np.ndarray]  # int32 [H, W], ignore_label everywhere if the list has no label
    classes: Optional[np.ndarray]  # int32 [H, W]
    scores: Optional[np.ndarray] = None  # float32 [H, W, num_classes], with Scoring.keep_scores
    fault: Optional[str] = None  # a sentence on why the image cannot be read; the arrays are then None
    loss: Optional[float] = None  # with Scoring.with_loss, the sum of the cross-entropy of the pixels that count


class Predictor(object):
    """Predicts images one at a time with one graph, which is built once and works with any weights of the network.

    Attributes, after build():
      graph: the tf.Graph.
      net: the network, whose variables load() sets.
    """

    def __init__(self, network, scoring, align_corners=False, session_config=None, device=None, free_memory=None):
        """
        Args:
          network: a function from images float32 [N, H, W, 3] to (network with batch_norm 'folded', logits
            [N, H, W, num_classes]), such as Model.scores.
          scoring: a Scoring.
          align_corners: how images and logits are resized, and sizes rounded, for scales other than 1.
          session_config: a tf.ConfigProto.
          device: the name of the network's device; by default TensorFlow chooses.
          free_memory: a windows.FreeMemory, shared by all Predictors that use this machine's memory; by default build()
            measures the free memory.
        """
        self.scoring, self.session_config = scoring, session_config
        self._network, self._align_corners, self._device = network, align_corners, device
        self._free_memory = free_memory
        self.graph = self.net = None

    def replica(self, device, free_memory):
        """Returns a Predictor of the same network and scoring for another device, with a graph of its own."""
        return Predictor(self._network, self.scoring, self._align_corners, self.session_config, device, free_memory)

    def predictions(self, reader, weights, description, tolerant=False):
        """Yields the Prediction of every image of an ImageReader, in the reader's order, on one device.

        Args:
          reader: an ImageReader.
          weights: as in load().
          description: the label of the progress bar.
          tolerant: whether an image that cannot be read becomes a Prediction with a fault.

        Raises:
          UserError: the weights do not fit, the memory is exhausted or, unless tolerant, an image cannot be read.
        """
        self.build()
        with self.graph.as_default(), tf.Session(config=self.session_config) as sess:
            self.load(sess, weights)
            with loading(reader, self.session_config, tolerant) as images, \
                    contextlib.closing(Progress(len(reader.images), description)) as progress:
                for image in images:
                    yield self.predict(sess, image, progress.show_window)
                    progress.next_image()

    def build(self):
        """Builds the graph and measures the free memory; later calls do nothing.

        The memory is measured here rather than in the constructor so that, in a validation, the memory that training
        uses counts as taken.
        """
        if self.graph:
            return
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(self._device):
            self._images = tf.placeholder(tf.float32, [1, None, None, 3])
            self.net, scores = merged_passes(self._network, self._images, self.scoring, self._align_corners)
            self._scores = scores[0]  # [H, W, num_classes]
            self._classes = class_map(scores)[0]  # [H, W]
            if self.scoring.unknown_below:
                self._classes = tf.where(
                    highest_probability(self._scores, self.scoring.gives_probabilities) < self.scoring.unknown_below,
                    tf.fill(tf.shape(self._classes), self.scoring.ignore_label), self._classes)
            if self.scoring.with_loss:
                self._label = tf.placeholder(tf.int32, [None, None])
                self._loss = summed_cross_entropy(self._scores, self._label, self.scoring.ignore_label)
        if not (self.scoring.window or self._free_memory):
            self._free_memory = windows.FreeMemory(int(scores.shape[3]), self.scoring.scales)

    def load(self, sess, weights):
        """Loads weights into the network in a session of the graph, which must be the default graph.

        Args:
          sess: the tf.Session.
          weights: the prefix of a checkpoint, or {name: array}.

        Raises:
          UserError: the checkpoint is damaged or does not fit.
        """
        load_weights(sess, self.net, weights)

    def predict(self, sess, loaded, report):
        """Returns the Prediction of a LoadedImage; see score() for the arguments."""
        if loaded.fault:
            return Prediction(loaded.index, None, None, fault=loaded.fault)
        classes, scores, loss = self.score(sess, loaded.image, loaded.label, report)
        return Prediction(loaded.index, loaded.label, classes, scores, loss=loss)

    def score(self, sess, image, label=None, report=lambda done, count: None):
        """Scores one image: as a whole, or in windows if the Scoring asks for them or the memory is too small.

        Args:
          sess: a session of the graph with loaded weights.
          image: float32 [H, W, 3].
          label: int32 [H, W]; used only with_loss.
          report: a function called before each window with the numbers of finished windows and of all windows.

        Returns:
          (classes int32 [H, W], scores float32 [H, W, num_classes] or None without keep_scores, the summed
          cross-entropy or None without with_loss).
        """
        size = image.shape[:2]
        while True:
            window = self._window(size)
            try:
                if window == size:
                    return self._score_whole(sess, image, label)
                return self._score_windows(sess, image, label, window, report)
            except tf.errors.ResourceExhaustedError:  # on a GPU, whose free memory is not known in advance
                if not (self._free_memory and self._free_memory.exhausted(window)):
                    raise

    def _window(self, size):
        """Returns (h, w) of the windows for an image of `size`: the size itself if it is scored as a whole."""
        if self.scoring.window:
            return tuple(min(pair) for pair in zip(self.scoring.window, size))
        window = self._free_memory.window(size)
        if window != size:
            self._free_memory.announce(size, window)
        return window

    def _score_whole(self, sess, image, label):
        fetches, feeds = {'classes': self._classes}, {self._images: image[np.newaxis]}
        if self.scoring.keep_scores:
            fetches['scores'] = self._scores
        if self.scoring.with_loss:
            fetches['loss'], feeds[self._label] = self._loss, label
        found = sess.run(fetches, feeds)
        return found['classes'], found.get('scores'), float(found['loss']) if self.scoring.with_loss else None

    def _score_windows(self, sess, image, label, window, report):
        def score(pixels):  # [h, w, 3] -> [h, w, num_classes]
            return sess.run(self._scores, {self._images: pixels[np.newaxis]})

        scoring, classes, kept, top = self.scoring, np.empty(image.shape[:2], np.int32), None, 0
        loss = 0.0 if scoring.with_loss else None
        for band in windows.blended(score, image, window, self.scoring.overlap, report):  # [n, W, num_classes]
            rows = slice(top, top + len(band))
            classes[rows] = band.argmax(axis=2)
            if scoring.unknown_below:
                highest = (band if scoring.gives_probabilities else crf.softmax(band)).max(axis=2)
                classes[rows][highest < scoring.unknown_below] = scoring.ignore_label
            if scoring.with_loss:
                loss += float(sess.run(self._loss, {self._scores: band, self._label: label[rows]}))
            if scoring.keep_scores:
                kept = np.empty(image.shape[:2] + band.shape[2:], np.float32) if kept is None else kept
                kept[rows] = band
            top += len(band)
        return classes, kept, loss


# the graph -------------------------------------------------------------------------------------------------------


def class_map(scores):
    """Returns the class with the highest score: [N, H, W, num_classes] -> int32 [N, H, W]."""
    return tf.argmax(scores, axis=3, output_type=tf.int32)


def highest_probability(scores, are_probabilities):
    """Returns the highest probability of each pixel, float32 [H, W], for scores [H, W, num_classes]."""
    if are_probabilities:
        return tf.reduce_max(scores, axis=2)
    return 1 / softmax_divisor(scores)[1]


def softmax_divisor(logits):
    """Returns the highest logit of each pixel and the sum of exp(logits - it), two float32 [H, W]."""
    highest = tf.reduce_max(logits, axis=2)
    return highest, tf.reduce_sum(tf.exp(logits - highest[:, :, tf.newaxis]), axis=2)


def summed_cross_entropy(logits, label, ignore_label):
    """Returns the sum of the softmax cross-entropy over the pixels that count, as metrics.confusion_matrix does.

    Args:
      logits: float32 [H, W, num_classes].
      label: int32 [H, W].
      ignore_label: pixels with this label or with a label outside 0..num_classes-1 do not count.

    Returns:
      float64 scalar.
    """
    num_classes = int(logits.shape[2])
    counts = (label >= 0) & (label < num_classes) & tf.not_equal(label, ignore_label)  # [H, W]
    # tf.nn.sparse_softmax_cross_entropy_with_logits also computes its gradient, which takes three times as long.
    highest, divisor = softmax_divisor(logits)
    target = tf.cast(tf.reshape(tf.where(counts, label, tf.zeros_like(label)), [-1]), tf.int64)  # [H * W]
    places = tf.range(tf.size(target, out_type=tf.int64)) * num_classes + target
    losses = highest + tf.log(divisor) - tf.reshape(tf.gather(tf.reshape(logits, [-1]), places), tf.shape(label))
    return tf.reduce_sum(tf.cast(tf.where(counts, losses, tf.zeros_like(losses)), tf.float64))


def merged_passes(network, images, scoring, align_corners=False):
    """Builds the network and merges its scores over the passes of a Scoring.

    The passes are iterations of a tf.while_loop, so the graph contains a single network and needs the memory of one
    pass plus two arrays of scores.

    Args:
      network, align_corners: as in Predictor.
      images: float32 [N, H, W, 3].
      scoring: a Scoring.

    Returns:
      (network, float32 [N, H, W, num_classes]: probabilities if scoring.gives_probabilities, otherwise logits).
    """
    if scoring.passes == [(1.0, False)]:
        return network(images)
    scales, mirrored = zip(*scoring.passes)
    full_size, net, num_classes = tf.shape(images)[1:3], None, None

    def one_pass(index, total):  # total [N, H, W, num_classes], at first [1, 1, 1, 1]
        nonlocal net, num_classes
        size = layers.scaled_size(full_size, tf.constant(scales)[index], align_corners)
        flip = tf.constant(mirrored)[index]  # applied before scaling, as if the image itself were mirrored
        net, logits = network(layers.resize(flipped_if(flip, images), size, align_corners))
        num_classes = logits.shape[3]
        logits = flipped_if(flip, layers.resize(logits, full_size, align_corners))
        if scoring.gives_probabilities:
            return index + 1, total + tf.nn.softmax(logits)
        return index + 1, tf.maximum(total, logits)

    start = tf.fill([1, 1, 1, 1], 0.0 if scoring.gives_probabilities else tf.float32.min)
    _, total = tf.while_loop(lambda index, total: index < len(scales), one_pass, [tf.constant(0), start],
                             shape_invariants=[tf.TensorShape([]), tf.TensorShape([None] * 4)],
                             parallel_iterations=1, back_prop=False)
    total.set_shape([images.shape[0], None, None, num_classes])
    return net, total / len(scales) if scoring.gives_probabilities else total


def flipped_if(flip, maps):
    """Swaps left and right of [N, H, W, C] where the boolean tensor `flip` is true."""
    flipped = tf.cond(flip, lambda: tf.reverse(maps, [2]), lambda: tf.identity(maps))
    flipped.set_shape(maps.shape)
    return flipped


def load_weights(sess, net, weights):
    """Sets the variables of a network.

    Args:
      sess: a tf.Session of the network's graph.
      net: the network.
      weights: the prefix of a checkpoint, or {name: array}.

    Raises:
      UserError: the checkpoint is damaged, does not fit or makes a weight that is not finite.
    """
    values = net.folded(checkpoints.read_fitting(weights, net.shapes) if isinstance(weights, str) else weights)
    if isinstance(weights, str):
        checkpoints.check_finite(values, weights)
    checkpoints.load_values(sess, net.variables, values)


# the list --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def loading(reader, session_config=None, tolerant=False):
    """Yields a generator of the LoadedImages of an ImageReader, which reads ahead.

    Args:
      reader: an ImageReader.
      session_config: a tf.ConfigProto.
      tolerant: whether an image that cannot be read becomes a LoadedImage with a fault.

    Raises:
      UserError: the memory is exhausted, even by the network, or, unless tolerant, an image cannot be read.
    """
    faults = {}  # {index: sentence}

    def images():
        for index in range(len(reader.images)):
            image, label = sess.run(pair)
            yield LoadedImage(index, image[0], label[0, :, :, 0], faults.pop(index, None))

    with tf.Graph().as_default():
        pair = reader.single(faults if tolerant else None)  # [1, H, W, 3], [1, H, W, 1]
        with tf.Session(config=session_config) as sess, memory.report_exhaustion('--window or --eval_scales'), \
                reader.running(sess):
            yield images()


class Progress(object):
    """A progress bar over a list of images, which also shows the progress within an image that is cut into windows."""

    def __init__(self, count, description):
        self._bar = tqdm(total=count, desc=description, unit='image', mininterval=1.0,
                         leave=description != VALIDATION)
        self._refreshed = time.time()

    def show_window(self, done, count):
        """Shows how many windows of an image are finished; updates at most once every REFRESH_SECONDS."""
        if time.time() - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = time.time()
            self._bar.set_postfix_str('window %d of %d' % (done, count))

    def next_image(self):
        self._bar.set_postfix_str('', refresh=False)
        self._bar.update()

    def close(self):
        self._bar.close()
