"""Reads the weights of a Caffe .caffemodel under the names of our encoders."""

import functools
import operator
import os
import warnings
from collections import OrderedDict

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from utils.weights import weight_names

# The part of Caffe's caffe.proto that holds weights: {message: [(field, number, type)]}. A capitalized type is a
# message, * marks repeated fields, and + marks packed repeated ones. A name is text, but is read as bytes because it
# may be damaged.
CAFFE_PROTO = {
    'BlobShape': [('dim', 1, '+int64')],
    'BlobProto': [('num', 1, 'int32'), ('channels', 2, 'int32'), ('height', 3, 'int32'),
                  ('width', 4, 'int32'), ('data', 5, '+float'), ('diff', 6, '+float'),
                  ('shape', 7, 'BlobShape'), ('double_data', 8, '+double')],
    'LayerParameter': [('name', 1, 'bytes'), ('blobs', 7, '*BlobProto')],
    'V1LayerParameter': [('name', 4, 'bytes'), ('blobs', 6, '*BlobProto')],
    'NetParameter': [('layers', 2, '*V1LayerParameter'), ('layer', 100, '*LayerParameter')],
}
# A packed field looks like a byte string on the wire. If it is read as one, numpy uses it directly, without a Python
# float for each of 44 million weights.
AS_BYTES = {'+float': '*bytes', '+double': '*bytes'}
LARGEST = 2 ** 31  # bytes, the limit of a protobuf message


def net_parameter(as_bytes=False):
    """Returns the message class NetParameter; with as_bytes, floats are lists of byte strings (see AS_BYTES)."""
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
    """Adds a field of CAFFE_PROTO (`kind` is its type) to a DescriptorProto."""
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
    """Returns {layer name: list of its blobs, float32 arrays} of a .caffemodel, or None if the file is not one.

    Raises:
      ValueError: the numbers of a layer do not fill its shape.
    """
    if os.path.getsize(path) >= LARGEST:
        return None
    with open(path, 'rb') as file:
        content = file.read()
    for as_bytes in (True, False):
        net = net_parameter(as_bytes)()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # protobuf 3 only warns if it stops before the end
                consumed = net.ParseFromString(content)
        except DecodeError:
            return None
        layers = [layer for layer in list(net.layer) + list(net.layers) if layer.blobs]
        if not layers or consumed != len(content):
            return None
        if not as_bytes or all(blob.data or blob.double_data for layer in layers for blob in layer.blobs):
            return {layer.name.decode('utf-8', 'backslashreplace'): [to_array(blob, as_bytes) for blob in layer.blobs]
                    for layer in layers}
    return None


def to_array(blob, as_bytes):
    """Returns the float32 array of a BlobProto, with its shape or, for a legacy blob, [num, channels, height, width].

    Raises:
      ValueError: the number of values does not match the shape.
    """
    if as_bytes:
        values = np.concatenate([np.frombuffer(b''.join(blob.data), '<f4'),
                                 np.frombuffer(b''.join(blob.double_data), '<f8').astype(np.float32)])
    else:
        values = np.concatenate([np.fromiter(numbers, np.float32, len(numbers))
                                 for numbers in (blob.data, blob.double_data)])
    shape = list(blob.shape.dim) if blob.HasField('shape') else [blob.num, blob.channels, blob.height, blob.width]
    if min(shape, default=1) < 0 or functools.reduce(operator.mul, shape, 1) != values.size:
        raise ValueError('a layer has %d values for %s' % (values.size, shape))
    return values.reshape(shape)


def layer_weights(kind, blobs):
    """Returns {(whether it belongs to the batch norm, leaf of the variable's name): array} for one layer.

    The weights of a convolution, [out, in, kh, kw] in Caffe, become [kh, kw, in, out]. BatchNorm holds sums of means
    and variances and the factor by which to divide them (Caffe's batch_norm_layer.cpp); Scale holds gamma and beta.

    Args:
      kind: 'conv', 'bn' or 'scale'.
      blobs: the layer's list of arrays.
    """
    if kind == 'bn' and len(blobs) == 3:
        factor = blobs[2].ravel()[0]
        factor = 0 if factor == 0 else 1 / factor
        return {(True, 'moving_mean'): blobs[0].ravel() * factor,
                (True, 'moving_variance'): blobs[1].ravel() * factor}
    if kind == 'scale' and len(blobs) == 2:
        return {(True, 'gamma'): blobs[0].ravel(), (True, 'beta'): blobs[1].ravel()}
    if kind == 'conv' and blobs[0].ndim == 4:
        weights = {(False, 'weights'): blobs[0].transpose(2, 3, 1, 0)}
        if len(blobs) > 1:
            weights[False, 'biases'] = blobs[1].ravel()
        return weights
    return {}


def of_imagenet(layers):
    """Returns whether the layers belong to one of Kaiming He's models (with fc1000 or ResNet-50's units)."""
    return 'fc1000' in layers or 'res4b_branch2a' in layers


def read_layers(layers, encoder_name=None):
    """Returns an ordered {variable name: float32 array} of a Caffe model, or {} if no layer belongs to a ResNet.

    Only the layers of a ResNet and of DeepLab's decoder are read, not their copies for other scales (conv1_res075).

    Args:
      layers: {layer name: blobs} from `parse`.
      encoder_name: the encoder whose names are used if it has as many units; otherwise the nearest encoder's are.

    Raises:
      ValueError: the parts of a layer do not fit together.
    """
    places = OrderedDict((name, weight_names.caffe_place(name)) for name in layers)
    if not any(places.values()):
        return {}
    encoder_name = weight_names.nearest_encoder([place[1:3] for place in places.values() if place],
                                                encoder_name, 'caffe')
    decoder = weight_names.caffe_decoder_scopes(encoder_name)
    weights = OrderedDict()
    for name, place in places.items():
        if place:
            scopes = weight_names.conv_scopes(encoder_name, *place[1:])
        elif name in decoder:
            scopes = (decoder[name],)
        else:
            continue
        for (is_bn, leaf), array in layer_weights(place[0] if place else 'conv', layers[name]).items():
            weights[scopes[is_bn] + '/' + leaf] = array
    weight_names.fold_biases(weights, encoder_name)
    return weights
