"""Names and shapes of each encoder's and decoder's variables, and what the names and shapes in a file say about it."""

import functools
import re
from collections import Counter, OrderedDict

import tensorflow.compat.v1 as tf

from utils.net import decoders, dilated
from utils.net.blocks import BLOCKS, ENCODERS, convolutions
from utils.net.compat import COMPAT

BATCH_NORM = ('gamma', 'beta', 'moving_mean', 'moving_variance')
MODEL_LEAVES = BATCH_NORM + ('weights', 'biases', 'fix_w')
# What a training keeps beside the network, whatever comes before the last slash, numbered or not: slots and counters
# of TensorFlow's optimizers.
STATE_LEAVES = re.compile(r'(Momentum|Adam|AdamW|RMSProp|Adagrad|Ftrl|ExponentialMovingAverage|beta[12]_power|'
                          r'global_step|iterations?|learning_rate)(_[0-9]+)?')
# Layers of the Caffe models, whose names Keras' first ResNet-50 has too. Units are letters (res4f of ResNet-50) or
# a, b1, b2 and so on (res4b22 of ResNet-101).
CAFFE_LAYER = re.compile(r'(bn_|scale_)?conv1|(res|bn|scale)([2-5])([a-z])((?<=b)[1-9][0-9]?)?_branch(1|2[abc])')


# ---- what the networks have ----

def conv_scopes(encoder_name, stage, unit, index):
    """(scope of the weights, scope of the batch norm) of one of the `convolutions` of an encoder."""
    return ENCODERS[encoder_name].scopes(stage, unit, index)


def encoder_shapes(encoder_name):
    """Ordered {variable name: shape tuple} of an encoder, without fix_w (smoothed dilated convolutions)."""
    shapes = OrderedDict()
    for stage, unit, index, shape in convolutions(BLOCKS[encoder_name]):
        weights, batch_norm = conv_scopes(encoder_name, stage, unit, index)
        shapes[weights + '/weights'] = shape
        for leaf in BATCH_NORM:
            shapes[batch_norm + '/' + leaf] = shape[-1:]
    return shapes


def decoder_shapes(encoder_name, decoder='aspp', num_classes=21):
    """Ordered {variable name: shape tuple} of a decoder, a key of DECODERS, behind an encoder."""
    *_, last = convolutions(BLOCKS[encoder_name])
    return OrderedDict(_decoder_shapes(ENCODERS[encoder_name].family, last[3][-1], decoder, num_classes))


@functools.lru_cache(maxsize=None)
def _decoder_shapes(family, depth, decoder, num_classes):
    """[(name, shape)], as the decoder itself creates its variables."""
    with tf.Graph().as_default():
        return variable_shapes(decoders.lookup(decoder)(family, depth, num_classes, COMPAT['original']).variables)


def decoder_names(encoder_name):
    """The names that variables of any decoder have behind an encoder."""
    return {name for decoder in decoders.DECODERS for name in decoder_shapes(encoder_name, decoder)}


def variable_shapes(variables):
    """Ordered {name as in a checkpoint: shape tuple} of TensorFlow variables."""
    return OrderedDict((variable.op.name, tuple(variable.shape.as_list())) for variable in variables)


def in_encoder(name, encoder_name):
    """Whether a variable of an encoder has this name; its fix_w have one too."""
    scope, _, leaf = name.rpartition('/')
    return (scope + '/weights' if leaf == 'fix_w' else name) in encoder_shapes(encoder_name)


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


# ---- files that have their own names for the layers ----

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


def nearest_encoder(places, encoder_name, family):
    """Returns the encoder under whose names to read a file that has its own names for the layers.

    It is the one whose blocks have as many units as the file or, if there is none, differ by the fewest units.

    Args:
      places: (stage, unit) of the file's layers.
      encoder_name: the encoder that is wanted, taken if no other is nearer; None for any.
      family: whose names, 'caffe' or 'slim', otherwise.
    """
    units = Counter()
    for stage, unit in places:
        units[stage] = max(units[stage], unit)

    def distance(name):
        differences = [abs(block.units - units[stage]) for stage, block in enumerate(BLOCKS[name], 2)]
        return sum(differences), name != encoder_name, ENCODERS[name].family != family

    return min(reversed(list(ENCODERS)), key=distance)


def caffe_decoder_scopes(encoder_name):
    """{scope in a Caffe model: scope} of the decoder's convolutions, of all decoders."""
    scopes = {}
    for decoder in decoders.DECODERS:
        pairs = zip(decoder_shapes('deeplab', decoder), decoder_shapes(encoder_name, decoder))
        scopes.update((ours.rpartition('/')[0], theirs.rpartition('/')[0]) for ours, theirs in pairs)
    return scopes


# ---- what a file is of ----

def is_unit(name):
    """Whether a name is a weight of some bottleneck unit of either naming, be it in our networks or not."""
    leaf = name.rsplit('/', 1)[-1]
    return leaf in BATCH_NORM + ('weights',) and bool(
        re.match(r'(res|bn)\d[a-z]\d*_branch\d[a-z]?/|resnet_v1_\d+/block\d+/unit_\d+/', name))


def is_classifier(name):
    """Whether a name is a weight of an ImageNet classifier, or what slim's checkpoints have for it."""
    return '/logits/' in name or name.startswith('fc1000/') or name == 'mean_rgb'


def is_model(name):
    """Whether a name is a weight of a network, not an optimizer's slot, a step or an ImageNet classifier."""
    return name.rsplit('/', 1)[-1] in MODEL_LEAVES and not is_classifier(name)


def is_state(name, names=()):
    """Whether a name is of a training's state: an optimizer's slot or counter, or a step.

    Args:
      names: all names there are; what lies below the name of another variable is its slot.
    """
    scope, _, leaf = name.rpartition('/')
    return bool(STATE_LEAVES.fullmatch(leaf)) or scope in names


def encoder_of(shapes):
    """The encoder_name to whose names most of {name: shape} belong, or None."""
    counts = Counter({encoder: len(set(encoder_shapes(encoder)) & set(shapes)) for encoder in ENCODERS})
    encoder, count = counts.most_common(1)[0]
    return encoder if count else None


def fits(shapes, encoder_name):
    """Whether {name: shape} holds the whole of an encoder in the right shapes, and no further unit of it."""
    wanted = encoder_shapes(encoder_name)
    return (all(tuple(shapes.get(name, ())) == shape for name, shape in wanted.items())
            and not any(is_unit(name) and name not in wanted for name in shapes))


def decoder_of(shapes):
    """(decoder, num_classes) to whose variables most of {name: shape} belong, or (None, None)."""
    best = (0, 0), None, None
    for encoder in ENCODERS:
        for decoder in decoders.DECODERS:
            names = decoder_shapes(encoder, decoder)
            for num_classes in {shapes[name][-1] for name in names if shapes.get(name)}:
                held = sum(shapes.get(name, ())[-1:] == (num_classes,) for name in names)
                best = max(best, ((held, held - len(names)), decoder, num_classes), key=lambda one: one[0])
    return best[1:]


def num_classes_of(shapes):
    """Classes of the decoder in {name: shape}, or None without one."""
    return decoder_of(shapes)[1]


def dilated_type_of(shapes):
    """'smooth_GI' or 'smooth_SSC' by the fix_w in {name: shape}, else 'regular' (or decompose: the same)."""
    ranks = {len(shape) for name, shape in shapes.items() if name.endswith('/fix_w')}
    for dilated_type, (_, fix_w_shape, _) in dilated.DILATED_TYPES.items():
        if fix_w_shape and ranks == {len(fix_w_shape(2))}:
            return dilated_type
    return 'smooth_SSC' if ranks else 'regular'
