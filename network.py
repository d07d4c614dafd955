"""The network: a dilated ResNet as encoder and atrous spatial pyramid pooling as decoder.

    net = build('res50', images, num_classes=21, phase=True)
    net.encoding   # [N, H/8, W/8, 2048], for images [N, H, W, 3]
    net.outputs    # [N, H/8, W/8, num_classes], logits
    net.variables  # with the same names as in weights files for this encoder

The decoders are in utils/net/decoders.py, and utils/net/blocks.py has the table of encoders.
"""

import collections
import copy
import functools

import tensorflow.compat.v1 as tf

from utils.net import decoders, dilated, layers
from utils.net.blocks import BLOCKS, ENCODERS, convolutions, depths
from utils.net.compat import numerics


class DilatedResNet(object):
    """An encoder and a decoder: `outputs` is decoder(encoder(inputs))."""

    def __init__(self, inputs, num_classes, phase, encoder_name, decoder='aspp', dilated_type='regular',
                 compat='original', batch_norm='frozen', blocks=None):
        """Builds the network on `inputs`.

        Args:
          inputs: float32 [N, H, W, 3], minus the mean; BGR unless compat is 'slim'.
          num_classes: channels of the logits.
          phase: True in training. Only batch_norm 'trained' depends on it: if phase is False, it becomes 'frozen'.
          encoder_name: a key of ENCODERS.
          decoder: a key of DECODERS.
          dilated_type: a key of dilated.DILATED_TYPES, for the 3x3 convolutions of block3 and block4.
          compat: a key of compat.COMPAT, which determines padding, epsilon and initial values.
          batch_norm: one of layers.BATCH_NORM.
          blocks: a list of Blocks that replaces the blocks of the encoder; None for the encoder's.

        Raises:
          ValueError: encoder_name, decoder, dilated_type, compat or batch_norm is unknown.
        """
        if encoder_name not in ENCODERS:
            raise ValueError("encoder_name '%s' is not one of %s" % (encoder_name, ', '.join(ENCODERS)))
        if batch_norm not in layers.BATCH_NORM:
            raise ValueError("batch_norm '%s' is not one of %s" % (batch_norm, ', '.join(layers.BATCH_NORM)))
        batch_norm = 'frozen' if batch_norm == 'trained' and not phase else batch_norm
        self.num_classes, self.encoder_name = num_classes, encoder_name
        decoder_class, family = decoders.lookup(decoder), ENCODERS[encoder_name].family
        mode = numerics(compat)
        encoder = ResNet(encoder_name, mode, dilated_type, batch_norm, blocks)
        # In training, the batch norm of a decoder is always trained, because its initial averages are meaningless.
        decoder = decoder_class(family, depths(encoder.blocks), num_classes, mode,
                                'trained' if phase else batch_norm)
        self.pieces = collections.OrderedDict([('encoder', encoder), ('decoder', decoder)])  # all parts with variables
        self._compute(inputs)

    def _compute(self, inputs):
        self.maps = self.encoder.maps(inputs)       # maps[0] is the output of pool1, maps[k] of block k
        self.encoding = self.maps[-1]               # [N, H/8, W/8, 2048]
        self.outputs = self.decoder(self.encoding)  # [N, H/8, W/8, num_classes]
        self.auxiliary = self.decoder.auxiliary(self.maps)  # logits that are used only in training

    def apply(self, inputs):
        """Computes (encoding, logits) for other inputs [N, H, W, 3] with the same weights."""
        encoding = self.encoder(inputs)
        return encoding, self.decoder(encoding)

    def on(self, inputs):
        """Returns a network with the same weights on other inputs [N, H, W, 3] and on the current device."""
        other = copy.copy(self)
        other.pieces = collections.OrderedDict((name, piece.on_another_device()) for name, piece in self.pieces.items())
        other._compute(inputs)
        return other

    @property
    def encoder(self):
        return self.pieces['encoder']

    @property
    def decoder(self):
        return self.pieces['decoder']

    @property
    def encoder_variables(self):
        return self.encoder.variables

    @property
    def decoder_variables(self):
        """The variables of all parts of the network except the encoder."""
        return [v for name, piece in self.pieces.items() if name != 'encoder' for v in piece.variables]

    @property
    def variables(self):
        """All variables of the network, trainable or not, starting with the encoder's."""
        return self.encoder_variables + self.decoder_variables

    def rate_groups(self):
        """Returns the trainable variables grouped by learning rate, {group: list of variables}.

        The groups are 'encoder', 'decoder_weights' and 'decoder_biases' (DeepLab v2 trains the last two faster). The
        group 'decoder_weights' has all variables of the decoder except biases, including gamma and beta.
        """
        decoder = [v for v in self.decoder_variables if v.trainable]
        biases = [v for v in decoder if v.op.name.endswith('/biases')]
        return {'encoder': [v for v in self.encoder_variables if v.trainable],
                'decoder_weights': [v for v in decoder if not v.op.name.endswith('/biases')],
                'decoder_biases': biases}

    def statistics(self):
        """Returns the new values for batch norm's moving averages; [] unless batch norm is trained.

        Returns:
          a list of (variable of a moving average, tensor: mean of that statistic over all calls).
        """
        return [pair for piece in self.pieces.values() for pair in piece.statistics()]

    @property
    def shapes(self):
        """{name: shape} of the weights that files contain for this network.

        These are the variables of the network unless batch_norm is 'folded'.
        """
        return collections.OrderedDict(pair for piece in self.pieces.values() for pair in piece.shapes.items())

    def folded(self, values):
        """Converts weights {name: array}, as stored in files, to {name: array} for the variables of this network.

        They are the same unless batch_norm is 'folded'.
        """
        for piece in self.pieces.values():
            values = piece.folded(values)
        return values


class ResNet(layers.Piece):
    """A ResNet of bottleneck units (He et al. 2016, version 1) at output stride 8: dilation replaces two strides."""

    def __init__(self, encoder_name, numerics, dilated_type, batch_norm, blocks=None):
        """Creates the variables.

        Args:
          encoder_name: a key of ENCODERS.
          numerics: a compat.Numerics.
          dilated_type: a key of dilated.DILATED_TYPES, for the 3x3 convolutions of blocks with a rate above 1.
          batch_norm: one of layers.BATCH_NORM.
          blocks: a list of Blocks that replaces the blocks of the encoder; None for the encoder's.
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
            # For training from random weights, every residual branch starts at zero (Goyal et al. 2017, section 5.1).
            zero_gamma = batch_norm == 'trained' and index == 3
            self._convolutions[stage, unit, index] = self.add(
                layers.ConvBN(scopes, shape, convolve, batch_norm, numerics.epsilon, zero_gamma))

    def _dilated(self, dilated_type, scope, rate):
        """Returns the convolution function for a dilated_type; creates the variable fix_w if the type has one."""
        convolve, fix_w_shape, fix_w_start = dilated.lookup(dilated_type)
        if fix_w_shape is None:
            return functools.partial(convolve, rate=rate)
        fix_w = self.variable(scope + '/fix_w', fix_w_shape(rate), fix_w_start)
        return functools.partial(convolve, rate=rate, fix_w=layers.read(fix_w))

    def __call__(self, images):
        """Returns the features: [N, H, W, 3] -> [N, H/8, W/8, 2048]."""
        return self.maps(images)[-1]

    def maps(self, images):
        """Returns a list of maps for images [N, H, W, 3]: the outputs of pool1 [N, H/4, W/4, 64] and of each block."""
        maps = [self.root(images)]
        for stage in range(2, 2 + len(self.blocks)):
            maps.append(self.block(maps[-1], stage))
        return maps

    def root(self, images):
        """Applies conv1 and pool1: [N, H, W, 3] -> [N, H/4, W/4, 64]."""
        net = self._convolutions[1, 1, 1](images, stride=2, pad=self._numerics.conv1_pad)  # [N, H/2, W/2, 64]
        return layers.max_pool(tf.nn.relu(net), pad=self._numerics.pool1_pad)

    def block(self, inputs, stage):
        """Applies the block of a stage, 2 to 5: [N, h, w, C] -> [N, h/stride, w/stride, depth]."""
        net, block = inputs, self.blocks[stage - 2]
        for unit in range(1, block.units + 1):
            net = self._bottleneck(net, stage, unit, block.stride if unit == 1 else 1)
        return net

    def _bottleneck(self, inputs, stage, unit, stride):
        """Applies a bottleneck unit: 1x1 (down to depth / 4), 3x3 and 1x1 (up to depth) convolutions plus the shortcut.

        The shortcut is the input or, in the first unit of a block, a 1x1 convolution of the input.
        """
        shortcut, reduce, middle, expand = [self._convolutions.get((stage, unit, index)) for index in range(4)]
        # The shortcut comes first, because the order of the ops affects how TensorFlow 1.15 rounds sums of gradients.
        shortcut = shortcut(inputs, stride=stride) if shortcut else inputs
        residual = tf.nn.relu(reduce(inputs, stride=stride))
        residual = tf.nn.relu(middle(residual))
        return tf.nn.relu(expand(residual) + shortcut)


class Deeplab_v2(DilatedResNet):
    """ResNet-101 with variables named as in the Caffe model: res4b22_branch2c, bn4b22_branch2c, fc1_voc12_c0."""

    def __init__(self, inputs, num_classes, phase, **settings):
        super(Deeplab_v2, self).__init__(inputs, num_classes, phase, 'deeplab', **settings)


class ResNet_segmentation(DilatedResNet):
    """ResNet-152, -101 or -50 with variables named as in TF-slim: resnet_v1_50/block3/unit_2/bottleneck_v1/conv2."""

    def __init__(self, inputs, num_classes, phase, encoder_name, **settings):
        known = [name for name, encoder in ENCODERS.items() if encoder.family == 'slim']
        if encoder_name not in known:
            raise ValueError("encoder_name '%s' is not one of %s" % (encoder_name, ', '.join(known)))
        super(ResNet_segmentation, self).__init__(inputs, num_classes, phase, encoder_name, **settings)


def build(encoder_name, images, num_classes, phase, **settings):
    """Builds a network on images.

    Args:
      encoder_name: a key of ENCODERS.
      images: float32 [N, H, W, 3], minus the mean.
      num_classes, phase, **settings: arguments of DilatedResNet.

    Returns:
      a DilatedResNet.
    """
    if encoder_name == 'deeplab':
        return Deeplab_v2(images, num_classes, phase, **settings)
    return ResNet_segmentation(images, num_classes, phase, encoder_name, **settings)
