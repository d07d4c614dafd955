"""Opens a weights file of any kind, told apart by content, as names, shapes and arrays in our naming."""

import os
import re
from collections import namedtuple

import tensorflow.compat.v1 as tf

from utils.system.errors import UserError
from utils.weights import caffe_weights, keras_weights

ACCEPTED = ('a TensorFlow checkpoint (its full prefix such as model/model.ckpt-20000, or its directory), '
            "a Caffe .caffemodel or Keras' ResNet50 or ResNet101 .h5")
HDF5_MAGIC = b'\x89HDF\r\n\x1a\n'  # at the start
TABLE_MAGIC = b'\x57\xfb\x80\x8b\x24\x75\x47\xdb'  # at the end of a checkpoint of TensorFlow's one-file format
READ_ERRORS = (tf.errors.OpError, OSError, LookupError, RuntimeError, ValueError)

# path: file or prefix; kind: a phrase for messages; compat: the --compat mode that such weights were made for,
# None if the file does not tell; shapes: {name: tuple}; read: a function from a name to its numpy array.
WeightsFile = namedtuple('WeightsFile', 'path kind compat shapes read')


def damaged(path, error):
    """The UserError for a file that cannot be read to its end."""
    reason = ' '.join(str(getattr(error, 'message', None) or error).split())
    return UserError('%s is damaged or incomplete: copy or download it again (%s).' % (path, reason[:200]))


def open_checkpoint(prefix):
    """The WeightsFile of a TensorFlow checkpoint; UserError if it is damaged."""
    try:
        reader = tf.train.NewCheckpointReader(prefix)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except READ_ERRORS as error:
        raise damaged(prefix, error)

    def read(name):
        try:
            return reader.get_tensor(name)
        except READ_ERRORS as error:
            raise damaged(prefix, error)

    # Only slim's own ImageNet checkpoints have the classifier.
    compat = 'slim' if any(re.match(r'resnet_v1_\d+/logits/', name) for name in shapes) else None
    return WeightsFile(prefix, 'a TensorFlow checkpoint', compat, shapes, read)


def in_memory(path, kind, compat, arrays):
    """The WeightsFile of {name: array}."""
    return WeightsFile(path, kind, compat, {name: array.shape for name, array in arrays.items()},
                       arrays.__getitem__)


def checkpoint_prefix(path):
    """Strips the suffix of one of a checkpoint's files off a path, if such a checkpoint is there."""
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
    return prefix if os.path.exists(prefix + '.index') or os.path.isfile(prefix) else path


def read_ends(path):
    """The first and the last 8 bytes of a file."""
    with open(path, 'rb') as file:
        start = file.read(8)
        file.seek(-len(start), os.SEEK_END)
        return start, file.read()


def open_weights(path, encoder_name=None):
    """Opens a checkpoint prefix (or one of its files), a .caffemodel or a Keras .h5.

    Args:
      path: the file; its content decides what it is, not its suffix.
      encoder_name: whose names to use where weights fit several encoders (Keras' ResNet101).

    Returns:
      A WeightsFile.

    Raises:
      UserError: no such file, of no known kind, or damaged.
    """
    prefix = checkpoint_prefix(os.path.expanduser(path))
    if os.path.exists(prefix + '.index'):
        return open_checkpoint(prefix)
    if not os.path.isfile(prefix):
        raise UserError('%s: no such weights file; give %s.' % (path, ACCEPTED))
    start, end = read_ends(prefix)
    if end == TABLE_MAGIC:
        return open_checkpoint(prefix)
    try:
        if start == HDF5_MAGIC:
            arrays = keras_weights.read_keras(prefix, encoder_name)
            return in_memory(path, 'Keras weights', 'caffe', arrays)
        arrays = caffe_weights.read_caffemodel(prefix)
    except UserError:
        raise
    except READ_ERRORS as error:
        raise damaged(prefix, error)
    if arrays is None:
        raise UserError('%s is no weights file of a known kind, or is damaged; give %s.' % (path, ACCEPTED))
    return in_memory(path, 'a Caffe model', 'caffe', arrays)
