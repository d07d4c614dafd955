"""Names and shapes of the encoders' and decoders' variables, and functions that recognise a file's network by them."""

import functools
import re
from collections import Counter, OrderedDict

import tensorflow.compat.v1 as tf

from utils.net import decoders, dilated
from utils.net.blocks import BLOCKS, ENCODERS, convolutions, depths
from utils.net.compat import COMPAT

BATCH_NORM = ('gamma', 'beta', 'moving_mean', 'moving_variance')
MODEL_LEAVES = BATCH_NORM + ('weights', 'biases', 'fix_w')
# The last part of the names of variables that a training keeps beside the network, numbered or not: slots and counters
# of TensorFlow's optimizers.
STATE_LEAVES = re.compile(r'(Momentum|Adam|AdamW|RMSProp|Adagrad|Ftrl|ExponentialMovingAverage|beta[12]_power|'
                          r'global_step|iterations?|learning_rate)(_[0-9]+)?')
# Layers of the Caffe models, whose names Keras' first ResNet-50 has too. Units are letters (res4f in ResNet-50) or
# a, b1, b2 and so on (res4b22 in ResNet-101).
CAFFE_LAYER = re.compile(r'(bn_|scale_)?conv1|(res|bn|scale)([2-5])([a-z])((?<=b)[1-9][0-9]?)?_branch(1|2[abc])')


# ---- variables of the networks ----

def conv_scopes(encoder_name, stage, unit, index):
    """Returns (scope of the weights, scope of the batch norm) of one of an encoder's `convolutions`."""
    return ENCODERS[encoder_name].scopes(stage, unit, index)


def encoder_shapes(encoder_name):
    """Returns an ordered {variable name: shape tuple} of an encoder, without the fix_w of smoothed convolutions."""
    shapes = OrderedDict()
    for stage, unit, index, shape in convolutions(BLOCKS[encoder_name]):
        weights, batch_norm = conv_scopes(encoder_name, stage, unit, index)
        shapes[weights + '/weights'] = shape
        for leaf in BATCH_NORM:
            shapes[batch_norm + '/' + leaf] = shape[-1:]
    return shapes


def decoder_shapes(encoder_name, decoder='aspp', num_classes=21):
    """Returns an ordered {variable name: shape tuple} of a decoder, a key of DECODERS, that follows an encoder."""
    channels = tuple(depths(BLOCKS[encoder_name]))
    return OrderedDict(_decoder_shapes(ENCODERS[encoder_name].family, channels, decoder, num_classes))


@functools.lru_cache(maxsize=None)
def _decoder_shapes(family, channels, decoder, num_classes):
    """Returns an ordered {variable name: shape tuple} of the variables that the decoder creates for a family's names.

    Args:
      family: 'caffe' or 'slim'.
      channels: depths of the encoder's maps, a tuple.
      decoder: a key of DECODERS.
      num_classes: number of classes.
    """
    with tf.Graph().as_default():
        return variable_shapes(decoders.lookup(decoder)(family, channels, num_classes, COMPAT['original']).variables)


def decoder_names(encoder_name):
    """Returns the set of the names of all decoders' variables when they follow an encoder."""
    return {name for decoder in decoders.DECODERS for name in decoder_shapes(encoder_name, decoder)}


def variable_shapes(variables):
    """Returns an ordered {name in a checkpoint: shape tuple} of TensorFlow variables."""
    return OrderedDict((variable.op.name, tuple(variable.shape.as_list())) for variable in variables)


def in_encoder(name, encoder_name):
    """Returns whether an encoder has a variable of this name; fix_w counts too."""
    scope, _, leaf = name.rpartition('/')
    return (scope + '/weights' if leaf == 'fix_w' else name) in encoder_shapes(encoder_name)


def fold_biases(weights, encoder_name):
    """Moves the biases of an encoder's convolutions into their batch norm: (x + b) - mean is x - (mean - b).

    Args:
      weights: {variable name: array}, changed in place.
      encoder_name: the encoder.

    Raises:
      ValueError: the number of biases is not the number of channels.
    """
    for stage, unit, index, _ in convolutions(BLOCKS[encoder_name]):
        conv, batch_norm = conv_scopes(encoder_name, stage, unit, index)
        biases, mean = conv + '/biases', batch_norm + '/moving_mean'
        if biases in weights and mean in weights:
            if weights[biases].shape != weights[mean].shape:
                raise ValueError('%s: %d values for %d channels' % (
                    biases, weights[biases].size, weights[mean].size))
            weights[mean] = weights[mean] - weights.pop(biases)


# ---- files that have their own names for the layers ----

def caffe_place(layer):
    """Returns ('conv', 'bn' or 'scale', stage, unit, index) of a layer named as in Caffe, None for any other name."""
    match = CAFFE_LAYER.fullmatch(layer)
    if not match:
        return None
    root, kind, stage, letter, number, branch = match.groups()
    if stage is None:
        return (root or 'conv_')[:-1], 1, 1, 1
    unit = int(number) + 1 if number else ord(letter) - ord('a') + 1
    return kind.replace('res', 'conv'), int(stage), unit, ('1', '2a', '2b', '2c').index(branch)


def nearest_encoder(places, encoder_name, family):
    """Returns the encoder whose names to use for a file that has its own names for the layers.

    This is the encoder whose blocks have as many units as the file or, if there is none, the closest numbers of units.

    Args:
      places: (stage, unit) of the file's layers.
      encoder_name: the encoder to prefer if no other is nearer; None for no preference.
      family: 'caffe' or 'slim', the family of names to prefer after that.
    """
    units = Counter()
    for stage, unit in places:
        units[stage] = max(units[stage], unit)

    def distance(name):
        differences = [abs(block.units - units[stage]) for stage, block in enumerate(BLOCKS[name], 2)]
        return sum(differences), name != encoder_name, ENCODERS[name].family != family

    return min(reversed(list(ENCODERS)), key=distance)


def caffe_decoder_scopes(encoder_name):
    """Returns {scope in a Caffe model: scope in the encoder's family} of the convolutions of all decoders."""
    scopes = {}
    for decoder in decoders.DECODERS:
        pairs = zip(decoder_shapes('deeplab', decoder), decoder_shapes(encoder_name, decoder))
        scopes.update((ours.rpartition('/')[0], theirs.rpartition('/')[0]) for ours, theirs in pairs)
    return scopes


# ---- recognising the contents of a file ----

def is_unit(name):
    """Returns whether a weight, in either naming, belongs to a bottleneck unit, even one that no network here has."""
    leaf = name.rsplit('/', 1)[-1]
    return leaf in BATCH_NORM + ('weights',) and bool(
        re.match(r'(res|bn)\d[a-z]\d*_branch\d[a-z]?/|resnet_v1_\d+/block\d+/unit_\d+/', name))


def is_classifier(name):
    """Returns whether a name belongs to a weight of an ImageNet classifier or is slim's mean_rgb."""
    return '/logits/' in name or name.startswith('fc1000/') or name == 'mean_rgb'


def is_model(name):
    """Returns whether a name belongs to a weight of a network, not to an optimizer's slot, a step or a classifier."""
    return name.rsplit('/', 1)[-1] in MODEL_LEAVES and not is_classifier(name)


def is_state(name, names=()):
    """Returns whether a name belongs to the state of a training: an optimizer's slot or counter, or a step.

    Args:
      name: the name of a variable.
      names: the names of all variables; a name that continues another variable's name belongs to its slot.
    """
    scope, _, leaf = name.rpartition('/')
    return bool(STATE_LEAVES.fullmatch(leaf)) or scope in names


def encoder_of(shapes):
    """Returns the encoder_name that shares the most names with {name: shape}, or None."""
    counts = Counter({encoder: len(set(encoder_shapes(encoder)) & set(shapes)) for encoder in ENCODERS})
    encoder, count = counts.most_common(1)[0]
    return encoder if count else None


def fits(shapes, encoder_name):
    """Returns whether {name: shape} holds a whole encoder in the right shapes, and no additional units."""
    wanted = encoder_shapes(encoder_name)
    return (all(tuple(shapes.get(name, ())) == shape for name, shape in wanted.items())
            and not any(is_unit(name) and name not in wanted for name in shapes))


def decoder_of(shapes):
    """Returns the (decoder, num_classes) that shares the most variables with {name: shape}, or (None, None)."""
    best = (0, 0), None, None
    for encoder in ENCODERS:
        for decoder in decoders.DECODERS:
            two, three = decoder_shapes(encoder, decoder, 2), decoder_shapes(encoder, decoder, 3)
            of_classes = [name for name in two if two[name] != three[name]]  # other layers have a depth of their own
            for num_classes in {shapes[name][-1] for name in of_classes if shapes.get(name)}:
                wanted = decoder_shapes(encoder, decoder, num_classes)
                held = sum(shapes.get(name, ())[-1:] == shape[-1:] for name, shape in wanted.items())
                best = max(best, ((held, held - len(wanted)), decoder, num_classes), key=lambda one: one[0])
    return best[1:]


def num_classes_of(shapes):
    """Returns the number of classes of the decoder in {name: shape}, or None if there is no decoder."""
    return decoder_of(shapes)[1]


def dilated_type_of(shapes):
    """Returns 'smooth_GI' or 'smooth_SSC' by the fix_w in {name: shape}, else 'regular' (which may be decompose)."""
    ranks = {len(shape) for name, shape in shapes.items() if name.endswith('/fix_w')}
    for dilated_type, (_, fix_w_shape, _) in dilated.DILATED_TYPES.items():
        if fix_w_shape and ranks == {len(fix_w_shape(2))}:
            return dilated_type
    return 'smooth_SSC' if ranks else 'regular'
