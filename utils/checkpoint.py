"""Prints the contents of a weights file and saves it as a TensorFlow checkpoint: python -m utils.checkpoint FILE."""

import argparse
import os
import re
import sys
import tempfile
from collections import OrderedDict

from utils.net import blocks
from utils.system import runtime
from utils.system.command_line import run
from utils.system.errors import UserError, quoted, reason

tf = runtime.import_tensorflow()  # before the modules below import TensorFlow, because it suppresses TensorFlow's log

from utils.weights import checkpoints, pretrained, weight_files, weight_names  # noqa: E402


def in_order(names):
    """Returns names in the order of the network, then the others in alphabetical order, with numbers by value."""
    order = {}
    for encoder in list(blocks.ENCODERS):
        order.update((name, i) for i, name in enumerate(weight_names.encoder_shapes(encoder)))

    def key(name):
        return order.get(name, len(order)), re.sub(r'\d+', lambda digits: digits.group().zfill(9), name)
    return sorted(names, key=key)


def table(shapes):
    """Returns lines `scope/{leaf,leaf} shape`, one for all variables of a scope that have the same shape."""
    groups = OrderedDict()
    for name in in_order(shapes):
        scope, _, leaf = name.rpartition('/')
        groups.setdefault((scope, shapes[name]), []).append(leaf)
    rows = []
    for (scope, shape), leaves in groups.items():
        leaf = leaves[0] if len(leaves) == 1 else '{%s}' % ','.join(leaves)
        rows.append(('/'.join(quoted(part) for part in (scope, leaf) if part), checkpoints.size(shape)))
    width = max([len(name) for name, _ in rows] or [0])
    return ['%-*s  %s' % (width, name, shape) for name, shape in rows]


def describe_origin(weights):
    """Returns the mode and input of a WeightsFile: 'caffe, --channel_order=bgr --img_mean=103.939,116.779,123.68'."""
    parts = [weights.compat or 'as it was trained']
    if weights.input:
        parts.append('--channel_order=%s --img_mean=%s' % (
            weights.input.channel_order, ','.join(map(str, weights.input.img_mean))))
    return ', '.join(parts)


def describe(weights):
    """Returns a description of the contents of a WeightsFile, several lines of text."""
    shapes = weights.shapes
    if not shapes:
        return '%s: %s without variables' % (weights.path, weights.kind)
    slots = {name for name in shapes if name.rpartition('/')[0] in shapes}
    encoders = [encoder for encoder in list(blocks.ENCODERS) if weight_names.fits(shapes, encoder)]
    lines = ['%s: %s, %d variables' % (weights.path, weights.kind, len(shapes)),
             '--encoder_name: ' + (' or '.join(encoders) or 'none (%s)' % '; '.join(checkpoints.hints({}, shapes))),
             '--num_classes:  %s' % (weight_names.num_classes_of(shapes) or 'no decoder'),
             '--dilated_type: ' + (weight_names.dilated_type_of(shapes).replace('regular', 'regular or decompose')),
             '--compat:       ' + describe_origin(weights), '']
    decoder = weight_names.decoder_of(shapes)[0]
    if decoder not in (None, 'aspp'):
        lines.insert(2, '--decoder:      ' + decoder)
    lines += table({name: shape for name, shape in shapes.items() if name not in slots})
    if slots:
        lines.append('and %d slots of an optimizer' % len(slots))
    return '\n'.join(lines)


def check_target(prefix):
    """Raises UserError unless a checkpoint can be saved as `prefix`; nothing is overwritten."""
    if not os.path.basename(prefix):
        raise UserError('--save=%s is a folder: add a name, such as %s.' % (
            quoted(prefix), quoted(os.path.join(prefix, 'model.ckpt-0'))))
    if os.path.exists(prefix + '.index') or os.path.isdir(prefix):
        raise UserError('%s exists already: choose another name with --save.' % quoted(prefix))


def save_weights(weights, prefix, encoder_name=None):
    """Saves the network's weights in a WeightsFile, with their mode and input, as a TensorFlow checkpoint.

    Args:
      weights: a WeightsFile.
      prefix: the checkpoint's path, such as model/model.ckpt-20000; nothing is overwritten.
      encoder_name: the encoder that the weights must fit; None for any.

    Raises:
      UserError: the file does not hold the whole encoder, the checkpoint exists already, or it cannot be written; in
        that case no part of it is left behind.
    """
    encoders = [encoder_name] if encoder_name else list(blocks.ENCODERS)
    if not any(weight_names.fits(weights.shapes, encoder) for encoder in encoders):
        raise UserError('%s (%s) cannot be saved for --encoder_name=%s: %s.' % (
            quoted(weights.path), weights.kind, ' or '.join(encoders),
            '; '.join(checkpoints.hints({}, weights.shapes))))
    check_target(prefix)
    folder, name = os.path.split(os.path.abspath(prefix))
    values = {name: weights.read(name) for name in weights.shapes if weight_names.is_model(name)}
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix='.saving-') as place:
            write_values(values, weights, os.path.join(place, name))
            for part in sorted(os.listdir(place)):  # .index, which completes a checkpoint, comes last
                os.replace(os.path.join(place, part), os.path.join(folder, part))
    except (tf.errors.OpError, OSError) as error:
        raise UserError('%s cannot be written (%s): choose another path with --save.' % (
            quoted(prefix), reason(error)))


def write_values(values, origin, prefix):
    """Writes {name: array} as a checkpoint, with the entry MADE_FOR if `origin` states its mode or input.

    Args:
      values: {variable name: array}.
      origin: the WeightsFile of the values.
      prefix: the checkpoint's path.
    """
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as sess:
        variables = [tf.get_variable(name, value.shape, tf.float32, initializer=tf.zeros_initializer(),
                                     use_resource=False) for name, value in values.items()]
        checkpoints.load_values(sess, variables, values)
        if origin.compat or origin.input:
            text = weight_files.encode_origin(origin.compat, origin.input)
            entry = tf.get_variable(weight_files.MADE_FOR, initializer=text, use_resource=False)
            sess.run(entry.initializer)
            variables.append(entry)
        tf.train.Saver(variables).save(sess, prefix, write_meta_graph=False, write_state=False)


def main():
    """Prints the contents of a weights file; --save writes it as a TensorFlow checkpoint."""
    parser = argparse.ArgumentParser(prog='python -m utils.checkpoint', description=main.__doc__, allow_abbrev=False)
    parser.add_argument('file', metavar='FILE', help=weight_files.ACCEPTED)
    parser.add_argument('--save', metavar='PREFIX', help='path of the checkpoint to write, e.g. model/model.ckpt-20000')
    parser.add_argument('--encoder_name', choices=list(blocks.ENCODERS),
                        help='encoder whose names to use if the file fits several')
    args = parser.parse_args()
    weights = weight_files.open_weights(pretrained.find_file(args.file, args.encoder_name), args.encoder_name)
    print(describe(weights))
    if args.save:
        save_weights(weights, os.path.expanduser(args.save), args.encoder_name)
        print('saved as ' + args.save)


if __name__ == '__main__':
    sys.exit(run(main, sys.argv[:1]))
