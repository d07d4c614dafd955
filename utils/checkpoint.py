"""Finds TensorFlow checkpoints, restores networks from them and starts networks from pre-trained weights."""

import argparse
import os
import re
import sys
from collections import OrderedDict

import numpy as np
import tensorflow.compat.v1 as tf

from utils import keras_weights, weight_files, weight_names
from utils.errors import UserError, run


def checkpoint_steps(modeldir):
    """Sorted steps of the complete checkpoints model.ckpt-N in a directory; [] without such a directory."""
    names = set(os.listdir(modeldir)) if os.path.isdir(modeldir) else set()
    steps = []
    for name in names:
        match = re.match(r'model\.ckpt-(\d+)\.data-00000-of-(\d{5})$', name)
        if match:
            prefix, shards = 'model.ckpt-' + match.group(1), int(match.group(2))
            parts = ['%s.data-%05d-of-%05d' % (prefix, i, shards) for i in range(shards)]
            if names.issuperset(parts + [prefix + '.index']):
                steps.append(int(match.group(1)))
    return sorted(set(steps))


def find_checkpoint(modeldir, step=None, flag='valid_step'):
    """The prefix modeldir/model.ckpt-N of a complete checkpoint.

    Args:
      modeldir: a directory.
      step: N; None takes the one that the directory's 'checkpoint' file names, else the highest.
      flag: the flag that the step came from, for the message.

    Raises:
      UserError: no such directory, no checkpoint in it, or none of that step.
    """
    if not os.path.isdir(modeldir):
        raise UserError('there is no directory %s: train first, or name the directory of the checkpoints '
                        'with --modeldir.' % modeldir)
    steps = checkpoint_steps(modeldir)
    if not steps:
        raise UserError('%s holds no complete checkpoint model.ckpt-N: train first, or name the directory of '
                        'the checkpoints with --modeldir.' % modeldir)
    if step is None:
        state = tf.train.get_checkpoint_state(modeldir)
        # The last component alone: the path inside is an old one where the directory was moved or copied.
        newest = os.path.basename(state.model_checkpoint_path) if state else ''
        step = next((n for n in steps if newest == 'model.ckpt-%d' % n), steps[-1])
    if step not in steps:
        raise UserError('%s holds no complete checkpoint of step %d: set --%s to one of %s.' % (
            modeldir, step, flag, ', '.join(map(str, steps))))
    return os.path.join(modeldir, 'model.ckpt-%d' % step)


def variable_shapes(variables):
    """{name as in a checkpoint: shape tuple} of TensorFlow variables."""
    return {variable.op.name: tuple(variable.shape.as_list()) for variable in variables}


def some(items, limit=3):
    """'a, b, c and 5 more'."""
    more = len(items) - limit
    return ', '.join(items[:limit]) + (' and %d more' % more if more > 0 else '')


def size(shape):
    """'3x3x2048x21'."""
    return 'x'.join(map(str, shape)) or 'scalar'


def mismatches(wanted, found, extra=()):
    """Phrases on what a file lacks, has in another shape or has too much; [] if all is well.

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
        phrases.append('%d are extra (%s)' % (len(extra), some(sorted(extra))))
    return phrases


def hints(wanted, found):
    """Phrases on the flags with which a network of {name: shape} `wanted` would fit a file of `found`."""
    fitting = [encoder for encoder in sorted(weight_names.UNITS) if weight_names.fits(found, encoder)]
    if not fitting:
        encoder = weight_names.encoder_of(found)
        if encoder:
            return ['the file has names of --encoder_name=%s, but not the whole of that encoder' % encoder]
        return ['the file fits no encoder_name (%s)' % ', '.join(sorted(weight_names.UNITS))]
    phrase = 'the file fits --encoder_name=' + ' or '.join(fitting)
    classes = weight_names.num_classes_of(found)
    if classes:
        phrase += ' --num_classes=%d' % classes
    dilated_type = weight_names.dilated_type_of(found)
    if dilated_type != weight_names.dilated_type_of(wanted):
        phrase += ' --dilated_type=' + dilated_type
    missing = [name for name in wanted if name not in found]
    if missing and not any(map(weight_names.is_model, missing)):
        phrase += ', but it lacks the state of the training: start from it with --pretrain_file'
    return [phrase]


def restore_checkpoint(sess, variables, prefix):
    """Restores all given variables by name from a TensorFlow checkpoint.

    Variables that only the file has (momentum, global_step) do not matter, except for smoothed dilated
    convolutions: without their fix_w the network would compute something else.

    Raises:
      UserError: a variable is missing or has another shape, or the file is damaged.
    """
    wanted = variable_shapes(variables)
    found = weight_files.open_checkpoint(prefix).shapes
    extra = [name for name in found if name.endswith('/fix_w') and name not in wanted]
    problems = mismatches(wanted, found, extra if weight_names.encoder_of(wanted) else ())
    if problems:
        raise UserError('%s does not fit the network: %s.' % (
            prefix, '; '.join(problems + hints(wanted, found))))
    try:
        tf.train.Saver(variables).restore(sess, prefix)
    except (tf.errors.OpError, ValueError) as error:
        raise weight_files.damaged(prefix, error)


def load_values(sess, variables, values):
    """Sets the variables named in {name: array} in one run; adds nothing to the graph, like Variable.load."""
    chosen = [variable for variable in variables if variable.op.name in values]
    sess.run([variable.initializer for variable in chosen],
             {variable.initializer.inputs[1]: values[variable.op.name] for variable in chosen})


def newest_in(path):
    """The newest checkpoint of a directory; any other path as it is."""
    path = os.path.expanduser(path)
    if not os.path.isdir(path):
        return path
    if not checkpoint_steps(path):
        raise UserError('the directory %s holds no complete checkpoint model.ckpt-N: give %s.' % (
            path, weight_files.ACCEPTED))
    return find_checkpoint(path)


def open_pretrained(pretrain_file, encoder_name):
    """The WeightsFile that --pretrain_file names: a file, a directory for its newest checkpoint, or 'imagenet'.

    Raises:
      UserError: missing, damaged or not the weights of this encoder.
    """
    if encoder_name not in weight_names.UNITS:
        raise ValueError('unknown encoder_name %r; valid: %s' % (
            encoder_name, ', '.join(sorted(weight_names.UNITS))))
    if pretrain_file == 'imagenet':
        path = keras_weights.fetch_imagenet(encoder_name)
    else:
        path = newest_in(pretrain_file)
    weights = weight_files.open_weights(path, encoder_name)
    choose_pretrained(weight_names.encoder_shapes(encoder_name), weights, encoder_name)
    return weights


def split(shapes, encoder_name):
    """{name: shape} of a network's variables as those of its encoder, its fix_w and its decoder."""
    encoder, fix_w, decoder = {}, {}, {}
    for name, shape in shapes.items():
        if name.endswith('/fix_w'):
            fix_w[name] = shape
        elif weight_names.in_encoder(name, encoder_name) and weight_names.is_model(name):
            encoder[name] = shape
        elif weight_names.is_model(name):
            decoder[name] = shape
    return encoder, fix_w, decoder


def count(encoder, fix_w, decoder, chosen):
    """'520 encoder and 8 decoder variables', of those that are chosen."""
    counts = [(len([name for name in part if chosen(name)]), kind)
              for part, kind in ((encoder, 'encoder'), (fix_w, 'fix_w'), (decoder, 'decoder'))]
    return ' and '.join('%d %s' % pair for pair in counts if pair[0]) + ' variables'


def choose_pretrained(wanted, weights, encoder_name, restore_decoder=False):
    """Decides what to take from a weights file for a network about to be trained.

    Args:
      wanted: {name: shape} of the network's variables; others than weights, batch norm and fix_w do not matter.
      weights: a WeightsFile.

    Returns:
      (names to restore, a phrase for the log).

    Raises:
      UserError: the file lacks a part of the encoder, or has it in another shape or with further units.
    """
    found = weights.shapes
    encoder, fix_w, decoder = split(wanted, encoder_name)
    extra = [name for name in found if weight_names.is_unit(name) and name not in wanted]
    problems = mismatches(encoder, found, extra)
    if problems:
        raise UserError('%s (%s) does not fit --encoder_name=%s: %s.' % (
            weights.path, weights.kind, encoder_name, '; '.join(problems + hints(wanted, found))))
    taken = set(encoder)
    for part in (fix_w, decoder if restore_decoder else {}):
        taken.update(name for name, shape in part.items() if found.get(name) == shape)
    phrase = 'restored %s from %s (%s)' % (
        count(encoder, fix_w, decoder, taken.__contains__), weights.path, weights.kind)
    if len(taken) < len(encoder) + len(fix_w) + len(decoder):
        kept = count(encoder, fix_w, decoder, lambda name: name not in taken)
        phrase += '; %s keep their initial values' % kept
    classes = weight_names.num_classes_of(found)
    if restore_decoder and not taken.intersection(decoder):
        phrase += '; the file has %s' % ('a decoder of %d classes' % classes if classes else 'no decoder')
    if any(name.endswith('/fix_w') and name not in taken for name in found):
        phrase += '; its fix_w, of --dilated_type=%s, are left out' % weight_names.dilated_type_of(found)
    return taken, phrase


def restore_pretrained(sess, variables, weights, encoder_name, restore_decoder=False):
    """Starts a network from pre-trained weights: the encoder and, if asked for, the decoder where shapes fit.

    Args:
      variables: the network's variables (weights, biases, batch norm, fix_w).
      weights: the WeightsFile that open_pretrained returns.

    Returns:
      A phrase for the log: what was restored from what, and what keeps its initial values.

    Raises:
      UserError: damaged, or not the weights of this encoder; nothing has been restored then.
    """
    taken, sentence = choose_pretrained(variable_shapes(variables), weights, encoder_name, restore_decoder)
    values = {name: weights.read(name) for name in taken}
    broken = [name for name in values if not np.isfinite(values[name]).all()]
    if broken:
        raise UserError('%s holds values that are not finite (%s): it is of no use.' % (weights.path, some(broken)))
    load_values(sess, variables, values)
    return sentence


def in_order(names):
    """Names as the network has them, then the others, numbers inside names by value."""
    order = {}
    for encoder in sorted(weight_names.UNITS):
        order.update((name, i) for i, name in enumerate(weight_names.encoder_shapes(encoder)))

    def key(name):
        parts = [(not part.isdigit(), int(part) if part.isdigit() else 0, part)
                 for part in re.split(r'(\d+)', name)]
        return order.get(name, len(order)), parts
    return sorted(names, key=key)


def table(shapes):
    """Lines `scope/{leaf,leaf} shape`, one for all variables of a scope that share their shape."""
    groups = OrderedDict()
    for name in in_order(shapes):
        scope, _, leaf = name.rpartition('/')
        groups.setdefault((scope, shapes[name]), []).append(leaf)
    rows = []
    for (scope, shape), leaves in groups.items():
        leaf = leaves[0] if len(leaves) == 1 else '{%s}' % ','.join(leaves)
        rows.append((scope + '/' + leaf if scope else leaf, size(shape)))
    width = max(len(name) for name, _ in rows)
    return ['%-*s  %s' % (width, name, shape) for name, shape in rows]


def describe(weights):
    """What a WeightsFile contains, as text of several lines."""
    shapes = weights.shapes
    if not shapes:
        return '%s: %s without variables' % (weights.path, weights.kind)
    slots = {name for name in shapes if name.rpartition('/')[0] in shapes}
    fitting = [encoder for encoder in sorted(weight_names.UNITS) if weight_names.fits(shapes, encoder)]
    lines = ['%s: %s, %d variables' % (weights.path, weights.kind, len(shapes)),
             '--encoder_name: ' + (' or '.join(fitting) or 'none (%s)' % '; '.join(hints({}, shapes))),
             '--num_classes:  %s' % (weight_names.num_classes_of(shapes) or 'no decoder'),
             '--dilated_type: ' + (weight_names.dilated_type_of(shapes).replace('regular', 'regular or decompose')),
             '--compat:       ' + (weights.compat or 'as it was trained'), '']
    lines += table({name: shape for name, shape in shapes.items() if name not in slots})
    if slots:
        lines.append('and %d slots of an optimizer' % len(slots))
    return '\n'.join(lines)


def save_weights(weights, prefix, encoder_name=None):
    """Writes the network's weights of a WeightsFile as a TensorFlow checkpoint.

    Args:
      prefix: its path, e.g. model/model.ckpt-20000; nothing is overwritten.
      encoder_name: the encoder that the weights have to fit; None for any.

    Raises:
      UserError: the file does not hold the whole encoder, or there is such a checkpoint already.
    """
    encoders = [encoder_name] if encoder_name else sorted(weight_names.UNITS)
    if not any(weight_names.fits(weights.shapes, encoder) for encoder in encoders):
        raise UserError('%s (%s) cannot be saved for --encoder_name=%s: %s.' % (
            weights.path, weights.kind, ' or '.join(encoders), '; '.join(hints({}, weights.shapes))))
    if os.path.exists(prefix + '.index') or os.path.isdir(prefix):
        raise UserError('%s exists already: choose another name with --save.' % prefix)
    os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)
    values = {name: weights.read(name) for name in weights.shapes if weight_names.is_model(name)}
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as sess:
        variables = [tf.get_variable(name, value.shape, tf.float32, initializer=tf.zeros_initializer(),
                                     use_resource=False) for name, value in values.items()]
        load_values(sess, variables, values)
        tf.train.Saver(variables).save(sess, prefix, write_meta_graph=False, write_state=False)


def main():
    """Prints what a weights file contains; --save writes it as a TensorFlow checkpoint."""
    parser = argparse.ArgumentParser(prog='python -m utils.checkpoint', description=main.__doc__, allow_abbrev=False)
    parser.add_argument('file', metavar='FILE', help=weight_files.ACCEPTED)
    parser.add_argument('--save', metavar='PREFIX', help='path of the checkpoint to write, e.g. model/model.ckpt-20000')
    parser.add_argument('--encoder_name', choices=sorted(weight_names.UNITS),
                        help='whose names to use where the file fits several')
    args = parser.parse_args()
    weights = weight_files.open_weights(newest_in(args.file), args.encoder_name)
    print(describe(weights))
    if args.save:
        save_weights(weights, args.save, args.encoder_name)
        print('saved as ' + args.save)


if __name__ == '__main__':
    sys.exit(run(main, sys.argv[:1]))
