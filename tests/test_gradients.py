"""Compares the gradient of each trainable variable of a tiny network with finite differences."""

import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf

from network import DilatedResNet
from utils.data.palette import Classes
from utils.net.blocks import Block
from utils.training import losses
from utils.weights import checkpoints

TINY = [Block(8, 1, 1, 1), Block(16, 2, 2, 1), Block(32, 2, 1, 2), Block(64, 1, 1, 4)]


@pytest.mark.parametrize('encoder_name, dilated_type, train_bn', [
    ('deeplab', 'regular', False), ('res50', 'regular', True), ('res50', 'smooth_GI', False),
    ('res101', 'smooth_SSC', True), ('deeplab', 'decompose', True),
])
def test_gradients(encoder_name, dilated_type, train_bn, monkeypatch, settings):
    monkeypatch.setattr(tf.nn, 'relu', tf.nn.softplus)  # finite differences need a smooth loss
    random = np.random.RandomState(3)
    with tf.Graph().as_default(), tf.Session() as sess:
        images = tf.constant(recipe.image(2, 33, 33) / 50)
        net = DilatedResNet(images, 5, True, encoder_name, dilated_type=dilated_type, blocks=TINY,
                            batch_norm='trained' if train_bn else 'frozen')
        labels = losses.resized_labels(tf.constant(recipe.label(2, 33, 33, 5)), tf.shape(net.outputs)[1:3],
                                       Classes(5, 255, None))
        loss = (losses.cross_entropy(net.outputs, labels, None, settings())
                + losses.total_weight_decay(net.variables, 5e-4))
        variables = tf.trainable_variables()
        gradients = tf.gradients(loss, variables)
        assert None not in gradients
        recipe.assign(sess, net.variables)
        values, slopes = sess.run([variables, gradients])
        leaves = {variable.op.name.rsplit('/', 1)[-1] for variable in variables}
        for variable, value, slope in zip(variables, values, slopes):
            towards = slope * np.sqrt(slope.size) / (np.linalg.norm(slope) + 1e-12)
            direction = random.randn(*value.shape) + towards
            wanted, errors = np.sum(slope * direction), []
            # Large steps have an error of curvature, small ones of rounding; a correct gradient agrees for one of them.
            for relative in (1e-3, 3e-4, 1e-4):
                step = relative * max(np.linalg.norm(value), 1) / np.linalg.norm(direction)
                ends = []
                for sign in (1, -1):
                    checkpoints.load_values(sess, [variable], {variable.op.name: value + sign * step * direction})
                    ends.append(float(sess.run(loss)))
                errors.append(abs((ends[0] - ends[1]) / (2 * step) - wanted)
                              / (abs(wanted) + 1e-6 / step))
            checkpoints.load_values(sess, [variable], {variable.op.name: value})
            assert min(errors) <= 0.08, (variable.op.name, errors)
    assert leaves == {'weights', 'biases'} | ({'gamma', 'beta'} if train_bn else set()) | (
        {'fix_w'} if dilated_type.startswith('smooth') else set())
