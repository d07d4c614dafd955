"""Opens weights files of any kind, recognised by their content, with the variable names of our networks."""

import json
import os
import re
import shutil
import struct
import tempfile
import typing
import weakref
import zipfile

import numpy as np
import tensorflow.compat.v1 as tf

from utils.net.compat import COMPAT, Input, input_from_file
from utils.system.errors import UserError, quoted, reason
from utils.weights import caffe_weights, keras_weights, run_settings, torch_weights

ACCEPTED = ('a TensorFlow checkpoint (its prefix such as model/model.ckpt-20000, or its folder), '
            "a .caffemodel, kazuto1011's .pth or the .h5 of Keras' ResNet50, 101 or 152")
# Keras' weights were converted from Kaiming He's Caffe models for ImageNet and hold the same values. The mean is Keras'
# constant (imagenet_utils, mode 'caffe'); the Caffe models subtract a mean image whose average is close to it.
IMAGENET_INPUT = Input('bgr', (103.939, 116.779, 123.68))
HDF5_MAGIC = b'\x89HDF\r\n\x1a\n'  # at the start
TABLE_MAGIC = b'\x57\xfb\x80\x8b\x24\x75\x47\xdb'  # at the end of a checkpoint of TensorFlow's one-file format
# Errors that the readers of the four kinds raise for damaged files; MemoryError, as a damaged size may be any number.
READ_ERRORS = (tf.errors.OpError, OSError, LookupError, RuntimeError, TypeError, ValueError, MemoryError, EOFError,
               ArithmeticError, struct.error, zipfile.BadZipFile)

MADE_FOR = 'made_for'  # checkpoint entry, a scalar string: the mode and input of its weights


class WeightsFile(typing.NamedTuple):
    """A weights file that has been opened."""

    path: str               # file or prefix
    kind: str               # a phrase for messages
    compat: str             # the --compat mode for which the weights were made, None if the file does not say
    input: Input            # the network's input for which they were made, None if the file does not say
    shapes: dict            # {variable name: shape tuple}
    read: typing.Callable   # a function from a variable's name to its numpy array


def damaged(path, error):
    """Returns the UserError for a file that cannot be read to its end."""
    return UserError('%s is damaged or incomplete: copy or download it again (%s).' % (quoted(path), reason(error)))


class NotLinked(UserError):
    """A checkpoint, which may be intact, cannot be read because of its name."""


def is_literal(path):
    """Returns whether TensorFlow opens exactly this path when it reads a checkpoint.

    It searches for the files by a pattern, in which `[`, `]`, `*`, `?` and backslash are special, and then opens the
    name unchanged, so that escaping is impossible. It does not accept names that are not UTF-8.
    """
    return not re.search(r'[\[\]*?\\]' if os.sep == '/' else r'[\[\]*?]', path) and path == path.encode(
        'utf-8', 'replace').decode()  # surrogates become '?'


def read_literally(prefix):
    """Returns a tf.train.NewCheckpointReader of a checkpoint of any name.

    Where TensorFlow would take the name for a pattern, the checkpoint is read through symbolic links with harmless
    names, which are removed together with the reader.

    Raises:
      NotLinked: the links cannot be made.
    """
    if is_literal(prefix):
        return tf.train.NewCheckpointReader(prefix)
    folder, name = os.path.split(os.path.abspath(prefix))
    suffixes = [found[len(name):] for found in (os.listdir(folder) if os.path.isdir(folder) else [])
                if found.startswith(name)]
    # TMPDIR may contain such characters too: in a PBS job array it is /tmp/pbs.1234[5].server.
    temporary = next(filter(is_literal, [tempfile.gettempdir(), '/tmp', '/var/tmp']))
    place = None
    try:
        try:
            place = tempfile.mkdtemp(prefix='checkpoint-', dir=temporary)
            for suffix in suffixes:
                if re.fullmatch(r'|\.index|\.data-\d+-of-\d+', suffix):
                    os.symlink(os.path.join(folder, name + suffix), os.path.join(place, 'linked' + suffix))
        except OSError as error:
            raise NotLinked('%s cannot be read: TensorFlow takes its name for a pattern, and no links to it can be '
                            'made in %s (%s): rename it, or its folder.' % (
                                quoted(prefix), quoted(temporary, 40), reason(error)))
        reader = tf.train.NewCheckpointReader(os.path.join(place, 'linked'))
    except BaseException:
        if place:
            shutil.rmtree(place, ignore_errors=True)
        raise
    weakref.finalize(reader, shutil.rmtree, place, ignore_errors=True)
    return reader


def open_checkpoint(prefix):
    """Returns the WeightsFile of a TensorFlow checkpoint; raises UserError if it is damaged."""
    try:
        reader = read_literally(prefix)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
        compat, network_input = origin_of(prefix, shapes, reader)
        shapes.pop(MADE_FOR, None)
    except UserError:  # about the links, or about settings.json beside the checkpoint
        raise
    except READ_ERRORS as error:
        raise damaged(prefix, error)

    def read(name):
        try:
            value = reader.get_tensor(name)
            if value.dtype.kind not in 'fi':
                raise ValueError('%s holds no numbers' % quoted(name))
            return value
        except READ_ERRORS as error:
            raise damaged(prefix, error)

    return WeightsFile(prefix, 'a TensorFlow checkpoint', compat, network_input, shapes, read)


def origin_of(prefix, shapes, reader):
    """Returns the (--compat mode, Input) for which a checkpoint was made, each None if unknown.

    They are taken from the checkpoint's entry MADE_FOR, its variables' names or the settings of its training.
    """
    if shapes.get(MADE_FOR) == ():
        return decode_origin(reader.get_tensor(MADE_FOR))
    if any(re.match(r'resnet_v1_\d+/logits/', name) for name in shapes):  # slim's own ImageNet checkpoints
        return 'slim', COMPAT['slim'].input
    settings = run_settings.beside(prefix)
    return (settings['flags'].get('compat'), settings['input']) if settings else (None, None)


def encode_origin(compat, network_input):
    """Returns the text of the entry MADE_FOR.

    Args:
      compat: a --compat mode or None.
      network_input: an Input or None.
    """
    order, mean = network_input or (None, None)
    return json.dumps({'compat': compat, 'channel_order': order, 'img_mean': mean}, sort_keys=True)


def decode_origin(text):
    """Returns (compat, Input) from the text of the entry MADE_FOR, each None if the text does not give it.

    Raises:
      ValueError: the text is damaged.
    """
    entry = json.loads(text)
    try:
        compat, order, mean = entry['compat'], entry['channel_order'], entry['img_mean']
        known = compat is None or compat in COMPAT
        if known and order is None and mean is None:
            return compat, None
        if known:
            return compat, input_from_file(order, mean)
    except (LookupError, TypeError, ValueError):
        pass
    raise ValueError('%s is not understood' % MADE_FOR)


def checkpoint_prefix(path):
    """Returns the prefix of a checkpoint from the path of one of its files; any other path unchanged."""
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
    return prefix if os.path.isfile(prefix + '.index') or os.path.isfile(prefix) else path


def read_ends(path):
    """Returns the first and the last 8 bytes of a file."""
    with open(path, 'rb') as file:
        start = file.read(8)
        file.seek(-len(start), os.SEEK_END)
        return start, file.read()


def open_weights(path, encoder_name=None):
    """Opens a checkpoint prefix (or one of its files), a .caffemodel, a PyTorch .pth or a Keras .h5.

    Args:
      path: the file, whose kind is recognised by its content, not its suffix.
      encoder_name: the encoder whose names are used if the weights fit several (Keras' ResNet101).

    Returns:
      A WeightsFile.

    Raises:
      UserError: the file does not exist, is of no known kind or is damaged.
    """
    prefix = checkpoint_prefix(os.path.expanduser(path))
    if os.path.isfile(prefix + '.index'):
        return open_checkpoint(prefix)
    if not os.path.isfile(prefix):
        raise UserError('%s: no such weights file; give %s, or a word such as voc12.' % (quoted(path), ACCEPTED))
    try:
        start, end = read_ends(prefix)
        if end == TABLE_MAGIC:
            return open_checkpoint(prefix)
        if start == HDF5_MAGIC:
            shapes, arrays = keras_weights.read_keras(prefix, encoder_name)
            return WeightsFile(path, 'Keras weights', 'caffe', IMAGENET_INPUT, shapes, arrays.__getitem__)
        if torch_weights.is_torch(start):
            return open_torch(prefix, encoder_name)
        return open_caffemodel(prefix, encoder_name)
    except UserError:
        raise
    except READ_ERRORS as error:
        raise damaged(path, error)


def open_torch(path, encoder_name):
    """Returns the WeightsFile of a PyTorch .pth, which was converted from the authors' Caffe model or trained like it.

    Raises:
      UserError: the file is not one of kazuto1011's networks.
      ValueError: it is damaged.
    """
    shapes, read_tensor = torch_weights.read_torch(path, encoder_name)

    def read(name):
        try:
            with np.errstate(all='ignore'):  # values that are not finite are reported where they are used
                return read_tensor(name)
        except READ_ERRORS as error:
            raise damaged(path, error)

    return WeightsFile(path, 'a PyTorch file', 'caffe', COMPAT['caffe'].input, shapes, read)


def open_caffemodel(path, encoder_name):
    """Returns the WeightsFile of a .caffemodel.

    Raises:
      UserError: the file is not a .caffemodel or not a ResNet.
      ValueError: it is damaged.
    """
    layers = caffe_weights.parse(path)
    if layers is None:
        raise UserError('%s is not a weights file of a known kind, or is damaged; give %s.' % (quoted(path), ACCEPTED))
    with np.errstate(all='ignore'):  # values that are not finite are reported where they are used
        arrays = caffe_weights.read_layers(layers, encoder_name)
    if not arrays:
        raise UserError('%s is a Caffe model without the layers of a ResNet (conv1, res2a_branch1 and so on): give '
                        "DeepLab's ResNet-101 or one of Kaiming He's ResNets." % quoted(path))
    made_with = IMAGENET_INPUT if caffe_weights.of_imagenet(layers) else COMPAT['caffe'].input
    shapes = {name: array.shape for name, array in arrays.items()}
    return WeightsFile(path, 'a Caffe model', 'caffe', made_with, shapes, arrays.__getitem__)
