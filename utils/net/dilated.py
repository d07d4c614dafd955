"""Dilated 3x3 convolutions: regular, decomposed, and smoothed by group interaction or a shared filter."""

import functools

import tensorflow.compat.v1 as tf

from utils.net import layers
from utils.system import runtime


@functools.lru_cache(maxsize=None)
def native_gradient_works():
    """Whether conv2d's own dilations can be trained where this process runs.

    TensorFlow's plain CPU kernels compute them forwards only; with oneDNN or on a GPU both ways work. No public
    call tells which is at hand, so a tiny gradient is tried once.
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
    """SAME convolution with holes: [N, h, w, C], [3, 3, C, D] -> [N, h, w, D]."""
    if rate == 1:
        return tf.nn.conv2d(inputs, kernel, strides=[1, 1, 1, 1], padding='SAME')
    if native_gradient_works():
        return tf.nn.conv2d(inputs, kernel, strides=[1, 1, 1, 1], padding='SAME', dilations=[1, rate, rate, 1])
    return tf.nn.atrous_conv2d(inputs, kernel, rate, padding='SAME')


def pyramid(kernels, rates):
    """Returns a function that adds up regular dilated convolutions of one map: [N, h, w, C] -> [N, h, w, D].

    Args:
      kernels: a list of [3, 3, C, D]; rates: theirs.
    """
    if not runtime.on_gpu():
        return pyramid_on_cpu(kernels, rates)
    return lambda inputs: tf.add_n([regular(inputs, kernel, rate) for kernel, rate in zip(kernels, rates)])


def pyramid_on_cpu(kernels, rates):
    """The form of `pyramid` that is quicker on a CPU for few output channels.

    All taps of all kernels are one matrix product, whose small outputs are then shifted and added: the many channels
    of the input are read once, where each of the convolutions would gather them nine times.
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


def padding_to_multiple(inputs, rate):
    """int32 [2, 2]: the rows and columns to add (before, after) for height and width to be multiples of rate."""
    after = tf.mod(-tf.shape(inputs)[1:3], rate)
    return tf.stack([tf.stack([0, after[0]]), tf.stack([0, after[1]])])


def decompose(inputs, kernel, rate):
    """The same as regular, by an ordinary convolution of each of the rate * rate interleaved groups of pixels."""
    return _by_groups(inputs, kernel, rate, lambda groups: groups)


def group_interaction(inputs, kernel, rate, fix_w):
    """Dilated convolution whose rate * rate interleaved groups of pixels are mixed.

    Smoothed Dilated Convolutions (Wang and Ji, KDD 2018), section 3.2: out_i = sum_j fix_w[j, i] * group_j.
    The original's code took group_i for group_0 in that sum; this is the paper's formula, on purpose.
    """
    if not native_gradient_works():
        return _by_groups(inputs, kernel, rate, lambda groups: mix_groups(groups, fix_w))
    # Both are linear, so the inputs may be mixed instead of the outputs: the convolution is then a native one, which
    # is quicker than one of the many small maps of the groups, and no output beyond the map is computed.
    extra = padding_to_multiple(inputs, rate)
    groups = tf.space_to_batch_nd(inputs, [rate, rate], extra)  # [r*r*N, h/r, w/r, C]
    mixed = tf.batch_to_space_nd(mix_groups(groups, fix_w), [rate, rate], [[0, 0], [0, 0]])  # multiples of rate
    margins = rate - extra  # before and after: extra is [[0, rows], [0, columns]]
    mixed = layers.with_depth(tf.pad(mixed, tf.concat([[[0, 0]], margins, [[0, 0]]], axis=0)), inputs)
    outputs = tf.nn.conv2d(mixed, kernel, strides=[1, 1, 1, 1], padding='VALID', dilations=[1, rate, rate, 1])
    outputs.set_shape(inputs.shape[:3].concatenate(kernel.shape[3:]))
    return outputs  # [N, h, w, D]


def _by_groups(inputs, kernel, rate, mix):
    crops = padding_to_multiple(inputs, rate)
    groups = tf.space_to_batch_nd(inputs, [rate, rate], crops)  # [r*r*N, h/r, w/r, C]
    groups = mix(tf.nn.conv2d(groups, kernel, strides=[1, 1, 1, 1], padding='SAME'))  # [r*r*N, h/r, w/r, D]
    outputs = tf.batch_to_space_nd(groups, [rate, rate], crops)
    outputs.set_shape(inputs.shape[:3].concatenate(kernel.shape[3:]))
    return outputs  # [N, h, w, D]


def mix_groups(groups, fix_w):
    """out_i = sum_j fix_w[j, i] * group_j as one matrix product: [r*r*N, h, w, D], [r*r, r*r] -> the same."""
    number = fix_w.shape[0]
    flat = tf.reshape(groups, [number, -1])  # [r*r, N*h*w*D]
    return tf.reshape(tf.matmul(fix_w, flat, transpose_a=True), tf.shape(groups))


def smooth_shared(inputs, kernel, rate, fix_w):
    """One (2r-1)x(2r-1) filter shared by all channels, then the dilated convolution (same paper, section 3.3).

    fix_w [2r-1, 2r-1, 1, 1, 1] starts at zero; a constant 1 at its centre makes the start an identity.
    """
    side = 2 * rate - 1
    centre = tf.pad(tf.ones([1, 1]), [[rate - 1, rate - 1], [rate - 1, rate - 1]])
    share = layers.share_filter if side <= 3 or runtime.on_gpu() else share_filter_on_cpu
    return regular(share(inputs, tf.reshape(fix_w, [side, side]) + centre), kernel, rate)


@tf.custom_gradient
def share_filter_on_cpu(inputs, shared):
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


# type: (function, the shape of fix_w from the rate, its initial value)
DILATED_TYPES = {
    'regular': (regular, None, None),
    'decompose': (decompose, None, None),
    'smooth_GI': (group_interaction, lambda r: [r * r, r * r], tf.initializers.identity()),
    'smooth_SSC': (smooth_shared, lambda r: [2 * r - 1, 2 * r - 1, 1, 1, 1], tf.initializers.zeros()),
}


def lookup(dilated_type):
    """The row of DILATED_TYPES; ValueError with the valid names for an unknown type."""
    if dilated_type not in DILATED_TYPES:
        raise ValueError("dilated_type '%s' is not one of %s" % (dilated_type, ', '.join(sorted(DILATED_TYPES))))
    return DILATED_TYPES[dilated_type]
