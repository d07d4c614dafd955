"""Shows where the time of a row of run.py goes: op by op, and each shape of convolution or product with its speed.

    python benchmarks/op_times.py --row=deeplab_predict [--reference]

The figures are TensorFlow's own trace of one step. Ops that ran beside each other shared the cores: their times add up
to more than the step's, and their speeds to what the machine gave.
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
OPS, PRODUCTS = 12, 24  # lines of the two tables

# op: TensorFlow's, after its rewriting; shapes: of the inputs, lists; output: a shape; seconds: of the kernel
Run = collections.namedtuple('Run', 'op shapes output dilation seconds')


def traced(tf, step):
    """The RunMetadata of the last Session.run of step()."""
    plain, seen = tf.Session.run, []

    def run_traced(self, fetches, feed_dict=None):
        options = tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE, output_partition_graphs=True)
        seen.append(tf.RunMetadata())
        return plain(self, fetches, feed_dict, options, seen[-1])

    with mock.patch.object(tf.Session, 'run', run_traced):
        step()
    return seen[-1]


def runs(metadata):
    """Every kernel that ran, a list of Run."""
    nodes = {node.name: node for graph in metadata.partition_graphs for node in graph.node}
    stats = {one.node_name: one for device in metadata.step_stats.dev_stats for one in device.node_stats}
    shapes = {}  # 'name' or 'name:1' as in the nodes' inputs
    for name, one in stats.items():
        for output in one.output:
            key = name if output.slot == 0 else '%s:%d' % (name, output.slot)
            shapes[key] = [dim.size for dim in output.tensor_description.shape.dim]
    return [Run(nodes[name].op, [shapes.get(source, []) for source in nodes[name].input], shapes.get(name, []),
                max(list(nodes[name].attr['dilations'].list.i) or [1]),
                (one.op_end_rel_micros - one.op_start_rel_micros) / 1e6)
            for name, one in stats.items() if name in nodes]


def product_shape(one):
    """(map, weights) of a convolution or matrix product or of a gradient of one, shapes; None for other ops."""
    if 'Conv2DBackpropFilter' in one.op:
        return one.shapes[2], one.output
    if 'Conv2DBackpropInput' in one.op:
        return one.shapes[2], one.shapes[1]
    if 'Conv2D' in one.op or 'MatMul' in one.op and len(one.output) == 2:
        return one.output, one.shapes[1]
    return None


def operations(one):
    """Floating-point operations of a convolution or product: 2 for a multiply-add, taps on padding counted."""
    outer, weights = product_shape(one)
    if 'MatMul' in one.op:  # whichever side is transposed: [m, k] x [k, n]
        return 2 * float(np.sqrt(np.prod(one.shapes[0], dtype=float) * np.prod(weights, dtype=float) * np.prod(outer)))
    return 2 * np.prod(outer, dtype=float) * np.prod(weights[:-1])


def op_table(all_runs):
    """Lines of (op, how many, milliseconds, share), the longest first."""
    by_op = collections.defaultdict(list)
    for one in all_runs:
        by_op[one.op].append(one.seconds)
    total = sum(one.seconds for one in all_runs)
    lines = [[op, len(times), 1e3 * sum(times), sum(times) / total] for op, times in by_op.items()]
    return sorted(lines, key=lambda line: -line[2])[:OPS]


def product_table(all_runs):
    """Lines of (op, map, weights, dilation, how many, milliseconds, GFLOP/s), the longest first."""
    by_shape = collections.defaultdict(list)
    for one in all_runs:
        if product_shape(one) and all(product_shape(one)):
            outer, weights = ['x'.join(map(str, shape)) for shape in product_shape(one)]
            by_shape[one.op, outer, weights, str(one.dilation)].append(one)
    lines = []
    for key, members in by_shape.items():
        seconds = sum(one.seconds for one in members)
        lines.append(list(key) + [len(members), 1e3 * seconds, sum(map(operations, members)) / seconds / 1e9])
    return sorted(lines, key=lambda line: -line[5])[:PRODUCTS]


def report(tf, step, sgemm):
    """Prints the tables of a step that has run before."""
    seconds = measure.seconds_of(step)
    all_runs = runs(traced(tf, step))
    print('\n%.1f ms a step; the matrix product beside it: %.0f GFLOP/s' % (1e3 * seconds, sgemm() / 1e9))
    print(run.format_table(['op', 'number', 'ms', 'share'], op_table(all_runs)))
    products = product_table(all_runs)
    if products:
        print(run.format_table(['op', 'map', 'weights', 'dilation', 'number', 'ms', 'GFLOP/s'], products))


def main():
    cores = os.cpu_count() or 1
    rows = {name: row for name, row in run.all_rows(FLAGS.quick, cores).items() if row.what in TRACED}
    if FLAGS.row not in rows:
        raise UserError('--row=%s is not one of %s.' % (FLAGS.row, ', '.join(rows)))
    row, form = rows[FLAGS.row], 'reference' if FLAGS.reference else 'product'
    if form not in [known.split(',')[0] for known in row.forms]:
        raise UserError('--row=%s has no reference form.' % FLAGS.row)
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
    job = types.SimpleNamespace(**dict(measure.JOB, **dict(row.settings, what=row.what, form=form)))
    tf = measure.start(form, frozen_weights=row.what == 'predict')
    sgemm = measure.matrix_product(tf, 128 if FLAGS.quick else job.sgemm_side)

    def repeat(step, sgemm, budget):
        for _ in range(2):  # warm-up
            step()
        report(tf, step, sgemm)
        return {'seconds': 0.0}

    with mock.patch.object(measure, 'repeat', repeat), tf.Graph().as_default():
        measure.MEASUREMENTS[job.what](tf, sgemm, job)


if __name__ == '__main__':
    flags.DEFINE_string('row', 'deeplab_train', 'a row of run.py that trains, predicts or mixes')
    flags.DEFINE_boolean('reference', False, 'the reference form instead of the product')
    flags.DEFINE_boolean('quick', False, 'tiny sizes, whose figures mean nothing')
    sys.exit(command_line.run(main))
