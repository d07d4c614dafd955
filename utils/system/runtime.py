"""TensorFlow in this process: environment and import, devices, and sessions and their precision.

This module can be imported before TensorFlow; its functions import TensorFlow when they need it.
"""

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
FROZEN_WEIGHTS = 'TF_ONEDNN_ASSUME_FROZEN_WEIGHTS'  # an environment variable
DRIVER = '/proc/driver/nvidia/version'  # exists if the NVIDIA driver is loaded

BFLOAT16_FLAGS = ('amx_bf16', 'avx512_bf16')  # names of processor flags on Linux
REWRITER_ON = 1  # RewriterConfig.ON, which tensorflow.compat.v1 does not export
# {precision: the field of RewriterConfig that enables it}
PRECISION_REWRITES = {'float16': 'auto_mixed_precision', 'bfloat16': 'auto_mixed_precision_onednn_bfloat16'}


# ---- cores ----

def usable_cores(cgroup=CGROUP):
    """Returns the number of cores that CPU affinity and the cgroup's quota allow this process to use, at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    for names in (('cpu.max',), ('cpu/cpu.cfs_quota_us', 'cpu/cpu.cfs_period_us')):  # cgroup versions 2 and 1
        try:
            quota, period = read_words(cgroup, *names)
            if int(quota) > 0:  # 'max' and -1 mean no quota
                cores = min(cores, -(-int(quota) // int(period)))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return max(1, cores)


def read_words(folder, *names):
    """Returns a list of all words in the named files of a folder, such as that of a cgroup."""
    words = []
    for name in names:
        with open(os.path.join(folder, name)) as file:
            words += file.read().split()
    return words


# ---- import of TensorFlow ----

def import_tensorflow(xla=False, deterministic=False, frozen_weights=False):
    """Sets up the environment, imports TensorFlow in graph mode and returns tensorflow.compat.v1.

    This enables oneDNN, which TensorFlow 2 disables on some processors: it makes training and prediction with folded
    batch norm faster. Environment variables that the user has set are kept, except as stated below.

    TensorFlow's log is shown only if the import fails or TF_CPP_MIN_LOG_LEVEL is set below 3. Users do not need it:
    failures are exceptions, describe_devices reports the GPUs, and some lines are marked as errors although nothing
    fails, for instance if an op falls back to another kernel. Some lines are written before TensorFlow reads
    TF_CPP_MIN_LOG_LEVEL, so stderr is held back during the import.

    Args:
      xla: whether XLA also compiles clusters on the CPU.
      deterministic: whether to use ops that give identical bits in every run, which GPU ops do not do by default. True
        overrides the user's environment.
      frozen_weights: whether all weights are constant after their first use, so that oneDNN reorders each weight only
        once instead of in every run. This applies to the whole process; later calls do not change it. False overrides
        the user's environment, because training would give wrong results.
    """
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
    if 'tensorflow' not in sys.modules and not (frozen_weights and FROZEN_WEIGHTS in os.environ):
        os.environ[FROZEN_WEIGHTS] = str(int(frozen_weights))
    if xla:
        os.environ.setdefault('TF_XLA_FLAGS', '--tf_xla_cpu_global_jit')
    if deterministic:
        os.environ.update(TF_DETERMINISTIC_OPS='1', TF_CUDNN_DETERMINISTIC='1')  # read by TensorFlow 1.15
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    logging.getLogger('tensorflow').setLevel(logging.ERROR)
    with held_stderr() as held, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # numpy warns about TensorFlow 1.15
        with lean_import():
            import tensorflow.compat.v1 as tf
        tf.disable_v2_behavior()
        tf.logging.set_verbosity(tf.logging.ERROR)  # queue runners are deprecated but work on both versions
        if deterministic:
            _enable_determinism()
        gpus()  # loads CUDA, whose messages are also held back
        held.drop = os.environ['TF_CPP_MIN_LOG_LEVEL'] >= '3'
    return tf


@contextlib.contextmanager
def lean_import():
    """Turns off garbage collection and the import of Keras within a `with` block.

    Imports leave no garbage. TensorFlow 2 needs Keras only to save Keras models and also starts without it, which saves
    a third of the time and 100 MB. After the block, tf.keras loads Keras on first use.
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
    """Turns on TensorFlow 2's op determinism, which compat.v1 does not export; does nothing on TensorFlow 1.15."""
    import tensorflow
    enable = getattr(tensorflow.config.experimental, 'enable_op_determinism', None)
    if enable:
        enable()


class Held(object):
    """The output that held_stderr holds back."""

    def __init__(self, stderr):
        self.stderr = stderr  # a file that still writes to the real stderr
        self.drop = False  # set to True to discard the text at the end
        self.text = ''  # the text that was held back; available after the `with` block


@contextlib.contextmanager
def held_stderr():
    """Holds back everything that Python or native code writes to file descriptor 2, and writes it at the end.

    Yields a Held. If native code aborts the process, as TensorFlow does on processors without AVX, Python's traceback
    is printed.
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


# ---- devices ----

def gpus():
    """Returns a list of the GPUs (PhysicalDevices) that TensorFlow sees."""
    import tensorflow.compat.v1 as tf
    return tf.config.experimental.list_physical_devices('GPU')


def on_gpu():
    """Returns whether TensorFlow sees a GPU."""
    return bool(gpus())


def device_kind():
    """Returns 'GPU' if TensorFlow sees one, otherwise 'CPU'."""
    return 'GPU' if on_gpu() else 'CPU'


def has_driver():
    """Returns whether an NVIDIA driver is installed and CUDA_VISIBLE_DEVICES does not hide its GPUs."""
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES', '0').strip() in ('', '-1')
    return not hidden and bool(os.path.exists(DRIVER) or shutil.which('nvidia-smi'))


def describe_devices():
    """Returns a line that lists the devices, with a remedy if there is an NVIDIA driver but TensorFlow sees no GPU."""
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


# ---- sessions and their precision ----

def session_config(xla=False, num_cpus=1):
    """Returns the tf.ConfigProto of a session.

    GPU memory is allocated as needed, and ops without a GPU kernel run on the CPU.

    Args:
      xla: whether clusters of ops are compiled with XLA.
      num_cpus: the number of logical CPU devices.
    """
    import tensorflow.compat.v1 as tf
    config = tf.ConfigProto(allow_soft_placement=True, gpu_options=tf.GPUOptions(allow_growth=True))
    if num_cpus > 1:
        config.device_count['CPU'] = num_cpus
    if xla:
        config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    return config


def precision_from_flag(mixed_precision):
    """Returns available_precision() if the flag --mixed_precision is given, otherwise None.

    If the flag is given, the precision is printed, even if it remains float32.
    """
    if not mixed_precision:
        return None
    precision = available_precision()
    print('precision: ' + ('%s where TensorFlow deems it safe' % precision if precision else (
        'float32; --mixed_precision needs a GPU, or TensorFlow 2 with oneDNN on a processor with AMX or AVX512-BF16')))
    return precision


def available_precision():
    """Returns 'float16' on GPUs, 'bfloat16' on processors that support it, and None if 16 bits would not be faster."""
    if on_gpu():
        return 'float16'
    return 'bfloat16' if has_bfloat16() else None


def has_bfloat16(cpuinfo='/proc/cpuinfo'):
    """Returns whether the processor supports bfloat16 and this TensorFlow has oneDNN's kernels for it."""
    return not why_no_bfloat16(cpuinfo)


def why_no_bfloat16(cpuinfo='/proc/cpuinfo'):
    """Returns a clause that explains why has_bfloat16 returns False; '' if it returns True."""
    import tensorflow.compat.v1 as tf
    if tf.__version__.startswith('1.'):
        return 'TensorFlow %s has no bfloat16 kernels for processors' % tf.__version__
    if os.environ.get('TF_ENABLE_ONEDNN_OPTS') == '0':
        return 'oneDNN is off (TF_ENABLE_ONEDNN_OPTS=0)'
    try:
        with open(cpuinfo) as file:
            words = next((line.split() for line in file if line.startswith('flags')), [])
    except OSError:
        return 'support for bfloat16 can be detected only on Linux'
    return '' if any(flag in words for flag in BFLOAT16_FLAGS) else 'the processor has neither AMX nor AVX512-BF16'


def set_precision(config, precision):
    """Sets the precision in the config of a session and returns it; TensorFlow decides which ops use 16 bits.

    Args:
      config: a tf.ConfigProto, which is modified.
      precision: 'float16', 'bfloat16' or None, as returned by available_precision.
    """
    if precision:
        setattr(config.graph_options.rewrite_options, PRECISION_REWRITES[precision], REWRITER_ON)
    return config
