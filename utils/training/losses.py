"""The training loss: cross-entropy over the valid pixels of each set of logits, and weight decay."""

import collections

import tensorflow.compat.v1 as tf

# class_weights: a factor for each class, or None for 1; hard_fraction: the share of the valid pixels, those with the
# highest loss, that count (online hard example mining, Shrivastava et al. 2016, by pixels).
Weighting = collections.namedtuple('Weighting', 'class_weights hard_fraction')
Weighting.__new__.__defaults__ = (None, 1.0)


# Of the pixels of a map: losses, float32; target, the class, int32; valid, whether they count; each [N, h, w].
Pixels = collections.namedtuple('Pixels', 'losses target valid')


def prepare_label(label, new_size, align_corners=False):
    """Resizes labels to the size of the logits by nearest neighbour.

    The source index is floor(i * in / out), TensorFlow's legacy rule and the original's; with align_corners it
    is round(i * (in - 1) / (out - 1)), which for 8k+1 pixels and k+1 logits is Caffe's label[::8].

    Args:
      label: integer tensor [N, H, W, 1].
      new_size: (h, w), numbers or an int32 tensor [2].
      align_corners: which rule.

    Returns:
      int32 tensor [N, h, w].
    """
    label = tf.cast(label, tf.int32)
    label = tf.image.resize_nearest_neighbor(label, new_size, align_corners)  # [N, h, w, 1]
    return tf.squeeze(label, axis=[3])  # [N, h, w]


def pixel_losses(logits, label, classes, align_corners=False):
    """The softmax cross-entropy of every pixel.

    Args:
      logits: [N, h, w, num_classes].
      label: integer [N, H, W, 1]. ignore_label and values outside 0..num_classes-1 do not count.
      classes: an object with num_classes and ignore_label.
      align_corners: how the label shrinks to the logits' size, see prepare_label.

    Returns:
      A Pixels.
    """
    small = prepare_label(label, tf.shape(logits)[1:3], align_corners)  # [N, h, w]
    valid = (small >= 0) & (small < classes.num_classes) & tf.not_equal(small, classes.ignore_label)
    target = tf.where(valid, small, tf.zeros_like(small))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=logits)  # [N, h, w]
    return Pixels(losses, target, valid)


def mean_loss(pixels, weighting=None):
    """The mean of a Pixels over those of a class, a scalar; 0, not NaN, where there are none.

    Args:
      weighting: a Weighting; the mean is then one weighted by the pixels' classes.
    """
    losses, target, valid = pixels
    weights = tf.cast(valid, tf.float32)
    if weighting and weighting.hard_fraction < 1:
        weights *= hardest(losses, valid, weighting.hard_fraction)
    if weighting and weighting.class_weights is not None:
        weights *= tf.gather(tf.constant(weighting.class_weights, tf.float32), target)
        return tf.div_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))
    return tf.reduce_sum(losses * weights) / tf.maximum(tf.reduce_sum(weights), 1.0)


def hardest(losses, valid, fraction):
    """1 for the share of the valid pixels with the highest losses, at least one pixel, otherwise 0: [N, h, w]."""
    count = tf.reduce_sum(tf.cast(valid, tf.float32))
    kept = tf.maximum(tf.cast(tf.ceil(count * fraction), tf.int32), 1)
    masked = tf.where(valid, losses, tf.fill(tf.shape(losses), -1.0))  # a loss is not negative
    least = tf.nn.top_k(tf.reshape(masked, [-1]), kept).values[-1]
    return tf.stop_gradient(tf.cast(masked >= least, tf.float32))


def decayed(variables):
    """The variables that decay: those named 'weights'; no biases, no batch norm, no fix_w."""
    return [v for v in variables if v.op.name.split('/')[-1] == 'weights']


def weight_decay_loss(variables, weight_decay):
    """weight_decay * sum(w ** 2) / 2 over the variables that decay."""
    squares = []
    for variable in decayed(variables):
        with tf.colocate_with(variable.op):
            squares.append(tf.nn.l2_loss(variable))
    return weight_decay * tf.reduce_sum(tf.stack(squares))
