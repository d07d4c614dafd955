"""Forms of dilated and shared convolutions that are quicker on a CPU than TensorFlow's own kernels."""

import tensorflow.compat.v1 as tf

from utils.net import layers


def pyramid(kernels, rates):
    """A function that adds up dilated 3x3 convolutions of one map to few channels: [N, h, w, C] -> [N, h, w, D].

    All taps of all kernels are one matrix product, whose small outputs are then shifted and added: the many channels
    of the input are read once, where each of the convolutions would gather them nine times.

    Args:
      kernels: a list of [3, 3, C, D]; rates: theirs.
    """
    depth_in, depth = kernels[0].shape[2], kernels[0].shape[3]
    taps = tf.concat([tf.reshape(kernel, [9, depth_in, depth]) for kernel in kernels], axis=0)  # [9 * k, C, D]
    taps = tf.reshape(tf.transpose(taps, [1, 0, 2]), [depth_in, -1])  # [C, 9 * k * D]
    shifts = [(row * rate, column * rate) for rate in rates for row in (-1, 0, 1) for column in (-1, 0, 1)]

    def convolve(inputs):
        shape = tf.shape(inputs)
        products = tf.matmul(tf.reshape(inputs, [-1, depth_in]), taps)  # [N * h * w, 9 * k * D]
        products = tf.reshape(products, [shape[0], shape[1], shape[2], taps.shape[1]])
        parts = tf.split(products, len(shifts), axis=3)  # each [N, h, w, D]
        return tf.add_n([shift(part, *offset) for part, offset in zip(parts, shifts)])

    return convolve


def shift(inputs, rows, columns):
    """outputs[y, x] = inputs[y + rows, x + columns], zero where that is outside: [N, h, w, D] -> the same."""
    pads = [[0, 0]] + [[max(-offset, 0), max(offset, 0)] for offset in (rows, columns)] + [[0, 0]]
    outputs = tf.slice(tf.pad(inputs, pads), [0, max(rows, 0), max(columns, 0), 0], tf.shape(inputs))
    outputs.set_shape(inputs.shape)
    return outputs


@tf.custom_gradient
def share_filter(inputs, shared):
    """layers.share_filter with a gradient of the filter that is quicker for 7x7 than depthwise_conv2d's."""
    def gradients(outer):
        turned = tf.reverse(shared, [0, 1])
        return layers.share_filter(outer, turned), shared_gradient(inputs, outer, int(shared.shape[0]))
    return layers.share_filter(inputs, shared), gradients


def shared_gradient(inputs, outer, side):
    """The gradient [s, s] of a shared filter from its inputs and its outputs' gradient, both [N, h, w, C].

    At (i, j) it is the sum of outer * inputs moved by (i - s / 2, j - s / 2). For each i, matrix products over the
    channels give the sums for every pair of columns; those of pairs that are j apart are then added.
    """
    height, width = tf.shape(inputs)[1], tf.shape(inputs)[2]
    reach = side // 2
    padded = tf.pad(inputs, [[0, 0], [reach, reach], [reach, reach], [0, 0]])
    padded, outer = [tf.transpose(rows, [1, 0, 2, 3]) for rows in (padded, outer)]  # [h, N, w, C]
    pairs = tf.stack([tf.reduce_sum(tf.matmul(outer, padded[i:i + height], transpose_b=True), axis=[0, 1])
                      for i in range(side)])  # [s, w, w + s - 1]
    # With one more column a row, the pairs of one distance are in one column.
    length = width + side
    pairs = tf.pad(tf.reshape(pairs, [side, -1]), tf.stack([[0, 0], [0, width]]))
    return tf.reduce_sum(tf.reshape(pairs, [side, width, length])[:, :, :side], axis=1)
