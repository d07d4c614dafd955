"""Losses: plain functions of logits and labels, and the named terms that each value of --loss consists of."""

import collections
import contextlib
import dataclasses
import sys
import typing

import numpy as np
import tensorflow.compat.v1 as tf

from utils.data import data_check
from utils.data.data_check import balanced_class_weights
from utils.data.image_files import read_file, text_lines
from utils.data.pixels import AS_STORED
from utils.net import layers
from utils.system.errors import UserError, quoted, reason

MOST_BYTES = 1 << 20  # the maximum size of a file of class weights
MOST_WEIGHT = 1e6  # the maximum class weight; larger weights overflow in the loss


class Labels(typing.NamedTuple):
    """Labels, resized to the size of the logits."""
    target: tf.Tensor  # int32 [N, h, w], the class of each pixel; 0 for pixels that are not valid
    valid: tf.Tensor   # bool [N, h, w], whether the pixel is part of the loss


# Losses ------------------------------------------------------------------------------------------------------------
#
# Each takes logits [N, h, w, num_classes], a Labels, the class weights (num_classes numbers; None means 1 for each) and
# an object with the flags as attributes. It returns a scalar, which is 0, not NaN, if the batch has no valid pixels.

def cross_entropy(logits, labels, class_weights, conf):
    """Returns the mean softmax cross-entropy of the valid pixels, weighted by class."""
    return mean_over_pixels(pixel_losses(logits, labels), tf.cast(labels.valid, tf.float32), labels, class_weights)


def hard_cross_entropy(logits, labels, class_weights, conf):
    """Returns the mean cross-entropy of the hardest valid pixels, weighted by class.

    This is online hard example mining (Shrivastava et al. 2016), applied to pixels. conf.ohem_fraction is the fraction
    of the valid pixels that are used.
    """
    losses, weights = pixel_losses(logits, labels), tf.cast(labels.valid, tf.float32)
    if conf.ohem_fraction < 1:
        weights *= hardest(losses, labels.valid, conf.ohem_fraction)
    return mean_over_pixels(losses, weights, labels, class_weights)


def dice(logits, labels, class_weights, conf):
    """Returns 1 minus the Dice coefficient, averaged over the classes (Milletari et al. 2016, section 3).

    The Dice coefficient of a class is 2 sum(p g) / (sum(p^2) + sum(g^2)), where p is the probability of the class and g
    is 1 where the label is that class, and 0 elsewhere. The sums are over the valid pixels of the batch. The mean is
    weighted by class_weights and leaves out classes that are absent from the batch's labels.
    """
    valid = tf.cast(labels.valid, tf.float32)[..., tf.newaxis]  # [N, h, w, 1]
    truth = tf.one_hot(labels.target, tf.shape(logits)[3]) * valid  # [N, h, w, num_classes]
    probabilities = tf.nn.softmax(logits) * valid
    overlap = tf.reduce_sum(probabilities * truth, axis=[0, 1, 2])  # [num_classes]
    size = tf.reduce_sum(tf.square(probabilities), axis=[0, 1, 2]) + tf.reduce_sum(truth, axis=[0, 1, 2])
    weights = tf.cast(tf.reduce_any(truth > 0, axis=[0, 1, 2]), tf.float32)
    if class_weights is not None:
        weights *= tf.constant(class_weights, tf.float32)
    return tf.div_no_nan(tf.reduce_sum(weights * (1 - tf.div_no_nan(2 * overlap, size))), tf.reduce_sum(weights))


@dataclasses.dataclass
class Term:
    """A term of the training loss."""
    name: str               # the column in metrics.csv; the curve in TensorBoard is loss/NAME
    function: typing.Callable
    factor: float = 1.0     # weight of the term in the total loss


LOSSES = {
    'ce': [Term('cross_entropy', cross_entropy)],
    'ohem': [Term('cross_entropy', hard_cross_entropy)],
    'dice': [Term('dice', dice)],
    'ce+dice': [Term('cross_entropy', cross_entropy), Term('dice', dice)],
}


def loss_terms(terms, logits, label, classes, class_weights, conf, align_corners=False):
    """Computes the terms of the training loss.

    Args:
      terms: a list of Terms, such as LOSSES[conf.loss].
      logits: a list of tensors [N, h, w, num_classes] of any sizes; every term is summed over all of them.
      label: integer [N, H, W, 1]. Pixels with ignore_label or a value outside 0..num_classes-1 are left out.
      classes: an object with num_classes and ignore_label.
      class_weights: num_classes numbers, or None.
      conf: an object with the flags as attributes.
      align_corners: as for prepare_label.

    Returns:
      an OrderedDict {name: scalar}, where each term is multiplied by its factor; the sum of the terms is the loss.
    """
    pairs = [(one, resized_labels(label, tf.shape(one)[1:3], classes, align_corners)) for one in logits]
    values = collections.OrderedDict()
    for term in terms:
        value = layers.ordered_sum([term.function(one, labels, class_weights, conf) for one, labels in pairs])
        values[term.name] = value if term.factor == 1 else term.factor * value
    return values


# Weight decay ------------------------------------------------------------------------------------------------------

def decayed_variables(variables):
    """Returns the variables with weight decay, which are those named 'weights': no biases, batch norm or fix_w."""
    return [v for v in variables if v.op.name.split('/')[-1] == 'weights']


def weight_decay_loss(value, weight_decay):
    """Returns weight_decay * sum(w ** 2) / 2 for the value of one variable.

    This is the only definition of the decay: the log shows the sum of this function over the variables, and the update
    uses its gradient (see optimizer.decay_gradient).
    """
    return weight_decay * tf.nn.l2_loss(value)


def total_weight_decay(variables, weight_decay):
    """Returns the sum of weight_decay_loss over decayed_variables; each term is computed on its variable's device."""
    losses = []
    for variable in decayed_variables(variables):
        with tf.colocate_with(variable.op):
            losses.append(weight_decay_loss(variable, weight_decay))
    return tf.reduce_sum(tf.stack(losses))


# Labels and pixels -------------------------------------------------------------------------------------------------

def prepare_label(label, new_size, align_corners=False):
    """Resizes labels to the size of the logits by nearest neighbour.

    The source index is floor(i * in / out), as in the original (TensorFlow's legacy rule). With align_corners, it is
    round(i * (in - 1) / (out - 1)), which equals Caffe's label[::8] for 8k+1 pixels and k+1 logits.

    Args:
      label: integer tensor [N, H, W, 1].
      new_size: (h, w), numbers or an int32 tensor [2].
      align_corners: whether to use the second rule.

    Returns:
      int32 tensor [N, h, w].
    """
    label = tf.cast(label, tf.int32)
    label = tf.image.resize_nearest_neighbor(label, new_size, align_corners)  # [N, h, w, 1]
    return tf.squeeze(label, axis=[3])  # [N, h, w]


def resized_labels(label, size, classes, align_corners=False):
    """Returns the Labels for `label`, integer [N, H, W, 1], resized to (h, w); other arguments as for loss_terms."""
    small = prepare_label(label, size, align_corners)  # [N, h, w]
    valid = (small >= 0) & (small < classes.num_classes) & tf.not_equal(small, classes.ignore_label)
    return Labels(tf.where(valid, small, tf.zeros_like(small)), valid)


def pixel_losses(logits, labels):
    """Returns the softmax cross-entropy of every pixel, valid or not: float32 [N, h, w]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels.target, logits=logits)


def mean_over_pixels(losses, weights, labels, class_weights):
    """Returns the mean of losses [N, h, w], weighted by weights [N, h, w] and by class; 0 if all weights are 0."""
    if class_weights is None:
        return tf.reduce_sum(losses * weights) / tf.maximum(tf.reduce_sum(weights), 1.0)
    weights *= tf.gather(tf.constant(class_weights, tf.float32), labels.target)
    return tf.div_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def hardest(losses, valid, fraction):
    """Returns 1 for the valid pixels with the highest losses and 0 for the others: float32 [N, h, w].

    Args:
      losses: float32 [N, h, w], not negative.
      valid: bool [N, h, w].
      fraction: the fraction of the valid pixels to choose; at least one pixel is chosen.
    """
    count = tf.reduce_sum(tf.cast(valid, tf.float32))
    kept = tf.maximum(tf.cast(tf.ceil(count * fraction), tf.int32), 1)
    masked = tf.where(valid, losses, tf.fill(tf.shape(losses), -1.0))  # -1 is below every loss
    least = tf.nn.top_k(tf.reshape(masked, [-1]), kept).values[-1]
    return tf.stop_gradient(tf.cast(masked >= least, tf.float32))


# Class weights -----------------------------------------------------------------------------------------------------

def load_class_weights(spec, classes, images, labels, num_threads, image_format=AS_STORED):
    """Loads the class weights for --class_weights; prints balanced weights, and a warning if some are very large.

    Args:
      spec: '' for no weights, 'balanced', or the path of a text file with one number for each class.
      classes: a Classes.
      images, labels: the paths of the training set, whose pixels are counted for 'balanced'.
      num_threads: the number of threads that read files.
      image_format: the ImageFormat of the images.

    Returns:
      float32 [num_classes], or None.

    Raises:
      UserError: the file does not contain num_classes numbers, or a number is negative or too large, or all are 0; or
        for 'balanced', there are problems in the training set.
    """
    if not spec:
        return None
    if spec == 'balanced':
        result = data_check.check_pairs(
            images, labels, classes, num_threads, 'count classes', image_format=image_format)
        data_check.raise_on_problems(result)
        weights = balanced_class_weights(result.histogram)
        print('balanced weights of the classes, from 0: ' + ' '.join('%.4g' % weight for weight in weights))
        warning = data_check.describe_large_weights(weights, classes)
        if warning:
            print('warning: ' + warning, file=sys.stderr)
        return weights
    return read_class_weights(spec, classes.num_classes)


def read_class_weights(path, num_classes):
    """Reads class weights from a text file, float32 [num_classes]; raises UserError as load_class_weights does."""
    flag = '--class_weights=' + quoted(path)
    wanted = 'give %d numbers (--num_classes), none negative and not all 0' % num_classes
    try:
        lines = enumerate(text_lines(read_file(path, MOST_BYTES)), 1)
        numbered = [(number, _class_weight(word, number)) for number, line in lines for word in line.split()]
    except (OSError, ValueError) as error:
        raise UserError("%s is neither 'balanced' nor a file of numbers (%s)." % (flag, reason(error)))
    for number, weight in numbered:
        if not 0 <= weight <= MOST_WEIGHT:
            raise UserError('%s, line %d: %g is %s: %s.' % (
                flag, number, weight, 'negative' if weight < 0 else 'above %g' % MOST_WEIGHT if weight < np.inf else (
                    'not a finite number'), wanted))
    weights = np.array([weight for _, weight in numbered], np.float32)
    if len(weights) != num_classes or not weights.any():
        raise UserError('%s: %s; it has %d.' % (flag, wanted, len(weights)))
    return weights


def _class_weight(word, number):
    """Converts a word on line `number` of a file of class weights to np.float32; raises ValueError if it cannot."""
    with contextlib.suppress(ValueError), np.errstate(over='ignore'):
        return np.float32(float(word))
    raise ValueError("line %d: '%s' is not a number%s" % (number, quoted(word, 20), (
        '; separate numbers by spaces or line breaks, and write 0.5, not 0,5' if ',' in word or ';' in word else '')))
