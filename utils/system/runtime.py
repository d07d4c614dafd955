"""Settings of the process that must be made before TensorFlow is first used, and the devices that it then has."""

import contextlib
import faulthandler
import gc
import logging
import os
import shutil
import sys
import tempfile
import warnings

CGROUP = '/sys/fs/cgroup'
FROZEN_WEIGHTS = 'TF_ONEDNN_ASSUME_FROZEN_WEIGHTS'
DRIVER = '/proc/driver/nvidia/version'


def usable_cores(cgroup=CGROUP):
    """How many cores this process may use: by its processor set and by its container's quota, at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    for name in ('cpu.max', 'cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us'):  # version 2 and version 1
        try:
            quota, period = words(cgroup, name)
            if int(quota) > 0:  # 'max' or -1 is none
                cores = min(cores, -(-int(quota) // int(period)))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return max(1, cores)


def words(folder, names):
    """The words of some files of a folder, such as a control group's, one after another."""
    found = []
    for name in names.split():
        with open(os.path.join(folder, name)) as file:
            found += file.read().split()
    return found


def prepare(xla=False, deterministic=False, frozen_weights=False):
    """Sets up the environment, imports TensorFlow in graph mode and returns it.

    oneDNN is quicker in training and, as batch norm is folded, in prediction too; TensorFlow 2 leaves it off on some
    processors. A setting of the user's own is never overridden.

    TensorFlow's own lines appear only if its start fails or if TF_CPP_MIN_LOG_LEVEL is set below 3: what fails comes as
    an exception, `devices` says whether a GPU is used, and lines marked as errors are written where nothing fails, as
    when an op falls back to another kernel. Some come before that variable is read, so they are held back.

    Args:
      xla: let XLA's clusters run on the CPU too.
      deterministic: ask for ops that give the same bits on every run, which those of GPUs do not by default. This one
        does override the environment: it is a promise.
      frozen_weights: whether no weight changes after its first use. oneDNN then brings each into the order that it
        wants once, not in every run, as it does with constants. It holds for the process, later calls change nothing.
    """
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
    if 'tensorflow' not in sys.modules and not (frozen_weights and FROZEN_WEIGHTS in os.environ):
        os.environ[FROZEN_WEIGHTS] = str(int(frozen_weights))  # a training with it would be wrong, whoever set it
    if xla:
        os.environ.setdefault('TF_XLA_FLAGS', '--tf_xla_cpu_global_jit')
    if deterministic:
        os.environ.update(TF_DETERMINISTIC_OPS='1', TF_CUDNN_DETERMINISTIC='1')  # what TensorFlow 1.15 goes by
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    logging.getLogger('tensorflow').setLevel(logging.ERROR)
    with held_stderr() as held, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TensorFlow 1.15's own numpy warnings
        with lean_import():
            import tensorflow.compat.v1 as tf
        tf.disable_v2_behavior()
        tf.logging.set_verbosity(tf.logging.ERROR)  # queue runners are deprecated and work on both versions
        if deterministic:
            _enable_determinism()
        gpus()  # which loads CUDA
        held.drop = os.environ['TF_CPP_MIN_LOG_LEVEL'] >= '3'
    return tf


@contextlib.contextmanager
def lean_import():
    """Inside, nothing looks for garbage, of which imports leave none, and Keras cannot be imported.

    TensorFlow 2 imports it at its start, for the sake of those who save Keras models, and does without it if it is
    missing: a third of the time of the start and 100 MB. Afterwards tf.keras loads it when it is used.
    """
    collects, blocked = gc.isenabled(), 'keras' not in sys.modules
    gc.disable()
    if blocked:
        sys.modules['keras'] = None
    try:
        yield
    finally:
        if blocked:
            del sys.modules['keras']
        if collects:
            gc.enable()


def _enable_determinism():
    """TensorFlow 2's own switch, which its compat.v1 lacks; 1.15 has none."""
    import tensorflow
    enable = getattr(tensorflow.config.experimental, 'enable_op_determinism', None)
    if enable:
        enable()


class Held(object):
    """Lines that were held back: `text`, once that has ended. They are written then unless `drop` is set."""

    drop, text = False, ''

    def __init__(self, stderr):
        """stderr: a file, not held back."""
        self.stderr = stderr


@contextlib.contextmanager
def held_stderr():
    """Holds back what is written to file descriptor 2, native code's lines too, and writes it afterwards.

    Yields a Held. A process that native code aborts, as TensorFlow does on processors without AVX, says where.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    enabled = faulthandler.is_enabled()
    with tempfile.TemporaryFile() as lines, os.fdopen(
            os.dup(stderr), 'w', encoding=getattr(sys.stderr, 'encoding', None), errors='backslashreplace') as real:
        held = Held(real)
        try:
            if not enabled:
                faulthandler.enable(stderr)
            os.dup2(lines.fileno(), 2)
            yield held
        except KeyboardInterrupt:
            held.drop = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            if not enabled:
                faulthandler.disable()
            os.close(stderr)
            lines.seek(0)
            held.text = lines.read().decode('utf-8', 'replace')
            if not held.drop:
                sys.stderr.write(held.text)


def gpus():
    """The GPUs that TensorFlow sees, a list of its PhysicalDevices."""
    import tensorflow.compat.v1 as tf
    return tf.config.experimental.list_physical_devices('GPU')


def on_gpu():
    """Whether TensorFlow sees a GPU."""
    return bool(gpus())


def device_kind():
    """'GPU' where TensorFlow sees one, otherwise 'CPU'."""
    return 'GPU' if on_gpu() else 'CPU'


def has_driver():
    """Whether there is an NVIDIA driver whose GPUs were not hidden by CUDA_VISIBLE_DEVICES."""
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES', '0').strip() in ('', '-1')
    return not hidden and bool(os.path.exists(DRIVER) or shutil.which('nvidia-smi'))


def devices():
    """The devices that the run uses, as one line, with a remedy if TensorFlow sees no GPU of an NVIDIA driver."""
    import tensorflow.compat.v1 as tf
    cores = usable_cores()
    found = ['%d CPU core%s' % (cores, '' if cores == 1 else 's')]
    for number, gpu in enumerate(gpus()):
        try:
            name = tf.config.experimental.get_device_details(gpu).get('device_name', '')
        except AttributeError:  # TensorFlow 1.15
            name = ''
        found.append(('GPU:%d %s' % (number, name)).strip())
    line = 'devices: ' + ', '.join(found)
    if len(found) == 1 and has_driver():
        line += '; there is an NVIDIA driver but TensorFlow sees no GPU (TF_CPP_MIN_LOG_LEVEL=0 shows why): %s' % (
            'install CUDA 10.0 and cuDNN 7' if tf.__version__.startswith('1.')
            else 'pip install "tensorflow[and-cuda]==%s"' % tf.__version__)
    return line


def session_config(xla=False, num_cpus=1):
    """GPU memory is taken as it is needed; ops without a GPU kernel run on the CPU; xla compiles clusters of ops.

    num_cpus is the number of logical devices that the processor stands for.
    """
    import tensorflow.compat.v1 as tf
    config = tf.ConfigProto(allow_soft_placement=True, gpu_options=tf.GPUOptions(allow_growth=True))
    if num_cpus > 1:
        config.device_count['CPU'] = num_cpus
    if xla:
        config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    return config
