"""Exhausted memory, reported with what to lower."""

import contextlib

import tensorflow.compat.v1 as tf

from utils.system.errors import UserError, reason


@contextlib.contextmanager
def enough_for(what):
    """Turns TensorFlow's report of exhausted memory into a UserError; `what` are the settings to lower."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise UserError('out of memory (%s): lower %s.' % (reason(error), what))
