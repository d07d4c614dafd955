"""Tests reading the .h5 files of Keras' ResNets, as Keras writes them, and fetching the published ones."""

import hashlib
import os
import re
import subprocess
import sys

import damage
import h5py
import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf

import network
from utils.net.blocks import BLOCKS, convolutions, resnet_blocks
from utils.net.compat import Input
from utils.system.errors import UserError, quoted
from utils.weights import checkpoints, keras_weights, pretrained, weight_files, weight_names

# In a process of its own, as Keras 3 wants eager mode, which other tests may have turned off.
WRITE_WITH_KERAS = '''
import sys
import numpy as np
import tensorflow as tf

folder = sys.argv[1]
model = tf.keras.applications.ResNet50(weights=None, include_top=False, input_shape=(65, 65, 3))
rng = np.random.RandomState(0)
model.set_weights([weight if weight.ndim == 4 else weight + rng.rand(*weight.shape) for weight in model.get_weights()])
image = rng.uniform(-120, 130, (1, 65, 65, 3)).astype('float32')
stage3 = tf.keras.Model(model.inputs, model.get_layer('conv3_block4_out').output)
np.savez(folder + '/features.npz', image=image, features=stage3.predict(image))
np.savez(folder + '/values.npz', **{'%s/%d' % (layer.name, i): weight for layer in model.layers
                                    for i, weight in enumerate(layer.get_weights())})
model.save(folder + '/model.h5')
if tf.__version__.startswith('1.'):
    model.save_weights(folder + '/legacy.h5')
else:
    model.save_weights(folder + '/new.weights.h5')
'''


@pytest.fixture(scope='module')
def written_by_keras(tmpdir_factory):
    """Writes one ResNet50 in all layouts of the installed Keras, and values.npz; returns the folder."""
    folder = tmpdir_factory.mktemp('keras')
    process = subprocess.Popen([sys.executable, '-c', WRITE_WITH_KERAS, str(folder)], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, universal_newlines=True)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    yield folder
    folder.remove()


def write_legacy(path, units, arrays=None):
    """Writes an .h5 in the layout of the published files with h5py; returns {(layer, leaf): array}."""
    rng = np.random.RandomState(0)
    written = {}
    with h5py.File(str(path), 'w') as file:
        for stage, unit, index, shape in convolutions(resnet_blocks(units, depth=16)):
            layer = 'conv1' if stage == 1 else 'conv%d_block%d_%d' % (stage, unit, index)
            for kind, leaf in (('conv', 'kernel'), ('conv', 'bias'), ('bn', 'gamma'), ('bn', 'beta'),
                               ('bn', 'moving_mean'), ('bn', 'moving_variance')):
                name = '%s_%s' % (layer, kind)
                array = rng.randn(*(shape if leaf == 'kernel' else shape[-1:])).astype(np.float32)
                file['%s/%s/%s:0' % (name, name, leaf)] = array
                written[name, leaf] = array
        for name, array in (arrays or {}).items():
            file[name] = array
    return written


def names_of_2016(layer):
    """Returns the names (convolution, batch norm) in Keras' first ResNet-50 of a layer now called conv4_block6_1."""
    if layer == 'conv1':
        return 'conv1', 'bn_conv1'
    stage, unit, index = re.match(r'conv(\d)_block(\d)_(\d)', layer).groups()
    branch = '%s%s_branch%s' % (stage, ' abcdef'[int(unit)], ('1', '2a', '2b', '2c')[int(index)])
    return 'res' + branch, 'bn' + branch


LEAVES_OF_2016 = {'kernel': 'W', 'bias': 'b', 'moving_mean': 'running_mean', 'moving_variance': 'running_std'}


def write_as_in_2016(path, layers, form):
    """Writes {(Keras' layer, leaf): array} under the names of 2016, datasets named by the format `form`."""
    with h5py.File(str(path), 'w') as file:
        for (layer, leaf), array in layers.items():
            layer, kind = layer.rsplit('_', 1)
            name = names_of_2016(layer)[kind == 'bn']
            file[form.format(layer=name, leaf=LEAVES_OF_2016.get(leaf, leaf), new=leaf)] = array


@pytest.mark.parametrize('form', [
    '{layer}/{layer}_{leaf}:0', '{layer}/{layer}_{leaf}', '{layer}/{new}:0', '{layer}/{layer}/{new}:0',
    'model_weights/{layer}/{layer}_{leaf}:0', 'model_weights/{layer}/{layer}_1/{new}:0'])
def test_keras_first_resnet_50(tmpdir, narrow, form):
    layers = write_legacy(tmpdir.join('new.h5'), (3, 4, 6, 3))
    write_as_in_2016(tmpdir.join('old.h5'), layers, form)
    weights = pretrained.open_pretrained(str(tmpdir.join('old.h5')), 'res50')
    assert_weights_are(weights, layers, 'res50')
    assert weights.compat == 'caffe' and weights.input == Input('bgr', (103.939, 116.779, 123.68))


def test_kernels_in_theanos_order(tmpdir, narrow):
    layers = write_legacy(tmpdir.join('new.h5'), (3, 4, 6, 3))
    turned = {key: array.transpose(3, 2, 0, 1) if array.ndim == 4 else array for key, array in layers.items()}
    write_as_in_2016(tmpdir.join('th.h5'), turned, '{layer}/{layer}_{leaf}')
    with pytest.raises(UserError, match='th.h5 holds kernels in the order of Theano .*: give the file for TensorFlow'):
        weight_files.open_weights(str(tmpdir.join('th.h5')))


def test_keras_3_without_layer_names(tmpdir):
    """Keras 3.0 to 3.3 write such .weights.h5: the first unit's shortcut has the shape of its last convolution."""
    path = str(tmpdir.join('old.weights.h5'))
    with h5py.File(path, 'w') as file:
        for i, shape in enumerate([(7, 7, 3, 64), (1, 1, 64, 64), (3, 3, 64, 64), (1, 1, 64, 256), (1, 1, 64, 256)]):
            file['layers/conv2d%s/vars/0' % ('_%d' % i if i else '')] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match="names no layers, like all .* of Keras up to 3.3, .* save it as .h5"):
        weight_files.open_weights(path)


def test_two_resnets_in_one_file(tmpdir, narrow):
    path = tmpdir.join('ensemble.h5')
    write_legacy(path, (3, 4, 6, 3), {'second/conv1_conv/kernel:0': np.ones((7, 7, 3, 4), np.float32)})
    with pytest.raises(UserError, match='ensemble.h5 holds more than one ResNet .*conv1_conv/kernel:0'):
        weight_files.open_weights(str(path))


def hostile(file, name, what):
    """Replaces a dataset by one that is not an array of the layer's numbers."""
    del file[name]
    if what == '600 TB':
        file.create_dataset(name, (7, 7, 3, 2 ** 40), np.float32, chunks=(7, 7, 3, 64))
    elif what == 'compound':
        file[name] = np.zeros(3, [('a', np.float32), ('b', np.int32)])
    elif what == 'empty':
        file[name] = h5py.Empty('f4')
    elif what == 'reference':
        file.create_dataset(name, (7, 7, 3, 4), h5py.special_dtype(ref=h5py.Reference))
    elif what == 'strings':
        file[name] = np.array([b'x'] * 4)
    elif what == 'integers':
        file[name] = np.ones((7, 7, 3, 4), np.int32)
    else:
        file[name] = np.ones((7, 7, 3, 4) if what == 'rank' else 3, np.float32)


@pytest.mark.parametrize('what, words', [
    ('600 TB', 'conv1/weights: 7x7x3x1099511627776 in the file, 7x7x3x4 in the network'),
    ('compound', 'conv1_conv/kernel:0 holds no floating-point numbers'), ('empty', 'holds no floating-point numbers'),
    ('reference', 'holds no floating-point numbers'), ('strings', 'holds no floating-point numbers'),
    ('integers', 'holds no floating-point numbers'), ('few', 'conv1/weights: 3 in the file'),
    ('bias', 'conv1_conv/bias:0 has shape (3,) for 4 channels'),
    ('rank', 'conv1/BatchNorm/gamma: 7x7x3x4 in the file, 4 in the network')])
def test_hostile_datasets(tmpdir, narrow, what, words):
    path = str(tmpdir.join('x.h5'))
    write_legacy(path, (3, 4, 6, 3))
    layer = {'bias': 'conv1_conv/conv1_conv/bias:0', 'rank': 'conv1_bn/conv1_bn/gamma:0'}
    with h5py.File(path, 'r+') as file:
        hostile(file, layer.get(what, 'conv1_conv/conv1_conv/kernel:0'), what)
    with pytest.raises(UserError) as info:
        pretrained.open_pretrained(path, 'res50')
    assert words in str(info.value) and str(info.value).isprintable() and len(str(info.value)) <= 400


def test_random_damage(tmpdir, narrow):
    """With bytes changed at random in HDF5's own structures, the file is read or reported in a printable message."""
    path = tmpdir.join('x.h5')
    write_legacy(path, (3, 4, 6, 3))
    assert damage.count_reported(path, seeds=30) > 5


def assert_weights_are(weights, layers, encoder_name):
    """Checks a WeightsFile against {(Keras' layer, leaf): array}, biases folded into the means."""
    assert sorted(weights.shapes) == sorted(weight_names.encoder_shapes(encoder_name))
    for stage, unit, index, _ in convolutions(BLOCKS[encoder_name]):
        layer = 'conv1' if stage == 1 else 'conv%d_block%d_%d' % (stage, unit, index)
        conv, batch_norm = weight_names.conv_scopes(encoder_name, stage, unit, index)
        expected = {conv + '/weights': layers[layer + '_conv', 'kernel']}
        for leaf in ('gamma', 'beta', 'moving_mean', 'moving_variance'):
            expected[batch_norm + '/' + leaf] = layers[layer + '_bn', leaf]
        expected[batch_norm + '/moving_mean'] = layers[layer + '_bn', 'moving_mean'] - layers[layer + '_conv', 'bias']
        for name, array in expected.items():
            np.testing.assert_array_equal(weights.read(name), array, err_msg=name)


def test_what_keras_writes(written_by_keras):
    leaves = {'conv': ('kernel', 'bias'), 'bn': ('gamma', 'beta', 'moving_mean', 'moving_variance')}
    with np.load(str(written_by_keras.join('values.npz'))) as values:
        layers = {(layer, leaves[layer.rsplit('_', 1)[1]][int(i)]): values[key]
                  for key in values.files for layer, i in [key.split('/')]}
    paths = written_by_keras.listdir(lambda path: path.ext == '.h5')
    assert len(paths) == 2
    for path in paths:
        weights = weight_files.open_weights(str(path))
        assert weights.kind == 'Keras weights' and weights.compat == 'caffe'
        assert_weights_are(weights, layers, 'res50')
        assert weight_names.fits(weights.shapes, 'res50')


def test_features_are_keras_own(written_by_keras):
    """Compares the features before the first dilated block, where our output stride starts to differ from Keras'."""
    weights = weight_files.open_weights(str(written_by_keras.listdir(lambda path: path.ext == '.h5')[0]))
    with np.load(str(written_by_keras.join('features.npz'))) as golden, tf.Graph().as_default(), tf.Session() as sess:
        net = network.DilatedResNet(tf.constant(golden['image']), 2, False, 'res50', compat='caffe',
                                    blocks=BLOCKS['res50'][:2])
        sess.run(tf.global_variables_initializer())
        encoder = {v.op.name: weights.read(v.op.name) for v in net.variables if v.op.name in weights.shapes}
        assert len(encoder) == 5 * (1 + 10 + 13)
        checkpoints.load_values(sess, net.variables, encoder)
        assert recipe.relative_error(sess.run(net.encoding), golden['features']) <= 1e-4


def test_the_keras_model_that_deeplab_and_res101_share(tmpdir, narrow):
    path = tmpdir.join('no_suffix')
    layers = write_legacy(path, (3, 4, 23, 3), {
        'predictions/predictions/kernel:0': np.ones((3, 4)), 'top_level_model_weights/x': np.ones(1),
        'optimizer_weights/conv1_conv/kernel/momentum:0': np.ones(2)})
    assert_weights_are(weight_files.open_weights(str(path)), layers, 'res101')
    for encoder_name in ('res101', 'deeplab'):
        assert_weights_are(weight_files.open_weights(str(path), encoder_name), layers, encoder_name)
        shapes = weight_names.encoder_shapes(encoder_name)
        weights = pretrained.open_pretrained(str(path), encoder_name)
        phrase = pretrained.choose_pretrained(shapes, weights, encoder_name)[1]
        assert phrase == 'restored 520 encoder variables from %s (Keras weights)' % path
    with pytest.raises(UserError) as info:
        pretrained.open_pretrained(str(path), 'res50')
    assert '265 of 265 variables are missing' in str(info.value)
    assert 'the file fits --encoder_name=res101' in str(info.value)


def test_resnet_152(tmpdir, narrow):
    path = tmpdir.join('resnet152.h5')
    layers = write_legacy(path, (3, 8, 36, 3))
    for encoder_name in ('res152', None):
        assert_weights_are(weight_files.open_weights(str(path), encoder_name), layers, 'res152')
    for encoder_name in ('res101', 'deeplab'):
        with pytest.raises(UserError, match='the file fits --encoder_name=res152.'):
            pretrained.open_pretrained(str(path), encoder_name)
    file_name, url, _ = keras_weights.published('res152')
    assert file_name == 'resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5' and url.endswith('/' + file_name)


def test_folded_biases_keep_the_function():
    """Compares (x + b - mean) / sqrt(var + eps) * gamma + beta with and without the bias."""
    rng = np.random.RandomState(0)
    x, bias, gamma, beta, mean = rng.randn(5, 4)
    before = (x + bias - mean) / np.sqrt(2.0) * gamma + beta
    weights = {'conv1/weights': x, 'conv1/biases': bias, 'bn_conv1/moving_mean': mean, 'fc1_voc12_c0/biases': bias}
    weight_names.fold_biases(weights, 'deeplab')
    assert sorted(weights) == ['bn_conv1/moving_mean', 'conv1/weights', 'fc1_voc12_c0/biases']
    after = (x - weights['bn_conv1/moving_mean']) / np.sqrt(2.0) * gamma + beta
    np.testing.assert_allclose(after, before, rtol=1e-12)


def test_other_models_are_reported(tmpdir, narrow):
    deep, vgg, cut, renamed = (str(tmpdir.join(name)) for name in ('deep', 'vgg', 'cut', 'renamed'))
    write_legacy(deep, (3, 10, 23, 14))  # as no encoder has
    with h5py.File(vgg, 'w') as file:
        file['block1_conv1/block1_conv1/kernel:0'] = np.ones((3, 3, 3, 64))
    write_legacy(renamed, (3, 4, 23, 3))
    with h5py.File(renamed, 'r+') as file:
        del file['conv5_block3_3_bn']
    with open(deep, 'rb') as source, open(cut, 'wb') as target:
        target.write(source.read()[:os.path.getsize(deep) // 2])
    for path, words in ((deep, '255 are extra'), (vgg, 'without the layers of a Keras ResNet'),
                        (cut, 'damaged or incomplete'), (renamed, '4 of 520 variables are missing')):
        with pytest.raises(UserError) as info:
            pretrained.open_pretrained(path, 'deeplab')
        assert quoted(path) in str(info.value) and words in str(info.value) and '\n' not in str(info.value)


@pytest.mark.parametrize('encoder_name', ['deeplab', 'res101', 'res50'])
def test_published_file_by_keras_own_constants(encoder_name):
    file_name, url, md5 = keras_weights.published(encoder_name)
    model, known = {'res50': ('resnet50', '4d473c1dd8becc155b73f8504c6f6626')}.get(
        encoder_name, ('resnet101', '88cf7a10940856eca736dc7b7e228a21'))
    assert file_name == model + '_weights_tf_dim_ordering_tf_kernels_notop.h5'
    assert url.startswith('https://') and url.endswith('/' + file_name)
    assert md5 == known


def serve(tmpdir, monkeypatch, path):
    """Makes `imagenet` come from a local file into a cache in tmpdir."""
    file_name = 'resnet101_weights.h5'
    md5 = hashlib.md5(path.read_binary() if path.check() else b'').hexdigest()
    monkeypatch.setattr(keras_weights, 'published', lambda encoder_name: (file_name, 'file://' + str(path), md5))
    monkeypatch.setenv('KERAS_HOME', str(tmpdir.join('home')))
    return tmpdir.join('home', 'models', file_name)


def test_imagenet_is_fetched_once_into_keras_cache(tmpdir, narrow, monkeypatch):
    source = tmpdir.join('source.h5')
    layers = write_legacy(source, (3, 4, 23, 3))
    cached = serve(tmpdir, monkeypatch, source)
    assert_weights_are(pretrained.open_pretrained('imagenet', 'deeplab'), layers, 'deeplab')
    assert cached.read_binary() == source.read_binary()
    source.remove()
    assert_weights_are(pretrained.open_pretrained('imagenet', 'res101'), layers, 'res101')
    assert pretrained.open_pretrained('imagenet', 'res101').compat == 'caffe'


def test_imagenet_without_a_network(tmpdir, monkeypatch):
    source = tmpdir.join('source.h5')
    cached = serve(tmpdir, monkeypatch, source)
    with pytest.raises(UserError) as info:
        pretrained.open_pretrained('imagenet', 'deeplab')
    text = str(info.value)
    assert '\n' not in text and 'file://%s could not be fetched' % source in text
    assert 'put it into ' in text and len(text.replace(str(tmpdir), '/tmp')) <= 300
    assert not cached.check()
