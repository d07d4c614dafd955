"""Finds the complete checkpoints of a folder and restores networks from them."""

import os
import re

import tensorflow.compat.v1 as tf

from utils.system.errors import UserError, quoted, some
from utils.weights import fitting, weight_files, weight_names

NEWEST, BEST = 'model.ckpt', 'best.ckpt'  # what the names of checkpoints begin with


def checkpoint_steps(modeldir, kind=NEWEST):
    """Sorted steps of the complete checkpoints kind-N in a directory; [] without such a directory."""
    names = set(os.listdir(modeldir)) if os.path.isdir(modeldir) else set()
    names = {name for name in names if os.path.isfile(os.path.join(modeldir, name))}
    steps = []
    for name in names:
        match = re.match(re.escape(kind) + r'-(\d+)\.data-00000-of-(\d{5})$', name)
        if match:
            prefix, shards = '%s-%s' % (kind, match.group(1)), int(match.group(2))
            parts = ['%s.data-%05d-of-%05d' % (prefix, i, shards) for i in range(shards)]
            if names.issuperset(parts + [prefix + '.index']):
                steps.append(int(match.group(1)))
    return sorted(set(steps))


def find_checkpoint(modeldir, step=None, flag='valid_step'):
    """The prefix modeldir/model.ckpt-N of a complete checkpoint, or modeldir/best.ckpt-N.

    Args:
      modeldir: a directory.
      step: N; None takes the highest, 'best' the one with the highest mean IoU in the validations of the training.
        TensorFlow's own record, the file 'checkpoint', names the one saved last, which after another start in the same
        directory is an earlier step.
      flag: the flag that the step came from, for the message.

    Raises:
      UserError: no such directory, no checkpoint in it, or none of that step.
    """
    if not os.path.isdir(modeldir):
        raise UserError('there is no directory %s: train first, or name the directory of the checkpoints '
                        'with --modeldir.' % quoted(modeldir))
    steps, best = checkpoint_steps(modeldir), checkpoint_steps(modeldir, BEST)
    if step == 'best':
        if not best:
            raise UserError('%s holds no complete checkpoint best.ckpt-N: train with --valid_interval, or give --%s '
                            'a step.' % (quoted(modeldir), flag))
        return os.path.join(modeldir, '%s-%d' % (BEST, best[-1]))
    if not steps:
        raise UserError('%s holds no complete checkpoint model.ckpt-N: train first, or name the directory of '
                        'the checkpoints with --modeldir.' % quoted(modeldir))
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError('%s holds no complete checkpoint of step %d: set --%s to one of %s.' % (
            quoted(modeldir), step, flag, some((['best'] if best else []) + list(map(str, steps[::-1])), 5)))
    return os.path.join(modeldir, '%s-%d' % (NEWEST, step))


def newest_in(path):
    """The newest checkpoint of a directory; any other path as it is."""
    path = os.path.expanduser(path)
    if not os.path.isdir(path):
        return path
    if not checkpoint_steps(path):
        raise UserError('the directory %s holds no complete checkpoint model.ckpt-N: give %s.' % (
            quoted(path), weight_files.ACCEPTED))
    return find_checkpoint(path)


def restore_checkpoint(sess, variables, prefix):
    """Restores all given variables by name from a TensorFlow checkpoint.

    Variables that only the file has (momentum, global_step) do not matter, except for smoothed dilated
    convolutions: without their fix_w the network would compute something else.

    Raises:
      UserError: a variable is missing or has another shape, or the file is damaged.
    """
    file = weight_files.open_checkpoint(prefix)
    check_fit(variables, file.shapes, prefix)
    if not weight_files.is_literal(prefix):  # the op may run on another machine, which has no links to the file
        load_values(sess, variables, {name: file.read(name) for name in fitting.variable_shapes(variables)})
        return
    try:
        saver = tf.train.Saver(variables).saver_def
        # What Saver.restore runs; it would bury the reason under advice on a changed graph.
        sess.run(saver.restore_op_name, {saver.filename_tensor_name: prefix})
    except weight_files.READ_ERRORS as error:
        raise weight_files.damaged(prefix, error)


def check_fit(variables, found, prefix):
    """Raises UserError if a file of {name: shape} `found` lacks a variable or has it in another shape."""
    wanted = fitting.variable_shapes(variables)
    extra = [name for name in found if name.endswith('/fix_w') and name not in wanted]
    problems = fitting.mismatches(wanted, found, extra if weight_names.encoder_of(wanted) else ())
    if problems:
        raise UserError('%s does not fit the network: %s.' % (
            quoted(prefix), '; '.join(problems + fitting.hints(wanted, found))))


def read_values(prefix):
    """All of a checkpoint, {name: array}; UserError if it is damaged anywhere."""
    file = weight_files.open_checkpoint(prefix)
    return {name: file.read(name) for name in file.shapes}


def load_values(sess, variables, values):
    """Sets the variables named in {name: array} in one run; adds nothing to the graph, like Variable.load."""
    chosen = [variable for variable in variables if variable.op.name in values]
    sess.run([variable.initializer for variable in chosen],
             {variable.initializer.inputs[1]: values[variable.op.name] for variable in chosen})
