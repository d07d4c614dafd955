"""Dilated ResNet encoders with an ASPP decoder: one builder, two families of variable names.

    net = Deeplab_v2(images, num_classes=21, phase=True)
    net.encoding  # [N, h/8, w/8, 2048]
    net.outputs   # [N, h/8, w/8, num_classes], logits
"""

import collections
import copy
import functools

import tensorflow.compat.v1 as tf

from utils.net import dilated, layers
from utils.net.blocks import BLOCKS, convolutions
from utils.net.compat import numerics
from utils.weights import weight_names

ASPP_RATES = (6, 12, 18, 24)


class DilatedResNet(object):
    """ResNet bottleneck v1 at output stride 8 and atrous spatial pyramid pooling.

    A subclass supplies the encoder_name, by which weight_names spells the variables.
    """

    def __init__(self, inputs, num_classes, phase, encoder_name, **settings):
        """Builds the network on `inputs`.

        Args:
          inputs: float32 [N, H, W, 3], minus the mean; BGR unless compat is 'slim'.
          num_classes: channels of the logits.
          phase: True in training. It concerns batch_norm 'trained' only, which in False is 'frozen'.
          encoder_name: a key of BLOCKS.
          settings: see _configure.

        Raises:
          ValueError: unknown encoder_name, dilated_type, compat or batch_norm.
        """
        self.num_classes = num_classes
        self.encoder_name = encoder_name
        self._configure(phase, **settings)
        self.variables = []
        self.decoder_variables = []  # (weights, biases) of each branch of the ASPP
        self._pyramid = None  # its convolution and bias [num_classes], on this network's device for every apply()
        self._layers = collections.OrderedDict()  # name -> layer, so that every apply() shares the weights
        self.encoding, self.outputs = self.apply(inputs)

    def _configure(self, phase, dilated_type='regular', compat='original', batch_norm='frozen', blocks=None):
        """Checks and keeps the settings.

        Args:
          dilated_type: of the 3x3 convolutions of block3 and block4, a key of dilated.DILATED_TYPES.
          compat: whose padding, epsilon and initial values, a key of compat.COMPAT.
          batch_norm: one of layers.BATCH_NORM.
          blocks: a list of Block instead of the encoder's own.
        """
        if batch_norm not in layers.BATCH_NORM:
            raise ValueError("batch_norm '%s' is not one of %s" % (batch_norm, ', '.join(layers.BATCH_NORM)))
        self.batch_norm = 'frozen' if batch_norm == 'trained' and not phase else batch_norm
        self.dilated_type = dilated_type
        self.numerics = numerics(compat)
        self.blocks = blocks or BLOCKS[self.encoder_name]
        self._shapes = {(stage, unit, index): shape for stage, unit, index, shape in convolutions(self.blocks)}

    def apply(self, inputs):
        """Encoding and logits of `inputs` [N, H, W, 3]; the first call builds the weights, all share them."""
        encoding = self._encode(inputs)  # [N, H/8, W/8, 2048]
        return encoding, self._decode(encoding)  # [N, H/8, W/8, num_classes]

    def on(self, inputs):
        """The same network, with its weights, on other inputs [N, H, W, 3]: encoding and outputs are theirs."""
        other = copy.copy(self)
        other._pyramid = None
        other.encoding, other.outputs = other.apply(inputs)
        return other

    def rate_groups(self):
        weights, biases = map(list, zip(*self.decoder_variables))
        decoder = {v.op.name for v in weights + biases}
        trainable = {v.op.name for v in tf.trainable_variables()}
        encoder = [v for v in self.variables if v.op.name in trainable and v.op.name not in decoder]
        return {'encoder': encoder, 'decoder_weights': weights, 'decoder_biases': biases}

    def statistics(self):
        """[(variable of batch norm's moving average, what every apply() saw on average)]; [] unless it is trained."""
        return [pair for layer in self._layers.values() for pair in layer.statistics()]

    def fold_ops(self):
        """Ops that fold batch norm into the variables for good, for batch_norm 'folded'.

        One layer after the other, or for a moment there would be two of each weight.
        """
        ops = []
        for layer in self._layers.values():
            with tf.control_dependencies(ops[-2:]):
                ops.extend(layer.fold_ops())
        return ops

    def _encode(self, inputs):
        net = self._conv_bn(inputs, (1, 1, 1), stride=2)  # [N, H/2, W/2, 64]
        net = layers.max_pool(tf.nn.relu(net), pad=self.numerics.pool1_pad)  # [N, H/4, W/4, 64]
        for stage, block in enumerate(self.blocks, 2):
            for unit in range(1, block.units + 1):
                net = self._bottleneck(net, block, stage, unit)
        return net  # [N, H/8, W/8, 2048]

    def _bottleneck(self, inputs, block, stage, unit):
        """1x1 down to depth / 4, 3x3, 1x1 up to depth, added to the input or, in a block's first unit, to its 1x1."""
        stride = block.stride if unit == 1 else 1
        shortcut = self._conv_bn(inputs, (stage, unit, 0), stride) if unit == 1 else inputs
        net = tf.nn.relu(self._conv_bn(inputs, (stage, unit, 1), stride))
        net = tf.nn.relu(self._conv_bn(net, (stage, unit, 2), rate=block.rate))
        net = self._conv_bn(net, (stage, unit, 3))
        return tf.nn.relu(net + shortcut)

    def _conv_bn(self, inputs, place, stride=1, rate=1):
        """Convolution and batch norm at place = (stage, unit, index) of blocks.convolutions."""
        scopes = weight_names.conv_scopes(self.encoder_name, *place)
        if scopes not in self._layers:
            if rate == 1:
                pad = self.numerics.conv1_pad if place == (1, 1, 1) else None
                convolve = functools.partial(layers.conv2d, stride=stride, pad=pad)
            else:
                convolve = self._dilated(scopes[0], rate)
            # Training from random weights starts every residual branch at zero (Goyal et al. 2017, section 5.1).
            zero_gamma = self.batch_norm == 'trained' and place[2] == 3
            self._layers[scopes] = layers.ConvBN(
                scopes, self._shapes[place], convolve, self.batch_norm, self.numerics.epsilon, zero_gamma)
            self.variables.extend(self._layers[scopes].variables)
        return self._layers[scopes](inputs)

    def _dilated(self, name, rate):
        """The convolution of dilated_type, with its fix_w where the type has one."""
        convolve, fix_w_shape, fix_w_start = dilated.lookup(self.dilated_type)
        if fix_w_shape is None:
            return functools.partial(convolve, rate=rate)
        fix_w = layers.variable(name + '/fix_w', fix_w_shape(rate), fix_w_start)
        self.variables.append(fix_w)
        return functools.partial(convolve, rate=rate, fix_w=layers.read(fix_w))

    def _decode(self, encoding):
        """Four dilated 3x3 convolutions with biases, summed; regular ones whatever dilated_type says."""
        if not self.decoder_variables:
            self.decoder_variables = [self._aspp_branch(scope, encoding.shape[3])
                                      for scope in weight_names.decoder_scopes(self.encoder_name)]
            self.variables.extend(v for branch in self.decoder_variables for v in branch)
            self._branches = [tuple(map(layers.read, branch)) for branch in self.decoder_variables]
        if self._pyramid is None:
            weights, biases = zip(*self._branches)
            self._pyramid = dilated.pyramid(weights, ASPP_RATES), layers.ordered_sum(biases)
        convolve, bias = self._pyramid
        return tf.nn.bias_add(convolve(encoding), bias)

    def _aspp_branch(self, scope, depth_in):
        """Weights [3, 3, depth_in, num_classes] and biases [num_classes]."""
        weights_start, biases_start = None, None
        if self.numerics.gaussian_aspp:
            weights_start = tf.initializers.random_normal(stddev=0.01, seed=layers.seed_of(scope))
            biases_start = tf.initializers.zeros()
        return (layers.variable(scope + '/weights', [3, 3, depth_in, self.num_classes], weights_start),
                layers.variable(scope + '/biases', [self.num_classes], biases_start))


class Deeplab_v2(DilatedResNet):
    """ResNet-101 under the names of the Caffe model: res4b22_branch2c, bn4b22_branch2c, fc1_voc12_c0."""

    def __init__(self, inputs, num_classes, phase, **settings):
        super(Deeplab_v2, self).__init__(inputs, num_classes, phase, 'deeplab', **settings)


class ResNet_segmentation(DilatedResNet):
    """ResNet-101 or ResNet-50 under slim's names: resnet_v1_50/block3/unit_2/bottleneck_v1/conv2."""

    def __init__(self, inputs, num_classes, phase, encoder_name, **settings):
        if encoder_name not in weight_names.SLIM_SCOPES:
            raise ValueError("encoder_name '%s' is not one of %s" % (
                encoder_name, ', '.join(sorted(weight_names.SLIM_SCOPES))))
        super(ResNet_segmentation, self).__init__(inputs, num_classes, phase, encoder_name, **settings)


def build(encoder_name, images, **settings):
    """The network of an encoder_name on images [N, H, W, 3]; settings are those of the class."""
    if encoder_name == 'deeplab':
        return Deeplab_v2(images, **settings)
    return ResNet_segmentation(images, encoder_name=encoder_name, **settings)
