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


def session_config():
    """GPU memory is taken as it is needed; ops without a GPU kernel run on the CPU."""
    import tensorflow.compat.v1 as tf
    return tf.ConfigProto(allow_soft_placement=True, gpu_options=tf.GPUOptions(allow_growth=True))
