"""The decoders, which compute logits from the encoder's features, with the same height and width.

To add a decoder, write a class with `build` and `__call__` as below, add a line to DECODERS and its name to --decoder.
Everything that `build` creates with `conv`, `variable` or `add` is trained, saved, restored and exported, because the
rest of the code gets the variables from the network.
"""

import copy

import tensorflow.compat.v1 as tf

from utils.net import dilated, layers

ASPP_RATES = (6, 12, 18, 24)


class Decoder(layers.Piece):
    """The base class of decoders. It creates convolutions with biases.

    The names of the variables depend on the encoder's family.
    """

    auxiliary_factor = 0.4  # weight of the loss of auxiliary heads (Zhao et al. 2017, PSPNet, section 3.3)

    def __init__(self, family, depths, num_classes, numerics, batch_norm='frozen'):
        """Creates the variables.

        Args:
          family: the naming scheme of the variables, 'caffe' or 'slim'.
          depths: the numbers of channels of the encoder's maps, after pool1 and after each block. The last map is the
            features.
          num_classes: channels of the logits.
          numerics: a compat.Numerics.
          batch_norm: one of layers.BATCH_NORM, for decoders with batch norm.
        """
        super(Decoder, self).__init__()
        self.family, self.depths, self.depth, self.num_classes = family, depths, depths[-1], num_classes
        self.numerics, self.batch_norm = numerics, batch_norm
        self.build()

    def build(self):
        """Creates the variables."""
        raise NotImplementedError

    def __call__(self, features):
        """Returns the logits [N, h, w, num_classes] for features [N, h, w, depth]."""
        raise NotImplementedError

    def auxiliary(self, maps):
        """Returns the logits of auxiliary heads, which are trained with cross-entropy but not used for prediction.

        Args:
          maps: the encoder's maps; maps[0] is the output of pool1 and maps[k] of block k, [N, h, w, depths[k]].

        Returns:
          a list of tensors [N, h, w, num_classes]; [] unless overridden.
        """
        return []

    def conv(self, scope, size, depth=None):
        """Creates weights [size, size, depth, num_classes] and biases [num_classes]; returns their values.

        Args:
          scope: the prefix of the names of the variables.
          size: height and width of the kernel.
          depth: number of input channels; by default as many as the features have.
        """
        weights_start, biases_start = None, None
        if self.numerics.gaussian_aspp:
            weights_start = tf.initializers.random_normal(stddev=0.01, seed=layers.seed_of(scope))
            biases_start = tf.initializers.zeros()
        weights = self.variable(scope + '/weights', [size, size, depth or self.depth, self.num_classes], weights_start)
        biases = self.variable(scope + '/biases', [self.num_classes], biases_start)
        return layers.read(weights), layers.read(biases)


class ASPP(Decoder):
    """Atrous spatial pyramid pooling (DeepLab v2, section 3.2): the sum of four dilated 3x3 convolutions with biases.

    The dilated convolutions are always regular; dilated_type has no effect on them.
    """

    SCOPES = {'caffe': ['fc1_voc12_c%d' % i for i in range(4)],
              'slim': ['decoder/aspp/conv%d' % i for i in range(1, 5)]}

    def build(self):
        self._branches = [self.conv(scope, 3) for scope in self.SCOPES[self.family]]
        self._pyramid = None  # (convolution, bias [num_classes]); created by the first call and reused by later ones

    def __call__(self, features):
        if self._pyramid is None:
            weights, biases = zip(*self._branches)
            self._pyramid = dilated.pyramid(weights, ASPP_RATES), layers.ordered_sum(biases)
        convolve, bias = self._pyramid
        return tf.nn.bias_add(convolve(features), bias)

    def on_another_device(self):
        other = copy.copy(self)
        other._pyramid = None
        return other


class ASPPPooling(ASPP):
    """ASPP plus an image-level branch, which gives every pixel context from the whole image.

    The mean of the features over the image passes through a 1x1 convolution and is added to ASPP's sum (Liu et al.
    2015, ParseNet). DeepLab v3 (Chen et al. 2017, section 3.3) also has this branch, but concatenates the branches and
    applies batch norm to them.
    """

    POOLING_SCOPE = {'caffe': 'fc1_voc12_pool', 'slim': 'decoder/aspp/image_pooling'}

    def build(self):
        super(ASPPPooling, self).build()
        self._pooling = self.conv(self.POOLING_SCOPE[self.family], 1)

    def __call__(self, features):
        weights, biases = self._pooling
        pooled = tf.reduce_mean(features, axis=[1, 2], keepdims=True)  # [N, 1, 1, depth]
        pooled = tf.nn.bias_add(layers.conv2d(pooled, weights), biases)  # [N, 1, 1, num_classes]
        return super(ASPPPooling, self).__call__(features) + pooled


DECODERS = {
    'aspp': ASPP,
    'aspp_pooling': ASPPPooling,
}


def lookup(decoder):
    """Returns the class of a decoder; raises ValueError for an unknown name."""
    if decoder not in DECODERS:
        raise ValueError("decoder '%s' is not one of %s" % (decoder, ', '.join(sorted(DECODERS))))
    return DECODERS[decoder]
