"""Compares five updates with the original's, single and multi-scale, and checks the parts of loss and update."""

import os
import threading

import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf

from model import Model
from model_msc import Model_msc
from utils.data.palette import Classes
from utils.net import layers
from utils.prediction import predictor
from utils.training import losses, optimizer

GOLDEN = os.path.join(os.path.dirname(__file__), 'golden')


@pytest.mark.parametrize('model_class, name, batch, every', [
    (Model, 'original_train_res50_2x65x65', 2, 1),
    (Model_msc, 'original_trainmsc_res50_1x65x65', 1, 3),
])
def test_five_updates(model_class, name, batch, every, settings):
    reference = np.load(os.path.join(GOLDEN, name + '.npz'))
    conf = settings(encoder_name='res50', num_steps=20, learning_rate=1e-7, batch_size=batch,
                    grad_update_every=every, train_bn=False)
    model = model_class(conf)
    with tf.Graph().as_default(), tf.Session() as sess:
        graph = model.training_graph(tf.constant(recipe.image(batch, 65, 65)),
                                     tf.constant(recipe.label(batch, 65, 65, 21)))
        variables = {v.op.name: v for v in graph.net.variables}
        recipe.assign(sess, variables.values())
        before = {key: sess.run(variables[key.replace('|', '/')]) for key in reference if key != 'losses'}
        sess.run(tf.local_variables_initializer())
        found = [model.train_step(sess, graph, step)[0]['loss/total'] for step in range(5)]
        after = {key: sess.run(variables[key.replace('|', '/')]) for key in before}
    np.testing.assert_allclose(found, reference['losses'], rtol=1e-3)
    for key, array in after.items():
        start = before[key]
        if array.shape != reference[key].shape:
            array, start = array.ravel()[::37], start.ravel()[::37]
        moved = np.linalg.norm(reference[key] - start)  # the distance, because the weights hardly change
        rounding = 2e-7 * np.linalg.norm(reference[key])  # of five updates in float32
        assert moved > 2 * rounding
        assert np.linalg.norm(array - reference[key]) <= 0.01 * moved + rounding, key


def test_msc_prediction(settings):
    model = Model_msc(settings())
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.constant(recipe.image(2, 65, 65)[:1])  # the golden array's image, despite its name
        net, image_scores = model.scores(images)
        recipe.load(sess, net)
        found = sess.run(predictor.class_map(image_scores)).ravel()
    reference = np.load(os.path.join(GOLDEN, 'original_msc_deeplab_pred_1x65x65.npz'))['pred']
    assert np.sum(found != reference) <= 2


@pytest.mark.parametrize('align_corners, wanted', [(False, [(240, 240), (160, 160)]), (True, [(241, 241), (161, 161)])])
def test_msc_sizes(align_corners, wanted):
    with tf.Graph().as_default(), tf.Session() as sess:
        sizes = [sess.run(layers.scaled_size(tf.constant([321, 321]), scale, align_corners)) for scale in (0.75, 0.5)]
    assert [tuple(size) for size in sizes] == wanted


def test_cross_entropy_counts_valid_pixels_only(settings):
    random = np.random.RandomState(0)
    logits = random.randn(2, 3, 4, 5).astype(np.float32)
    label = random.randint(0, 5, (2, 3, 4, 1))
    label[0, 0], label[1, 1, :2], label[1, 2, 3] = 255, 7, 2
    log_softmax = logits - np.log(np.exp(logits).sum(axis=3, keepdims=True))
    for ignore_label in (255, 2):
        valid = (label < 5) & (label != ignore_label)
        picked = np.take_along_axis(log_softmax, np.where(valid, label, 0), axis=3)
        with tf.Graph().as_default(), tf.Session() as sess:
            labels = losses.resized_labels(tf.constant(label), [3, 4], Classes(5, ignore_label, None))
            found = sess.run(losses.cross_entropy(tf.constant(logits), labels, None, settings()))
        assert abs(found + picked[valid].mean()) <= 1e-6


def test_cross_entropy_without_a_valid_pixel_is_zero(settings):
    with tf.Graph().as_default(), tf.Session() as sess:
        logits = tf.ones([1, 2, 2, 3])
        labels = losses.resized_labels(tf.fill([1, 9, 9, 1], 255), [2, 2], Classes(3, 255, None))
        loss = losses.cross_entropy(logits, labels, None, settings())
        value, gradient = sess.run([loss, tf.gradients(loss, logits)[0]])
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize('size, small', [(321, 41), (65, 9), (321, 21)])
def test_caffe_label_is_every_eighth_pixel(size, small):
    label = recipe.label(1, size, size, 21)
    stride = (size - 1) // (small - 1)
    with tf.Graph().as_default(), tf.Session() as sess:
        found = sess.run(losses.prepare_label(tf.constant(label), [small, small], align_corners=True))
    assert np.array_equal(found, label[:, ::stride, ::stride, 0])


def test_poly_starts_at_the_rate_and_ends_at_zero(settings):
    rates = [optimizer.learning_rate(step, settings()) for step in (0, 10000, 20000)]
    np.testing.assert_allclose(rates, [2.5e-4, 2.5e-4 * 0.5 ** 0.9, 0])


@pytest.mark.parametrize('loss_scale', [1.0, 128.0])
def test_accumulated_update_equals_one_on_the_mean_gradient(settings, loss_scale):
    """Momentum, multipliers of the rate and three iterations per update, against the formulas in numpy."""
    with tf.Graph().as_default(), tf.Session() as sess:
        x = tf.placeholder(tf.float32, [])
        one, two = [tf.get_variable(n, [], initializer=tf.initializers.ones(), use_resource=True) for n in 'ab']
        loss = x * one ** 2 + two * x
        update = optimizer.build_update(
            [([one], 1.0), ([two], 10.0)], tf.gradients(loss * loss_scale, [one, two]), tf.constant(0.1),
            settings(grad_update_every=3), loss_scale=loss_scale)
        sess.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        a, b, velocity_a, velocity_b = 1.0, 1.0, 0.0, 0.0
        for inputs in ([1, 2, 3], [0.5, 0.1, 0.3]):
            for value in inputs:
                sess.run(update.accumulate, {x: value})
            sess.run(update.apply)
            velocity_a = 0.9 * velocity_a + np.mean([2 * value * a for value in inputs])
            velocity_b = 0.9 * velocity_b + np.mean(inputs)
            a, b = a - 0.1 * velocity_a, b - 1.0 * velocity_b
            np.testing.assert_allclose(sess.run([one, two]), [a, b], rtol=1e-5)


def test_rates_of_the_groups(settings):
    with tf.Graph().as_default():
        net = Model(settings(encoder_name='res50', train_bn=False)).network(
            tf.zeros([1, 65, 65, 3]), phase=True, batch_norm='frozen')
        groups = optimizer.rate_groups(net, settings())
    groups = sorted(groups, key=lambda group: group[1])
    assert [multiplier for _, multiplier in groups] == [1, 10, 20]
    assert [v.op.name for v in groups[2][0]] == ['decoder/aspp/conv%d/biases' % i for i in range(1, 5)]
    assert all(v.op.name.startswith('resnet_v1_50/') for v in groups[0][0]) and len(groups[0][0]) == 53


def test_gradients_read_the_weights_of_before_the_update(settings):
    """The decoder is updated before the encoder's gradient is computed, which must still read the old decoder.

    With reference variables, as in the original (use_resource=False in layers.variable), it would read the new one.
    """
    updated = threading.Event()

    @tf.custom_gradient
    def decode(features, weights):
        def gradients(outer):
            late = tf.py_func(lambda value: (updated.wait(60), value)[1], [outer], tf.float32)
            late.set_shape(outer.shape)
            return tf.matmul(late, weights, transpose_b=True), tf.matmul(features, outer, transpose_a=True)
        return tf.matmul(features, weights), gradients

    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(inter_op_parallelism_threads=4)) as sess:
        encoder, decoder = [layers.variable(name, [3, 3], tf.initializers.ones()) for name in ('encoder', 'decoder')]
        loss = tf.nn.l2_loss(decode(tf.matmul(tf.ones([1, 3]), encoder), decoder))  # gradients come after all reads
        rate, conf = tf.constant(1.0), settings(momentum=0.0)
        first = optimizer.build_update([([decoder], 10.0)], tf.gradients(loss, [decoder]), rate, conf).apply
        with tf.control_dependencies([first]):
            told = tf.py_func(updated.set, [], [])
        second = optimizer.build_update([([encoder], 1.0)], tf.gradients(loss, [encoder]), rate, conf).apply
        sess.run(tf.global_variables_initializer())
        sess.run([second, told])
        np.testing.assert_array_equal(sess.run(decoder), np.full([3, 3], 1 - 10 * 27))
        np.testing.assert_array_equal(sess.run(encoder), np.full([3, 3], 1 - 27))


@pytest.mark.parametrize('every', [1, 2])
def test_an_overflow_skips_the_update(settings, every):
    """With a loss scale, as for float16, weights and momentum stay as they were, and the next update works."""
    with tf.Graph().as_default(), tf.Session() as sess:
        x = tf.placeholder(tf.float32, [])
        one = tf.get_variable('one', [], initializer=tf.initializers.ones(), use_resource=True)
        update = optimizer.build_update([([one], 1.0)], tf.gradients(128.0 * x * one, [one]), tf.constant(0.1),
                                        settings(grad_update_every=every), loss_scale=128.0)
        sess.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        for value in (2.0, np.inf, 2.0):
            if every > 1:
                sess.run(update.accumulate, {x: 2.0})
                sess.run(update.accumulate, {x: value})
            sess.run(update.apply, {x: value})
        np.testing.assert_allclose(sess.run([one] + update.state), [1 - 0.1 * 2 - 0.1 * 3.8, 3.8], rtol=1e-6)
