"""The benchmark: the reference forms compute the same as the product, counts and ratios are right, and it runs."""

import collections
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf

from benchmarks import flops, measure, op_times, reference, run
from model import Model
from model_msc import Model_msc
from utils import label_utils
from utils.data.palette import voc_colours
from utils.net import dilated
from utils.system import runtime

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize('encoder_name', ['deeplab', 'res50'])
def test_reference_logits(encoder_name, settings, narrow):
    narrow({encoder_name: (2, 2, 2, 2)})
    images, found = recipe.image(1, 49, 41), []
    model = Model(settings(encoder_name=encoder_name, train_bn=False))
    for logits in (lambda x: model.network(x, False, 'frozen').outputs,
                   lambda x: reference.network(x, encoder_name, 21)):
        with tf.Graph().as_default(), tf.Session() as sess:
            outputs = logits(tf.constant(images))
            variables = tf.global_variables()
            recipe.assign(sess, variables)
            found.append((sorted(v.op.name for v in variables), sess.run(outputs)))
    assert found[0][0] == found[1][0]
    assert recipe.relative_error(found[0][1], found[1][1]) <= 1e-5


@pytest.mark.parametrize('model_class, every', [(Model, 1), (Model_msc, 2)])
def test_reference_training(model_class, every, settings, narrow):
    """Compares the losses of two updates, and how far a weight of each learning rate moves."""
    narrow({'res50': (1, 1, 1, 2)})
    images, labels = recipe.image(1, 41, 41), recipe.label(1, 41, 41, 21).astype(np.int32)
    conf = settings(encoder_name='res50', train_bn=False, batch_size=1, grad_update_every=every, learning_rate=1e-7)
    model = model_class(conf)
    with tf.Graph().as_default(), tf.Session() as sess:
        graph = model.training_graph(tf.constant(images), tf.constant(labels))
        recipe.assign(sess, graph.net.variables)
        sess.run(tf.local_variables_initializer())
        ours = [model.train_step(sess, graph, 0)[0]['loss/total'] for _ in range(2)], moves(sess)
    with tf.Graph().as_default(), tf.Session() as sess:
        graph = reference.training(tf.constant(images), tf.constant(labels), 'res50',
                                   multi_scale=model_class is Model_msc, grad_update_every=every)
        recipe.assign(sess, [v for v in tf.global_variables() if not v.op.name.endswith('/Momentum')])
        theirs = [update(sess, graph, every) for _ in range(2)], moves(sess)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for name, move in theirs[1].items():
        assert np.linalg.norm(ours[1][name] - move) <= 0.02 * np.linalg.norm(move), name


def update(sess, graph, every):
    """Runs one update of the reference and returns its mean loss."""
    feed = {graph.rate: 1e-7}
    if graph.accumulate is None:
        return sess.run([graph.losses, graph.apply], feed)[0]['loss/total']
    found = [sess.run([graph.losses, graph.accumulate])[0]['loss/total'] for _ in range(every)]
    sess.run(graph.apply, feed)
    return np.mean(found)


def moves(sess):
    """Returns {name: distance of the variable from its recipe's value} for a few variables."""
    names = ['decoder/aspp/conv1/weights', 'decoder/aspp/conv4/biases',
             'resnet_v1_50/block4/unit_2/bottleneck_v1/conv2/weights']
    found = {v.op.name: v for v in tf.global_variables() if v.op.name in names}
    return {name: sess.run(v).astype(np.float64) - recipe.value(name, v.shape.as_list()) for name, v in found.items()}


@pytest.mark.parametrize('dilated_type', run.SMOOTH_TYPES)
def test_mixing_is_the_same_in_both_forms(dilated_type):
    shape = [8, 3, 4, 5] if dilated_type == 'smooth_GI' else [2, 6, 7, 5]  # groups of rate 2, or a feature map
    inputs = np.random.RandomState(0).randn(*shape).astype(np.float32)
    fix_w = recipe.value('fix_w', dilated.lookup(dilated_type)[1](2))
    found = []
    for form in ('product', 'reference'):
        with tf.Graph().as_default(), tf.Session() as sess:
            x, w = tf.constant(inputs), tf.constant(fix_w)
            outputs = measure.mixed(form, dilated_type, x, 2, w)
            found.append(sess.run([outputs] + tf.gradients(tf.reduce_sum(outputs ** 2), [x, w])))
    assert recipe.relative_error(found[1][0], inputs) > 0.01  # the mixing has an effect
    for ours, theirs in zip(*found):
        assert recipe.relative_error(ours, theirs) <= 1e-5


def test_colours_are_the_same_in_both_forms():
    mask = np.random.RandomState(0).randint(0, 21, [5, 7])
    assert np.array_equal(reference.decode_labels(mask, voc_colours(21)), label_utils.decode_labels(mask[None])[0])


@pytest.mark.parametrize('input_size', [(20, 25), (90, 100)])
def test_reference_reader(input_size, tmp_path):
    paths = measure.write_pairs(str(tmp_path), 3, [50, 60])
    with tf.Graph().as_default(), tf.Session() as sess:
        batch = reference.training_batch(paths[0], paths[1], measure.IMG_MEAN, 2, input_size)
        with reference.running(sess):
            images, labels = sess.run(batch)
    assert images.shape == (2,) + input_size + (3,) and labels.shape == (2,) + input_size + (1,)
    assert set(np.unique(labels)) <= {0, 5, 15, 20, 255}
    assert images.min() >= -123 and images.max() <= 152 and images.std() > 10
    padded = np.all(images == 0, axis=3)  # only padding is exactly the mean
    assert np.all(labels[padded] == 255) and padded.any() == (input_size == (90, 100))


def test_operations():
    """DeepLab v2 at 321x321 has 150 GFLOP; conv1 by hand: 2 * 7 * 7 * 3 * 64 on a map of 161x161."""
    total, first = flops.forward('deeplab', 321, 321)
    assert abs(total / 1e9 - 150) < 0.5
    assert first == 2 * 7 * 7 * 3 * 64 * 161 * 161
    assert flops.training('deeplab', 321, 321) == 3 * total - first


def test_operations_agree_with_the_graph():
    """TensorFlow counts the convolutions too, but not the dilated ones, because it pads their maps."""
    with tf.Graph().as_default() as graph:
        reference.encode(tf.placeholder(tf.float32, [1, 65, 49, 3]), 'deeplab')
        encoder = sum(operations_of(op) for op in graph.get_operations() if op.type == 'Conv2D')
    aspp = 4 * 2 * 9 * 2048 * 21 * 9 * 7
    assert flops.forward('deeplab', 65, 49)[0] == encoder + aspp


def operations_of(conv):
    """Returns 2 * k * k * C * D * h * w of a Conv2D op; for a dilated one, of all groups without their padding."""
    kernel = conv.inputs[1].shape.as_list()
    if conv.inputs[0].op.type == 'SpaceToBatchND':
        height, width = conv.inputs[0].op.inputs[0].shape.as_list()[1:3]
    else:
        height, width = conv.outputs[0].shape.as_list()[1:3]
    return 2 * int(np.prod(kernel)) * height * width


def test_ratios_are_taken_round_by_round():
    """If the machine is five times slower in the second round, the ratios stay the same."""
    seconds = {run.PRODUCT: {0: 1.0, 1: 5.0, 2: 1.2}, run.ONEDNN: {0: 2.0, 1: 10.0}}
    results = {('deeplab_train', form): {i: {'seconds': s, 'peak_mb': 70.0 if form == run.PRODUCT else 100.0,
                                             'gflop': 90.0, 'sgemm_gflops': 100.0 / s, 'onednn': True}
                                         for i, s in rounds.items()} for form, rounds in seconds.items()}
    judged = {row['target']: row for row in run.judged(results, run.all_targets(2), 'note')}
    half = judged['train step / reference with oneDNN']
    assert half['value'] == 0.5 and half['met'] is True
    assert judged['train step, peak memory / reference']['met'] is True
    assert judged['train step, share of the floor']['value'] == pytest.approx(0.9)
    default = judged["train step / reference with TensorFlow's default"]
    assert default['met'] is None and default['note'] == 'note'


def test_bfloat16_is_compared_with_float32_and_with_a_floor_of_its_own():
    figures = {run.PRODUCT: {'seconds': 2.0, 'sgemm_gflops': 50.0},
               run.BFLOAT16: {'seconds': 1.0, 'sgemm_gflops': 100.0, 'bfloat16_gflops': 400.0}}
    results = {('deeplab_predict', form): {0: dict(figure, gflop=90.0, onednn=True)}
               for form, figure in figures.items()}
    float32, bfloat16 = run.summary(results)
    assert (float32['form'], bfloat16['form']) == (run.PRODUCT, run.BFLOAT16)
    assert float32['share_of_floor'] == pytest.approx(0.9) and bfloat16['share_of_floor'] == pytest.approx(0.225)
    assert (float32['floor_seconds'], bfloat16['floor_seconds']) == (1.8, 0.225)
    judged = {row['target']: row for row in run.judged(results, run.all_targets(2), '')}
    predict = judged['predict in bfloat16 / in float32']
    assert (predict['value'], predict['value_at_equal_sgemm'], predict['met']) == (0.5, 1.0, False)
    assert judged['train step in bfloat16 / in float32']['met'] is None


def test_rows_without_a_form():
    forms = (run.PRODUCT, run.BFLOAT16, run.ONEDNN, run.DEFAULT)
    rows = {'one': run.Row('train', {}, forms), 'two': run.Row('reader', {}, (run.PRODUCT, run.DEFAULT))}
    left = run.without(rows, run.BFLOAT16)
    assert left['one'].forms == (run.PRODUCT, run.ONEDNN, run.DEFAULT) and left['two'] == rows['two']
    left = run.without(rows, run.DEFAULT, where=lambda row: run.ONEDNN in row.forms)
    assert left['one'].forms == (run.PRODUCT, run.BFLOAT16, run.ONEDNN) and left['two'] == rows['two']


@pytest.mark.parametrize('mixed_precision', [True, False])
@pytest.mark.parametrize('what', ['train', 'predict'])
def test_a_job_in_bfloat16(what, mixed_precision, narrow, monkeypatch):
    """The job asks the session for bfloat16 and also measures a bfloat16 product, even if the processor has none."""
    asked = []
    monkeypatch.setattr(runtime, 'available_precision', lambda: 'bfloat16')
    monkeypatch.setattr(runtime, 'set_precision', lambda config, chosen: asked.append(chosen) or config)
    narrow({'res50': (1, 1, 1, 1)})
    job = types.SimpleNamespace(**dict(measure.JOB, what=what, encoder_name='res50', size=[17, 17], budget=0,
                                       sgemm_side=16, mixed_precision=mixed_precision))
    with tf.Graph().as_default():
        figure = measure.MEASUREMENTS[what](tf, measure.product_speeds(tf, job), job)['']
    assert asked == ['bfloat16' if mixed_precision else None]
    assert figure['sgemm_gflops'] > 0 and ('bfloat16_gflops' in figure) == mixed_precision
    assert not mixed_precision or figure['bfloat16_gflops'] > 0


@pytest.mark.parametrize('what, form', [('exported', 'product')] + [
    (what, form) for what in ('mixing', 'reader', 'colours') for form in ('product', 'reference')])
def test_a_job(what, form, narrow):
    """Runs in this process what the command-line test below leaves out to save time."""
    narrow({'res50': (1, 1, 1, 1)})
    job = types.SimpleNamespace(**dict(
        measure.JOB, what=what, form=form, encoder_name='res50', budget=0, sgemm_side=16, dilated_type='smooth_GI',
        size=[17, 17], image_size=[20, 30], files=4, threads=2))
    with tf.Graph().as_default():
        figures = measure.MEASUREMENTS[what](tf, measure.product_speeds(tf, job), job)
    names = {'_rate%d_%s' % (rate, passes) for rate in (2, 4) for passes in ('forward', 'with_gradients')}
    assert set(figures) == (names if what == 'mixing' else {''})
    for figure in figures.values():
        assert figure['seconds'] > 0 and figure['sgemm_gflops'] > 0 and 'peak_mb' not in figure
        assert ('gflop' in figure) == (what in ('mixing', 'exported')) and ('images' in figure) == (what != 'mixing')


@pytest.mark.parametrize('minutes, rounds', [(60, 3), (0, 1)])
def test_rounds_interleave_the_forms_and_a_failure_costs_one_figure(minutes, rounds, monkeypatch):
    calls, saves = [], []

    def fake(what, form, settings):
        calls.append((what, form))
        if (what, form) == ('predict', run.ONEDNN):
            raise RuntimeError('out of memory')
        return {'figures': {'': {'seconds': 1.0, 'sgemm_gflops': 100.0}}, 'onednn': True}

    monkeypatch.setattr(run, 'measure', fake)
    both = (run.PRODUCT, run.ONEDNN)
    rows = {'one': run.Row('train', {}, both), 'two': run.Row('predict', {}, both)}
    results, failures = run.run_rounds(rows, 3, minutes, lambda *args: saves.append(args))
    assert calls == [('train', run.PRODUCT), ('train', run.ONEDNN), ('predict', run.PRODUCT),
                     ('predict', run.ONEDNN)] * rounds
    assert failures == ['two, reference, oneDNN: out of memory'] * rounds and len(saves) == 2 * rounds
    assert sorted(results) == [('one', run.PRODUCT), ('one', run.ONEDNN), ('two', run.PRODUCT)]
    assert sorted(results['one', run.PRODUCT]) == list(range(rounds))
    assert run.summary(results)[0]['ratio_to_reference'] == 1


def test_trace_counts_convolutions_products_and_their_gradients():
    with tf.Graph().as_default(), tf.Session() as sess:
        x, kernel, matrix = [measure.held(tf, str(i), tf.random_normal(shape))
                             for i, shape in enumerate(([2, 9, 8, 4], [3, 3, 4, 6], [6, 5]))]
        outputs = tf.matmul(tf.reshape(tf.nn.conv2d(x, kernel, [1, 1, 1, 1], 'SAME'), [-1, 6]), matrix)
        fetches = [outputs] + tf.gradients(outputs, [x, kernel, matrix])
        sess.run(tf.local_variables_initializer())
        sess.run(fetches)
        found = op_times.runs(op_times.traced(tf, lambda: sess.run(fetches)))
    counts = [op_times.operations(one) for one in found if op_times.product_shape(one)]
    convolution, product = 2 * 2 * 9 * 8 * 9 * 4 * 6, 2 * 2 * 9 * 8 * 6 * 5
    assert sorted(counts) == pytest.approx([product] * 3 + [convolution] * 3)
    assert all(one.seconds >= 0 for one in found)
    lines = op_times.product_table(found)
    assert sorted({line[3] for line in lines if 'Conv2D' in line[0]}) == ['3x3x4x6']
    assert {line[1] for line in lines} == {'float32'}


def test_trace_tells_types_and_casts_apart():
    with tf.Graph().as_default(), tf.Session() as sess:
        factors = [tf.cast(measure.held(tf, name, tf.random_normal([40, 40])), tf.bfloat16) for name in ('one', 'two')]
        outputs = tf.cast(tf.matmul(*factors), tf.float32)
        sess.run(tf.local_variables_initializer())
        sess.run(outputs)
        found = op_times.runs(op_times.traced(tf, lambda: sess.run(outputs)))
    assert [line[1] for line in op_times.product_table(found)] == ['bfloat16']
    table = {line[0]: line for line in op_times.share_table(found, lambda one: [one.type])}
    assert table['float32 to bfloat16'][1] == 2 and table['bfloat16 to float32'][1] == 1
    assert table['bfloat16'][1] >= 1 and table['float32'][1] >= 2  # the product; the variables
    assert sum(line[-1] for line in table.values()) == pytest.approx(1)


def test_op_times_command_line():
    code, stdout, stderr = benchmark('--row=res50_predict', script='op_times.py')
    assert code == 0, stderr + stdout
    assert 'ms a step' in stdout and '1x1x512x2048' in stdout
    code, _, stderr = benchmark('--row=reader_1', script='op_times.py')
    assert code == 1 and '--row=reader_1 is not one of deeplab_train, deeplab_predict' in stderr
    code, _, stderr = benchmark('--row=res50_predict', '--reference', '--bfloat16', script='op_times.py')
    assert code == 1 and '--reference and --bfloat16 exclude each other' in stderr


def test_op_times_in_bfloat16():
    code, stdout, stderr = benchmark('--row=res50_predict', '--bfloat16', script='op_times.py')
    if measure.no_bfloat16():
        assert code == 1 and '--bfloat16 has no effect here, because %s: ' % measure.no_bfloat16() in stderr
    else:
        assert code == 0 and 'float32 to bfloat16' in stdout, stderr + stdout


def benchmark(*args, script='run.py'):
    """Runs the script; returns (exit code, stdout, stderr)."""
    process = subprocess.run([sys.executable, os.path.join('benchmarks', script), '--quick'] + list(args), cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return process.returncode, process.stdout, process.stderr


def test_command_line(tmp_path):
    output = str(tmp_path / 'new' / 'results.json')
    rows = ['deeplab_predict', 'colours']
    code, stdout, stderr = benchmark('--only=' + ','.join(rows), '--output=' + output)
    assert code == 0, stderr + stdout
    with open(output) as file:
        report = json.load(file)
    assert report['machine']['tensorflow'] == tf.__version__ and report['machine']['cores'] >= 1
    assert isinstance(report['machine']['onednn_by_default'], bool) and report['failures'] == []
    assert {row['name'] for row in report['rows']} == set(rows)
    for row in report['rows']:
        assert row['seconds'] > 0 and row['sgemm_gflops'] > 0 and row['rounds'] == 1
        assert (row['share_of_floor'] is None) == (row['peak_mb'] is None) == (row['name'] == 'colours')
        assert row['name'] in stdout
    forms = {name: {row['form'] for row in report['rows'] if row['name'] == name} for name in rows}
    assert forms['deeplab_predict'] >= {run.PRODUCT, run.ONEDNN} and forms['colours'] == {run.PRODUCT, run.DEFAULT}
    in_bfloat16 = run.BFLOAT16 in forms['deeplab_predict']
    assert in_bfloat16 == (not measure.no_bfloat16())
    reason = [] if in_bfloat16 else ['no row was measured in bfloat16, because %s.' % measure.no_bfloat16()]
    assert report['empty'] == reason and set(reason) <= set(stdout.splitlines())
    targets = {row['target']: row for row in report['targets']}
    assert targets['colours / pixel by pixel, in speed']['met'] in (True, False)
    assert targets['msc train step / reference']['met'] is None


def test_a_missing_openvino_is_told(tmp_path, monkeypatch, capsys):
    rows = collections.OrderedDict([('exported', run.Row('exported', {}, (run.PRODUCT, run.OPENVINO))),
                                    ('train', run.Row('train', {}, (run.PRODUCT,)))])
    (tmp_path / 'openvino.py').write_text('')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run.without_openvino(rows) == rows and capsys.readouterr().out == ''
    monkeypatch.setattr(run.importlib.util, 'find_spec', lambda name: None)
    assert [row.forms for row in run.without_openvino(rows).values()] == [(run.PRODUCT,)] * 2
    assert capsys.readouterr().out == (
        'exported: OpenVINO is not installed: pip install -r requirements-openvino.txt\n')


def test_unknown_row_names_the_valid_ones(tmp_path):
    code, _, stderr = benchmark('--only=deeplab_trian', '--output=' + str(tmp_path / 'results.json'))
    assert code == 1 and 'Traceback' not in stderr
    assert 'there is no row deeplab_trian: give some of deeplab_train, deeplab_predict' in stderr
    assert not os.listdir(str(tmp_path))
