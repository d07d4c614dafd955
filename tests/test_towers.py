"""Several towers equal one on the same batch, variables are shared and spread, and invalid splits are refused."""

import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf
from narrow_main import UNITS

from model import Model
from model_msc import Model_msc
from utils.distributed import towers
from utils.distributed.cluster import Cluster
from utils.system import runtime
from utils.system.errors import UserError

BATCH = 4
THREE = Cluster(['a:1', 'b:2', 'c:3'])


def updates(model_class, conf, steps=5):
    """Returns the losses of some steps on one batch, with some void pixels, and all variables after them."""
    labels = recipe.label(BATCH, 33, 33, 6)
    labels[0], labels[2, :20] = 255, 255  # so that towers get parts with few and with many valid pixels
    with tf.Graph().as_default():
        model = model_class(conf)
        graph = model.training_graph(tf.constant(recipe.image(BATCH, 33, 33)), tf.constant(labels))
        with tf.Session(config=runtime.session_config(num_cpus=conf.num_gpus)) as sess:
            recipe.assign(sess, graph.net.variables)
            losses = [model.train_step(sess, graph, step)[0]['loss/total'] for step in range(steps)]
            variables = graph.net.variables + graph.update.state
            return losses, dict(zip([v.op.name for v in variables], sess.run(variables)))


@pytest.mark.parametrize('model_class, counts, flags', [
    (Model, (2, 4), {}), (Model, (2,), {'loss': 'ohem', 'grad_update_every': 2, 'dilated_type': 'smooth_GI',
                         'learning_rate': 2e-5}),
    (Model, (2,), {'decoder': 'aspp_pooling'}),
    (Model, (2,), {'loss': 'ce+dice', 'optimizer': 'adamw', 'num_classes': 5}),
    (Model_msc, (4,), {}), (Model_msc, (2,), {'grad_update_every': 2, 'compat': 'caffe', 'encoder_name': 'deeplab'}),
], ids=['plain', 'ohem, accumulated, GI', 'image pooling', 'dice, adamw', 'msc', 'msc, accumulated, caffe'])
def test_towers_equal_one(model_class, counts, flags, settings, narrow):
    narrow({'res50': UNITS, 'deeplab': (1, 1, 1, 1)})
    values = dict({'encoder_name': 'res50', 'num_classes': 6, 'train_bn': False, 'learning_rate': 1e-4,
                   'batch_size': BATCH}, **flags)
    one, wanted = updates(model_class, settings(**values))
    for count in counts:
        found, variables = updates(model_class, settings(num_gpus=count, **values))
        np.testing.assert_allclose(found, one, rtol=1e-5)
        assert sorted(variables) == sorted(wanted)
        for name, value in wanted.items():
            assert recipe.relative_error(variables[name], value) <= 1e-5, name
    assert abs(one[-1] - one[0]) > 0.01 * one[0] and np.isfinite(one[-1])  # the updates have an effect


def terms(op):
    """Returns the tensors that an op adds, as TensorFlow's graph optimizer would see it."""
    if op.type not in ('Add', 'AddV2', 'AddN'):
        return [op.outputs[0]]
    return [term for tensor in op.inputs for term in terms(tensor.op)]


@pytest.mark.parametrize('model_class', [Model, Model_msc])
def test_no_sum_of_three_begins_with_what_came_first(model_class, settings, narrow):
    """AddN starts with an operand that it can overwrite; which one, and so the rounding, would depend on timing."""
    narrow({'res50': UNITS})
    conf = settings(encoder_name='res50', num_classes=16, train_bn=False)
    with tf.Graph().as_default() as graph:
        images, labels = tf.zeros([3, 33, 33, 3]), tf.zeros([3, 33, 33, 1], tf.int32)
        model_class(conf, THREE).training_graph(images, labels)
        sums = [(op, terms(op)) for op in graph.get_operations() if op.type in ('Add', 'AddV2', 'AddN')]
    sums = [(op, added) for op, added in sums if len(added) > 2]
    assert len(sums) >= 3  # the ASPP has them on each device
    for op, added in sums:
        assert {term.op.device for term in added} == {op.device}, op.name
        views = [term.op.type for term in added if term.op.type in ('Unpack', 'Identity')]
        assert not views, (op.name, views)


def test_each_tower_normalizes_its_part_and_the_averages_are_of_all(settings, narrow):
    """With trained batch norm and two equal parts of a batch, two towers equal one on one of the parts."""
    narrow({'res50': UNITS})
    found = []
    for count in (1, 2):
        conf = settings(encoder_name='res50', num_classes=6, train_bn=True, num_gpus=count)
        with tf.Graph().as_default():
            tf.set_random_seed(1)
            images, labels = tf.constant(recipe.image(2, 33, 33)), tf.constant(recipe.label(2, 33, 33, 6))
            model = Model(conf)
            graph = model.training_graph(tf.concat([images] * count, 0), tf.concat([labels] * count, 0))
            with tf.Session(config=runtime.session_config(num_cpus=count)) as sess:
                sess.run(tf.global_variables_initializer())
                losses = [model.train_step(sess, graph, step)[0]['loss/total'] for step in range(3)]
                found.append((losses, sess.run(graph.net.variables)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for one, two in zip(found[0][1], found[1][1]):
        assert recipe.relative_error(two, one) <= 1e-4


def test_where_things_are(settings, narrow):
    """Gradients are on their tower's device; a variable is with its momentum and the sums of its gradients."""
    narrow({'res50': (1, 1, 1, 1)})
    model = Model(settings(encoder_name='res50', train_bn=True, grad_update_every=2, num_gpus=2))
    with tf.Graph().as_default() as graph:
        built = model.training_graph(tf.zeros([2, 33, 33, 3]), tf.zeros([2, 33, 33, 1], tf.int32))
    convolutions = [op for op in graph.get_operations() if op.type.startswith('Conv2D')]
    for kind in ('Conv2D', 'Conv2DBackpropInput', 'Conv2DBackpropFilter'):
        counts = [sum(op.type == kind and device_of(op).endswith(end) for op in convolutions)
                  for end in ('CPU:0', 'CPU:1')]
        assert counts[0] == counts[1] > 10, kind
    assert {device_of(v.op) for v in built.net.variables + built.update.state} == {
        '/job:localhost/task:0/device:CPU:0'}


def device_of(op):
    """Returns the device of an op, or of the op that it is colocated with."""
    if op.device:
        return op.device
    (group,) = set(op.colocation_groups())
    name = group.decode().replace('loc:@', '')
    return '' if name == op.name else device_of(op.graph.get_operation_by_name(name))


def test_variables_are_spread_by_size():
    both = towers.Towers(1, THREE)
    shapes = [[5], [3], [1], [2], [4], [10]]
    with tf.Graph().as_default(), both._on(both.devices[1]):
        variables = [tf.get_variable('v%d' % index, shape, use_resource=True) for index, shape in enumerate(shapes)]
        computed = tf.zeros([1]).op
    assert [v.op.device for v in variables] == [
        '/job:worker/task:%d/device:CPU:0' % task for task in (0, 1, 2, 2, 1, 2)]
    assert computed.device == '/job:worker/task:1/device:CPU:0'
    alone = towers.Towers(1, THREE, 'chief')
    with tf.Graph().as_default(), alone._on(alone.devices[1]):
        assert 'task:0' in tf.get_variable('v', [2], use_resource=True).op.device


@pytest.mark.parametrize('batch, words', [(10, 'give 8 or 12'), (3, 'give 4.'), (5, 'give 4 or 8')])
def test_a_batch_that_cannot_be_divided(batch, words):
    towers.Towers(4, Cluster()).check_batch(8)
    with pytest.raises(UserError, match='--batch_size=%d is not divisible by the number of towers' % batch) as error:
        towers.Towers(4, Cluster()).check_batch(batch)
    assert words in str(error.value)


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(runtime, 'gpus', lambda: ['one', 'two'])
    assert towers.Towers(2, Cluster()).devices[1].endswith('GPU:1')
    with pytest.raises(UserError, match='--num_gpus=3, but TensorFlow sees only 2 GPUs'):
        towers.Towers(3, Cluster())
