"""The scores of images, the network's logits at their size, and the pass over a list that computes their classes."""

import tensorflow.compat.v1 as tf
from tqdm import tqdm

from utils.system import memory
from utils.weights import checkpoints


def class_map(scores):
    """The class with the highest score: [N, H, W, num_classes] -> int32 [N, H, W]."""
    return tf.argmax(scores, axis=3, output_type=tf.int32)


def class_maps(reader, build, prefix, session_config, desc):
    """Yields (label [H, W], class map [H, W]) of every image of a reader, in its order.

    Args:
      reader: an ImageReader.
      build: a function from images [1, H, W, 3] to (network with batch_norm 'folded', scores [1, H, W, num_classes]).
      prefix: the checkpoint to restore.
      session_config: a tf.ConfigProto.
      desc: what the progress bar says.
    """
    with tf.Graph().as_default():
        image, label = reader.single()  # [1, H, W, 3], [1, H, W, 1]
        net, scores = build(image)
        fetches = {'label': label[0, :, :, 0], 'classes': class_map(scores)[0]}
        fold = net.fold_ops()
        with tf.Session(config=session_config) as sess:
            checkpoints.restore_checkpoint(sess, net.variables, prefix)
            sess.run(fold)
            print('%s with %s' % (desc, prefix))
            with memory.enough_for('the size of the images'), reader.running(sess):
                for _ in tqdm(reader.images, desc=desc, unit='image', mininterval=1.0):
                    fetched = sess.run(fetches)
                    yield fetched['label'], fetched['classes']
