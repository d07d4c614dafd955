"""Names and shapes of each encoder's variables, and what the names and shapes in a file tell about it."""

import re
from collections import Counter, OrderedDict

from utils.net.blocks import BLOCKS, convolutions

SLIM_SCOPES = {'res101': 'resnet_v1_101', 'res50': 'resnet_v1_50'}
BATCH_NORM = ('gamma', 'beta', 'moving_mean', 'moving_variance')
MODEL_LEAVES = BATCH_NORM + ('weights', 'biases', 'fix_w')
# Layers of the Caffe models, whose names Keras' first ResNet-50 has too. Units are letters (res4f of ResNet-50) or
# a, b1, b2 and so on (res4b22 of ResNet-101).
CAFFE_LAYER = re.compile(r'(bn_|scale_)?conv1|(res|bn|scale)([2-5])([a-z])((?<=b)[1-9][0-9]?)?_branch(1|2[abc])')


def conv_scopes(encoder_name, stage, unit, index):
    """(scope of the weights, scope of the batch norm) of one of the `convolutions` of an encoder."""
    if encoder_name != 'deeplab':
        scope = SLIM_SCOPES[encoder_name]
        if stage == 1:
            scope += '/conv1'
        else:
            conv = ('shortcut', 'conv1', 'conv2', 'conv3')[index]
            scope += '/block%d/unit_%d/bottleneck_v1/%s' % (stage - 1, unit, conv)
        return scope, scope + '/BatchNorm'
    if stage == 1:
        return 'conv1', 'bn_conv1'
    if stage in (2, 5):
        letter = chr(ord('a') + unit - 1)
    else:
        letter = 'a' if unit == 1 else 'b%d' % (unit - 1)
    branch = '%d%s_branch%s' % (stage, letter, ('1', '2a', '2b', '2c')[index])
    return 'res' + branch, 'bn' + branch


def caffe_place(layer):
    """('conv', 'bn' or 'scale', stage, unit, index) of a layer named as in Caffe, None for any other name."""
    match = CAFFE_LAYER.fullmatch(layer)
    if not match:
        return None
    root, kind, stage, letter, number, branch = match.groups()
    if stage is None:
        return (root or 'conv_')[:-1], 1, 1, 1
    unit = int(number) + 1 if number else ord(letter) - ord('a') + 1
    return kind.replace('res', 'conv'), int(stage), unit, ('1', '2a', '2b', '2c').index(branch)


def nearest_encoder(places, encoder_name, deep):
    """The encoder under whose names to read a file that has its own names for the layers.

    Args:
      places: (stage, unit) of the file's layers.
      encoder_name: the encoder that is wanted, taken if it is as deep as the file; None for any.
      deep: the encoder_name otherwise for a file of more units than ResNet-50.
    """
    units = max([unit for stage, unit in places if stage == 4] or [0])
    nearest = deep if units > BLOCKS['res50'][2].units else 'res50'
    return encoder_name if encoder_name and BLOCKS[encoder_name] == BLOCKS[nearest] else nearest


def encoder_shapes(encoder_name):
    """Ordered {variable name: shape tuple} of an encoder, without fix_w (smoothed dilated convolutions)."""
    shapes = OrderedDict()
    for stage, unit, index, shape in convolutions(BLOCKS[encoder_name]):
        weights, batch_norm = conv_scopes(encoder_name, stage, unit, index)
        shapes[weights + '/weights'] = shape
        for leaf in BATCH_NORM:
            shapes[batch_norm + '/' + leaf] = shape[-1:]
    return shapes


def fold_biases(weights, encoder_name):
    """Moves the biases of an encoder's convolutions into their batch norm: (x + b) - mean is x - (mean - b).

    Args:
      weights: {variable name: array}, changed in place.

    Raises:
      ValueError: not as many biases as channels.
    """
    for stage, unit, index, _ in convolutions(BLOCKS[encoder_name]):
        conv, batch_norm = conv_scopes(encoder_name, stage, unit, index)
        biases, mean = conv + '/biases', batch_norm + '/moving_mean'
        if biases in weights and mean in weights:
            if weights[biases].shape != weights[mean].shape:
                raise ValueError('%s: %d values for %d channels' % (
                    biases, weights[biases].size, weights[mean].size))
            weights[mean] = weights[mean] - weights.pop(biases)


def decoder_scopes(encoder_name):
    """Scopes of the four parallel ASPP convolutions, rates 6, 12, 18 and 24."""
    if encoder_name == 'deeplab':
        return ['fc1_voc12_c%d' % i for i in range(4)]
    return ['decoder/aspp/conv%d' % i for i in range(1, 5)]


def in_encoder(name, encoder_name):
    """Whether a variable belongs to the encoder: all without 'fc' for deeplab, else slim's scope."""
    if encoder_name == 'deeplab':
        return 'fc' not in name
    return name.startswith(SLIM_SCOPES[encoder_name] + '/')


def is_unit(name):
    """Whether a name is a weight of some bottleneck unit of either naming, be it in our networks or not."""
    leaf = name.rsplit('/', 1)[-1]
    return leaf in BATCH_NORM + ('weights',) and bool(
        re.match(r'(res|bn)\d[a-z]\d*_branch\d[a-z]?/|resnet_v1_\d+/block\d+/unit_\d+/', name))


def is_model(name):
    """Whether a name is a weight of a network, not an optimizer's slot, a step or an ImageNet classifier."""
    leaf = name.rsplit('/', 1)[-1]
    return leaf in MODEL_LEAVES and '/logits/' not in name and not name.startswith('fc1000/')


def encoder_of(shapes):
    """The encoder_name to whose names most of {name: shape} belong, or None."""
    counts = Counter({encoder: len(set(encoder_shapes(encoder)) & set(shapes)) for encoder in BLOCKS})
    encoder, count = counts.most_common(1)[0]
    return encoder if count else None


def fits(shapes, encoder_name):
    """Whether {name: shape} holds the whole of an encoder in the right shapes, and no further unit of it."""
    wanted = encoder_shapes(encoder_name)
    return (all(tuple(shapes.get(name, ())) == shape for name, shape in wanted.items())
            and not any(is_unit(name) and name not in wanted for name in shapes))


def num_classes_of(shapes):
    """Classes of the ASPP decoder in {name: shape}, or None without one."""
    for encoder in BLOCKS:
        shape = shapes.get(decoder_scopes(encoder)[0] + '/weights')
        if shape:
            return shape[-1]
    return None


def dilated_type_of(shapes):
    """'smooth_GI' or 'smooth_SSC' by the fix_w in {name: shape}, else 'regular' (or decompose: the same)."""
    ranks = {len(shape) for name, shape in shapes.items() if name.endswith('/fix_w')}
    if not ranks:
        return 'regular'
    return 'smooth_GI' if ranks == {2} else 'smooth_SSC'
