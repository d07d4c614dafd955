"""The encoder: a dilated ResNet, from images to features of an eighth of their height and width."""

import collections
import functools

import tensorflow.compat.v1 as tf

from utils.net import dilated, layers
from utils.net.blocks import BLOCKS, ENCODERS, convolutions


class ResNet(layers.Piece):
    """A ResNet of bottleneck units (He et al. 2016, version 1) at output stride 8: dilation replaces two strides."""

    def __init__(self, encoder_name, numerics, dilated_type, batch_norm, blocks=None):
        """Creates the variables.

        Args:
          encoder_name: a key of ENCODERS.
          numerics: a compat.Numerics.
          dilated_type: a key of dilated.DILATED_TYPES, for the 3x3 convolutions of blocks with a rate above 1.
          batch_norm: one of layers.BATCH_NORM.
          blocks: a list of Blocks to use instead of the encoder's own.
        """
        super(ResNet, self).__init__()
        self.blocks, self._numerics = blocks or BLOCKS[encoder_name], numerics
        self._convolutions = collections.OrderedDict()  # (stage, unit, index) of blocks.convolutions -> layers.ConvBN
        for stage, unit, index, shape in convolutions(self.blocks):
            scopes = ENCODERS[encoder_name].scopes(stage, unit, index)
            convolve = layers.conv2d
            rate = self.blocks[stage - 2].rate if stage > 1 and index == 2 else 1
            if rate > 1:
                convolve = self._dilated(dilated_type, scopes[0], rate)
            # In training from random weights, every residual branch starts at zero (Goyal et al. 2017, section 5.1).
            zero_gamma = batch_norm == 'trained' and index == 3
            self._convolutions[stage, unit, index] = self.add(
                layers.ConvBN(scopes, shape, convolve, batch_norm, numerics.epsilon, zero_gamma))
            self.depth = shape[-1]  # channels of the features

    def _dilated(self, dilated_type, scope, rate):
        """Returns the convolution of a dilated_type, and creates its variable fix_w if the type has one."""
        convolve, fix_w_shape, fix_w_start = dilated.lookup(dilated_type)
        if fix_w_shape is None:
            return functools.partial(convolve, rate=rate)
        fix_w = self.variable(scope + '/fix_w', fix_w_shape(rate), fix_w_start)
        return functools.partial(convolve, rate=rate, fix_w=layers.read(fix_w))

    def __call__(self, images):
        """Returns the features: [N, H, W, 3] -> [N, H/8, W/8, 2048]."""
        return self.maps(images)[-1]

    def maps(self, images):
        """Returns the maps of images [N, H, W, 3]: the output of pool1 [N, H/4, W/4, 64] and that of each block."""
        maps = [self.root(images)]
        for stage in range(2, 2 + len(self.blocks)):
            maps.append(self.block(maps[-1], stage))
        return maps

    def root(self, images):
        """Applies conv1 and pool1: [N, H, W, 3] -> [N, H/4, W/4, 64]."""
        net = self._convolutions[1, 1, 1](images, stride=2, pad=self._numerics.conv1_pad)  # [N, H/2, W/2, 64]
        return layers.max_pool(tf.nn.relu(net), pad=self._numerics.pool1_pad)

    def block(self, inputs, stage):
        """Applies the block of a stage, 2 to 5: [N, h, w, C] -> [N, h / stride, w / stride, depth]."""
        net, block = inputs, self.blocks[stage - 2]
        for unit in range(1, block.units + 1):
            net = self._bottleneck(net, stage, unit, block.stride if unit == 1 else 1)
        return net

    def _bottleneck(self, inputs, stage, unit, stride):
        """Applies a bottleneck unit: 1x1 (down to depth / 4), 3x3 and 1x1 (up to depth) convolutions plus the shortcut.

        The shortcut is the input itself or, in a block's first unit, a 1x1 convolution of it.
        """
        shortcut, reduce, middle, expand = [self._convolutions.get((stage, unit, index)) for index in range(4)]
        # The shortcut comes first: the order of the ops decides how TensorFlow 1.15 rounds the gradients' sums.
        shortcut = shortcut(inputs, stride=stride) if shortcut else inputs
        residual = tf.nn.relu(reduce(inputs, stride=stride))
        residual = tf.nn.relu(middle(residual))
        return tf.nn.relu(expand(residual) + shortcut)
