"""Shows the time of each type of op in a row of run.py, and the speed of each shape of convolution or product.

    python benchmarks/op_times.py --row=deeplab_predict [--reference | --bfloat16]

The figures come from TensorFlow's trace of one step. Ops that run at the same time share the cores, so the sum of their
times is larger than the time of the step, and each is slower than it would be alone.
"""

import collections
import os
import sys
import types
from unittest import mock

import numpy as np
from absl import flags

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from benchmarks import measure, run  # noqa: E402
from utils.system import command_line  # noqa: E402
from utils.system.errors import UserError  # noqa: E402

FLAGS = flags.FLAGS
TRACED = ('train', 'predict', 'mixing')
OPS, PRODUCTS = 12, 24  # the most lines of the tables of ops and of products

# One run of a kernel. op: name of the op after graph optimization; type: see type_of; shapes: shapes of the inputs, as
# lists; output: shape of the output; seconds: time of the kernel.
Run = collections.namedtuple('Run', 'op type shapes output dilation seconds')


def traced(tf, step):
    """Returns the RunMetadata of the last Session.run in step()."""
    plain, seen = tf.Session.run, []

    def run_traced(self, fetches, feed_dict=None):
        options = tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE, output_partition_graphs=True)
        seen.append(tf.RunMetadata())
        return plain(self, fetches, feed_dict, options, seen[-1])

    with mock.patch.object(tf.Session, 'run', run_traced):
        step()
    return seen[-1]


def runs(metadata):
    """Returns a list with a Run for every kernel that ran."""
    nodes = {node.name: node for graph in metadata.partition_graphs for node in graph.node}
    stats = {one.node_name: one for device in metadata.step_stats.dev_stats for one in device.node_stats}
    shapes = {}  # 'name' or 'name:1' as in the nodes' inputs
    for name, one in stats.items():
        for output in one.output:
            key = name if output.slot == 0 else '%s:%d' % (name, output.slot)
            shapes[key] = [dim.size for dim in output.tensor_description.shape.dim]
    return [Run(nodes[name].op, type_of(nodes[name]), [shapes.get(source, []) for source in nodes[name].input],
                shapes.get(name, []), max(list(nodes[name].attr['dilations'].list.i) or [1]),
                (one.op_end_rel_micros - one.op_start_rel_micros) / 1e6)
            for name, one in stats.items() if name in nodes]


def type_of(node):
    """Returns the data type of a node, such as 'float32'; 'float32 to bfloat16' for a cast; '' if unknown."""
    import tensorflow.compat.v1 as tf
    names = ('SrcT', 'DstT') if 'SrcT' in node.attr else ('T',) if 'T' in node.attr else ('dtype',)
    types = [node.attr[name].type for name in names if name in node.attr]
    return ' to '.join(tf.as_dtype(one).name for one in types)


def product_shape(one):
    """Returns (shape of the map, shape of the weights) of a convolution, matrix product or gradient; otherwise None."""
    if 'Conv2DBackpropFilter' in one.op:
        return one.shapes[2], one.output
    if 'Conv2DBackpropInput' in one.op:
        return one.shapes[2], one.shapes[1]
    if 'Conv2D' in one.op or 'MatMul' in one.op and len(one.output) == 2:
        return one.output, one.shapes[1]
    return None


def operations(one):
    """Returns the floating-point operations of a convolution or product; a multiply-add counts as 2.

    Multiplications with padding are included.
    """
    outer, weights = product_shape(one)
    if 'MatMul' in one.op:  # [m, k] x [k, n]; the formula holds whichever side is transposed
        return 2 * float(np.sqrt(np.prod(one.shapes[0], dtype=float) * np.prod(weights, dtype=float) * np.prod(outer)))
    return 2 * np.prod(outer, dtype=float) * np.prod(weights[:-1])


def share_table(all_runs, key):
    """Groups runs by key(run), a list; returns lines [*key, number of runs, milliseconds, share], slowest first."""
    by_key = collections.defaultdict(list)
    for one in all_runs:
        by_key[tuple(key(one))].append(one.seconds)
    total = sum(one.seconds for one in all_runs)
    lines = [list(words) + [len(times), 1e3 * sum(times), sum(times) / total] for words, times in by_key.items()]
    return sorted(lines, key=lambda line: -line[-2])[:OPS]


def product_table(all_runs):
    """Groups convolutions and products by op and shapes; slowest first.

    Returns:
      a list of [op, type, map, weights, dilation, number of runs, milliseconds, GFLOP/s].
    """
    by_shape = collections.defaultdict(list)
    for one in all_runs:
        if product_shape(one) and all(product_shape(one)):
            outer, weights = ['x'.join(map(str, shape)) for shape in product_shape(one)]
            by_shape[one.op, one.type, outer, weights, str(one.dilation)].append(one)
    lines = []
    for key, members in by_shape.items():
        seconds = sum(one.seconds for one in members)
        lines.append(list(key) + [len(members), 1e3 * seconds, sum(map(operations, members)) / seconds / 1e9])
    return sorted(lines, key=lambda line: -line[-2])[:PRODUCTS]


def report(tf, step, speeds):
    """Prints the tables for a step that has been warmed up."""
    seconds = measure.seconds_of(step)
    all_runs = runs(traced(tf, step))
    print('\n%.1f ms a step; the matrix product beside it: %s' % (1e3 * seconds, ', '.join(
        '%s %.0f GFLOP/s' % (field.split('_')[0], speed) for field, speed in sorted(speeds().items()))))
    print(run.format_table(['type', 'number', 'ms', 'share'], share_table(all_runs, lambda one: [one.type])))
    print(run.format_table(['op', 'type', 'number', 'ms', 'share'],
                           share_table(all_runs, lambda one: [one.op, one.type])))
    products = product_table(all_runs)
    if products:
        print(run.format_table(['op', 'type', 'map', 'weights', 'dilation', 'number', 'ms', 'GFLOP/s'], products))


def main():
    cores = os.cpu_count() or 1
    rows = {name: row for name, row in run.all_rows(FLAGS.quick, cores).items() if row.what in TRACED}
    if FLAGS.row not in rows:
        raise UserError('--row=%s is not one of %s.' % (FLAGS.row, ', '.join(rows)))
    row, form = rows[FLAGS.row], 'reference' if FLAGS.reference else 'product'
    if form not in [known.split(',')[0] for known in row.forms]:
        raise UserError('--row=%s has no reference form.' % FLAGS.row)
    if FLAGS.reference and FLAGS.bfloat16:
        raise UserError('--reference and --bfloat16 exclude each other, as the reference uses float32: give only one.')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
    job = types.SimpleNamespace(**dict(measure.JOB, **dict(row.settings, what=row.what, form=form)))
    job.mixed_precision = FLAGS.bfloat16
    if FLAGS.quick:
        job.sgemm_side = 128
    tf = measure.start(form, frozen_weights=row.what == 'predict' and not FLAGS.bfloat16)
    if FLAGS.bfloat16 and measure.no_bfloat16():
        raise UserError('--bfloat16 has no effect here, because %s: leave it out.' % measure.no_bfloat16())
    speeds = measure.product_speeds(tf, job)

    def repeat(step, speeds, budget):
        for _ in range(2):  # warm-up
            step()
        report(tf, step, speeds)
        return {'seconds': 0.0}

    with mock.patch.object(measure, 'repeat', repeat), tf.Graph().as_default():
        measure.MEASUREMENTS[job.what](tf, speeds, job)


if __name__ == '__main__':
    flags.DEFINE_string('row', 'deeplab_train', 'a row of run.py that trains, predicts or mixes')
    flags.DEFINE_boolean('reference', False, 'trace the reference form instead of the product')
    flags.DEFINE_boolean('bfloat16', False, 'use --mixed_precision, on a processor that supports bfloat16')
    flags.DEFINE_boolean('quick', False, 'use tiny sizes, for which the figures are meaningless')
    sys.exit(command_line.run(main))
