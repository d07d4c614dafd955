"""Settings of the process that must stand before TensorFlow is first used."""

import logging
import os


def prepare():
    """Sets up the environment, imports TensorFlow in graph mode and returns it.

    oneDNN halves the training step on CPUs; TensorFlow 2 leaves it off on some processors. A setting of the
    user's own is never overridden.
    """
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # faults come as exceptions; notices would bury them
    logging.getLogger('tensorflow').setLevel(logging.ERROR)
    import warnings
    with warnings.catch_warnings():  # TensorFlow 1.15's own numpy warnings
        warnings.simplefilter('ignore')
        import tensorflow.compat.v1 as tf
    tf.disable_v2_behavior()
    tf.logging.set_verbosity(tf.logging.ERROR)  # queue runners are deprecated and work on both versions
    return tf


def session_config(one_op_at_a_time=False):
    """GPU memory is taken as it is needed; ops without a GPU kernel run on the CPU.

    Args:
      one_op_at_a_time: without a GPU, every op gets all cores and none runs beside it. It makes a prediction, whose
        ops are a chain, about 6% quicker; a training step, whose gradients branch, no quicker.
    """
    import tensorflow.compat.v1 as tf
    config = tf.ConfigProto(allow_soft_placement=True, gpu_options=tf.GPUOptions(allow_growth=True))
    if one_op_at_a_time and not tf.config.experimental.list_physical_devices('GPU'):
        config.inter_op_parallelism_threads = 1
    return config
