"""The network: a dilated ResNet as encoder and atrous spatial pyramid pooling as decoder.

    net = build('res50', images, num_classes=21, phase=True)
    net.encoding   # [N, H/8, W/8, 2048], for images [N, H, W, 3]
    net.outputs    # [N, H/8, W/8, num_classes], logits
    net.variables  # under the names that the weights files of this encoder use

The ResNet is in utils/net/encoders.py, the ASPP in utils/net/decoders.py and the table of encoders in
utils/net/blocks.py.
"""

import copy

import tensorflow.compat.v1 as tf

from utils.net import decoders, layers
from utils.net.blocks import ENCODERS
from utils.net.compat import numerics
from utils.net.encoders import ResNet


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
          compat: a key of compat.COMPAT: whose padding, epsilon and initial values to use.
          batch_norm: one of layers.BATCH_NORM.
          blocks: a list of Blocks to use instead of the encoder's own.

        Raises:
          ValueError: unknown encoder_name, decoder, dilated_type, compat or batch_norm.
        """
        if encoder_name not in ENCODERS:
            raise ValueError("encoder_name '%s' is not one of %s" % (encoder_name, ', '.join(ENCODERS)))
        if batch_norm not in layers.BATCH_NORM:
            raise ValueError("batch_norm '%s' is not one of %s" % (batch_norm, ', '.join(layers.BATCH_NORM)))
        batch_norm = 'frozen' if batch_norm == 'trained' and not phase else batch_norm
        self.num_classes, self.encoder_name = num_classes, encoder_name
        decoder_class, family = decoders.lookup(decoder), ENCODERS[encoder_name].family
        self.encoder = ResNet(encoder_name, numerics(compat), dilated_type, batch_norm, blocks)
        self.decoder = decoder_class(family, self.encoder.depth, num_classes, numerics(compat), batch_norm)
        self._compute(inputs)

    def _compute(self, inputs):
        self.maps = self.encoder.maps(inputs)       # maps[0] is pool1's output, maps[k] that of block k
        self.encoding = self.maps[-1]               # [N, H/8, W/8, 2048]
        self.outputs = self.decoder(self.encoding)  # [N, H/8, W/8, num_classes]

    def apply(self, inputs):
        """Returns (encoding, logits) for other inputs [N, H, W, 3], computed with the same weights."""
        encoding = self.encoder(inputs)
        return encoding, self.decoder(encoding)

    def on(self, inputs):
        """Returns a network that shares this one's weights, on other inputs [N, H, W, 3] and the current device."""
        other = copy.copy(self)
        other.decoder = self.decoder.on_another_device()
        other._compute(inputs)
        return other

    @property
    def encoder_variables(self):
        return self.encoder.variables

    @property
    def decoder_variables(self):
        return self.decoder.variables

    @property
    def variables(self):
        """All variables of the network, whether they are trained or not; the encoder's come first."""
        return self.encoder.variables + self.decoder.variables

    def rate_groups(self):
        """Returns the trainable variables grouped by learning rate, {group: list of variables}.

        The groups are 'encoder', 'decoder_weights' and 'decoder_biases' (DeepLab v2 trains the last two faster). All
        variables of the decoder other than biases, such as those of a batch norm, are in 'decoder_weights'.
        """
        decoder = [v for v in self.decoder.variables if v.trainable]
        biases = [v for v in decoder if v.op.name.endswith('/biases')]
        return {'encoder': [v for v in self.encoder.variables if v.trainable],
                'decoder_weights': [v for v in decoder if not v.op.name.endswith('/biases')],
                'decoder_biases': biases}

    def statistics(self):
        """Returns the new values for batch norm's moving averages; [] unless batch norm is trained.

        Returns:
          [(variable of a moving average, tensor with the mean of that statistic over all calls)].
        """
        return self.encoder.statistics() + self.decoder.statistics()

    def fold_ops(self):
        """Returns ops that fold batch norm into the variables permanently, for batch_norm 'folded'."""
        ops = self.encoder.fold_ops()
        with tf.control_dependencies(ops[-1:]):
            return ops + self.decoder.fold_ops()


class Deeplab_v2(DilatedResNet):
    """ResNet-101 whose variables have the names of the Caffe model: res4b22_branch2c, bn4b22_branch2c, fc1_voc12_c0."""

    def __init__(self, inputs, num_classes, phase, **settings):
        super(Deeplab_v2, self).__init__(inputs, num_classes, phase, 'deeplab', **settings)


class ResNet_segmentation(DilatedResNet):
    """ResNet-152, -101 or -50 whose variables have slim's names: resnet_v1_50/block3/unit_2/bottleneck_v1/conv2."""

    def __init__(self, inputs, num_classes, phase, encoder_name, **settings):
        known = [name for name, encoder in ENCODERS.items() if encoder.family == 'slim']
        if encoder_name not in known:
            raise ValueError("encoder_name '%s' is not one of %s" % (encoder_name, ', '.join(known)))
        super(ResNet_segmentation, self).__init__(inputs, num_classes, phase, encoder_name, **settings)


def build(encoder_name, images, num_classes, phase, **settings):
    """Returns a network with the encoder `encoder_name` on images [N, H, W, 3].

    Args:
      **settings: further arguments of DilatedResNet.
    """
    if encoder_name == 'deeplab':
        return Deeplab_v2(images, num_classes, phase, **settings)
    return ResNet_segmentation(images, num_classes, phase, encoder_name, **settings)
