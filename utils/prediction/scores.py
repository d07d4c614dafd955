"""The scores of images, the network's logits at their size, and the pass over a list that computes their classes."""

import collections

import tensorflow.compat.v1 as tf
from tqdm import tqdm

from utils.system import memory

# What was computed of an image: its index in the list, its label [H, W] (ignore_label without one) and its class map,
# int32 [H, W].
Prediction = collections.namedtuple('Prediction', 'index label classes')

VALIDATION = 'validation'  # a pass in the middle of a training, whose progress bar vanishes


def class_map(scores):
    """The class with the highest score: [N, H, W, num_classes] -> int32 [N, H, W]."""
    return tf.argmax(scores, axis=3, output_type=tf.int32)


def predictions(reader, build, restore, session_config, desc):
    """Yields a Prediction of every image of a reader, in its order.

    Args:
      reader: an ImageReader.
      build: a function from images [1, H, W, 3] to (network with batch_norm 'folded', scores [1, H, W, num_classes]).
      restore: a function from a session and the network's variables that gives these their values.
      session_config: a tf.ConfigProto.
      desc: what the progress bar says.
    """
    with tf.Graph().as_default():
        image, label = reader.single()  # [1, H, W, 3], [1, H, W, 1]
        net, scores = build(image)
        fetches = {'label': label[0, :, :, 0], 'classes': class_map(scores)[0]}
        fold = net.fold_ops()
        with tf.Session(config=session_config) as sess:
            restore(sess, net.variables)
            sess.run(fold)
            progress = tqdm(range(len(reader.images)), desc=desc, unit='image', mininterval=1.0,
                            leave=desc != VALIDATION)
            with memory.enough_for('the size of the images'), reader.running(sess):
                for index in progress:
                    yield Prediction(index=index, **sess.run(fetches))
