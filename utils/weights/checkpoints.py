"""Finds the complete checkpoints in a folder, restores networks from them and reports how a file does not fit."""

import os
import re

import numpy as np

from utils.net.blocks import ENCODERS
from utils.system.errors import UserError, quoted, some
from utils.weights import weight_files, weight_names

NEWEST, BEST = 'model.ckpt', 'best.ckpt'  # the start of the names of checkpoints


def checkpoint_steps(modeldir, kind=NEWEST):
    """Returns the sorted steps N of the complete checkpoints kind-N in a directory; [] if there is no directory."""
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
    """Returns the prefix of a complete checkpoint, modeldir/model.ckpt-N or modeldir/best.ckpt-N.

    TensorFlow's own record, the file 'checkpoint', is not used: it names the checkpoint that was saved last, which is
    not the one with the highest step if training was restarted in the same directory.

    Args:
      modeldir: a directory.
      step: N; None for the highest, 'best' for the checkpoint with the highest mean IoU in the training's validations.
      flag: the flag that gave the step, for the message.

    Raises:
      UserError: the directory does not exist, or holds no checkpoint or none with that step.
    """
    if not os.path.isdir(modeldir):
        raise UserError('there is no directory %s: train first, or name the directory of the checkpoints '
                        'with --modeldir.' % quoted(modeldir))
    steps, best = checkpoint_steps(modeldir), checkpoint_steps(modeldir, BEST)
    if step == 'best':
        if not best:
            raise UserError('%s holds no complete checkpoint best.ckpt-N: train with --valid_interval (a validation '
                            'without a counted pixel gives no score), or give --%s a step.' % (quoted(modeldir), flag))
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
    """Returns the prefix of the newest checkpoint in a directory; any other path with its home folder expanded.

    Raises:
      UserError: the directory holds no complete checkpoint.
    """
    path = os.path.expanduser(path)
    if not os.path.isdir(path):
        return path
    if not checkpoint_steps(path):
        raise UserError('the directory %s holds no complete checkpoint model.ckpt-N: give %s.' % (
            quoted(path), weight_files.ACCEPTED))
    return find_checkpoint(path)


def read_fitting(path, wanted):
    """Reads a network's weights from a file, which must fit the network (see check_fit), and returns {name: array}.

    Args:
      path: the prefix of a TensorFlow checkpoint, or the path of a weights file of another kind.
      wanted: {name: shape} of the weights.

    Raises:
      UserError: the file does not fit or is damaged.
    """
    if not os.path.isfile(path) or os.path.isfile(path + '.index'):
        file = weight_files.open_checkpoint(path)
    else:
        encoder_name = next((encoder for encoder in ENCODERS if weight_names.fits(wanted, encoder)), None)
        file = weight_files.open_weights(path, encoder_name)
    check_fit(wanted, file.shapes, path)
    return {name: file.read(name) for name in wanted}


def read_values(prefix):
    """Returns {name: array} of everything in a checkpoint; raises UserError if any of it is damaged."""
    file = weight_files.open_checkpoint(prefix)
    return {name: file.read(name) for name in file.shapes}


def load_values(sess, variables, values):
    """Sets the variables named in {name: array}, in one session run and, like Variable.load, without adding ops."""
    chosen = [variable for variable in variables if variable.op.name in values]
    sess.run([variable.initializer for variable in chosen],
             {variable.initializer.inputs[1]: values[variable.op.name] for variable in chosen})


def check_finite(values, path):
    """Raises UserError if any of {name: array} from the weights file at `path` is not finite."""
    broken = [name for name in values if not np.isfinite(values[name]).all()]
    if broken:
        raise UserError('%s holds values that are not finite (%s): give another file.' % (quoted(path), some(broken)))


# ---- does it fit? ----

def check_fit(wanted, found, prefix):
    """Checks that a file has all the weights of a network, and no others.

    The state of a training (an optimizer's slots, steps) and an ImageNet classifier do not matter, but a weight that
    the network lacks would change its outputs. A note is printed about variables of an unknown kind.

    Args:
      wanted: {name: shape} of the network's weights, and of the training's state if it is restored too.
      found: {name: shape} in the file.
      prefix: the file's path, for messages.

    Raises:
      UserError: a variable is missing or has another shape, or the file has a weight that is not in `wanted`.
    """
    names = found.keys() | wanted.keys()
    extra = [name for name in found if name not in wanted and not weight_names.is_state(name, names)
             and not weight_names.is_classifier(name)]
    weights = [name for name in extra if weight_names.is_model(name)]
    problems = mismatches(wanted, found, weights)
    if problems:
        raise UserError('%s does not fit the network: %s.' % (
            quoted(prefix), '; '.join(problems + hints(wanted, found))))
    if extra:
        print('note: %s holds variables of an unknown kind, which are not used (%s)' % (
            quoted(prefix), some(sorted(extra), show=quoted)))


def size(shape):
    """Returns a shape as text, such as '3x3x2048x21'; 'scalar' for ()."""
    return quoted('x'.join(map(str, shape))) or 'scalar'


def mismatches(wanted, found, extra=()):
    """Returns phrases on variables that a file lacks, has in another shape or has in excess; [] if all is well.

    Args:
      wanted: {name: shape} of the network's variables to restore.
      found: {name: shape} in the file.
      extra: names in the file that the network should have too.
    """
    missing = [name for name in wanted if name not in found]
    reshaped = ['%s: %s in the file, %s in the network' % (name, size(found[name]), size(wanted[name]))
                for name in wanted if name in found and found[name] != wanted[name]]
    phrases = []
    if missing:
        phrases.append('%d of %d variables are missing (%s)' % (len(missing), len(wanted), some(missing)))
    if reshaped:
        phrases.append('%d of %d have another shape (%s)' % (len(reshaped), len(wanted), some(reshaped)))
    if extra:
        phrases.append('%d are extra (%s)' % (len(extra), some(sorted(extra), show=quoted)))
    return phrases


def hints(wanted, found):
    """Returns phrases that name the flags with which the network would fit a file.

    Every encoder and every decoder is compared with the names and shapes in the file.

    Args:
      wanted: {name: shape} of the network's variables.
      found: {name: shape} in the file.
    """
    fitting = [encoder for encoder in ENCODERS if weight_names.fits(found, encoder)]
    if not fitting:
        encoder = weight_names.encoder_of(found)
        if encoder:
            return ['the file has names of --encoder_name=%s, but only a part of that encoder' % encoder]
        return ['the file fits no encoder_name (%s)' % ', '.join(ENCODERS)]
    phrase = 'the file fits --encoder_name=' + ' or '.join(fitting)
    decoder, classes = weight_names.decoder_of(found)
    if classes:
        phrase += ' --num_classes=%d' % classes
    if weight_names.decoder_of(wanted)[0] not in (None, decoder) and decoder:
        phrase += ' --decoder=' + decoder
    dilated_type = weight_names.dilated_type_of(found)
    if dilated_type != weight_names.dilated_type_of(wanted):
        phrase += ' --dilated_type=' + dilated_type
    known = set(weight_names.decoder_shapes(fitting[0], decoder)) if decoder else set()
    unknown = [name for name in found if weight_names.is_model(name) and name not in known
               and not weight_names.in_encoder(name, fitting[0])]
    if unknown:
        phrase += ', but no --decoder has its %s' % some(sorted(unknown), 1, show=quoted)
    missing = [name for name in wanted if name not in found]
    if missing and not any(map(weight_names.is_model, missing)):
        phrase += ", but lacks this run's optimizer state: give --pretrain_file, --restore_decoder and a new --modeldir"
    return [phrase]
