"""The layers of the network: variables by their full names, frozen or trained batch norm, pooling, resizing."""

import zlib

import tensorflow.compat.v1 as tf


def seed_of(name):
    """The seed of a variable's random values beside the graph's own: by default it would depend on all ops before."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def variable(name, shape, initializer=None, trainable=True):
    """A float32 variable; Glorot's uniform unless an initializer is given, as the original's."""
    # A resource variable's readers keep the value of before an update, so that no gradient can see a weight
    # that the same step has already changed.
    return tf.get_variable(name, shape, tf.float32, initializer or tf.glorot_uniform_initializer(seed_of(name)),
                           trainable=trainable, use_resource=True)


def read(variable):
    """The variable's value, read once and on its own device for all that use it, on whatever devices."""
    with tf.colocate_with(variable.op):
        return variable.read_value()


def ordered_sum(tensors):
    """Their sum, always in this order.

    tf.add_n begins with the tensor whose memory it can reuse, which with those of other machines is up to chance, and
    TensorFlow's graph optimizer makes an AddN of additions.
    """
    return tf.reduce_sum(tf.stack(tensors), axis=0) if len(tensors) > 1 else tensors[0]


class Piece(object):
    """A part of a network that has variables: the encoder or the decoder.

    A subclass creates its variables in its constructor, each by `variable` or in a ConvBN that it gives to `add`, and
    computes when it is called, any number of times.
    """

    def __init__(self):
        self.variables = []  # in the order of their creation
        self._layers = []  # those with batch norm

    def variable(self, name, shape, initializer=None, trainable=True):
        """Creates one of its variables, see layers.variable."""
        self.variables.append(variable(name, shape, initializer, trainable))
        return self.variables[-1]

    def add(self, layer):
        """Makes the variables of a ConvBN its own and returns the layer."""
        self.variables.extend(layer.variables)
        self._layers.append(layer)
        return layer

    def statistics(self):
        """[(variable of batch norm's moving average, what every call saw on average)]; [] unless it is trained."""
        return [pair for layer in self._layers for pair in layer.statistics()]

    def fold_ops(self):
        """Ops that fold batch norm into the variables for good, for batch_norm 'folded'.

        One layer after the other, or for a moment there would be two of each weight.
        """
        ops = []
        for layer in self._layers:
            with tf.control_dependencies(ops[-2:]):
                ops.extend(layer.fold_ops())
        return ops


# How batch norm acts. frozen: by the moving averages, folded into the convolution wherever it is used. trained: by the
# statistics of the batch, gamma and beta being trainable. folded: as frozen, but fold_ops() folds it into the
# variables once, after they got their values and before any use; such a network is not to be saved.
BATCH_NORM = ('frozen', 'trained', 'folded')


class ConvBN(object):
    """A convolution without bias and its batch norm, for as many inputs as share them.

    Frozen, batch norm is folded into the convolution, gamma * (conv(x) - mean) / sqrt(variance + epsilon) + beta
    being a convolution with scaled weights and a bias: no pass over the activations is spent on it. Trained, it
    uses the statistics of the batch and keeps them for the moving averages.
    """

    def __init__(self, scopes, shape, convolve, batch_norm, epsilon, zero_gamma=False):
        """Builds weights `shape` [k, k, C, D] and gamma, beta, moving_mean and moving_variance [D].

        Args:
          scopes: of the weights and of the batch norm.
          convolve: a function of inputs [N, h, w, C] and kernel [k, k, C, D].
          batch_norm: one of BATCH_NORM.
          zero_gamma: gamma starts at 0 instead of 1.
        """
        depth, trained = shape[3:], batch_norm == 'trained'
        zeros, ones = tf.initializers.zeros(), tf.initializers.ones()
        self.weights = variable(scopes[0] + '/weights', shape)
        self.gamma = variable(scopes[1] + '/gamma', depth, zeros if zero_gamma else ones, trained)
        self.beta = variable(scopes[1] + '/beta', depth, zeros, trained)
        self.moving_mean = variable(scopes[1] + '/moving_mean', depth, zeros, trainable=False)
        self.moving_variance = variable(scopes[1] + '/moving_variance', depth, ones, trainable=False)
        self.variables = [self.weights, self.gamma, self.beta, self.moving_mean, self.moving_variance]
        self._convolve, self._epsilon, self._batch_norm = convolve, epsilon, batch_norm
        self._seen = []  # (mean, variance) of every batch that went through
        if batch_norm == 'frozen':
            self._kernel, self._bias = self._fold()
        else:
            self._kernel, self._bias = read(self.weights), read(self.beta)
        self._scale = read(self.gamma) if trained else None

    def _fold(self):
        """The kernel [k, k, C, D] and the bias [D] of convolution and batch norm in one."""
        with tf.colocate_with(self.weights.op):  # so that towers get the results, once each
            scale = self.gamma * tf.rsqrt(self.moving_variance + self._epsilon)  # [D]
            return self.weights * scale, self.beta - self.moving_mean * scale

    def fold_ops(self):
        """Ops that put the folded kernel and bias into the variables weights and beta, for 'folded'.

        Every later step is spared the folding and the memory of its result.
        """
        kernel, bias = self._fold()
        return [tf.assign(self.weights, kernel), tf.assign(self.beta, bias)]

    def __call__(self, inputs, **how):
        """[N, h, w, C] -> [N, h', w', D]; `how` are further arguments of convolve, such as a stride."""
        outputs = self._convolve(inputs, self._kernel, **how)
        if self._batch_norm != 'trained':
            return tf.nn.bias_add(outputs, self._bias)
        outputs, mean, variance = tf.nn.fused_batch_norm(
            outputs, self._scale, self._bias, epsilon=self._epsilon)[:3]
        self._seen.append((mean, variance))
        return outputs

    def statistics(self):
        """[(variable of a moving average, mean of what the batches had that went through)]; [] unless it is trained."""
        averages = (self.moving_mean, self.moving_variance)
        return [(average, ordered_sum(seen) / len(seen)) for average, seen in zip(averages, zip(*self._seen))]


def conv2d(inputs, kernel, stride=1, pad=None):
    """[N, h, w, C], [k, k, C, D] -> [N, h/stride, w/stride, D]; SAME, or VALID after pad = (before, after) zeros."""
    if pad is None:
        return tf.nn.conv2d(inputs, kernel, strides=[1, stride, stride, 1], padding='SAME')
    return tf.nn.conv2d(pad_map(inputs, pad), kernel, strides=[1, stride, stride, 1], padding='VALID')


def share_filter(inputs, shared):
    """SAME convolution of every channel by one filter of odd size: [N, h, w, C], [s, s] -> [N, h, w, C]."""
    filters = tf.tile(shared[:, :, tf.newaxis, tf.newaxis], [1, 1, inputs.shape[3], 1])
    return tf.nn.depthwise_conv2d(inputs, filters, [1, 1, 1, 1], 'SAME')


def max_pool(inputs, size=3, stride=2, pad=None):
    """[N, h, w, C] -> [N, h/2, w/2, C]; SAME, or VALID after pad = (before, after) zeros (maps not negative)."""
    padding = 'SAME' if pad is None else 'VALID'
    if pad is not None:
        inputs = pad_map(inputs, pad)
    return tf.nn.max_pool(inputs, [1, size, size, 1], [1, stride, stride, 1], padding)


def pad_map(inputs, pad):
    """Zeros around height and width: pad = (before, after)."""
    return tf.pad(inputs, [[0, 0], list(pad), list(pad), [0, 0]])


def pad_to_multiple(images, multiple):
    """Zeros at the bottom and the right of [N, H, W, 3] up to sizes of a multiple plus 1; as it is for None."""
    if multiple is None:
        return images
    pad = tf.mod(1 - tf.shape(images)[1:3], multiple)
    padded = tf.pad(images, tf.stack([[0, 0], [0, pad[0]], [0, pad[1]], [0, 0]]))
    return with_depth(padded, images)


def with_depth(maps, like):
    """The maps [N, h, w, C] with the static C of others, in a form that an exported graph keeps, unlike set_shape's."""
    shape = tf.shape(maps)
    maps = tf.reshape(maps, tf.stack([shape[0], shape[1], shape[2], int(like.shape[3])]))
    maps.set_shape([like.shape[0], None, None, None])
    return maps


def crop_to(maps, size):
    """The upper left [N, size[0], size[1], C] of [N, H, W, C]."""
    return maps[:, :size[0], :size[1]]


def resize(inputs, size, align_corners):
    """Bilinear: [N, h, w, C] -> [N, size[0], size[1], C], with align_corners or by TensorFlow's legacy rule."""
    return tf.image.resize_bilinear(inputs, size, align_corners=align_corners)


def scaled_size(size, scale, align_corners):
    """int32 [2] -> int32 [2], at least 1: int(size * scale), or with align_corners Caffe's int((size - 1) * scale) + 1.
    """
    offset = 1 if align_corners else 0
    return tf.maximum(tf.cast(tf.cast(size - offset, tf.float32) * scale, tf.int32) + offset, 1)
