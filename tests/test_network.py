"""Compares the networks with the golden arrays: names, shapes, trainability, logits and features."""

import json
import os

import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf

import network
from utils.net import decoders, dilated, layers
from utils.training import optimizer

GOLDEN = os.path.join(os.path.dirname(__file__), 'golden')
SIZES = [(2, 65, 65), (1, 72, 57)]


def golden(name, size):
    return np.load(os.path.join(GOLDEN, '%s_%dx%dx%d.npz' % ((name,) + size)))


def build(encoder_name, inputs, **keywords):
    if encoder_name == 'deeplab':
        return network.Deeplab_v2(inputs, 21, False, **keywords)
    return network.ResNet_segmentation(inputs, 21, False, encoder_name, **keywords)


def run(encoder_name, sizes=SIZES, **keywords):
    """Returns [(size, logits, encoding)] for the recipe's weights and images, from one graph for all sizes."""
    with tf.Graph().as_default(), tf.Session() as sess:
        inputs = tf.placeholder(tf.float32, [None, None, None, 3])
        net = build(encoder_name, inputs, **keywords)
        recipe.assign(sess, net.variables)
        return [[size] + sess.run([net.outputs, net.encoding], {inputs: recipe.image(*size)}) for size in sizes]


@pytest.mark.parametrize('encoder_name', ['deeplab', 'res101', 'res50'])
def test_variables_are_the_originals(encoder_name):
    with open(os.path.join(GOLDEN, 'original_%s_variables.json' % encoder_name)) as file:
        wanted = json.load(file)
    with tf.Graph().as_default():
        net = build(encoder_name, tf.zeros([1, 65, 65, 3]))
        trainable = {v.op.name for v in tf.trainable_variables()}
        found = [[v.op.name, v.shape.as_list(), v.op.name in trainable] for v in tf.global_variables()]
        assert found == wanted
        assert [v.op.name for v in net.variables] == [name for name, _, _ in wanted]


@pytest.mark.parametrize('encoder_name', ['deeplab', 'res101', 'res50'])
def test_original_numerics(encoder_name):
    for size, outputs, encoding in run(encoder_name):
        reference = golden('original_' + encoder_name, size)
        assert recipe.relative_error(outputs, reference['outputs']) <= 1e-5, size
        assert recipe.relative_error(encoding.mean(axis=(1, 2)), reference['encoding_mean']) <= 1e-5, size
        assert recipe.relative_error(encoding.std(axis=(1, 2)), reference['encoding_std']) <= 1e-5, size


@pytest.mark.parametrize('dilated_type', ['regular', 'decompose', 'smooth_SSC'])
def test_dilated_types(dilated_type):
    for size, outputs, _ in run('res50', dilated_type=dilated_type):
        assert recipe.relative_error(outputs, golden('original_res50_' + dilated_type, size)['outputs']) <= 1e-5, size


def slipped_mix(groups, fix_w):
    """Mixes groups like the original, whose term j = 0 uses group_i in place of group_0."""
    number = int(fix_w.shape[0])
    flat = tf.reshape(groups, [number, -1])
    mixed = tf.matmul(fix_w, flat, transpose_a=True) + fix_w[0][:, tf.newaxis] * (flat - flat[:1])
    return tf.reshape(mixed, tf.shape(groups))


def test_smooth_GI_differs_from_the_original_by_its_slip_alone(monkeypatch):
    for size, outputs, _ in run('res50', dilated_type='smooth_GI'):
        assert recipe.relative_error(outputs, golden('original_res50_smooth_GI', size)['outputs']) > 1e-3, size
    monkeypatch.setattr(dilated, 'mix_groups', slipped_mix)
    for size, outputs, _ in run('res50', dilated_type='smooth_GI'):
        assert recipe.relative_error(outputs, golden('original_res50_smooth_GI', size)['outputs']) <= 1e-5, size


@pytest.mark.parametrize('dilated_type', ['smooth_GI', 'smooth_SSC'])
def test_fix_w_variables(dilated_type):
    with open(os.path.join(GOLDEN, 'original_res50_%s_fix_w.json' % dilated_type)) as file:
        wanted = json.load(file)
    with tf.Graph().as_default():
        build('res50', tf.zeros([1, 65, 65, 3]), dilated_type=dilated_type)
        found = [[v.op.name, v.shape.as_list()] for v in tf.trainable_variables() if v.op.name.endswith('fix_w')]
    assert found == wanted


def test_caffe_numerics():
    for size, outputs, _ in run('deeplab', compat='caffe'):
        assert recipe.relative_error(outputs, golden('caffe_deeplab', size)['outputs']) <= 1e-5, size


@pytest.mark.parametrize('encoder_name, scope', [('res50', 'resnet_v1_50'), ('res101', 'resnet_v1_101')])
def test_slim_numerics(encoder_name, scope):
    (_, _, features), = run(encoder_name, [(2, 65, 65)], compat='slim')
    reference = golden('slim_' + scope, (2, 65, 65))
    assert recipe.relative_error(features[:, ::3, ::3, ::64], reference['features_slice']) <= 1e-5
    assert recipe.relative_error(features.mean(axis=(1, 2)), reference['features_mean']) <= 1e-5
    assert recipe.relative_error(features.std(axis=(1, 2)), reference['features_std']) <= 1e-5


def test_folding_in_place_changes_nothing(narrow):
    narrow({'res50': (2, 2, 2, 2)})
    (_, reference, _), = run('res50', [(1, 65, 65)])
    with tf.Graph().as_default(), tf.Session() as sess:
        net = build('res50', tf.constant(recipe.image(1, 65, 65)), batch_norm='folded')
        assert len(net.variables) < len(net.shapes)
        recipe.load(sess, net)
        assert recipe.relative_error(sess.run(net.outputs), reference) <= 1e-5


def test_second_apply_shares_the_weights(narrow):
    narrow({'res50': (2, 2, 2, 2)})
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.constant(recipe.image(1, 65, 65))
        net = build('res50', images)
        count = len(tf.global_variables())
        again = net.apply(images)[1]
        assert len(tf.global_variables()) == count
        recipe.assign(sess, net.variables)
        first, second = sess.run([net.outputs, again])
    assert recipe.relative_error(first, second) <= 1e-6


@pytest.mark.parametrize('encoder_name', ['deeplab', 'res50'])
def test_image_pooling_is_a_branch_beside_the_aspp(narrow, encoder_name):
    """aspp_pooling is aspp plus weights * mean of the encoding over the map + biases, in every pixel."""
    narrow({encoder_name: (1, 1, 1, 1)})
    size = (2, 65, 49)
    (_, plain, encoding), = run(encoder_name, [size])
    (_, outputs, _), = run(encoder_name, [size], decoder='aspp_pooling')
    scope = {'deeplab': 'fc1_voc12_pool', 'res50': 'decoder/aspp/image_pooling'}[encoder_name]
    weights, biases = recipe.value(scope + '/weights', [1, 1, 128, 21]), recipe.value(scope + '/biases', [21])
    pooled = encoding.mean(axis=(1, 2)).dot(weights[0, 0]) + biases
    assert recipe.relative_error(outputs - plain, np.broadcast_to(pooled[:, None, None], plain.shape)) <= 1e-4


def test_groups_of_rates_and_their_variables(narrow):
    narrow({'res50': (1, 1, 1, 1)})
    with tf.Graph().as_default():
        net = network.build('res50', tf.zeros([1, 33, 33, 3]), num_classes=21, phase=True, decoder='aspp_pooling',
                            batch_norm='trained', dilated_type='smooth_GI')
        groups = net.rate_groups()
        assert sorted(v.op.name for group in groups.values() for v in group) == sorted(
            v.op.name for v in tf.trainable_variables())
    convs = ['conv1', 'conv2', 'conv3', 'conv4', 'image_pooling']
    for leaf in ('weights', 'biases'):
        assert [v.op.name for v in groups['decoder_' + leaf]] == ['decoder/aspp/%s/%s' % (conv, leaf) for conv in convs]
    assert {v.op.name.rsplit('/', 1)[1] for v in groups['encoder']} == {'weights', 'gamma', 'beta', 'fix_w'}
    assert net.variables == net.encoder_variables + net.decoder_variables


def test_a_decoder_with_batch_norm_needs_nothing_elsewhere(narrow, monkeypatch):
    """Its variables are in the network's groups and statistics, and folding does not change the output."""
    narrow({'res50': (0, 0, 0, 1)})

    class Normalized(decoders.ASPP):
        def build(self):
            super().build()
            self.reduce = self.add(layers.ConvBN(
                ('decoder/reduce', 'decoder/reduce/BatchNorm'), [1, 1, self.depth, self.depth], layers.conv2d,
                self.batch_norm, self.numerics.epsilon))

        def __call__(self, features):
            return super().__call__(self.reduce(features))

    monkeypatch.setitem(decoders.DECODERS, 'normalized', Normalized)
    results = []
    for batch_norm in ('frozen', 'folded', 'trained'):
        with tf.Graph().as_default(), tf.Session() as sess:
            net = network.build('res50', tf.constant(recipe.image(1, 33, 33)), num_classes=3,
                                phase=batch_norm == 'trained', decoder='normalized', batch_norm=batch_norm)
            recipe.load(sess, net)
            results.append(sess.run(net.outputs))
            trained = [v.op.name for v in net.rate_groups()['decoder_weights']]
            averages = [v.op.name for v, _ in net.statistics()]
    assert recipe.relative_error(results[1], results[0]) <= 1e-5
    assert {'decoder/reduce/weights', 'decoder/reduce/BatchNorm/gamma'} <= set(trained)
    assert 'decoder/reduce/BatchNorm/moving_mean' in averages


def test_trained_batch_norm_moves_its_averages():
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.constant(recipe.image(2, 65, 65))
        net = network.ResNet_segmentation(images, 21, True, 'res50', batch_norm='trained')
        trainable = {v.op.name.rsplit('/', 1)[-1] for v in tf.trainable_variables()}
        updates = optimizer.move_averages(net.statistics(), 0.9)
        sess.run(tf.global_variables_initializer())
        mean, variance = [v for v in net.variables if v.op.name.startswith('resnet_v1_50/conv1/BatchNorm/moving')]
        conv1 = tf.nn.conv2d(images, net.variables[0], [1, 2, 2, 1], 'SAME')
        batch_mean, batch_variance = sess.run(tf.nn.moments(conv1, [0, 1, 2]))
        sess.run(updates)
        count = 2 * 33 * 33
        assert recipe.relative_error(sess.run(mean), 0.1 * batch_mean) <= 1e-4
        unbiased = batch_variance * count / (count - 1)
        assert recipe.relative_error(sess.run(variance), 0.9 + 0.1 * unbiased) <= 1e-4
    assert trainable == {'weights', 'biases', 'gamma', 'beta'}
    assert len(updates) == 2 * 53


@pytest.mark.parametrize('keywords, valid', [
    ({'dilated_type': 'dense'}, 'decompose, regular, smooth_GI, smooth_SSC'),
    ({'compat': 'torch'}, 'caffe, original, slim'),
    ({'batch_norm': 'on'}, 'frozen, trained, folded'),
    ({'decoder': 'unet'}, 'aspp, aspp_pooling'), ({'encoder_name': 'res18'}, 'res101, res50'),
])
def test_unknown_choices_name_the_valid_ones(keywords, valid):
    with tf.Graph().as_default(), pytest.raises(ValueError, match=valid):
        network.ResNet_segmentation(tf.zeros([1, 65, 65, 3]), 21, False, **{'encoder_name': 'res50', **keywords})
