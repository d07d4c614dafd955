"""The network: a dilated ResNet as encoder and atrous spatial pyramid pooling as decoder.

    net = build('res50', images, num_classes=21, phase=True)
    net.encoding   # [N, H/8, W/8, 2048], of images [N, H, W, 3]
    net.outputs    # [N, H/8, W/8, num_classes], logits
    net.variables  # under the names that weights files of this encoder have

utils/net/encoders.py has the ResNet, utils/net/decoders.py the ASPP, utils/net/blocks.py the table of encoders.
"""

import copy

import tensorflow.compat.v1 as tf

from utils.net import decoders, layers
from utils.net.blocks import ENCODERS
from utils.net.compat import numerics
from utils.net.encoders import ResNet


class DilatedResNet(object):
    """An encoder and a decoder: `outputs` are decoder(encoder(inputs))."""

    def __init__(self, inputs, num_classes, phase, encoder_name, decoder='aspp', dilated_type='regular',
                 compat='original', batch_norm='frozen', blocks=None):
        """Builds the network on `inputs`.

        Args:
          inputs: float32 [N, H, W, 3], minus the mean; BGR unless compat is 'slim'.
          num_classes: channels of the logits.
          phase: True in training. It concerns batch_norm 'trained' only, which in False is 'frozen'.
          encoder_name: a key of ENCODERS.
          decoder: a key of DECODERS.
          dilated_type: of the 3x3 convolutions of block3 and block4, a key of dilated.DILATED_TYPES.
          compat: whose padding, epsilon and initial values, a key of compat.COMPAT.
          batch_norm: one of layers.BATCH_NORM.
          blocks: a list of Block instead of the encoder's own.

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
        self.maps = self.encoder.maps(inputs)       # after pool1 and after each block, block k at [k]
        self.encoding = self.maps[-1]               # [N, H/8, W/8, 2048]
        self.outputs = self.decoder(self.encoding)  # [N, H/8, W/8, num_classes]

    def apply(self, inputs):
        """Returns encoding and logits of other inputs [N, H, W, 3] by the same weights."""
        encoding = self.encoder(inputs)
        return encoding, self.decoder(encoding)

    def on(self, inputs):
        """Returns the same network, with its weights, on other inputs [N, H, W, 3] and perhaps another device."""
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
        """All variables of the network, trained or not; the encoder's first."""
        return self.encoder.variables + self.decoder.variables

    def rate_groups(self):
        """Returns the trainable variables by the learning rate that they have, {group: list}.

        The groups are 'encoder', 'decoder_weights' and 'decoder_biases' (DeepLab v2 trains the last two faster);
        variables of a decoder that are no biases, such as a batch norm's, are among its weights.
        """
        decoder = [v for v in self.decoder.variables if v.trainable]
        biases = [v for v in decoder if v.op.name.endswith('/biases')]
        return {'encoder': [v for v in self.encoder.variables if v.trainable],
                'decoder_weights': [v for v in decoder if not v.op.name.endswith('/biases')],
                'decoder_biases': biases}

    def statistics(self):
        """[(variable of batch norm's moving average, what every call saw on average)]; [] unless it is trained."""
        return self.encoder.statistics() + self.decoder.statistics()

    def fold_ops(self):
        """Ops that fold batch norm into the variables for good, for batch_norm 'folded'."""
        ops = self.encoder.fold_ops()
        with tf.control_dependencies(ops[-1:]):
            return ops + self.decoder.fold_ops()


class Deeplab_v2(DilatedResNet):
    """ResNet-101 under the names of the Caffe model: res4b22_branch2c, bn4b22_branch2c, fc1_voc12_c0."""

    def __init__(self, inputs, num_classes, phase, **settings):
        super(Deeplab_v2, self).__init__(inputs, num_classes, phase, 'deeplab', **settings)


class ResNet_segmentation(DilatedResNet):
    """ResNet-152, -101 or -50 under slim's names: resnet_v1_50/block3/unit_2/bottleneck_v1/conv2."""

    def __init__(self, inputs, num_classes, phase, encoder_name, **settings):
        known = [name for name, encoder in ENCODERS.items() if encoder.family == 'slim']
        if encoder_name not in known:
            raise ValueError("encoder_name '%s' is not one of %s" % (encoder_name, ', '.join(known)))
        super(ResNet_segmentation, self).__init__(inputs, num_classes, phase, encoder_name, **settings)


def build(encoder_name, images, num_classes, phase, **settings):
    """Returns the network of an encoder_name on images [N, H, W, 3]; settings are those of DilatedResNet."""
    if encoder_name == 'deeplab':
        return Deeplab_v2(images, num_classes, phase, **settings)
    return ResNet_segmentation(images, num_classes, phase, encoder_name, **settings)
