"""Computing in 16 bits: which kind this machine has in hardware, and how a session is asked for it."""

import os

import tensorflow.compat.v1 as tf

from utils.system import runtime

ON = 1  # RewriterConfig.ON, which tensorflow.compat.v1 does not export
BFLOAT16_FLAGS = ('amx_bf16', 'avx512_bf16')  # of a processor, as Linux names them
REWRITES = {'float16': 'auto_mixed_precision', 'bfloat16': 'auto_mixed_precision_onednn_bfloat16'}


def has_bfloat16(cpuinfo='/proc/cpuinfo'):
    """Whether the processor computes in bfloat16 and this TensorFlow, with oneDNN, has kernels for it."""
    return not no_bfloat16(cpuinfo)


def no_bfloat16(cpuinfo='/proc/cpuinfo'):
    """Why has_bfloat16 is false, a clause; '' where it is true."""
    if tf.__version__.startswith('1.'):
        return 'TensorFlow %s has no bfloat16 kernels for processors' % tf.__version__
    if os.environ.get('TF_ENABLE_ONEDNN_OPTS') == '0':
        return 'oneDNN is off (TF_ENABLE_ONEDNN_OPTS=0)'
    try:
        with open(cpuinfo) as file:
            words = next((line.split() for line in file if line.startswith('flags')), [])
    except OSError:
        words = []
    return '' if any(flag in words for flag in BFLOAT16_FLAGS) else 'the processor has neither AMX nor AVX512-BF16'


def available():
    """'float16' on GPUs, 'bfloat16' on processors that have it, None where 16 bits would not help."""
    if runtime.on_gpu():
        return 'float16'
    return 'bfloat16' if has_bfloat16() else None


def chosen(mixed_precision):
    """What --mixed_precision means here, one of available(); a line says so, also where it means nothing."""
    if not mixed_precision:
        return None
    precision = available()
    print('precision: ' + ('%s where TensorFlow deems it safe' % precision if precision else (
        'float32; --mixed_precision needs a GPU, or TensorFlow 2 with oneDNN on a processor with AMX or AVX512-BF16')))
    return precision


def configure(config, precision):
    """Asks the sessions of a tf.ConfigProto for a precision, one of available()."""
    if precision:
        setattr(config.graph_options.rewrite_options, REWRITES[precision], ON)
    return config
