"""Reports what a weights file holds and saves it as a TensorFlow checkpoint: python -m utils.checkpoint FILE."""

import argparse
import os
import re
import sys
from collections import OrderedDict

import tensorflow.compat.v1 as tf

from utils.net import blocks
from utils.system.command_line import run
from utils.system.errors import UserError
from utils.weights import checkpoints, fitting, weight_files, weight_names


def in_order(names):
    """Names as the network has them, then the others, numbers inside names by value."""
    order = {}
    for encoder in sorted(blocks.BLOCKS):
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
        rows.append((scope + '/' + leaf if scope else leaf, fitting.size(shape)))
    width = max(len(name) for name, _ in rows)
    return ['%-*s  %s' % (width, name, shape) for name, shape in rows]


def describe(weights):
    """What a WeightsFile contains, as text of several lines."""
    shapes = weights.shapes
    if not shapes:
        return '%s: %s without variables' % (weights.path, weights.kind)
    slots = {name for name in shapes if name.rpartition('/')[0] in shapes}
    fitting = [encoder for encoder in sorted(blocks.BLOCKS) if weight_names.fits(shapes, encoder)]
    lines = ['%s: %s, %d variables' % (weights.path, weights.kind, len(shapes)),
             '--encoder_name: ' + (' or '.join(fitting) or 'none (%s)' % '; '.join(fitting.hints({}, shapes))),
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
    encoders = [encoder_name] if encoder_name else sorted(blocks.BLOCKS)
    if not any(weight_names.fits(weights.shapes, encoder) for encoder in encoders):
        raise UserError('%s (%s) cannot be saved for --encoder_name=%s: %s.' % (
            weights.path, weights.kind, ' or '.join(encoders), '; '.join(fitting.hints({}, weights.shapes))))
    if os.path.exists(prefix + '.index') or os.path.isdir(prefix):
        raise UserError('%s exists already: choose another name with --save.' % prefix)
    os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)
    values = {name: weights.read(name) for name in weights.shapes if weight_names.is_model(name)}
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as sess:
        variables = [tf.get_variable(name, value.shape, tf.float32, initializer=tf.zeros_initializer(),
                                     use_resource=False) for name, value in values.items()]
        checkpoints.load_values(sess, variables, values)
        tf.train.Saver(variables).save(sess, prefix, write_meta_graph=False, write_state=False)


def main():
    """Prints what a weights file contains; --save writes it as a TensorFlow checkpoint."""
    parser = argparse.ArgumentParser(prog='python -m utils.checkpoint', description=main.__doc__, allow_abbrev=False)
    parser.add_argument('file', metavar='FILE', help=weight_files.ACCEPTED)
    parser.add_argument('--save', metavar='PREFIX', help='path of the checkpoint to write, e.g. model/model.ckpt-20000')
    parser.add_argument('--encoder_name', choices=sorted(blocks.BLOCKS),
                        help='whose names to use where the file fits several')
    args = parser.parse_args()
    weights = weight_files.open_weights(checkpoints.newest_in(args.file), args.encoder_name)
    print(describe(weights))
    if args.save:
        save_weights(weights, args.save, args.encoder_name)
        print('saved as ' + args.save)


if __name__ == '__main__':
    sys.exit(run(main, sys.argv[:1]))
