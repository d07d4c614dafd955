"""The layers of the network: variables, convolution with batch norm, pooling, padding and resizing."""

import collections
import zlib

import numpy as np
import tensorflow.compat.v1 as tf


def seed_of(name):
    """Returns the op-level seed for the initial values of a variable, which TensorFlow combines with the graph's seed.

    TensorFlow's default op-level seed would depend on the number of ops that were created earlier.
    """
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def variable(name, shape, initializer=None, trainable=True):
    """Creates a float32 variable with the full name `name`; the default initializer is Glorot's uniform one."""
    # The value read from a resource variable does not change when the variable is updated, so no gradient is computed
    # from a weight that the same step has already changed.
    return tf.get_variable(name, shape, tf.float32, initializer or tf.glorot_uniform_initializer(seed_of(name)),
                           trainable=trainable, use_resource=True)


def read(variable):
    """Reads a variable on its own device; all ops that use the returned value share this read, on any device."""
    with tf.colocate_with(variable.op):
        return variable.read_value()


def ordered_sum(tensors):
    """Returns the sum of a list of tensors with equal shapes, always added in the order of the list.

    tf.add_n starts with a tensor whose memory it can reuse, so its order varies if tensors come from other machines.
    A chain of additions does not help, as TensorFlow's graph optimizer replaces it by an AddN.
    """
    return tf.reduce_sum(tf.stack(tensors), axis=0) if len(tensors) > 1 else tensors[0]


class Piece(object):
    """A part of a network that has variables: the encoder or the decoder.

    A subclass creates its variables in its constructor, with `variable` or as ConvBN layers passed to `add`. It
    computes its outputs when it is called, and it may be called several times.
    """

    def __init__(self):
        self.variables = []  # in the order of their creation
        self.shapes = collections.OrderedDict()  # {name: shape} of the weights that files contain for this part
        self._layers = []  # the ConvBN layers

    def variable(self, name, shape, initializer=None, trainable=True):
        """Creates a variable of this part; see layers.variable."""
        self.variables.append(variable(name, shape, initializer, trainable))
        self.shapes[name] = tuple(shape)
        return self.variables[-1]

    def add(self, layer):
        """Adds a ConvBN layer and its variables to this part; returns the layer."""
        self.variables.extend(layer.variables)
        self.shapes.update(layer.shapes)
        self._layers.append(layer)
        return layer

    def on_another_device(self):
        """Returns this piece for use on another device; subclasses that cache tensors override this."""
        return self

    def statistics(self):
        """Returns the concatenated ConvBN.statistics of all layers; [] unless batch norm is trained."""
        return [pair for layer in self._layers for pair in layer.statistics()]

    def folded(self, values):
        """Converts weights {name: array}, as stored in files, to values of the variables; see ConvBN.folded."""
        for layer in self._layers:
            values = layer.folded(values)
        return values


# The modes of batch norm. frozen: uses the moving averages and is folded into the convolution in every step. trained:
# uses the statistics of the batch; gamma and beta are trainable. folded: like frozen, but only the weights and beta are
# variables; folded() computes their values from the weights in a file before they are loaded.
BATCH_NORM = ('frozen', 'trained', 'folded')


class ConvBN(object):
    """A convolution without bias, followed by batch norm; all calls share the variables.

    Frozen batch norm, gamma * (conv(x) - mean) / sqrt(variance + epsilon) + beta, equals a convolution with scaled
    weights and a bias. It is folded into the convolution, which saves a pass over the activations. Trained batch norm
    uses the statistics of the batch and keeps them to update the moving averages.
    """

    def __init__(self, scopes, shape, convolve, batch_norm, epsilon, zero_gamma=False):
        """Creates the variables: weights [k, k, C, D] and beta [D]; unless 'folded', also gamma and the averages [D].

        Args:
          scopes: (scope of the weights, scope of the batch norm).
          shape: [k, k, C, D].
          convolve: a function of inputs [N, h, w, C] and a kernel [k, k, C, D].
          batch_norm: one of BATCH_NORM.
          epsilon: added to the variance.
          zero_gamma: whether gamma starts at 0 instead of 1.
        """
        depth, trained = shape[3:], batch_norm == 'trained'
        weights, gamma, beta, moving_mean, moving_variance = [scopes[0] + '/weights'] + [
            scopes[1] + '/' + name for name in ('gamma', 'beta', 'moving_mean', 'moving_variance')]
        self.shapes = collections.OrderedDict(
            [(weights, tuple(shape))] + [(name, tuple(depth)) for name in (gamma, beta, moving_mean, moving_variance)])
        zeros, ones = tf.initializers.zeros(), tf.initializers.ones()
        self.weights = variable(weights, shape)
        if batch_norm != 'folded':
            self.gamma = variable(gamma, depth, zeros if zero_gamma else ones, trained)
        self.beta = variable(beta, depth, zeros, trained)
        self.variables = [self.weights, self.beta]
        if batch_norm != 'folded':
            self.moving_mean = variable(moving_mean, depth, zeros, trainable=False)
            self.moving_variance = variable(moving_variance, depth, ones, trainable=False)
            self.variables = [self.weights, self.gamma, self.beta, self.moving_mean, self.moving_variance]
        self._convolve, self._epsilon, self._batch_norm = convolve, epsilon, batch_norm
        self._seen = []  # (mean, variance) of the batch, for every call
        if batch_norm == 'frozen':
            self._kernel, self._bias = self._fold()
        else:
            self._kernel, self._bias = read(self.weights), read(self.beta)
        self._scale = read(self.gamma) if trained else None

    def _fold(self):
        """Returns the kernel [k, k, C, D] and the bias [D] of the convolution with batch norm folded into it."""
        with tf.colocate_with(self.weights.op):  # computed once, then sent to all towers
            scale = self.gamma * tf.rsqrt(self.moving_variance + self._epsilon)  # [D]
            return self.weights * scale, self.beta - self.moving_mean * scale

    def folded(self, values):
        """Returns a copy of `values` with batch norm folded into the weights and beta.

        Args:
          values: {name: array} with all names of `shapes`; it is not changed. It is returned itself unless batch_norm
            is 'folded'.
        """
        if self._batch_norm != 'folded':
            return values
        weights, gamma, beta, mean, variance = [values[name] for name in self.shapes]
        with np.errstate(all='ignore'):  # values that are not finite are reported by load_weights
            scale = gamma / np.sqrt(variance + np.float32(self._epsilon))  # [D]
            return dict(values, **{self.weights.op.name: weights * scale, self.beta.op.name: beta - mean * scale})

    def __call__(self, inputs, **how):
        """Applies convolution and batch norm: [N, h, w, C] -> [N, h', w', D].

        Args:
          **how: additional arguments of `convolve`, such as a stride.
        """
        outputs = self._convolve(inputs, self._kernel, **how)
        if self._batch_norm != 'trained':
            return tf.nn.bias_add(outputs, self._bias)
        outputs, mean, variance = tf.nn.fused_batch_norm(
            outputs, self._scale, self._bias, epsilon=self._epsilon)[:3]
        self._seen.append((mean, variance))
        return outputs

    def statistics(self):
        """Returns the new values for the moving averages; [] unless batch norm is trained.

        Returns:
          a list of (variable of a moving average, tensor: mean of that statistic over all calls).
        """
        averages = (self.moving_mean, self.moving_variance) if self._seen else ()
        return [(average, ordered_sum(seen) / len(seen)) for average, seen in zip(averages, zip(*self._seen))]


def conv2d(inputs, kernel, stride=1, pad=None):
    """Returns the convolution: [N, h, w, C], [k, k, C, D] -> [N, h/stride, w/stride, D].

    Args:
      inputs: [N, h, w, C].
      kernel: [k, k, C, D].
      stride: the stride in both directions.
      pad: numbers of zeros (before, after) to add to height and width before a VALID convolution; None for SAME.
    """
    if pad is None:
        return tf.nn.conv2d(inputs, kernel, strides=[1, stride, stride, 1], padding='SAME')
    return tf.nn.conv2d(pad_map(inputs, pad), kernel, strides=[1, stride, stride, 1], padding='VALID')


PRODUCTS = 'Conv2DByProducts'  # the name of the gradient below


@tf.RegisterGradient(PRODUCTS)
def _conv2d_gradient(conv, gradient):
    """Returns the gradients of a Conv2D op with respect to its inputs and its kernel.

    For a 1x1 kernel, the gradient is X^T dY over all pixels. In bfloat16, oneDNN computes this matrix product three
    times as fast as Conv2DBackpropFilter.
    """
    inputs, kernel = conv.inputs  # [N, h, w, C], [k, k, C, D]
    how = {name: conv.get_attr(name) for name in ('strides', 'dilations')}
    how['padding'] = conv.get_attr('padding').decode()
    if how['padding'] == 'EXPLICIT':
        how['padding'] = np.reshape(conv.get_attr('explicit_paddings'), [4, 2]).tolist()
    by_inputs = tf.nn.conv2d_backprop_input(tf.shape(inputs), kernel, gradient, **how)
    if kernel.shape[:2] != [1, 1]:
        return by_inputs, tf.nn.conv2d_backprop_filter(inputs, tf.shape(kernel), gradient, **how)
    depth, outputs = int(kernel.shape[2]), int(kernel.shape[3])
    _, down, right, _ = how['strides']
    rows = tf.reshape(inputs[:, ::down, ::right] if (down, right) != (1, 1) else inputs, [-1, depth])  # [N*h*w, C]
    by_kernel = tf.matmul(rows, tf.reshape(gradient, [-1, outputs]), transpose_a=True)  # [C, D]
    return by_inputs, by_kernel[tf.newaxis, tf.newaxis]


def share_filter(inputs, shared):
    """Convolves every channel with the same filter of odd size, padding SAME: [N, h, w, C], [s, s] -> [N, h, w, C]."""
    filters = tf.tile(shared[:, :, tf.newaxis, tf.newaxis], [1, 1, inputs.shape[3], 1])
    return tf.nn.depthwise_conv2d(inputs, filters, [1, 1, 1, 1], 'SAME')


def max_pool(inputs, size=3, stride=2, pad=None):
    """Applies max pooling: [N, h, w, C] -> [N, h/stride, w/stride, C].

    Args:
      inputs: [N, h, w, C].
      size, stride: of the windows, in both directions.
      pad: numbers of zeros (before, after) to add to height and width before VALID pooling; None for SAME. With zeros,
        the inputs must not be negative, as a zero could otherwise be the maximum.
    """
    padding = 'SAME' if pad is None else 'VALID'
    if pad is not None:
        inputs = pad_map(inputs, pad)
    return tf.nn.max_pool(inputs, [1, size, size, 1], [1, stride, stride, 1], padding)


def pad_map(inputs, pad):
    """Pads the height and width of inputs [N, h, w, C] with zeros, pad = (before, after)."""
    return tf.pad(inputs, [[0, 0], list(pad), list(pad), [0, 0]])


def pad_to_multiple(images, multiple):
    """Pads images [N, H, W, 3] with zeros at the bottom and right so that H - 1 and W - 1 are multiples of `multiple`.

    If `multiple` is None, the images are returned unchanged.
    """
    if multiple is None:
        return images
    # (1 - size) mod multiple, of a number that is not negative: tf2onnx converts mod for such numbers only.
    pad = tf.mod((multiple - 1) * (tf.shape(images)[1:3] - 1), multiple)
    padded = tf.pad(images, tf.stack([[0, 0], [0, pad[0]], [0, pad[1]], [0, 0]]))
    return with_depth(padded, images)


def with_depth(maps, like):
    """Returns maps [N, h, w, C] with the static batch size and number of channels of `like`.

    A reshape sets the number of channels, because an exported graph does not keep static shapes from set_shape.
    """
    shape = tf.shape(maps)
    maps = tf.reshape(maps, tf.stack([shape[0], shape[1], shape[2], int(like.shape[3])]))
    maps.set_shape([like.shape[0], None, None, None])
    return maps


def crop_to(maps, size):
    """Returns the upper left part [N, size[0], size[1], C] of maps [N, H, W, C]."""
    return maps[:, :size[0], :size[1]]


def resize(inputs, size, align_corners):
    """Resizes bilinearly: [N, h, w, C] -> [N, size[0], size[1], C].

    Without align_corners, the source coordinates are i * in / out (TensorFlow's legacy rule).
    """
    return tf.image.resize_bilinear(inputs, size, align_corners=align_corners)


def scaled_size(size, scale, align_corners):
    """Returns the size after scaling, int32 [2], at least 1.

    The size is int(size * scale) or, with align_corners, int((size - 1) * scale) + 1 as in Caffe.
    """
    offset = 1 if align_corners else 0
    return tf.maximum(tf.cast(tf.cast(size - offset, tf.float32) * scale, tf.int32) + offset, 1)
