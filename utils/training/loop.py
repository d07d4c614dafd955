"""The training loop: step, log, save, stop."""

import collections
import contextlib
import time

import numpy as np
from tqdm import tqdm

from utils import write_to_log
from utils.system import interrupts
from utils.system.errors import UserError
from utils.training import optimizer

# What is run of a training graph. rate: placeholder; update: an optimizer.Update; losses: {tag: scalar};
# pictures: (images, labels, class maps) of the batch; finite: whether all weights are; saver: of weights and momentum.
TrainingGraph = collections.namedtuple('TrainingGraph', 'net rate update losses pictures finite saver')


def run(sess, graph, conf, folder, draw_panel):
    """Trains for num_steps + 1 steps, the last at rate 0.

    Args:
      sess: a session with initial weights and a running reader.
      graph: a TrainingGraph.
      conf: the flags as attributes.
      folder: the RunFolder to save to.
      draw_panel: a function from fetched graph.pictures to uint8 RGB pictures [n, h, w, 3] for TensorBoard.

    Raises:
      UserError: training has diverged, or a file cannot be written.
      interrupts.Interrupted: SIGINT or SIGTERM came; the step was finished and saved.
    """
    writer = write_to_log.SummaryWriter(conf.logdir, sess.graph)
    steps = tqdm(range(conf.num_steps + 1), desc='train', unit='step', mininterval=1.0)
    with contextlib.closing(writer), steps, interrupts.deferred() as stop:
        for step in steps:
            saving = step % conf.save_interval == 0 or step == conf.num_steps
            values, pictures = train_step(sess, graph, conf, step, with_pictures=saving)
            check_finite(values['loss/total'], 'the loss', conf, step)
            write_to_log.write_log('%d, %f' % (step, values['loss/total']), conf.logfile)
            writer.add_summary(write_to_log.scalar_summary(values), step)
            steps.set_postfix(loss='%.3f' % values['loss/total'], refresh=False)
            if pictures:
                panel = write_to_log.image_summary('input_label_prediction', draw_panel(pictures))
                writer.add_summary(panel, step)
            if saving or stop.number:
                # Weights that are not finite never replace good ones.
                check_finite(0 if sess.run(graph.finite) else np.nan, 'a weight', conf, step)
                path = folder.save(sess, graph.saver, step)
                writer.flush()
            if stop.number:
                print('\ninterrupted in step %d: the weights are saved as %s' % (step, path))
                raise interrupts.Interrupted(stop.number)
    print('trained: checkpoints in %s, losses in %s, TensorBoard in %s' % (conf.modeldir, conf.logfile, conf.logdir))


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
