"""Dilated ResNet encoders with an ASPP decoder: one builder, two families of variable names.

    net = Deeplab_v2(images, num_classes=21, phase=True)
    net.encoding  # [N, h/8, w/8, 2048]
    net.outputs   # [N, h/8, w/8, num_classes], logits
"""

import collections
import functools

import tensorflow.compat.v1 as tf

from utils import dilated, layers
from utils.compat import numerics

Block = collections.namedtuple('Block', 'name depth units stride rate')
Names = collections.namedtuple('Names', 'conv bn')  # scopes of a convolution and of its batch norm


def resnet_blocks(block3_units):
    """The four blocks of a ResNet at output stride 8: dilation stands in for the last two strides."""
    return [
        Block('block1', 256, 3, 1, 1),
        Block('block2', 512, 4, 2, 1),
        Block('block3', 1024, block3_units, 1, 2),
        Block('block4', 2048, 3, 1, 4),
    ]


BLOCKS = {'deeplab': resnet_blocks(23), 'res101': resnet_blocks(23), 'res50': resnet_blocks(6)}
ASPP_RATES = (6, 12, 18, 24)


class DilatedResNet(object):
    """ResNet bottleneck v1 at output stride 8 and atrous spatial pyramid pooling.

    A subclass supplies the names: conv1_names(), unit_names() and aspp_names().
    """

    def __init__(self, inputs, num_classes, phase, blocks, dilated_type='regular', compat='original',
                 train_bn=False):
        """Builds the network on `inputs`.

        Args:
          inputs: float32 [N, H, W, 3], minus the mean; BGR unless compat is 'slim'.
          num_classes: channels of the logits.
          phase: True in training. It concerns batch norm only, and only with train_bn.
          blocks: a list of Block.
          dilated_type: of the 3x3 convolutions of block3 and block4, a key of dilated.DILATED_TYPES.
          compat: whose padding, epsilon and initial values, a key of compat.COMPAT.
          train_bn: batch norm is trained (gamma, beta, batch statistics in phase True); frozen if False.

        Raises:
          ValueError: unknown dilated_type or compat.
        """
        self.num_classes = num_classes
        self.phase = phase
        self.blocks = blocks
        self.dilated_type = dilated_type
        self.numerics = numerics(compat)
        self.train_bn = train_bn
        self.variables = []
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
        return [op for layer in self._layers.values() if isinstance(layer, layers.ConvBN)
                for op in layer.update_ops(decay)]

    @property
    def decoder_variables(self):
        """Weights and biases of the ASPP, a list for each branch."""
        return [self._layers[name].variables for name in self.aspp_names()]

    def _encode(self, inputs):
        net = self._conv_bn(inputs, self.conv1_names(), 7, 64, 2, pad=self.numerics.conv1_pad)  # [N, H/2, W/2, 64]
        net = layers.max_pool(tf.nn.relu(net), pad=self.numerics.pool1_pad)  # [N, H/4, W/4, 64]
        for number, block in enumerate(self.blocks, 1):
            for unit in range(1, block.units + 1):
                net = self._bottleneck(net, block, self.unit_names(number, unit), first=unit == 1)
        return net  # [N, H/8, W/8, 2048]

    def _bottleneck(self, inputs, block, names, first):
        """1x1 down to depth / 4, 3x3, 1x1 up to depth, added to the input or, in a block's first unit, to its 1x1."""
        stride = block.stride if first else 1
        shortcut = self._conv_bn(inputs, names('shortcut'), 1, block.depth, stride) if first else inputs
        net = tf.nn.relu(self._conv_bn(inputs, names('conv1'), 1, block.depth // 4, stride))
        net = tf.nn.relu(self._conv_bn(net, names('conv2'), 3, block.depth // 4, rate=block.rate))
        # Training from random weights starts every residual branch at zero (Goyal et al. 2017, section 5.1).
        net = self._conv_bn(net, names('conv3'), 1, block.depth, zero_gamma=self.train_bn)
        return tf.nn.relu(net + shortcut)

    def _conv_bn(self, inputs, names, size, depth, stride=1, rate=1, pad=None, zero_gamma=False):
        if names.conv not in self._layers:
            if rate == 1:
                convolve = functools.partial(layers.conv2d, stride=stride, pad=pad)
            else:
                convolve = self._dilated(names.conv, rate)
            self._add_layer(names.conv, layers.ConvBN(
                names.conv, names.bn, [size, size, inputs.shape[3], depth], convolve, self.numerics.epsilon,
                self.train_bn, self.train_bn and self.phase, zero_gamma))
        return self._layers[names.conv](inputs)

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
        start = (tf.initializers.random_normal(stddev=0.01), tf.initializers.zeros())
        for name, rate in zip(self.aspp_names(), ASPP_RATES):
            if name not in self._layers:
                self._add_layer(name, layers.ConvBias(
                    name, [3, 3, encoding.shape[3], self.num_classes],
                    functools.partial(dilated.regular, rate=rate),
                    *(start if self.numerics.gaussian_aspp else (None, None))))
        return tf.add_n([self._layers[name](encoding) for name in self.aspp_names()])

    def _add_layer(self, name, layer):
        self._layers[name] = layer
        self.variables.extend(layer.variables)


class Deeplab_v2(DilatedResNet):
    """ResNet-101 under the names of the Caffe model: res4b22_branch2c, bn4b22_branch2c, fc1_voc12_c0."""

    def __init__(self, inputs, num_classes, phase, dilated_type='regular', compat='original', train_bn=False):
        super(Deeplab_v2, self).__init__(
            inputs, num_classes, phase, BLOCKS['deeplab'], dilated_type, compat, train_bn)

    def conv1_names(self):
        return Names('conv1', 'bn_conv1')

    def unit_names(self, block, unit):
        """Units are a, b, c in a block of three and a, b1, b2, ... in a longer one; Caffe counts blocks from 2."""
        longer = self.blocks[block - 1].units > 3
        suffix = 'a' if unit == 1 else 'b%d' % (unit - 1) if longer else 'abc'[unit - 1]
        branch = {'shortcut': 'branch1', 'conv1': 'branch2a', 'conv2': 'branch2b', 'conv3': 'branch2c'}
        return lambda conv: Names('res%d%s_%s' % (block + 1, suffix, branch[conv]),
                                  'bn%d%s_%s' % (block + 1, suffix, branch[conv]))

    def aspp_names(self):
        return ['fc1_voc12_c%d' % i for i in range(4)]


class ResNet_segmentation(DilatedResNet):
    """ResNet-101 or ResNet-50 under slim's names: resnet_v1_50/block3/unit_2/bottleneck_v1/conv2."""

    SCOPES = {'res101': 'resnet_v1_101', 'res50': 'resnet_v1_50'}

    def __init__(self, inputs, num_classes, phase, encoder_name, dilated_type='regular', compat='original',
                 train_bn=False):
        if encoder_name not in self.SCOPES:
            raise ValueError("encoder_name '%s' is not one of %s" % (encoder_name, ', '.join(sorted(self.SCOPES))))
        self.scope = self.SCOPES[encoder_name]
        super(ResNet_segmentation, self).__init__(
            inputs, num_classes, phase, BLOCKS[encoder_name], dilated_type, compat, train_bn)

    def conv1_names(self):
        return Names(self.scope + '/conv1', self.scope + '/conv1/BatchNorm')

    def unit_names(self, block, unit):
        prefix = '%s/block%d/unit_%d/bottleneck_v1/' % (self.scope, block, unit)
        return lambda conv: Names(prefix + conv, prefix + conv + '/BatchNorm')

    def aspp_names(self):
        return ['decoder/aspp/conv%d' % i for i in range(1, 5)]
