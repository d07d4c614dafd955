"""Dilated ResNet encoders with an ASPP decoder: one builder, two families of variable names.

    net = Deeplab_v2(images, num_classes=21, phase=True)
    net.encoding  # [N, h/8, w/8, 2048]
    net.outputs   # [N, h/8, w/8, num_classes], logits
"""

import collections
import functools

import tensorflow.compat.v1 as tf

from utils.net import dilated, layers
from utils.net.blocks import BLOCKS, root_depth
from utils.net.compat import numerics
from utils.weights import weight_names

ASPP_RATES = (6, 12, 18, 24)


class DilatedResNet(object):
    """ResNet bottleneck v1 at output stride 8 and atrous spatial pyramid pooling.

    A subclass supplies the encoder_name, by which weight_names spells the variables.
    """

    def __init__(self, inputs, num_classes, phase, encoder_name, dilated_type='regular', compat='original',
                 train_bn=False, fold_in_place=False, blocks=None):
        """Builds the network on `inputs`.

        Args:
          inputs: float32 [N, H, W, 3], minus the mean; BGR unless compat is 'slim'.
          num_classes: channels of the logits.
          phase: True in training. It concerns batch norm only, and only with train_bn.
          encoder_name: a key of BLOCKS.
          dilated_type: of the 3x3 convolutions of block3 and block4, a key of dilated.DILATED_TYPES.
          compat: whose padding, epsilon and initial values, a key of compat.COMPAT.
          train_bn: batch norm is trained (gamma, beta, batch statistics in phase True); frozen if False.
          fold_in_place: fold_ops() will be run once, after the variables got their values, and before any use.
          blocks: a list of Block instead of the encoder's own.

        Raises:
          ValueError: unknown dilated_type or compat.
        """
        self.num_classes = num_classes
        self.phase = phase
        self.encoder_name = encoder_name
        self.blocks = blocks or BLOCKS[encoder_name]
        self.dilated_type = dilated_type
        self.numerics = numerics(compat)
        self.train_bn = train_bn
        self.fold_in_place = fold_in_place
        self.variables = []
        self.decoder_variables = []  # (weights, biases) of each branch of the ASPP
        self._layers = collections.OrderedDict()  # name -> layer, so that every apply() shares the weights
        self.encoding, self.outputs = self.apply(inputs)

    def apply(self, inputs):
        """Encoding and logits of `inputs` [N, H, W, 3]; the first call builds the weights, all share them."""
        encoding = self._encode(inputs)  # [N, H/8, W/8, 2048]
        return encoding, self._decode(encoding)  # [N, H/8, W/8, num_classes]

    def update_ops(self, decay):
        """Ops that move batch norm's averages towards what every apply() saw; none if it is frozen."""
        if not (self.train_bn and self.phase):
            return []
        return [op for layer in self._layers.values() for op in layer.update_ops(decay)]

    def fold_ops(self):
        """Ops that fold batch norm into the variables for good, for fold_in_place; the network is not to be saved."""
        return [op for layer in self._layers.values() for op in layer.fold_ops()]

    def _encode(self, inputs):
        depth, pad = root_depth(self.blocks), self.numerics.conv1_pad
        net = self._conv_bn(inputs, (1, 1, 1), 7, depth, 2, pad=pad)  # [N, H/2, W/2, 64]
        net = layers.max_pool(tf.nn.relu(net), pad=self.numerics.pool1_pad)  # [N, H/4, W/4, 64]
        for stage, block in enumerate(self.blocks, 2):
            for unit in range(1, block.units + 1):
                net = self._bottleneck(net, block, stage, unit)
        return net  # [N, H/8, W/8, 2048]

    def _bottleneck(self, inputs, block, stage, unit):
        """1x1 down to depth / 4, 3x3, 1x1 up to depth, added to the input or, in a block's first unit, to its 1x1."""
        depth, stride = block.depth // 4, block.stride if unit == 1 else 1
        shortcut = inputs
        if unit == 1:
            shortcut = self._conv_bn(inputs, (stage, unit, 0), 1, block.depth, stride)
        net = tf.nn.relu(self._conv_bn(inputs, (stage, unit, 1), 1, depth, stride))
        net = tf.nn.relu(self._conv_bn(net, (stage, unit, 2), 3, depth, rate=block.rate))
        # Training from random weights starts every residual branch at zero (Goyal et al. 2017, section 5.1).
        net = self._conv_bn(net, (stage, unit, 3), 1, block.depth, zero_gamma=self.train_bn)
        return tf.nn.relu(net + shortcut)

    def _conv_bn(self, inputs, place, size, depth, stride=1, rate=1, pad=None, zero_gamma=False):
        """Convolution and batch norm at place = (stage, unit, index) of weight_names.convolutions."""
        conv_scope, bn_scope = weight_names.conv_scopes(self.encoder_name, *place)
        if conv_scope not in self._layers:
            if rate == 1:
                convolve = functools.partial(layers.conv2d, stride=stride, pad=pad)
            else:
                convolve = self._dilated(conv_scope, rate)
            self._layers[conv_scope] = layers.ConvBN(
                conv_scope, bn_scope, [size, size, inputs.shape[3], depth], convolve, self.numerics.epsilon,
                self.train_bn, self.train_bn and self.phase, zero_gamma, self.fold_in_place)
            self.variables.extend(self._layers[conv_scope].variables)
        return self._layers[conv_scope](inputs)

    def _dilated(self, name, rate):
        """The convolution of dilated_type, with its fix_w where the type has one."""
        convolve, fix_w_shape, fix_w_start = dilated.lookup(self.dilated_type)
        if fix_w_shape is None:
            return functools.partial(convolve, rate=rate)
        fix_w = layers.variable(name + '/fix_w', fix_w_shape(rate), fix_w_start)
        self.variables.append(fix_w)
        return functools.partial(convolve, rate=rate, fix_w=fix_w)

    def _decode(self, encoding):
        """Four dilated 3x3 convolutions with biases, summed; regular ones whatever dilated_type says."""
        if not self.decoder_variables:
            self.decoder_variables = [self._aspp_branch(scope, encoding.shape[3])
                                      for scope in weight_names.decoder_scopes(self.encoder_name)]
            self.variables.extend(v for branch in self.decoder_variables for v in branch)
        weights, biases = zip(*self.decoder_variables)
        return tf.nn.bias_add(dilated.pyramid(encoding, weights, ASPP_RATES), tf.add_n(biases))

    def _aspp_branch(self, scope, depth_in):
        """Weights [3, 3, depth_in, num_classes] and biases [num_classes]."""
        weights_start, biases_start = None, None
        if self.numerics.gaussian_aspp:
            weights_start, biases_start = tf.initializers.random_normal(stddev=0.01), tf.initializers.zeros()
        return (layers.variable(scope + '/weights', [3, 3, depth_in, self.num_classes], weights_start),
                layers.variable(scope + '/biases', [self.num_classes], biases_start))


class Deeplab_v2(DilatedResNet):
    """ResNet-101 under the names of the Caffe model: res4b22_branch2c, bn4b22_branch2c, fc1_voc12_c0."""

    def __init__(self, inputs, num_classes, phase, dilated_type='regular', **settings):
        super(Deeplab_v2, self).__init__(inputs, num_classes, phase, 'deeplab', dilated_type, **settings)


class ResNet_segmentation(DilatedResNet):
    """ResNet-101 or ResNet-50 under slim's names: resnet_v1_50/block3/unit_2/bottleneck_v1/conv2."""

    def __init__(self, inputs, num_classes, phase, encoder_name, dilated_type='regular', **settings):
        if encoder_name not in weight_names.SLIM_SCOPES:
            raise ValueError("encoder_name '%s' is not one of %s" % (
                encoder_name, ', '.join(sorted(weight_names.SLIM_SCOPES))))
        super(ResNet_segmentation, self).__init__(inputs, num_classes, phase, encoder_name, dilated_type, **settings)
