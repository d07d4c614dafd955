"""Reads the weights of a Caffe .caffemodel under the names of the deeplab encoder."""

import re
import warnings
from collections import OrderedDict

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from utils.weights.weight_names import fold_biases

# The part of Caffe's caffe.proto that holds weights: message -> [(field, number, type)]. A type with a capital
# is a message, * marks repeated and + repeated packed fields.
CAFFE_PROTO = {
    'BlobShape': [('dim', 1, '+int64')],
    'BlobProto': [('num', 1, 'int32'), ('channels', 2, 'int32'), ('height', 3, 'int32'),
                  ('width', 4, 'int32'), ('data', 5, '+float'), ('diff', 6, '+float'),
                  ('shape', 7, 'BlobShape'), ('double_data', 8, '+double')],
    'LayerParameter': [('name', 1, 'string'), ('type', 2, 'string'), ('bottom', 3, '*string'),
                       ('top', 4, '*string'), ('blobs', 7, '*BlobProto')],
    'V1LayerParameter': [('bottom', 2, '*string'), ('top', 3, '*string'), ('name', 4, 'string'),
                         ('type', 5, 'int32'), ('blobs', 6, '*BlobProto')],
    'NetParameter': [('name', 1, 'string'), ('layers', 2, '*V1LayerParameter'),
                     ('layer', 100, '*LayerParameter')],
}
# A packed field looks like a byte string on the wire: read as one, numpy takes it as it is, without a Python
# float for each of 44 million weights.
AS_BYTES = {'+float': '*bytes', '+double': '*bytes'}
CONVOLUTION_TYPES = ('Convolution', 4)  # the latter is V1LayerParameter's number
COPY = re.compile(r'.*_res\d+$')  # the same layer at another scale of a multi-scale net, with shared weights


def net_parameter(as_bytes=False):
    """The message class NetParameter; with as_bytes, floats come as lists of byte strings (see AS_BYTES)."""
    package = 'caffe_bytes' if as_bytes else 'caffe'
    file = descriptor_pb2.FileDescriptorProto(name=package + '.proto', package=package)
    for message, fields in CAFFE_PROTO.items():
        descriptor = file.message_type.add(name=message)
        for name, number, kind in fields:
            add_field(descriptor, name, number, AS_BYTES.get(kind, kind) if as_bytes else kind, package)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName(package + '.NetParameter')
    if hasattr(message_factory, 'GetMessageClass'):  # protobuf 4.22 and later
        return message_factory.GetMessageClass(found)
    return message_factory.MessageFactory(pool).GetPrototype(found)


def add_field(descriptor, name, number, kind, package):
    """Adds one field of CAFFE_PROTO to a DescriptorProto."""
    base = kind.lstrip('*+')
    field = descriptor.field.add(name=name, number=number)
    field.label = field.LABEL_OPTIONAL if base == kind else field.LABEL_REPEATED
    if kind[0] == '+':
        field.options.packed = True
    if base[0].isupper():
        field.type = field.TYPE_MESSAGE
        field.type_name = '.%s.%s' % (package, base)
    else:
        field.type = getattr(field, 'TYPE_' + base.upper())


def parse(path):
    """The (net, whether its floats are bytes) in a file; (None, False) if it is no NetParameter with weights."""
    with open(path, 'rb') as file:
        content = file.read()
    for as_bytes in (True, False):
        net = net_parameter(as_bytes)()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # protobuf 3 only warns when it stops in the middle
                consumed = net.ParseFromString(content)
        except DecodeError:
            return None, False
        blobs = [blob for layer in list(net.layer) + list(net.layers) for blob in layer.blobs]
        if not blobs or consumed != len(content):
            return None, False
        if not as_bytes or all(blob.data or blob.double_data for blob in blobs):
            return net, as_bytes
    return None, False


def to_array(blob, as_bytes):
    """The array of a BlobProto, of its shape or its legacy num, channels, height and width.

    Raises:
      ValueError: data and shape disagree.
    """
    if as_bytes:
        values = np.concatenate([np.frombuffer(b''.join(blob.data), '<f4'),
                                 np.frombuffer(b''.join(blob.double_data), '<f8').astype(np.float32)])
    else:
        values = np.array(list(blob.data) + list(blob.double_data), np.float32)
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    return values.reshape(list(blob.shape.dim) if blob.HasField('shape') else legacy)


def layer_weights(name, blobs, is_convolution):
    """{variable name: array} of one layer, {} for a layer that is not of the network.

    Convolution [out, in, kh, kw] becomes [kh, kw, in, out]; BatchNorm holds sums of means and variances and
    the factor to divide them by (Caffe's batch_norm_layer.cpp); Scale holds gamma and beta.
    """
    if name.startswith('bn') and len(blobs) == 3:
        factor = blobs[2].ravel()[0]
        factor = 0 if factor == 0 else 1 / factor
        return {name + '/moving_mean': blobs[0].ravel() * factor,
                name + '/moving_variance': blobs[1].ravel() * factor}
    if name.startswith('scale') and len(blobs) == 2:
        name = 'bn' + name[len('scale'):]
        return {name + '/gamma': blobs[0].ravel(), name + '/beta': blobs[1].ravel()}
    if is_convolution and blobs[0].ndim == 4:
        weights = {name + '/weights': blobs[0].transpose(2, 3, 1, 0)}
        if len(blobs) > 1:
            weights[name + '/biases'] = blobs[1].ravel()
        return weights
    return {}


def read_caffemodel(path):
    """Ordered {variable name of the deeplab encoder: float32 array} of a .caffemodel, None if it is no such file.

    Copies of a layer at other scales (conv1_res075) and layers other than Convolution, BatchNorm and Scale are
    left out.

    Raises:
      ValueError: the numbers of a layer do not fill its shape.
    """
    net, as_bytes = parse(path)
    if net is None:
        return None
    weights = OrderedDict()
    for layer in list(net.layer) + list(net.layers):
        if not layer.blobs or COPY.match(layer.name):
            continue
        try:
            blobs = [to_array(blob, as_bytes) for blob in layer.blobs]
        except ValueError as error:
            raise ValueError('layer %s: %s' % (layer.name, error))
        weights.update(layer_weights(layer.name, blobs, layer.type in CONVOLUTION_TYPES))
    fold_biases(weights, 'deeplab')
    return weights
