"""Makes one measurement: its argument is a JSON object, and the last line of its output is another one.

run.py starts this program for every row, form and round, with PYTHONPATH set to the repo.
"""

import collections
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from unittest import mock

import numpy as np
from PIL import Image

from benchmarks import flops
from utils.system import runtime

WARM_UP_SECONDS = 2.0
MOST_STEPS = 200
IMG_MEAN = (104.00698793, 116.66876762, 122.67891434)
LEARNING_RATE = 1e-7  # so small that the weights hardly change
LOG_POLL_SECONDS = 0.01


# ---- setup and timing ----

def start(form, frozen_weights=False):
    """Returns TensorFlow in graph mode, with the product's settings or, for the reference, the environment's."""
    if form != 'reference':
        return runtime.import_tensorflow(frozen_weights=frozen_weights)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow.compat.v1 as tf
    tf.disable_v2_behavior()
    tf.logging.set_verbosity(tf.logging.ERROR)
    return tf


def onednn_is_on():
    """Returns whether this process uses oneDNN; TensorFlow must have been imported."""
    from tensorflow.python.framework import test_util
    return bool(test_util.IsMklEnabled())


def no_bfloat16():
    """Returns a clause that explains why --mixed_precision does not use bfloat16 here; '' if it does."""
    return 'a GPU computes in float16' if runtime.on_gpu() else runtime.why_no_bfloat16()


def new_session(tf, job):
    """Returns a session with the product's or TensorFlow's default configuration, with variables initialized."""
    config = None
    if job.form == 'product':
        precision = runtime.available_precision() if job.mixed_precision else None
        config = runtime.set_precision(runtime.session_config(), precision)
    sess = tf.Session(config=config)
    sess.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
    return sess


def product_speeds(tf, job):
    """Returns a function that measures matrix products, {'sgemm_gflops': GFLOP/s in float32}.

    With job.mixed_precision, its result also contains 'bfloat16_gflops'.
    """
    products = {'sgemm_gflops': matrix_product(tf, job.sgemm_side, tf.float32)}
    if job.mixed_precision:
        products['bfloat16_gflops'] = matrix_product(tf, job.sgemm_side, tf.bfloat16)
    return lambda: {field: product() / 1e9 for field, product in products.items()}


def matrix_product(tf, side, dtype):
    """Returns a function that multiplies two matrices [side, side] of a dtype and returns the speed in FLOP/s.

    Its session is created in the first call, because the first session of a process sets the number of threads for all.
    """
    @functools.lru_cache(maxsize=None)
    def product():
        with tf.Graph().as_default():
            one, two = [tf.get_variable(name, initializer=tf.cast(tf.random_uniform([side, side]), dtype),
                                        use_resource=True) for name in ('one', 'two')]
            op = tf.matmul(one, two).op
            sess = tf.Session()
            sess.run(tf.global_variables_initializer())
        sess.run(op)  # warm-up
        return functools.partial(sess.run, op)

    return lambda: 2.0 * side ** 3 / np.median([seconds_of(product()) for _ in range(3)])


def seconds_of(step):
    """Returns the seconds that a call of step() takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def repeat(step, speeds, budget):
    """Runs a step and the matrix products in turn for about `budget` seconds; returns the medians.

    Args:
      step: a function.
      speeds: the result of product_speeds.
      budget: in seconds; 0 for one step.

    Returns:
      {'seconds': seconds of a step, 'steps': number of steps, and the fields of speeds()}.
    """
    started, warm = time.perf_counter(), 0
    while not warm or budget and (warm < 2 or warm < 3 and time.perf_counter() - started < WARM_UP_SECONDS):
        step()
        warm += 1
    times, rates = [], [speeds()]
    started = measured = time.perf_counter()
    while not times or time.perf_counter() - started < budget and len(times) < MOST_STEPS:
        times.append(seconds_of(step))
        if time.perf_counter() - measured > 0.5:
            rates.append(speeds())
            measured = time.perf_counter()
    medians = {field: float(np.median([rate[field] for rate in rates])) for field in rates[0]}
    return dict(medians, seconds=float(np.median(times)), steps=len(times))


def flag_values(module='main', **changed):
    """Returns an object with the defaults of the flags of main.py or main_msc.py, and the given changes."""
    from absl import flags
    __import__(module)
    values = {flag.name: flag.default for flag in flags.FLAGS.flags_by_module_dict()['main']}
    values.update(changed)
    return types.SimpleNamespace(**values)


def held(tf, name, value):
    """Returns the value of a new variable as a tensor, so that TensorFlow cannot fold it to a constant."""
    return tf.get_variable(name, initializer=value, trainable=False, use_resource=True,
                           collections=[tf.GraphKeys.LOCAL_VARIABLES]).read_value()


# ---- measurements: each takes (tf, speeds, job) and returns {suffix of the figure's name: figure} ----

def train(tf, speeds, job):
    """Measures a training step; with multi-scale training, an iteration and its share of the update."""
    batch, (height, width) = job.batch, job.size
    images = held(tf, 'images', tf.random_uniform([batch, height, width, 3], -110, 130))
    labels = held(tf, 'labels', tf.random_uniform([batch, height, width, 1], 0, 21, tf.int32))
    make = product_training if job.form == 'product' else reference_training
    sess, iterate, update, every = make(tf, images, labels, job)
    figure = repeat(lambda: check_finite(iterate()), speeds, job.budget)
    if update:
        figure['seconds'] += repeat(update, speeds, min(job.budget, 1))['seconds'] / every
    scales = (1.0, 0.75, 0.5) if job.multi_scale else (1.0,)
    count = sum(flops.training(job.encoder_name, int(height * scale), int(width * scale)) for scale in scales)
    return {'': dict(figure, gflop=batch * count / 1e9, images=batch, peak_mb=peak_mb())}


def product_training(tf, images, labels, job):
    """Builds the training of the product.

    Returns:
      (session, function that runs an iteration and returns the loss, function that runs an update or None if an
      iteration includes it, number of iterations per update).
    """
    from model import Model
    from model_msc import Model_msc
    conf = flag_values('main_msc' if job.multi_scale else 'main', encoder_name=job.encoder_name, train_bn=False,
                       dilated_type=job.dilated_type, batch_size=job.batch, learning_rate=LEARNING_RATE,
                       mixed_precision=job.mixed_precision)
    model = (Model_msc if job.multi_scale else Model)(conf)
    graph = model.training_graph(images, labels)
    sess, update = new_session(tf, job), graph.update
    if update.accumulate is None:
        return sess, lambda: model.train_step(sess, graph, 0)[0]['loss/total'], None, 1
    return (sess, lambda: sess.run([graph.losses, update.accumulate])[0]['loss/total'],
            lambda: sess.run(update.apply, {graph.rate: LEARNING_RATE}), conf.grad_update_every)


def reference_training(tf, images, labels, job):
    """Builds the training of the reference form; returns the same as product_training."""
    from benchmarks import reference
    every = reference.GRAD_UPDATE_EVERY if job.multi_scale else 1
    graph = reference.training(images, labels, job.encoder_name, multi_scale=job.multi_scale, grad_update_every=every)
    sess, feed = new_session(tf, job), {graph.rate: LEARNING_RATE}
    if graph.accumulate is None:
        return sess, lambda: sess.run([graph.losses, graph.apply], feed)[0]['loss/total'], None, 1
    return (sess, lambda: sess.run([graph.losses, graph.accumulate])[0]['loss/total'],
            lambda: sess.run(graph.apply, feed), every)


def check_finite(loss):
    if not np.isfinite(loss):
        raise ValueError('the loss is %s, so times would be meaningless' % loss)


def predict(tf, speeds, job):
    """Measures the prediction of class indices for one image, whose size is not known to the graph."""
    image = np.random.RandomState(0).uniform(-110, 130, [1] + job.size + [3]).astype(np.float32)
    images = tf.placeholder(tf.float32, [1, None, None, 3])
    if job.form == 'product':
        from model import Model
        conf = flag_values(encoder_name=job.encoder_name, train_bn=False, dilated_type=job.dilated_type,
                           mixed_precision=job.mixed_precision)
        from utils.prediction.predictor import class_map
        prediction = class_map(Model(conf).scores(images)[1])
    else:
        from benchmarks import reference
        prediction = reference.inference(images, job.encoder_name)
    sess = new_session(tf, job)
    figure = repeat(lambda: sess.run(prediction, {images: image}), speeds, job.budget)
    return {'': dict(figure, gflop=flops.forward(job.encoder_name, *job.size)[0] / 1e9, images=1, peak_mb=peak_mb())}


def exported(tf, speeds, job):
    """Measures the prediction for one image by an exported model, run by TensorFlow or OpenVINO in float32."""
    from model import Model
    from utils.prediction import export
    model = Model(flag_values(encoder_name=job.encoder_name, train_bn=False))
    with tf.Graph().as_default(), tf.Session() as sess:
        variables = model.network(tf.zeros([1, 65, 65, 3]), phase=False, batch_norm='frozen').variables
        sess.run(tf.variables_initializer(variables))
        weights = dict(zip([variable.op.name for variable in variables], sess.run(variables)))
    image = np.random.RandomState(0).randint(0, 256, [1] + job.size + [3]).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        export.save(export.build(model.scores, weights, model.numerics.input, model.classes), folder)
        run = (openvino_model if job.form == 'OpenVINO' else functools.partial(tensorflow_model, tf))(folder)
        figure = repeat(lambda: run(image), speeds, job.budget)
    return {'': dict(figure, gflop=flops.forward(job.encoder_name, *job.size)[0] / 1e9, images=1)}


def tensorflow_model(tf, folder):
    """Returns a function from images to class maps that runs the SavedModel in a folder with TensorFlow."""
    sess = tf.Session(graph=tf.Graph(), config=runtime.session_config())
    with sess.graph.as_default():
        tf.saved_model.loader.load(sess, [tf.saved_model.tag_constants.SERVING], folder)
    return lambda images: sess.run('classes:0', {'images:0': images})


def openvino_model(folder):
    """Returns a function from images to class maps that runs the SavedModel in a folder with OpenVINO."""
    import openvino
    core = openvino.Core()
    whole = core.read_model(folder)
    classes = openvino.Model([whole.output('classes')], whole.get_parameters())
    return core.compile_model(classes, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})


def mixing(tf, speeds, job):
    """Measures only the mixing of smoothed convolutions, for block3 and block4, with and without gradients."""
    figures = {}
    for rate, depth in ((2, 256), (4, 512)):
        shape = [job.batch] + job.size + [depth]
        with tf.Graph().as_default():
            forward, both = mixing_ops(tf, job.form, job.dilated_type, shape, rate)
            sess = new_session(tf, job)
            for suffix, ops, passes in (('forward', forward, 1), ('with_gradients', both, 3)):
                figure = repeat(lambda sess=sess, ops=ops: sess.run(ops), speeds, job.budget / 4)
                count = passes * flops.mixing(job.dilated_type, shape, rate)
                figures['_rate%d_%s' % (rate, suffix)] = dict(figure, gflop=count / 1e9)
    return figures


def mixing_ops(tf, form, dilated_type, shape, rate):
    """Returns ([op of the mixed map], [ops of the mixed map and of the gradients]) for a map of shape [N, h, w, C]."""
    number, height, width, depth = shape
    if dilated_type == 'smooth_GI':  # on the groups, as they are between space-to-batch and batch-to-space
        shape = [number * rate * rate, -(-height // rate), -(-width // rate), depth]
        fix_w_shape = [rate * rate, rate * rate]
    else:
        fix_w_shape = [2 * rate - 1, 2 * rate - 1, 1, 1, 1]
    inputs = held(tf, 'inputs', tf.random_normal(shape))
    fix_w = tf.get_variable('fix_w', initializer=tf.random_normal(fix_w_shape), use_resource=form == 'product')
    outputs = mixed(form, dilated_type, inputs, rate, fix_w)
    gradients = tf.gradients(outputs, [inputs, fix_w], held(tf, 'outer', tf.random_normal(shape)))
    # All ops are fetched directly, because TensorFlow removes ops on which only a tf.group depends.
    return [outputs.op], [outputs.op] + [gradient.op for gradient in gradients]


def mixed(form, dilated_type, inputs, rate, fix_w):
    """Mixes groups (smooth_GI) or a map (smooth_SSC), as the product or the reference does."""
    if form == 'product':
        from utils.net import dilated
        if dilated_type == 'smooth_GI':
            return dilated.mix_groups(inputs, fix_w)
        with mock.patch.object(dilated, 'regular', lambda inputs, kernel, rate: inputs):  # leave out the convolution
            return dilated.lookup(dilated_type)[0](inputs, None, rate=rate, fix_w=fix_w)
    from benchmarks import reference
    if dilated_type == 'smooth_GI':
        return reference.mix_groups(inputs, fix_w)
    return reference.share_filter(inputs, rate, fix_w)


def reader(tf, speeds, job):
    """Measures the training queue, after all samples read ahead of time have been used up.

    The matrix product beside it also uses one core.
    """
    with tempfile.TemporaryDirectory() as folder:
        images, labels = write_pairs(folder, job.files, job.image_size)
        if job.form == 'product':
            from utils.data import augment, palette
            from utils.image_reader import ImageReader
            from utils.net.compat import COMPAT
            source = ImageReader(images, labels, palette.load_classes(21), COMPAT['original'].input, job.threads)
            batch, running = source.training_batch(job.batch, augment.Augmentation(tuple(job.size))), source.running
        else:
            from benchmarks import reference
            batch = reference.training_batch(images, labels, IMG_MEAN, job.batch, tuple(job.size))
            running = reference.running
        # One core per op, in both forms. Otherwise, a single reader thread would also use other cores.
        sess = tf.Session(config=tf.ConfigProto(intra_op_parallelism_threads=1))
        sess.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        ready = tf.group(*batch)
        with running(sess):
            for _ in range(3 + job.threads + 32 // job.batch if job.budget else 1):  # more than any queue holds
                sess.run(ready)
            batches, started = 0, time.perf_counter()
            while not batches or time.perf_counter() - started < job.budget:
                sess.run(ready)
                batches += 1
            seconds = (time.perf_counter() - started) / batches
    return {'': dict(speeds(), seconds=seconds, steps=batches, images=job.batch)}


def write_pairs(folder, number, size):
    """Writes JPEGs, of about 90 kB at 375x500 as in VOC, and labels with large regions; returns two lists of paths."""
    random = np.random.RandomState(0)
    images, labels = [], []
    for index in range(number):
        coarse = Image.fromarray(random.randint(0, 256, [12, 16, 3]).astype(np.uint8))
        pixels = np.asarray(coarse.resize(size[::-1], Image.BICUBIC)) + random.randn(*(list(size) + [3])) * 12
        patches = Image.fromarray(random.choice([0, 0, 0, 5, 15, 20, 255], [6, 8]).astype(np.uint8))
        images.append(os.path.join(folder, '%d.jpg' % index))
        labels.append(os.path.join(folder, '%d.png' % index))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(images[-1], quality=90)
        patches.resize(size[::-1], Image.NEAREST).save(labels[-1])
    return images, labels


def colours(tf, speeds, job):
    """Measures the conversion of one prediction to colours."""
    from utils import label_utils
    from utils.data.palette import voc_colours
    coarse = Image.fromarray(np.random.RandomState(0).randint(0, 21, [8, 8]).astype(np.uint8))
    mask = np.asarray(coarse.resize(job.size[::-1], Image.NEAREST))  # [h, w]
    if job.form == 'product':
        function, arguments = label_utils.decode_labels, (mask[np.newaxis], 1, 21)
    else:
        from benchmarks import reference
        function, arguments = reference.decode_labels, (mask.astype(np.int64), voc_colours(21))  # int64, as from argmax
    return {'': dict(repeat(lambda: function(*arguments), speeds, job.budget), images=1)}


def startup(tf, speeds, job):
    """Measures the time from starting main.py --option=train on the sample to the first logged step."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, 'log.txt')
        command = [sys.executable, 'main.py', '--flagfile=dataset/sample.flags', '--option=train', '--num_steps=1',
                   '--logfile=' + log] + ['--%s=%s' % (flag, os.path.join(folder, flag))
                                          for flag in ('modeldir', 'logdir')] + job.arguments
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while not (os.path.exists(log) and os.path.getsize(log)):
                if process.poll() is not None:
                    raise RuntimeError('main.py ended without a step: %s' % process.stderr.read().decode()[-500:])
                time.sleep(LOG_POLL_SECONDS)
            seconds = time.perf_counter() - started
        finally:
            process.kill()
            process.communicate()
    return {'': dict(speeds(), seconds=seconds, steps=1)}


def facts(tf, speeds, job):
    """Returns the versions, whether oneDNN is on in this environment, and why bfloat16 is not available."""
    return {'': {'tensorflow': tf.__version__, 'python': sys.version.split()[0], 'onednn': onednn_is_on(),
                 'no_bfloat16': no_bfloat16()}}


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


MEASUREMENTS = {function.__name__: function
                for function in (train, predict, exported, mixing, reader, colours, startup, facts)}

# The fields of a job and their defaults.
JOB = collections.OrderedDict(
    what=None, form='product', budget=5.0, sgemm_side=2048, encoder_name='deeplab', dilated_type='regular',
    multi_scale=False, mixed_precision=False, batch=1, size=[321, 321], threads=1, files=16, image_size=[375, 500],
    arguments=[])


def main(argument):
    job = types.SimpleNamespace(**dict(JOB, **json.loads(argument)))
    tf = start(job.form, frozen_weights=job.what == 'predict' and not job.mixed_precision)
    speeds = product_speeds(tf, job)
    with tf.Graph().as_default():
        figures = MEASUREMENTS[job.what](tf, speeds, job)
    print(json.dumps({'figures': figures, 'onednn': onednn_is_on()}))


if __name__ == '__main__':
    main(sys.argv[1])
