"""Reads .caffemodel files that are written with the same message description, and one that is written by hand."""

import re
import struct

import damage
import numpy as np
import pytest

from utils.net.blocks import BLOCKS, convolutions, resnet_blocks
from utils.net.compat import COMPAT
from utils.net.decoders import ASPP
from utils.system.errors import UserError, quoted
from utils.weights import caffe_weights, pretrained, weight_files, weight_names

NUM_CLASSES = 3


@pytest.fixture(autouse=True)
def small(narrow):
    """Narrows conv1 and the blocks of the encoder to a 16th of the channels; all names remain."""


def add_blob(blobs, array, legacy=False, double=False):
    blob = blobs.add()
    array = np.asarray(array, np.float32)
    if legacy:
        blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
    else:
        blob.shape.dim.extend(array.shape)
    (blob.double_data if double else blob.data).extend(array.ravel().tolist())


def write_layers(path, layers, version=1, suffix=b'', **blob_options):
    """Writes layers, a list of (name, type, arrays); version 1 writes `layer`, version 0 the older `layers`."""
    net = caffe_weights.net_parameter()()
    for name, _, arrays in layers:
        layer = (net.layer if version == 1 else net.layers).add(name=name.encode())
        for array in arrays:
            add_blob(layer.blobs, array, **blob_options)
    path.write_binary(net.SerializeToString() + suffix)
    return str(path)


def read(path):
    return caffe_weights.read_layers(caffe_weights.parse(path))


def network_layers(rng, units=(3, 4, 23, 3), factor=2.0):
    """Returns the layers of a deeplab network, as in the authors' files, with random numbers."""
    layers = []
    for stage, unit, index, (height, width, inputs, outputs) in convolutions(resnet_blocks(units, depth=16)):
        conv, batch_norm = weight_names.conv_scopes('deeplab', stage, unit, index)
        layers += [(conv, 'Convolution', [rng.randn(outputs, inputs, height, width)]),
                   (batch_norm, 'BatchNorm', [rng.randn(outputs), rng.rand(outputs), [factor]]),
                   (batch_norm.replace('bn', 'scale', 1), 'Scale', [rng.randn(outputs), rng.randn(outputs)]),
                   (conv + '_relu', 'ReLU', [])]
    for scope in ASPP.SCOPES['caffe']:
        layers.append((scope, 'Convolution', [rng.randn(NUM_CLASSES, BLOCKS['deeplab'][3].depth, 3, 3),
                                              rng.randn(NUM_CLASSES)]))
    return layers


def expected_weights(layers):
    """Returns {variable name: array}, computed differently than by the reader: with einsum and a table of names."""
    expected = {}
    for name, kind, arrays in layers:
        arrays = [np.asarray(array, np.float32) for array in arrays]
        if kind == 'Convolution':
            expected[name + '/weights'] = np.einsum('oiyx->yxio', arrays[0])
            if len(arrays) > 1:
                expected[name + '/biases'] = arrays[1]
        elif kind == 'BatchNorm':
            expected[name + '/moving_mean'] = arrays[0] / 2
            expected[name + '/moving_variance'] = arrays[1] / 2
        elif kind == 'Scale':
            name = {'s': 'bn'}[name[0]] + name[5:]
            expected[name + '/gamma'], expected[name + '/beta'] = arrays
    return expected


def assert_arrays_equal(actual, expected):
    assert sorted(actual) == sorted(expected)
    for name in expected:
        assert actual[name].dtype == np.float32
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@pytest.mark.parametrize('options', [{}, {'version': 0}, {'legacy': True}, {'version': 0, 'legacy': True},
                                     {'double': True}],
                         ids=['layer', 'V1 layers', 'legacy shapes', 'V1 legacy', 'double_data'])
def test_network_of_the_authors(tmpdir, options):
    layers = network_layers(np.random.RandomState(0))
    path = write_layers(tmpdir.join('train_iter_20000'), layers, **options)
    weights = weight_files.open_weights(path)
    assert weights.kind == 'a Caffe model' and weights.compat == 'caffe' and weights.input == COMPAT['caffe'].input
    assert_arrays_equal({name: weights.read(name) for name in weights.shapes}, expected_weights(layers))
    assert weight_names.fits(weights.shapes, 'deeplab')
    assert weight_names.num_classes_of(weights.shapes) == NUM_CLASSES
    weights = pretrained.open_pretrained(path, 'deeplab')
    phrase = pretrained.choose_pretrained(weights.shapes, weights, 'deeplab', restore_decoder=True)[1]
    assert phrase == 'restored 520 encoder and 8 decoder variables from %s (a Caffe model)' % path


def test_copies_and_other_layers_are_left_out(tmpdir):
    layers = network_layers(np.random.RandomState(0))
    expected = expected_weights(layers)
    copies = [(name + suffix, kind, arrays) for name, kind, arrays in layers for suffix in ('_res075', '_res05')]
    others = [('fc1000', 'InnerProduct', [np.ones((1, 1, 4, 4))]), ('slope', 'PReLU', [np.ones(4)]),
              ('upscore', 'Deconvolution', [np.ones((3, 1, 4, 4))])]
    weights = weight_files.open_weights(write_layers(tmpdir.join('x'), copies[::2] + layers + copies[1::2] + others))
    assert_arrays_equal({name: weights.read(name) for name in weights.shapes}, expected)


def test_batch_norm_factor(tmpdir):
    mean, variance = np.float32([1, -2]), np.float32([3, 4])
    for factor, scale in ((4.0, 0.25), (0.0, 0.0), (1.0, 1.0)):
        path = write_layers(tmpdir.join('x'), [('bn_conv1', 'BatchNorm', [mean, variance, [factor]])])
        found = read(path)
        np.testing.assert_array_equal(found['resnet_v1_50/conv1/BatchNorm/moving_mean'], mean * scale)
        np.testing.assert_array_equal(found['resnet_v1_50/conv1/BatchNorm/moving_variance'], variance * scale)


def test_biases_before_a_batch_norm_are_folded(tmpdir):
    """He's ResNet-50 has such biases in conv1."""
    path = write_layers(tmpdir.join('x'), [
        ('conv1', 'Convolution', [np.ones((2, 3, 7, 7)), [1.0, 2.0]]),
        ('bn_conv1', 'BatchNorm', [[5.0, 5.0], [1.0, 1.0], [1.0]]),
        ('res2a_branch1', 'Convolution', [np.ones((2, 3, 1, 1)), [3.0, 4.0]]),
        ('bn2a_branch1', 'BatchNorm', [[5.0, 5.0], [1.0, 1.0], [1.0]])])
    found = read(path)
    assert not any(name.endswith('/biases') for name in found)
    for layer, mean in (('conv1', [4, 3]), ('block1/unit_1/bottleneck_v1/shortcut', [2, 1])):
        np.testing.assert_array_equal(found['resnet_v1_50/%s/BatchNorm/moving_mean' % layer], mean)


def field(number, payload):
    """Returns a length-delimited field in protobuf's wire format; the payload must be shorter than 16384 bytes."""
    tag, length = number << 3 | 2, len(payload)
    encoded = b''
    for value in (tag, length):
        while value > 127:
            encoded += bytes([value & 127 | 128])
            value >>= 7
        encoded += bytes([value])
    return encoded + payload


def test_bytes_by_hand(tmpdir):
    """Uses field numbers from Caffe's caffe.proto, packed and unpacked floats, and unknown fields in between."""
    packed = field(7, field(1, bytes([2, 1, 1, 3]))) + field(5, struct.pack('<6f', *range(6)))
    unpacked = field(7, field(1, bytes([2, 1, 1, 3]))) + b''.join(b'\x2d' + struct.pack('<f', i) for i in range(6))
    for blob in (packed, unpacked):
        layer = (field(1, b'conv1') + field(2, b'Convolution') + field(3, b'data') + field(4, b'conv1')
                 + field(6, b'\x0d\0\0\x80\x3f') + field(7, blob) + field(106, b'\x08\x02'))
        path = tmpdir.join('x')
        path.write_binary(field(1, b'ResNet') + field(3, b'data') + field(100, layer))
        found = read(str(path))
        weights = found['resnet_v1_50/conv1/weights']
        assert list(found) == ['resnet_v1_50/conv1/weights'] and weights.shape == (1, 3, 1, 2)
        np.testing.assert_array_equal(weights[0, :, 0, :], [[0, 3], [1, 4], [2, 5]])
    legacy = b'\x08\x02\x10\x01\x18\x01\x20\x03' + field(5, struct.pack('<6f', *range(6)))
    layer = field(2, b'data') + field(3, b'conv1') + field(4, b'conv1') + b'\x28\x04' + field(6, legacy)
    path.write_binary(field(2, layer))
    np.testing.assert_array_equal(read(str(path))['resnet_v1_50/conv1/weights'], weights)


def test_wrong_and_damaged_models_are_reported(tmpdir):
    layers = network_layers(np.random.RandomState(0))
    path = write_layers(tmpdir.join('x.caffemodel'), layers)
    content = tmpdir.join('x.caffemodel').read_binary()
    tmpdir.join('cut').write_binary(content[:len(content) // 2])
    tmpdir.join('long').write_binary(content + b'\x04\x04\x04')
    cut_layer = layers[:4] + [('res2a_branch1', 'Convolution', [np.ones((4, 4, 1, 1))])] + layers[8:]
    deeper = network_layers(np.random.RandomState(0), units=(3, 10, 23, 14))  # no encoder has these units
    cases = [
        (str(tmpdir.join('cut')), 'known kind, or is damaged'),
        (str(tmpdir.join('long')), 'known kind, or is damaged'),
        (write_layers(tmpdir.join('few'), layers[4:]), '5 of 520 variables are missing (conv1/weights and 4 more)'),
        (write_layers(tmpdir.join('other'), cut_layer), '1 of 520 have another shape (res2a_branch1/weights: '
                                                        '1x1x4x4 in the file, 1x1x4x16 in the network)'),
        (write_layers(tmpdir.join('deep'), deeper), '255 are extra (bn3b4_branch2a/beta and 254 more)'),
    ]
    for path, words in cases:
        with pytest.raises(UserError) as info:
            pretrained.open_pretrained(path, 'deeplab')
        assert quoted(path) in str(info.value) and words in str(info.value), info.value


def test_the_encoder_that_fits_is_named(tmpdir):
    path = write_layers(tmpdir.join('x.caffemodel'), network_layers(np.random.RandomState(0)))
    with pytest.raises(UserError, match='the file fits --encoder_name=deeplab --num_classes=3'):
        pretrained.open_pretrained(path, 'res50')


def assert_under_slims_names(weights, expected, encoder_name):
    """Checks a WeightsFile against {name in the deeplab encoder: array}."""
    for stage, unit, index, _ in convolutions(BLOCKS[encoder_name]):
        scopes = zip(weight_names.conv_scopes(encoder_name, stage, unit, index),
                     weight_names.conv_scopes('deeplab', stage, unit, index))
        for (ours, caffes), leaves in zip(scopes, (('weights',), weight_names.BATCH_NORM)):
            for leaf in leaves:
                np.testing.assert_array_equal(weights.read(ours + '/' + leaf), expected[caffes + '/' + leaf])


def test_the_authors_resnet_101_under_slims_names(tmpdir):
    layers = network_layers(np.random.RandomState(0))
    weights = pretrained.open_pretrained(write_layers(tmpdir.join('x'), layers), 'res101')
    assert weight_names.fits(weights.shapes, 'res101') and weights.input == COMPAT['caffe'].input
    expected = expected_weights(layers)
    assert_under_slims_names(weights, expected, 'res101')
    for i in range(4):
        np.testing.assert_array_equal(weights.read('decoder/aspp/conv%d/weights' % (i + 1)),
                                      expected['fc1_voc12_c%d/weights' % i])


def he_resnet_50(rng):
    """Returns (layers, {name in the deeplab encoder: array}) of Kaiming He's ResNet-50-model.caffemodel."""
    layers = network_layers(rng, units=(3, 4, 6, 3))[:-4]
    expected = expected_weights(layers)
    biases = np.float32(rng.randn(4))
    layers[0][2].append(biases)
    expected['bn_conv1/moving_mean'] = expected['bn_conv1/moving_mean'] - biases
    letters = [(re.sub(r'(?<=[34])b([1-5])', lambda match: 'abcdef'[int(match.group(1))], name), kind, arrays)
               for name, kind, arrays in layers]
    assert 'res4f_branch2c' in [name for name, _, _ in letters]
    return letters + [('fc1000', 'InnerProduct', [rng.randn(10, 128), rng.randn(10)])], expected


def test_kaiming_hes_resnet_50(tmpdir):
    layers, expected = he_resnet_50(np.random.RandomState(0))
    path = write_layers(tmpdir.join('ResNet-50-model.caffemodel'), layers)
    for encoder_name in ('res50', None):
        weights = weight_files.open_weights(path, encoder_name)
        assert weight_names.fits(weights.shapes, 'res50')
        assert sorted(weights.shapes) == sorted(weight_names.encoder_shapes('res50'))
        assert weights.compat == 'caffe' and weights.input == weight_files.IMAGENET_INPUT
        assert_under_slims_names(weights, expected, 'res50')
    pretrained.open_pretrained(path, 'res50')
    with pytest.raises(UserError, match='the file fits --encoder_name=res50'):
        pretrained.open_pretrained(path, 'deeplab')


def test_kaiming_hes_resnet_101_has_imagenets_mean(tmpdir):
    layers = network_layers(np.random.RandomState(0))[:-4] + [('fc1000', 'InnerProduct', [np.ones((10, 128))])]
    weights = weight_files.open_weights(write_layers(tmpdir.join('x'), layers), 'deeplab')
    assert weight_names.fits(weights.shapes, 'deeplab') and weights.input == weight_files.IMAGENET_INPUT


def test_other_caffe_models(tmpdir):
    path = write_layers(tmpdir.join('vgg.caffemodel'), [('conv1_1', 'Convolution', [np.ones((4, 3, 3, 3))])])
    with pytest.raises(UserError, match='without the layers of a ResNet'):
        weight_files.open_weights(path)


@pytest.mark.parametrize('dims', [[5, 3, 7, 7], [-1, 3, 7, 7], [2 ** 40, 2 ** 40], [0, -1], []])
def test_data_that_does_not_fill_its_shape(tmpdir, dims):
    net = caffe_weights.net_parameter()()
    layer = net.layer.add(name=b'conv1')
    add_blob(layer.blobs, np.ones((2, 3, 7, 7)))
    del layer.blobs[0].shape.dim[:]
    layer.blobs[0].shape.dim.extend(dims)
    path = tmpdir.join('x.caffemodel')
    path.write_binary(net.SerializeToString())
    with pytest.raises(UserError, match=r'x.caffemodel is damaged or incomplete.*a layer has 294 values for'):
        weight_files.open_weights(str(path))


def test_biases_of_another_number_than_channels(tmpdir):
    path = write_layers(tmpdir.join('x'), [('conv1', 'Convolution', [np.ones((2, 3, 7, 7)), [1.0]]),
                                           ('bn_conv1', 'BatchNorm', [[5.0, 5.0], [1.0, 1.0], [1.0]])])
    with pytest.raises(UserError, match='damaged or incomplete.*1 values for 2 channels'):
        weight_files.open_weights(path)


def test_damaged_layer_names(tmpdir):
    """If a layer's name is damaged, its weights are missing, and no other file is read instead."""
    path = tmpdir.join('x.caffemodel')
    write_layers(path, he_resnet_50(np.random.RandomState(0))[0])
    content = path.read_binary()
    for name in (b'res4b_branch2\xff', b'res4b_branch2\0', b'\xe4\xb8s4b_branch2a', b'res4\n_branch2a'):
        path.write_binary(content.replace(field(1, b'res4b_branch2a'), field(1, name)))
        with pytest.raises(UserError) as info:
            pretrained.open_pretrained(str(path), 'res50')
        assert '1 of 265 variables are missing (resnet_v1_50/block3/unit_2/bottleneck_v1/conv1/w' in str(info.value)


def test_random_damage(tmpdir):
    """Bytes are changed at random places of names, lengths and numbers."""
    path = tmpdir.join('x.caffemodel')
    write_layers(path, he_resnet_50(np.random.RandomState(0))[0])
    assert damage.count_reported(path, seeds=60, stride=7, reach=8) > 5


def test_kaiming_hes_resnet_152(tmpdir):
    layers = network_layers(np.random.RandomState(0), units=(3, 8, 36, 3))[:-4]
    assert {'res3b7_branch2c', 'res4b35_branch2c'} <= {name for name, _, _ in layers}
    classifier = [('fc1000', 'InnerProduct', [np.ones((10, 128))])]
    path = write_layers(tmpdir.join('ResNet-152-model.caffemodel'), layers + classifier)
    weights = pretrained.open_pretrained(path, 'res152')
    assert weight_names.fits(weights.shapes, 'res152') and weights.input == weight_files.IMAGENET_INPUT
    assert_under_slims_names(weights, expected_weights(layers), 'res152')
    for encoder_name in ('res101', 'deeplab', 'res50'):
        with pytest.raises(UserError, match='the file fits --encoder_name=res152.'):
            pretrained.open_pretrained(path, encoder_name)


@pytest.mark.parametrize('encoder_name', ['deeplab', 'res101'])
def test_the_decoder_of_image_pooling_from_caffe(tmpdir, encoder_name):
    layers = network_layers(np.random.RandomState(0)) + [
        ('fc1_voc12_pool', 'Convolution', [np.ones((NUM_CLASSES, BLOCKS['deeplab'][3].depth, 1, 1)), np.ones(3)])]
    weights = weight_files.open_weights(write_layers(tmpdir.join('x'), layers), encoder_name)
    assert weight_names.decoder_of(weights.shapes) == ('aspp_pooling', NUM_CLASSES)
    assert weight_names.decoder_shapes(encoder_name, 'aspp_pooling', NUM_CLASSES).items() <= weights.shapes.items()
