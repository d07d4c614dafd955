"""16-bit precision: when it is chosen, how sessions are configured, and that bfloat16 differs by rounding only."""

import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf

from model import Model
from utils.net import dilated, layers
from utils.system import runtime


@pytest.mark.parametrize('flags, wanted', [
    ('flags : fpu amx_bf16 amx_tile', True), ('model name: x\nflags\t\t: sse avx512_bf16', True),
    ('flags : fpu avx512f amx_int8', False), ('', False),
])
def test_processors_with_bfloat16(tmp_path, monkeypatch, flags, wanted):
    (tmp_path / 'cpuinfo').write_text(flags + '\n')
    monkeypatch.delenv('TF_ENABLE_ONEDNN_OPTS', raising=False)
    newer = not tf.__version__.startswith('1.')
    assert runtime.has_bfloat16(str(tmp_path / 'cpuinfo')) == (wanted and newer)
    reason = runtime.why_no_bfloat16(str(tmp_path / 'cpuinfo'))
    assert reason == ('' if wanted and newer else 'the processor has neither AMX nor AVX512-BF16' if newer
                      else 'TensorFlow %s has no bfloat16 kernels for processors' % tf.__version__)
    assert not runtime.has_bfloat16(str(tmp_path / 'none'))
    monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', '0')
    assert not runtime.has_bfloat16(str(tmp_path / 'cpuinfo'))
    assert 'oneDNN is off' in runtime.why_no_bfloat16(str(tmp_path / 'cpuinfo')) or not newer


@pytest.mark.parametrize('gpu, bfloat16, wanted', [
    (True, True, 'float16'), (False, True, 'bfloat16'), (False, False, None)])
def test_what_mixed_precision_means(monkeypatch, capsys, gpu, bfloat16, wanted):
    monkeypatch.setattr(runtime, 'on_gpu', lambda: gpu)
    monkeypatch.setattr(runtime, 'has_bfloat16', lambda: bfloat16)
    assert runtime.precision_from_flag(False) is None and capsys.readouterr().out == ''
    assert runtime.precision_from_flag(True) == wanted
    assert (wanted or '--mixed_precision needs') in capsys.readouterr().out


def test_a_session_is_asked_for_it():
    for name, field in runtime.PRECISION_REWRITES.items():
        if name == 'bfloat16' and tf.__version__.startswith('1.'):
            continue  # it is never chosen there
        options = runtime.set_precision(tf.ConfigProto(), name).graph_options.rewrite_options
        assert getattr(options, field) == runtime.REWRITER_ON
    assert runtime.set_precision(tf.ConfigProto(), None) == tf.ConfigProto()


@pytest.mark.skipif(not runtime.has_bfloat16(), reason='no TensorFlow 2 with oneDNN on a processor with bfloat16')
def test_bfloat16_rounds_and_no_more(settings, narrow):
    conf = settings(encoder_name='res50', num_classes=6, batch_size=2, learning_rate=1e-3, train_bn=True)
    found = []
    with tf.Graph().as_default():
        tf.set_random_seed(1)
        images, labels = tf.constant(recipe.image(2, 65, 65)), tf.constant(recipe.label(2, 65, 65, 6))
        model = Model(conf)
        graph = model.training_graph(images, labels)
        for chosen in (None, 'bfloat16'):
            with tf.Session(config=runtime.set_precision(runtime.session_config(), chosen)) as sess:
                sess.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
                found.append([model.train_step(sess, graph, step)[0]['loss/total'] for step in range(4)])
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)
    assert found[0] != found[1]


def gradients_of(model):
    """Returns (graph, {name: gradient of the loss}) for all trained variables."""
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(1)
        images, labels = tf.constant(recipe.image(2, 65, 65)), tf.constant(recipe.label(2, 65, 65, 6))
        built = model.training_graph(images, labels)
        variables = [v for v in built.net.variables if v.trainable]
        found = tf.gradients(built.losses['loss/total'], variables)
        return graph, {v.op.name: found[i] for i, v in enumerate(variables)}


def test_filter_gradients_of_1x1_convolutions_are_products_in_bfloat16(settings, narrow):
    conf = settings(encoder_name='res50', num_classes=6, batch_size=2, train_bn=True)
    results = []
    for precision in (None, 'bfloat16'):
        model = Model(conf)
        model.precision = precision
        graph, gradients = gradients_of(model)
        kernels = [op.outputs[0].shape.as_list()[:2] for op in graph.get_operations()
                   if op.type == 'Conv2DBackpropFilter' and op.outputs[0].shape.rank == 4]
        assert ([1, 1] in kernels) == (precision is None) and [3, 3] in kernels
        with graph.as_default(), tf.Session(config=runtime.session_config()) as sess:
            sess.run(tf.global_variables_initializer())
            results.append(sess.run(gradients))
    for name, before in results[0].items():
        np.testing.assert_allclose(results[1][name], before, rtol=1e-5, atol=1e-5 * np.abs(before).max(), err_msg=name)


@pytest.mark.parametrize('size, stride, rate', [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)])
def test_gradients_by_products(size, stride, rate):
    rng, found = np.random.RandomState(size + stride), []
    values, weights = rng.randn(2, 9, 12, 16).astype(np.float32), rng.randn(size, size, 16, 8).astype(np.float32)
    for gradients in ({}, {'Conv2D': layers.PRODUCTS}):
        with tf.Graph().as_default() as graph, graph.gradient_override_map(gradients):
            inputs, kernel = tf.constant(values), tf.constant(weights)
            if rate > 1:
                outputs = dilated.regular(inputs, kernel, rate)
            else:
                outputs = layers.conv2d(inputs, kernel, stride)
            wanted = tf.gradients(tf.reduce_sum(outputs * tf.sin(outputs)), [inputs, kernel])
            with tf.Session() as sess:
                found.append(sess.run(wanted))
    for after, before in zip(found[1], found[0]):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())
