"""--loss, --schedule and --optimizer against numpy, and all terms and heads on the way to the weights."""


import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf
from narrow_main import UNITS

from model import Model
from model_msc import Model_msc
from utils.data.palette import Classes
from utils.distributed import towers
from utils.net import decoders, layers
from utils.system import runtime
from utils.system.errors import UserError
from utils.training import losses, optimizer

CLASSES = Classes(5, 255, None)


def example():
    """Returns logits [2, 4, 6, 5] and labels [2, 4, 6, 1] of classes 0, 1 and 3; some pixels are ignored."""
    random = np.random.RandomState(0)
    label = np.array([0, 1, 3])[random.randint(0, 3, (2, 4, 6, 1))]
    label[0, 0], label[1, 1, :2] = 255, 7
    return random.randn(2, 4, 6, 5).astype(np.float32), label


def dice_of(logits, label, factors):
    """Returns 1 - the weighted mean of the Dice coefficient over the classes in the labels, computed by numpy."""
    valid = label[..., 0] < 5
    p = (np.exp(logits) / np.exp(logits).sum(axis=3, keepdims=True))[valid]
    g = np.eye(5)[label[..., 0][valid]]
    present = np.unique(label[label < 5])
    scores = 2 * (p * g).sum(0) / ((p ** 2).sum(0) + (g ** 2).sum(0))
    return 1 - np.average(scores[present], weights=np.asarray(factors)[present])


@pytest.mark.parametrize('factors', [None, [1.0, 2.0, 3.0, 0.5, 9.0]])
def test_dice_counts_the_classes_of_the_labels_only(settings, factors):
    logits, label = example()
    with tf.Graph().as_default(), tf.Session() as sess:
        labels = losses.resized_labels(tf.constant(label), [4, 6], CLASSES)
        found = sess.run(losses.dice(tf.constant(logits), labels, factors, settings()))
    np.testing.assert_allclose(found, dice_of(logits, label, factors or np.ones(5)), rtol=1e-5)


def test_dice_without_a_valid_pixel_is_zero(settings):
    with tf.Graph().as_default(), tf.Session() as sess:
        logits = tf.ones([1, 2, 2, 5])
        labels = losses.resized_labels(tf.fill([1, 2, 2, 1], 255), [2, 2], CLASSES)
        loss = losses.dice(logits, labels, None, settings())
        value, gradient = sess.run([loss, tf.gradients(loss, logits)[0]])
    assert value == 0 and not gradient.any()


def test_terms_are_summed_over_all_sizes_of_logits(settings, monkeypatch):
    """Each term has its own name and is multiplied by its factor."""
    logits, label = example()
    monkeypatch.setitem(losses.LOSSES, 'both', [losses.Term('cross_entropy', losses.cross_entropy),
                                                losses.Term('dice', losses.dice, 0.5)])
    with tf.Graph().as_default(), tf.Session() as sess:
        pair = [tf.constant(logits), tf.constant(logits[:, ::2, ::2])]
        terms = losses.loss_terms(losses.LOSSES['both'], pair, tf.constant(label), CLASSES, None, settings())
        found = sess.run(terms)
    assert list(terms) == ['cross_entropy', 'dice']
    wanted = dice_of(logits, label, np.ones(5)) + dice_of(logits[:, ::2, ::2], label[:, ::2, ::2], np.ones(5))
    np.testing.assert_allclose(found['dice'], 0.5 * wanted, rtol=1e-5)


@pytest.mark.parametrize('flags, wanted', [
    ({'schedule': 'cosine'}, {0: 1.0, 25: 0.5 * (1 + np.cos(np.pi / 4)), 50: 0.5}),
    ({'schedule': 'step', 'step_size': 30, 'step_factor': 0.1}, {0: 1.0, 29: 1.0, 30: 0.1, 60: 0.01, 99: 1e-3}),
    ({'schedule': 'poly', 'power': 2.0}, {0: 1.0, 50: 0.25}),
    ({'schedule': 'step', 'warmup_steps': 4}, {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0}),
], ids=['cosine', 'step', 'poly', 'warmup'])
def test_schedules(settings, flags, wanted):
    """The last step only reports the losses: its rate is 0 with every schedule."""
    conf = settings(num_steps=100, learning_rate=0.5, **flags)
    for step, factor in list(wanted.items()) + [(100, 0.0)]:
        np.testing.assert_allclose(optimizer.learning_rate(step, conf), 0.5 * factor, rtol=1e-6)


@pytest.mark.parametrize('loss_scale', [1.0, 128.0])
def test_adamw(settings, loss_scale):
    """Two updates of two groups agree with the paper's formulas; biases have no weight decay."""
    conf = settings(optimizer='adamw', weight_decay=0.1, momentum=0.8)
    gradients, start = np.array([[0.5, -2.0], [1.0, 3.0]]), np.array([1.0, -1.0])
    with tf.Graph().as_default(), tf.Session() as sess:
        variables = [tf.get_variable(name, [], initializer=tf.constant_initializer(value), use_resource=True)
                     for name, value in zip(('one/weights', 'one/biases'), start)]
        fed = tf.placeholder(tf.float32, [2])
        update = optimizer.build_update([(variables[:1], 1.0), (variables[1:], 10.0)],
                                        [loss_scale * fed[0], loss_scale * fed[1]], tf.constant(0.01), conf,
                                        loss_scale=loss_scale)
        sess.run(tf.global_variables_initializer())
        found = [(sess.run(update.apply, {fed: gradient}), sess.run(variables))[1] for gradient in gradients]
        names = sorted(v.op.name for v in update.state)
    assert names == ['beta1_power', 'beta1_power_1', 'beta2_power', 'beta2_power_1', 'one/biases/Adam',
                     'one/biases/Adam_1', 'one/weights/Adam', 'one/weights/Adam_1']
    m, v, w = np.zeros(2), np.zeros(2), start
    for t, gradient in enumerate(gradients, 1):
        m, v = 0.8 * m + 0.2 * gradient, 0.999 * v + 0.001 * gradient ** 2
        w = w - np.array([0.01, 0.1]) * (m / (1 - 0.8 ** t) / (np.sqrt(v / (1 - 0.999 ** t)) + 1e-8)
                                         + np.array([0.1, 0]) * w)
        np.testing.assert_allclose(found[t - 1], w, rtol=1e-4)


def test_adamw_refuses_a_first_moment_that_never_decays(settings):
    with pytest.raises(UserError, match='^--momentum=1: give a number below 1 with --optimizer=adamw.$'):
        optimizer.adam(0.1, settings(optimizer='adamw', momentum=1.0))


def test_the_weight_decay_that_is_logged_is_the_one_that_trains(settings, narrow, monkeypatch):
    """If weight_decay_loss is replaced by another penalty, both the logged value and the training change."""
    narrow({'res50': UNITS})
    monkeypatch.setattr(losses, 'weight_decay_loss', lambda value, factor: factor * tf.reduce_sum(7.0 * value))
    conf = settings(encoder_name='res50', num_classes=3, train_bn=False, weight_decay=0.5, momentum=0.0,
                    learning_rate=1.0, decoder_rate=[1.0, 1.0], num_steps=2)
    with tf.Graph().as_default(), tf.Session() as sess:
        model = Model(conf)
        graph = model.training_graph(tf.zeros([1, 33, 33, 3]), tf.fill([1, 33, 33, 1], 255))  # all pixels are ignored
        sess.run(tf.global_variables_initializer())
        weights = next(v for v in graph.net.variables if v.op.name == 'decoder/aspp/conv1/weights')
        before = sess.run(graph.net.variables)
        decayed = [value for v, value in zip(graph.net.variables, before) if v.op.name.endswith('weights')]
        start = sess.run(weights)
        values = model.train_step(sess, graph, 0)[0]
        np.testing.assert_allclose(values['loss/l2'], 3.5 * sum(value.sum() for value in decayed), rtol=1e-3)
        np.testing.assert_allclose(sess.run(weights), start - 3.5, rtol=1e-5)


def test_towers_refuse_a_loss_with_another_path_to_the_weights():
    with tf.Graph().as_default():
        w = tf.get_variable('w', [], use_resource=True)
        parts = [[2.0 * w], [3.0 * w]]
        joined = sum(part[0] for part in parts)
        assert len(towers.gradients(joined, [w], parts)) == 1
        with pytest.raises(ValueError, match='w other than through'):
            towers.gradients(joined + w, [w], parts)


def test_outputs_of_a_tower_that_depend_on_each_other_count_once():
    """The fused logits of main_msc.py, for example, depend on the logits of each scale."""
    with tf.Graph().as_default(), tf.Session() as sess:
        w = tf.get_variable('w', [2], initializer=tf.constant_initializer([1.0, 2.0]), use_resource=True)
        parts = []
        for factor in (1.0, 3.0):
            small = factor * w
            parts.append([small * small, small])
        loss = tf.reduce_sum(sum(fused + 5.0 * small for fused, small in parts))
        sess.run(w.initializer)
        one, two = sess.run([tf.gradients(loss, w)[0], towers.gradients(loss, [w], parts)[0]])
    np.testing.assert_allclose(two, one)


def test_unknown_choices_are_no_flags():
    from absl import flags
    for flag, choices in (('loss', losses.LOSSES), ('schedule', optimizer.SCHEDULES),
                          ('optimizer', optimizer.OPTIMIZERS), ('decoder', decoders.DECODERS)):
        assert sorted(flags.FLAGS[flag].parser.enum_values) == sorted(choices), flag


@pytest.mark.parametrize('model_class', [Model, Model_msc])
def test_an_auxiliary_head_is_one_more_term(settings, narrow, monkeypatch, model_class):
    """The head is trained once, on the first scale, and has its own column; towers equal one device."""
    narrow({'res50': (1, 1, 1, 1)})

    class Auxiliary(decoders.ASPP):
        def build(self):
            super().build()
            self.head = self.conv('decoder/auxiliary', 3, self.depths[3])

        def auxiliary(self, maps):
            weights, biases = self.head
            return [tf.nn.bias_add(layers.conv2d(maps[3], weights), biases)]

    monkeypatch.setitem(decoders.DECODERS, 'aspp_auxiliary', Auxiliary)
    found = []
    for towers_count in (1, 2):
        conf = settings(encoder_name='res50', decoder='aspp_auxiliary', num_classes=5, train_bn=False, batch_size=2,
                        grad_update_every=1, num_gpus=towers_count, learning_rate=1e-4)
        with tf.Graph().as_default():
            model = model_class(conf)
            graph = model.training_graph(tf.constant(recipe.image(2, 33, 33)), tf.constant(recipe.label(2, 33, 33, 5)))
            assert list(graph.losses) == ['loss/cross_entropy', 'loss/auxiliary', 'loss/l2', 'loss/total']
            with tf.Session(config=runtime.session_config(num_cpus=towers_count)) as sess:
                recipe.assign(sess, graph.net.variables)
                values = [model.train_step(sess, graph, step)[0] for step in range(2)]
                found.append([one[tag] for one in values for tag in graph.losses] + [
                    np.linalg.norm(value) for value in sess.run(graph.net.variables)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert abs(found[0][0] + found[0][1] + found[0][2] - found[0][3]) <= 1e-5 * found[0][3]
    assert found[0][1] != found[0][5]  # the head has learned
