"""Reads and fetches Keras' ResNet50 and ResNet101 weights (.h5) under the names of our encoders."""

import importlib
import os
import re
import socket
from collections import OrderedDict

import h5py
import numpy as np
import tensorflow.compat.v1 as tf

from utils.net.blocks import BLOCKS
from utils.system.errors import UserError
from utils.weights import weight_names

LEAVES = {'kernel': 'weights', 'bias': 'biases'}
LEAVES.update((leaf, leaf) for leaf in weight_names.BATCH_NORM)
NUMBERED = {'conv': ('kernel', 'bias'), 'bn': weight_names.BATCH_NORM}  # in Keras 3's .weights.h5
LAYER = re.compile(r'conv([1-5])(?:_block(\d+)_(\d))?_(conv|bn)$')
PUBLISHED = {'deeplab': 'resnet101', 'res101': 'resnet101', 'res50': 'resnet50'}
CONSTANTS = ('keras.src.applications.resnet', 'tf_keras.src.applications.resnet',
             'keras_applications.resnet_common')
TIMEOUT = 60  # seconds without an answer


def read_layers(path):
    """{(layer name, Keras' variable name): array} of a Keras .h5.

    Three layouts are known: layer/layer/kernel:0 (save_weights until Keras 2), the same below model_weights
    (save), and layers/conv2d_1/vars/0 with the layer's name as an attribute (.weights.h5 of Keras 3).
    """
    arrays = {}

    def visit(name, item):
        parts = name.split('/')
        if not isinstance(item, h5py.Dataset) or parts[0] == 'optimizer_weights':
            return
        if parts[-2:-1] == ['vars']:
            layer = item.parent.attrs.get('name', '')
            layer = layer.decode() if isinstance(layer, bytes) else str(layer)
            match, number = LAYER.match(layer), int(parts[-1])
            leaves = NUMBERED[match.group(4)] if match else ()
            leaf = leaves[number] if number < len(leaves) else parts[-1]
        else:
            layer = next((part for part in parts if LAYER.match(part)), parts[0])
            leaf = parts[-1].split(':')[0]
        arrays[layer, leaf] = np.asarray(item[()])

    with h5py.File(path, 'r') as file:
        file.visititems(visit)
    return arrays


def read_keras(path, encoder_name=None):
    """Ordered {variable name: float32 array} of a Keras ResNet50 or ResNet101, with or without its classifier.

    Args:
      path: an HDF5 file that Keras wrote.
      encoder_name: whose names to use if it has as many units; else the nearer of res101 and res50.

    The biases of Keras' convolutions are folded into the moving means.

    Raises:
      UserError: no layer has a name of Keras' ResNets.
    """
    found = {}
    for (layer, leaf), array in read_layers(path).items():
        match = LAYER.match(layer)
        if match and leaf in LEAVES:
            stage, unit, index = int(match.group(1)), int(match.group(2) or 1), int(match.group(3) or 1)
            found[stage, unit, index, match.group(4), leaf] = array
    if not found:
        raise UserError('%s is an HDF5 file without the layers of a Keras ResNet (conv1_conv, '
                        'conv2_block1_1_conv and so on): give the weights of keras.applications.ResNet50 or '
                        'ResNet101.' % path)
    units = max([unit for stage, unit, _, _, _ in found if stage == 4] or [0])
    nearest = 'res101' if units > BLOCKS['res50'][2].units else 'res50'
    if encoder_name is None or BLOCKS[encoder_name] != BLOCKS[nearest]:
        encoder_name = nearest
    weights = OrderedDict()
    for (stage, unit, index, kind, leaf), array in sorted(found.items()):
        scope = weight_names.conv_scopes(encoder_name, stage, unit, index)[kind == 'bn']
        weights[scope + '/' + LEAVES[leaf]] = array.astype(np.float32)
    weight_names.fold_biases(weights, encoder_name)
    return weights


def published(encoder_name):
    """(file name, URL, MD5) of the ImageNet weights without classifier, from Keras' own constants."""
    for name in CONSTANTS:
        try:
            constants = importlib.import_module(name)
        except ImportError:
            continue
        model = PUBLISHED[encoder_name]
        file_name = model + '_weights_tf_dim_ordering_tf_kernels_notop.h5'
        return file_name, constants.BASE_WEIGHTS_PATH + file_name, constants.WEIGHTS_HASHES[model][1]
    raise UserError('--pretrain_file=imagenet needs Keras, which is not installed (keras, or '
                    'keras_applications for TensorFlow 1).')


def fetch_imagenet(encoder_name):
    """The path of Keras' ImageNet weights for an encoder, fetched into Keras' cache where it is not there yet.

    Raises:
      UserError: the file is not there and cannot be fetched.
    """
    file_name, url, md5 = published(encoder_name)
    cache = os.path.expanduser(os.environ.get('KERAS_HOME', os.path.join('~', '.keras')))
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        os.makedirs(cache, exist_ok=True)
        return tf.keras.utils.get_file(file_name, url, cache_subdir='models', file_hash=md5, cache_dir=cache)
    except Exception as error:  # get_file itself raises bare Exceptions
        reason = ' '.join(str(error).split()).replace('URL fetch failure on %s: ' % url, '')
        raise UserError('--pretrain_file=imagenet: %s could not be fetched (%s); put that file at %s, or name its path '
                        'with --pretrain_file.' % (url, reason, os.path.join(cache, 'models', file_name)))
    finally:
        socket.setdefaulttimeout(timeout)
