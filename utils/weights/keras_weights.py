"""Reads and fetches the weights of Keras' ResNets (.h5) under the names of our encoders."""

import importlib
import re
from collections import OrderedDict

import h5py
import numpy as np

from utils.net.blocks import ENCODERS
from utils.system.errors import UserError, quoted
from utils.weights import download, weight_names

# {kind of layer: {Keras' name of a variable: the leaf of ours}}. Keras' first ResNet-50 of 2016 has W, b, running_mean
# and running_std; the last of these holds the variance.
LEAVES = {
    'conv': {'kernel': 'weights', 'W': 'weights', 'bias': 'biases', 'b': 'biases'},
    'bn': dict({'running_mean': 'moving_mean', 'running_std': 'moving_variance'},
               **{leaf: leaf for leaf in weight_names.BATCH_NORM}),
}
NUMBERED = {'conv': ('kernel', 'bias'), 'bn': weight_names.BATCH_NORM}  # in the order of Keras 3's .weights.h5
LAYER = re.compile(r'(?:conv1|conv([2-5])_block([1-9][0-9]?)_([0-3]))_(conv|bn)')
CONSTANTS = ('keras.src.applications.resnet', 'tf_keras.src.applications.resnet',
             'keras_applications.resnet_common')


def place_of(layer):
    """Returns (kind, stage, unit, index) of a layer named as in Keras, now or in 2016; None for any other name.

    The kind is 'conv' or 'bn', or 'scale' for a layer named as in Caffe.
    """
    match = LAYER.fullmatch(layer)
    if not match:
        return weight_names.caffe_place(layer)
    stage, unit, index, kind = match.groups()
    return kind, int(stage or 1), int(unit or 1), int(index or 1)


def identify(name, parent):
    """Returns (place of the layer, leaf of our variable) for a dataset; None if it belongs to no layer of a ResNet.

    These forms are recognised: layer/layer/kernel:0 (save_weights up to Keras 2) and layer/layer_W:0 (Keras 1), both
    also below model_weights (save), and layers/conv2d_1/vars/0 with the layer's name as an attribute (.weights.h5 from
    Keras 3.4 on).

    Args:
      name: the dataset's path in the file.
      parent: the h5py.Group that holds it.
    """
    parts = name.split('/')
    if parts[-2:-1] == ['vars']:
        layer = parent.attrs.get('name', '')
        layer = layer.decode() if isinstance(layer, bytes) else str(layer)
    else:
        layer = next((part for part in parts if place_of(part)), '')
    place = place_of(layer)
    if not place or parts[0] == 'optimizer_weights':
        return None
    leaf = parts[-1].split(':')[0]
    if parts[-2:-1] == ['vars']:
        leaf = dict(zip('0123', NUMBERED.get(place[0], ()))).get(leaf)
    elif leaf.startswith(layer + '_'):
        leaf = leaf[len(layer) + 1:]
    leaf = LEAVES.get(place[0], {}).get(leaf)
    return (place, leaf) if leaf else None


def find_datasets(file, path):
    """Returns {(place of the layer, leaf of our variable): h5py.Dataset} of an open file, without reading values.

    Raises:
      UserError: no layer is named as in Keras' ResNets, or a layer occurs twice.
    """
    found, names = {}, []

    def visit(name, item):
        if not isinstance(item, h5py.Dataset):
            return
        names.append(name)
        key = identify(name, item.parent)
        if key in found:
            raise UserError('%s holds more than one ResNet (%s and %s): give the weights of one.' % (
                quoted(path), quoted(found[key].name), quoted(name)))
        if key:
            found[key] = item

    file.visititems(visit)
    if not found and any(re.search('(^|/)conv2d(_[0-9]+)?/vars/0$', name) for name in names):
        raise UserError('%s names no layers, like all .weights.h5 files of Keras up to 3.3, so they cannot be told '
                        "apart: load it in Keras and save it as .h5 with model.save('NAME.h5')." % quoted(path))
    if not found:
        raise UserError('%s is an HDF5 file without the layers of a Keras ResNet (conv1_conv, conv2_block1_1_conv and '
                        'so on): give the weights of ResNet50, ResNet101 or ResNet152.' % quoted(path))
    return found


def read_dataset(dataset, wanted):
    """Returns (shape, values) of an h5py.Dataset; the values are float32, or None if the shape is not `wanted`.

    Raises:
      UserError: it is a kernel [out, in, height, width], as Keras saved them with Theano.
      ValueError: it holds no floating-point numbers.
    """
    shape, name = dataset.shape, quoted(dataset.name)
    if shape is None or dataset.dtype.kind != 'f':
        raise ValueError('%s holds no floating-point numbers' % name)
    if wanted and shape != wanted and len(wanted) == 4 and shape == (wanted[3], wanted[2]) + wanted[:2]:
        raise UserError('%s holds kernels in the order of Theano (%s): give the file for TensorFlow, whose published '
                        'name has tf_kernels.' % (quoted(dataset.file.filename), name))
    return shape, np.asarray(dataset[()], np.float32) if shape == wanted else None


def read_keras(path, encoder_name=None):
    """Reads a Keras ResNet50, ResNet101 or ResNet152, with or without its classifier.

    Args:
      path: an HDF5 file that Keras wrote.
      encoder_name: the encoder whose names are used if it has as many units; otherwise the nearest encoder's are.

    Returns:
      Two ordered dicts, {variable name: shape} and {variable name: float32 array}. The second lacks variables that do
      not have the encoder's shape. The biases of Keras' convolutions are folded into the moving means.

    Raises:
      UserError: no layer is named as in Keras' ResNets, a layer occurs twice, or kernels are in Theano's order.
      ValueError: a layer does not hold floating-point numbers or has the wrong number of biases.
    """
    shapes, arrays = OrderedDict(), OrderedDict()
    with h5py.File(path, 'r') as file:
        found = find_datasets(file, path)
        encoder_name = weight_names.nearest_encoder([place[1:3] for place, _ in found], encoder_name, 'slim')
        wanted = weight_names.encoder_shapes(encoder_name)
        for (place, leaf), dataset in sorted(found.items()):
            scope, batch_norm = weight_names.conv_scopes(encoder_name, *place[1:])
            name = (batch_norm if place[0] == 'bn' else scope) + '/' + leaf
            of_biases = wanted.get(scope + '/weights', ())[-1:]
            shape, array = read_dataset(dataset, of_biases if leaf == 'biases' else wanted.get(name))
            if array is not None:
                arrays[name] = array
            elif leaf == 'biases' and of_biases:
                raise ValueError('%s has shape %s for %s channels' % ((quoted(dataset.name), shape) + of_biases))
            shapes[name] = shape
    weight_names.fold_biases(arrays, encoder_name)
    for name in [name for name in shapes if name.endswith('/biases') and name not in arrays]:
        del shapes[name]
    return shapes, arrays


def published(encoder_name):
    """Returns (file name, URL, MD5) of the ImageNet weights without the classifier, from Keras' own constants.

    Raises:
      UserError: Keras is not installed.
    """
    for name in CONSTANTS:
        try:
            constants = importlib.import_module(name)
        except ImportError:
            continue
        model = ENCODERS[encoder_name].keras
        file_name = model + '_weights_tf_dim_ordering_tf_kernels_notop.h5'
        return file_name, constants.BASE_WEIGHTS_PATH + file_name, constants.WEIGHTS_HASHES[model][1]
    raise UserError('--pretrain_file=imagenet needs Keras, which is not installed (keras, or '
                    'keras_applications for TensorFlow 1).')


def fetch_imagenet(encoder_name):
    """Returns the path of Keras' ImageNet weights for an encoder; downloads them to Keras' cache if necessary.

    Raises:
      UserError: the file is not in the cache and cannot be fetched.
    """
    file_name, url, md5 = published(encoder_name)
    return download.fetch('imagenet', file_name, url, lambda path: download.check_md5(path, md5))
