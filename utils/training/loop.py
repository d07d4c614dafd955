"""The training loop: step, log, save, stop."""

import collections
import contextlib
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from utils.system import interrupts
from utils.system.errors import UserError
from utils.training import optimizer

# What is run of a training graph. rate: placeholder; update: an optimizer.Update; losses: {tag: scalar};
# pictures: (images, labels, class maps) of the batch; finite: whether all weights are; saver: of weights and momentum.
TrainingGraph = collections.namedtuple('TrainingGraph', 'net rate update losses pictures finite saver')

# What the loop reports to. folder: the RunFolder to save to; records: the Records to add steps to; draw_panel: a
# function from fetched graph.pictures to uint8 RGB pictures [n, h, w, 3]; validate: a function from {name: array} of
# the network's variables and a function that says whether to stop, to a dict of metrics.scores, or None if stopped.
Reports = collections.namedtuple('Reports', 'folder records draw_panel validate')

# What a training reads. net_input: a compat.Input; reader: an ImageReader; class_weights: [num_classes] of the loss, or
# None; validate: that of Reports.
Data = collections.namedtuple('Data', 'net_input reader class_weights validate')


def run(sess, graph, conf, reports, first_step=0):
    """Trains from first_step to step num_steps, which has rate 0.

    Args:
      sess: a session whose weights are those of before first_step, with a running reader.
      graph: a TrainingGraph.
      conf: the flags as attributes.
      reports: a Reports whose records are open.

    Raises:
      UserError: training has diverged, a file is broken or cannot be written.
      interrupts.Interrupted: SIGINT or SIGTERM came; the step was finished and saved.
    """
    steps = tqdm(range(first_step, conf.num_steps + 1), desc='train', unit='step', mininterval=1.0,
                 initial=first_step, total=conf.num_steps + 1)
    last, scored = first_step - 1, reports.records.mean_iou
    with steps, interrupts.deferred() as stop:
        if last >= 0 and due(last, conf.valid_interval, conf) and last not in scored:
            validate(sess, graph, conf, reports, last, stop)  # which the run was stopped before
        for step in steps:
            saving = due(step, conf.save_interval, conf)
            try:
                values, pictures = train_step(sess, graph, conf, step, with_pictures=saving)
            except (tf.errors.OutOfRangeError, tf.errors.CancelledError):  # the reader has ended: a file has gone bad
                if step > first_step:
                    with contextlib.suppress(tf.errors.OpError, RuntimeError):  # the session was closed
                        save(sess, graph, conf, reports, step - 1)
                raise
            check_finite(values['loss/total'], 'the loss', conf, step)
            reports.records.add(step, values, reports.draw_panel(pictures) if pictures else ())
            steps.set_postfix(loss='%.3f' % values['loss/total'], refresh=False)
            if saving:
                save(sess, graph, conf, reports, step)
            if due(step, conf.valid_interval, conf) and not stop.number:
                validate(sess, graph, conf, reports, step, stop)
            if stop.number:
                save(sess, graph, conf, reports, step)
                print('\ninterrupted in step %d: the weights are saved in %s' % (step, conf.modeldir))
                raise interrupts.Interrupted(stop.number)
    print('trained: checkpoints in %s, losses in %s, TensorBoard in %s' % (conf.modeldir, conf.logfile, conf.logdir))


def all_finite(variables):
    """Whether all values of some variables are finite, a boolean tensor; each is looked at where it lies.

    The vectors of a device as one: they are four of five variables, and an op more for each would be many.
    """
    together = collections.OrderedDict()
    for variable in variables:
        vector = variable.shape.ndims == 1
        together.setdefault(variable.device if vector else variable.op.name, []).append(variable)
    finite = []
    for group in together.values():
        with tf.colocate_with(group[0].op):
            finite.append(tf.reduce_all(tf.is_finite(tf.concat(group, 0) if len(group) > 1 else group[0])))
    return tf.reduce_all(finite)


def due(step, interval, conf):
    """Whether what happens every `interval` steps and after the last one happens in `step`; never for 0."""
    return interval > 0 and (step % interval == 0 or step == conf.num_steps)


def save(sess, graph, conf, reports, step):
    """Saves the weights after `step`, whose records are on the disk before."""
    # Weights that are not finite never replace good ones.
    check_finite(0 if sess.run(graph.finite) else np.nan, 'a weight', conf, step)
    reports.records.sync()
    reports.folder.save(sess, graph.saver, step)


def validate(sess, graph, conf, reports, step, stop):
    """Scores the weights after `step` and keeps those with the highest mean IoU; nothing if it was stopped."""
    variables = graph.net.variables
    values = dict(zip([v.op.name for v in variables], sess.run(variables)))
    try:
        result = reports.validate(values, lambda: stop.number)
    except UserError:  # a file of the validation is broken: the step was done all the same
        save(sess, graph, conf, reports, step)
        raise
    if result is None:
        return
    mean_iou, earlier = result['mean_iou'], reports.records.mean_iou.values()
    best = mean_iou > max((value for value in earlier if not np.isnan(value)), default=-1)  # False for nan
    if best:
        reports.folder.save_best(sess, graph.saver, step)
    reports.records.add_scores(step, result)
    tqdm.write('step %d: mean IoU %.2f %%, pixel accuracy %.2f %%%s' % (
        step, 100 * mean_iou, 100 * result['pixel_accuracy'], ', the best so far' if best else ''))
    tqdm.write('  IoU: ' + ', '.join('%s %.1f' % (name, 100 * value)
                                     for name, value in zip(reports.records.class_names, result['iou'])))


def train_step(sess, graph, conf, step, with_pictures=False):
    """One update of the weights.

    Returns:
      ({tag: the step's scalar}, losses averaged over its iterations; fetched graph.pictures of the last iteration, or
      None without with_pictures).
    """
    rate = optimizer.poly(conf.learning_rate, step, conf.num_steps, conf.power)
    feed, every = {graph.rate: rate}, conf.grad_update_every
    gradient = graph.update.accumulate if every > 1 else graph.update.apply
    fetched = []
    started = time.time()
    for iteration in range(every):
        fetches = {'losses': graph.losses, 'gradient': gradient}
        if with_pictures and iteration == every - 1:
            fetches['pictures'] = graph.pictures
        fetched.append(sess.run(fetches, feed))
    if every > 1:
        sess.run(graph.update.apply, feed)
    seconds = time.time() - started
    values = {tag: np.mean([one['losses'][tag] for one in fetched]) for tag in graph.losses}
    values.update(learning_rate=rate, images_per_second=conf.batch_size * every / seconds)
    return values, fetched[-1].get('pictures')


def check_finite(value, name, conf, step):
    """Raises UserError if a value is nan or infinite."""
    if not np.isfinite(value):
        raise UserError(
            '%s is not finite in step %d: training has diverged and stops, earlier checkpoints in %s are kept; lower '
            '--learning_rate=%g or, with weights that are not pre-trained, train batch norm (--train_bn).' % (
                name, step, conf.modeldir, conf.learning_rate))
