"""Dilated 3x3 convolutions: regular, decomposed, and smoothed by group interaction or by a shared filter."""

import functools

import tensorflow.compat.v1 as tf

from utils.net import layers
from utils.system import runtime


@functools.lru_cache(maxsize=None)
def native_gradient_works():
    """Returns whether conv2d with `dilations` has a gradient in this process.

    TensorFlow's default CPU kernels implement only the forward pass; oneDNN and GPUs also implement the gradient. No
    public function reports which kernels are in use, so this function tries a tiny gradient, once.
    """
    with tf.Graph().as_default():
        x, kernel = tf.ones([1, 5, 5, 1]), tf.ones([3, 3, 1, 1])
        y = tf.nn.conv2d(x, kernel, strides=[1, 1, 1, 1], padding='SAME', dilations=[1, 2, 2, 1])
        try:
            with tf.Session(config=runtime.session_config()) as sess:
                sess.run(tf.gradients(y, [x, kernel]))
            return True
        except tf.errors.OpError:
            return False


def regular(inputs, kernel, rate):
    """Returns the dilated convolution with SAME padding: [N, h, w, C], [3, 3, C, D] -> [N, h, w, D]."""
    if rate == 1:
        return tf.nn.conv2d(inputs, kernel, strides=[1, 1, 1, 1], padding='SAME')
    if native_gradient_works():
        return tf.nn.conv2d(inputs, kernel, strides=[1, 1, 1, 1], padding='SAME', dilations=[1, rate, rate, 1])
    return tf.nn.atrous_conv2d(inputs, kernel, rate, padding='SAME')


def pyramid(kernels, rates):
    """Returns a function that computes the sum of regular dilated convolutions: [N, h, w, C] -> [N, h, w, D].

    Args:
      kernels: a list of kernels [3, 3, C, D].
      rates: the dilation rate of each kernel.
    """
    if not runtime.on_gpu():
        return pyramid_on_cpu(kernels, rates)
    return lambda inputs: tf.add_n([regular(inputs, kernel, rate) for kernel, rate in zip(kernels, rates)])


def pyramid_on_cpu(kernels, rates):
    """Returns the same function as `pyramid`, in a form that is faster on CPUs if the output has few channels.

    A single matrix product computes all taps of all kernels. Its outputs, which have few channels, are then shifted and
    added. This reads the many channels of the input only once; each convolution would read them nine times.
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
    """Returns outputs[y, x] = inputs[y + rows, x + columns], with zeros outside: [N, h, w, D] -> [N, h, w, D]."""
    pads = [[0, 0]] + [[max(-offset, 0), max(offset, 0)] for offset in (rows, columns)] + [[0, 0]]
    outputs = tf.slice(tf.pad(inputs, pads), [0, max(rows, 0), max(columns, 0), 0], tf.shape(inputs))
    outputs.set_shape(inputs.shape)
    return outputs


def padding_to_multiple(inputs, rate):
    """Returns the padding that makes the height and width of a map [N, h, w, C] multiples of rate.

    Returns:
      int32 [2, 2]: the numbers of rows and of columns to add, each as (before, after).
    """
    after = tf.mod((rate - 1) * tf.shape(inputs)[1:3], rate)  # -size mod rate, of no negative number, as in layers.py
    return tf.stack([tf.stack([0, after[0]]), tf.stack([0, after[1]])])


def decompose(inputs, kernel, rate):
    """Computes the same as `regular` by an ordinary convolution of each of rate * rate interleaved groups of pixels."""
    return _by_groups(inputs, kernel, rate, lambda groups: groups)


def group_interaction(inputs, kernel, rate, fix_w):
    """Computes a dilated convolution and mixes the rate * rate interleaved groups of its output pixels.

    Smoothed Dilated Convolutions (Wang and Ji, KDD 2018), section 3.2: out_i = sum_j fix_w[j, i] * group_j.
    The code of the original used group_i in place of group_0 in this sum; this code deliberately follows the paper.

    Args:
      inputs: [N, h, w, C].
      kernel: [3, 3, C, D].
      rate: the dilation rate r.
      fix_w: [r * r, r * r].

    Returns:
      [N, h, w, D].
    """
    if not native_gradient_works():
        return _by_groups(inputs, kernel, rate, lambda groups: mix_groups(groups, fix_w))
    # Mixing and convolution are both linear, so the inputs can be mixed instead of the outputs. A single native
    # convolution is then enough. It is faster than convolving the small maps of many groups and computes no outputs for
    # the padding.
    extra = padding_to_multiple(inputs, rate)
    groups = tf.space_to_batch_nd(inputs, [rate, rate], extra)  # [r*r*N, h/r, w/r, C]
    mixed = tf.batch_to_space_nd(mix_groups(groups, fix_w), [rate, rate], [[0, 0], [0, 0]])  # multiples of rate
    margins = rate - extra  # before and after: extra is [[0, rows], [0, columns]]
    mixed = layers.with_depth(tf.pad(mixed, tf.concat([[[0, 0]], margins, [[0, 0]]], axis=0)), inputs)
    outputs = tf.nn.conv2d(mixed, kernel, strides=[1, 1, 1, 1], padding='VALID', dilations=[1, rate, rate, 1])
    outputs.set_shape(inputs.shape[:3].concatenate(kernel.shape[3:]))
    return outputs  # [N, h, w, D]


def _by_groups(inputs, kernel, rate, mix):
    """Convolves the rate * rate groups of pixels, applies `mix` to the results and puts the pixels back in place."""
    crops = padding_to_multiple(inputs, rate)
    groups = tf.space_to_batch_nd(inputs, [rate, rate], crops)  # [r*r*N, h/r, w/r, C]
    groups = mix(tf.nn.conv2d(groups, kernel, strides=[1, 1, 1, 1], padding='SAME'))  # [r*r*N, h/r, w/r, D]
    outputs = tf.batch_to_space_nd(groups, [rate, rate], crops)
    outputs.set_shape(inputs.shape[:3].concatenate(kernel.shape[3:]))
    return outputs  # [N, h, w, D]


def mix_groups(groups, fix_w):
    """Returns out_i = sum_j fix_w[j, i] * group_j, computed as a matrix product.

    Args:
      groups: [r*r*N, h, w, D].
      fix_w: [r*r, r*r].

    Returns:
      [r*r*N, h, w, D].
    """
    number = fix_w.shape[0]
    flat = tf.reshape(groups, [number, -1])  # [r*r, N*h*w*D]
    return tf.reshape(tf.matmul(fix_w, flat, transpose_a=True), tf.shape(groups))


def smooth_shared(inputs, kernel, rate, fix_w):
    """Applies a (2r-1)x(2r-1) filter that all channels share, then a dilated convolution (same paper, section 3.3).

    The filter is fix_w [2r-1, 2r-1, 1, 1, 1] plus 1 at its centre. As fix_w starts at zero, the initial filter is the
    identity.
    """
    side = 2 * rate - 1
    centre = tf.pad(tf.ones([1, 1]), [[rate - 1, rate - 1], [rate - 1, rate - 1]])
    share = layers.share_filter if side <= 3 or runtime.on_gpu() else share_filter_on_cpu
    return regular(share(inputs, tf.reshape(fix_w, [side, side]) + centre), kernel, rate)


@tf.custom_gradient
def share_filter_on_cpu(inputs, shared):
    """Computes layers.share_filter, with a gradient that is faster for 7x7 filters than that of depthwise_conv2d."""
    def gradients(outer):
        turned = tf.reverse(shared, [0, 1])
        return layers.share_filter(outer, turned), shared_gradient(inputs, outer, int(shared.shape[0]))
    return layers.share_filter(inputs, shared), gradients


def shared_gradient(inputs, outer, side):
    """Returns the gradient with respect to a shared filter.

    Its element (i, j) is the sum of outer * inputs, with the inputs shifted by (i - s // 2, j - s // 2). For each i,
    matrix products over the channels give the sums for all pairs of columns; the sums of the pairs with distance j are
    then added.

    Args:
      inputs: [N, h, w, C], the inputs of the filter.
      outer: [N, h, w, C], the gradient of its outputs.
      side: s, the height and width of the filter.

    Returns:
      [s, s].
    """
    height, width = tf.shape(inputs)[1], tf.shape(inputs)[2]
    reach = side // 2
    padded = tf.pad(inputs, [[0, 0], [reach, reach], [reach, reach], [0, 0]])
    padded, outer = [tf.transpose(rows, [1, 0, 2, 3]) for rows in (padded, outer)]  # [h, N, w, C]
    pairs = tf.stack([tf.reduce_sum(tf.matmul(outer, padded[i:i + height], transpose_b=True), axis=[0, 1])
                      for i in range(side)])  # [s, w, w + s - 1]
    # With rows one element longer, all pairs at the same distance are in the same column.
    length = width + side
    pairs = tf.pad(tf.reshape(pairs, [side, -1]), tf.stack([[0, 0], [0, width]]))
    return tf.reduce_sum(tf.reshape(pairs, [side, width, length])[:, :, :side], axis=1)


# {type: (function, shape of fix_w as a function of the rate, initializer of fix_w)}; None without a fix_w.
DILATED_TYPES = {
    'regular': (regular, None, None),
    'decompose': (decompose, None, None),
    'smooth_GI': (group_interaction, lambda r: [r * r, r * r], tf.initializers.identity()),
    'smooth_SSC': (smooth_shared, lambda r: [2 * r - 1, 2 * r - 1, 1, 1, 1], tf.initializers.zeros()),
}


def lookup(dilated_type):
    """Returns the entry of DILATED_TYPES for a type; raises ValueError for an unknown one."""
    if dilated_type not in DILATED_TYPES:
        raise ValueError("dilated_type '%s' is not one of %s" % (dilated_type, ', '.join(sorted(DILATED_TYPES))))
    return DILATED_TYPES[dilated_type]
