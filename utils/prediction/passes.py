"""The scores of an image at several scales and mirrored, merged in the graph, one pass of the network at a time."""

import collections

import tensorflow.compat.v1 as tf

from utils.net import layers

# How images are scored. scales: of the image, one pass each; flip: once more for each, mirrored; merge: 'mean' of the
# passes' probabilities or 'max' of their logits, pixel by pixel.
Evaluation = collections.namedtuple('Evaluation', 'scales flip merge')
PLAIN = Evaluation((1.0,), False, 'mean')


def passes(evaluation):
    """[(scale, whether mirrored)] of an Evaluation."""
    sides = [False, True] if evaluation.flip else [False]
    return [(scale, mirrored) for scale in evaluation.scales for mirrored in sides]


def gives_probabilities(evaluation):
    """Whether the merged scores are probabilities; otherwise they are logits. A single pass has nothing to merge."""
    return evaluation.merge == 'mean' and len(passes(evaluation)) > 1


def merged(build, evaluation, align_corners, images):
    """The network and the scores of images, merged over the passes of an Evaluation.

    The passes are turns of a loop in the graph: it holds one network, and the memory of one pass and two scores.

    Args:
      build: a function from images [N, H, W, 3] to (network, logits [N, H, W, num_classes]).
      evaluation: an Evaluation.
      align_corners: how images and logits are resized, and sizes rounded.
      images: [N, H, W, 3].

    Returns:
      (the network, float32 [N, H, W, num_classes]: probabilities if gives_probabilities(evaluation), else logits).
    """
    if passes(evaluation) == [(1.0, False)]:
        return build(images)
    mean, (scales, mirrored) = gives_probabilities(evaluation), zip(*passes(evaluation))
    full_size, built = tf.shape(images)[1:3], []

    def add(turn, total):
        """Merges one pass into the total [N, H, W, num_classes], which starts as [1, 1, 1, 1]."""
        size = layers.scaled_size(full_size, tf.constant(scales)[turn], align_corners)
        mirrors = tf.constant(mirrored)[turn]  # before the scaling, as of an image that is a mirrored one
        net, scores = build(layers.resize(mirror_if(mirrors, images), size, align_corners))
        built.append((net, scores.shape[3]))
        scores = mirror_if(mirrors, layers.resize(scores, full_size, align_corners))
        return turn + 1, total + tf.nn.softmax(scores) if mean else tf.maximum(total, scores)

    start = tf.fill([1, 1, 1, 1], 0.0 if mean else tf.float32.min)
    _, total = tf.while_loop(lambda turn, total: turn < len(scales), add, [tf.constant(0), start],
                             shape_invariants=[tf.TensorShape([]), tf.TensorShape([None] * 4)],
                             parallel_iterations=1, back_prop=False)
    (net, num_classes), = built
    total.set_shape([images.shape[0], None, None, num_classes])
    return net, total / len(scales) if mean else total


def mirror_if(mirrors, maps):
    """[N, H, W, C] -> the same, left and right swapped where the boolean tensor `mirrors` is true."""
    mirrored = tf.cond(mirrors, lambda: tf.reverse(maps, [2]), lambda: tf.identity(maps))
    mirrored.set_shape(maps.shape)
    return mirrored
