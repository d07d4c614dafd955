"""TensorFlow's start: without notices, with a line about the devices, on the cores that the process may use."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow
import tensorflow.compat.v1 as tf

from utils.system import runtime

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize('files, cores', [
    ({}, 6), ({'cpu.max': 'max 100000\n'}, 6), ({'cpu.max': '250000 100000\n'}, 3), ({'cpu.max': '1000 100000'}, 1),
    ({'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 6),
    ({'cpu/cpu.cfs_quota_us': '200000\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 2),
    ({'cpu/cpu.cfs_quota_us': '200000\n'}, 6), ({'cpu.max': 'strange'}, 6), ({'cpu.max': '5 0'}, 6),
    ({'cpu.max': '9900000 100000'}, 6),
])
def test_usable_cores(files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(6)), raising=False)
    (tmp_path / 'cpu').mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert runtime.usable_cores(str(tmp_path)) == cores


def test_usable_cores_without_processor_sets(tmp_path, monkeypatch):
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert runtime.usable_cores(str(tmp_path)) == 1


@pytest.mark.parametrize('drop', [True, False])
def test_lines_of_native_code_are_held_back(capfd, drop):
    with runtime.held_stderr() as held:
        os.write(2, b'a notice\n')
        held.drop = drop
        assert capfd.readouterr().err == ''
    os.write(2, b'later\n')
    assert capfd.readouterr().err == ('' if drop else 'a notice\n') + 'later\n'


def test_lines_before_a_failure_are_shown(capfd):
    with pytest.raises(ImportError), runtime.held_stderr():
        os.write(2, b'why\n')
        raise ImportError
    assert capfd.readouterr().err == 'why\n'


def test_an_abort_is_reported():
    code = 'import os\nfrom utils.system import runtime\nwith runtime.held_stderr():\n    os.abort()'
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stderr=subprocess.PIPE, universal_newlines=True)
    assert process.returncode < 0 and 'Fatal Python error: Aborted' in process.stderr


def test_tensorflow_starts_without_a_line_and_without_keras():
    code = '''import sys
from utils.system import runtime
tf = runtime.import_tensorflow()
print(runtime.describe_devices(), 'keras' in sys.modules, tf.keras.backend.floatx())
with tf.Session(config=runtime.session_config()) as sess:
    print(sess.run(tf.constant(7) + tf.Variable(1).initialized_value()))'''
    environment = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             universal_newlines=True, env=environment)
    assert (process.returncode, process.stderr) == (0, '')
    assert process.stdout == runtime.describe_devices() + ' False float32\n8\n'


@pytest.mark.parametrize('deterministic', [True, False])
def test_deterministic_ops_are_asked_for(deterministic, monkeypatch):
    variables, calls = ('TF_DETERMINISTIC_OPS', 'TF_CUDNN_DETERMINISTIC'), []
    for name in variables:
        monkeypatch.setenv(name, '0')
    newer = not tf.__version__.startswith('1.')
    if newer:  # TensorFlow 1.15 has no such switch
        monkeypatch.setattr(tensorflow.config.experimental, 'enable_op_determinism', lambda: calls.append('on'))
    runtime.import_tensorflow(deterministic=deterministic)
    assert calls == ['on'] * (deterministic and newer)
    assert [os.environ[name] for name in variables] == [str(int(deterministic))] * 2


def test_devices(monkeypatch):
    monkeypatch.setattr(runtime, 'usable_cores', lambda: 1)
    monkeypatch.setattr(runtime, 'gpus', list)
    monkeypatch.setattr(runtime, 'has_driver', lambda: False)
    assert runtime.describe_devices() == 'devices: 1 CPU core'
    monkeypatch.setattr(runtime, 'has_driver', lambda: True)
    remedy = 'CUDA 10.0' if tf.__version__.startswith('1.') else 'pip install "tensorflow[and-cuda]=='
    line = runtime.describe_devices()
    assert 'NVIDIA driver but TensorFlow sees no GPU' in line and remedy in line
    monkeypatch.setattr(runtime, 'gpus', lambda: ['one', 'two'])
    monkeypatch.setattr(tf.config.experimental, 'get_device_details', lambda gpu: {'device_name': 'NVIDIA ' + gpu},
                        raising=False)
    assert runtime.describe_devices() == 'devices: 1 CPU core, GPU:0 NVIDIA one, GPU:1 NVIDIA two'
    # An AttributeError, as on TensorFlow 1.15.
    monkeypatch.setattr(tf.config.experimental, 'get_device_details', lambda gpu: gpu.none)
    assert runtime.describe_devices() == 'devices: 1 CPU core, GPU:0, GPU:1'


@pytest.mark.parametrize('visible, driver, found', [
    (None, True, True), ('0', True, True), ('', True, False), ('-1', True, False), (None, False, False)])
def test_has_driver(visible, driver, found, monkeypatch, tmp_path):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(runtime, 'DRIVER', str(tmp_path if driver else tmp_path / 'none'))
    monkeypatch.setattr(runtime, 'shutil', types.SimpleNamespace(which=lambda name: None))
    assert runtime.has_driver() is found


PREPARE = '''
import os, sys
from utils.system import runtime
runtime.import_tensorflow(frozen_weights=sys.argv[1] == 'frozen')
runtime.import_tensorflow(frozen_weights=sys.argv[1] != 'frozen')  # too late: the process has computed by the first
print(os.environ[runtime.FROZEN_WEIGHTS])
'''


@pytest.mark.parametrize('weights, of_user, wanted', [
    ('frozen', None, '1'), ('frozen', '0', '0'), ('trained', None, '0'), ('trained', '1', '0')])
def test_weights_are_frozen_for_the_process_and_never_in_a_training(weights, of_user, wanted):
    environment = {name: value for name, value in os.environ.items() if name != runtime.FROZEN_WEIGHTS}
    if of_user:
        environment[runtime.FROZEN_WEIGHTS] = of_user
    process = subprocess.run([sys.executable, '-c', PREPARE, weights], cwd=ROOT, env=environment,
                             stdout=subprocess.PIPE, universal_newlines=True)
    assert process.stdout == wanted + '\n'


MASKS = '''
import sys
import numpy as np
from utils.net import blocks
from utils.system import runtime
tf = runtime.import_tensorflow(frozen_weights=True)
from benchmarks import measure
from model import Model
from model_msc import Model_msc
blocks.BLOCKS['res50'] = blocks.resnet_blocks((0, 0, 0, 1), depth=16)
found = []
for model_class, dilated_type in ((Model, 'regular'), (Model, 'decompose'), (Model, 'smooth_GI'),
                                  (Model, 'smooth_SSC'), (Model_msc, 'regular')):
    model = model_class(measure.flag_values(encoder_name='res50', train_bn=False, dilated_type=dilated_type))
    with tf.Graph().as_default(), tf.Session() as sess:
        tf.set_random_seed(1)
        images = tf.placeholder(tf.float32, [1, None, None, 3])
        net, scores = model.scores(images)
        shaken = [v.assign_add(tf.random_normal(v.shape, 0, 0.3)) for v in net.variables if 'fix_w' in v.op.name]
        sess.run(tf.global_variables_initializer())
        sess.run(shaken)
        for seed, size in enumerate([(65, 65), (65, 65), (49, 80), (65, 65)]):
            image = np.random.RandomState(seed).uniform(-110, 130, (1,) + size + (3,))
            found.append(sess.run(scores, {images: image}).ravel())
np.save(sys.argv[1], np.concatenate(found))
'''


def test_frozen_weights_change_no_mask(tmp_path):
    """Images and sizes differ from the first, and smooth_GI has a matmul, for which no weights are cached."""
    found = []
    for value in '10':
        path = str(tmp_path / (value + '.npy'))
        subprocess.run([sys.executable, '-c', MASKS, path], cwd=ROOT, check=True,
                       env=dict(os.environ, **{runtime.FROZEN_WEIGHTS: value}))
        found.append(np.load(path).reshape(-1, 21))
    assert len(np.unique(found[0].argmax(1))) > 3
    np.testing.assert_array_equal(found[0].argmax(1), found[1].argmax(1))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5 * abs(found[1]).max())
