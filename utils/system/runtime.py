"""Settings of the process that must stand before TensorFlow is first used."""

import logging
import os


def prepare(xla=False):
    """Sets up the environment, imports TensorFlow in graph mode and returns it.

    oneDNN is quicker in training and, as batch norm is folded, in prediction too; TensorFlow 2 leaves it off on some
    processors. A setting of the user's own is never overridden.

    Args:
      xla: let XLA's clusters run on the CPU too.
    """
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
    if xla:
        os.environ.setdefault('TF_XLA_FLAGS', '--tf_xla_cpu_global_jit')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # faults come as exceptions; notices would bury them
    logging.getLogger('tensorflow').setLevel(logging.ERROR)
    import warnings
    with warnings.catch_warnings():  # TensorFlow 1.15's own numpy warnings
        warnings.simplefilter('ignore')
        import tensorflow.compat.v1 as tf
    tf.disable_v2_behavior()
    tf.logging.set_verbosity(tf.logging.ERROR)  # queue runners are deprecated and work on both versions
    return tf


def on_gpu():
    """Whether this process sees a GPU."""
    import tensorflow.compat.v1 as tf
    return bool(tf.config.experimental.list_physical_devices('GPU'))


def session_config(one_op_at_a_time=False, xla=False, mixed_precision=False):
    """GPU memory is taken as it is needed; ops without a GPU kernel run on the CPU.

    Args:
      one_op_at_a_time: without a GPU, every op gets all cores and none runs beside it. It makes a prediction, whose
        ops are a chain, about 6% quicker; a training step, whose gradients branch, no quicker.
      xla: compile clusters of ops.
      mixed_precision: compute in float16 where TensorFlow's graph rewrite deems it safe; on GPUs only.
    """
    import tensorflow.compat.v1 as tf
    config = tf.ConfigProto(allow_soft_placement=True, gpu_options=tf.GPUOptions(allow_growth=True))
    if one_op_at_a_time and not on_gpu():
        config.inter_op_parallelism_threads = 1
    if xla:
        config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    if mixed_precision:
        config.graph_options.rewrite_options.auto_mixed_precision = 1  # RewriterConfig.ON, which tf does not export
    return config
