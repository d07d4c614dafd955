"""Manages a training run apart from its algorithm: lock, settings, checkpoints, records, signals, lost machines."""

import collections
import contextlib
import dataclasses
import glob
import itertools
import os
import re
import shutil
import socket
import sys
import typing
import uuid

import filelock
import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from utils.system import interrupts, memory, output_files
from utils.system.errors import UserError, quoted, reason, some
from utils.training import records
from utils.weights import checkpoints, pretrained, run_settings, weight_files, weight_names

LOCK = '.lock'
OLD = 'old'  # folders in modeldir for the runs that --resume=never replaces: old, old2...
MOST_DIR, MOST_VALUE, MOST_CHANGED = 44, 32, 86  # limits, in characters, in the sentence about changed settings
# Names of unfinished files of TensorFlow's saver and of this project.
LEFTOVERS = ('*.ckpt-*.tempstate*', '*.ckpt-*_temp*', 'checkpoint.tmp*', run_settings.FILE + '.*.tmp')


@dataclasses.dataclass
class TrainingGraph:
    """The tensors and ops of a training's graph that a session runs."""
    net: typing.Any         # the network
    rate: tf.Tensor         # placeholder of the learning rate
    update: typing.Any      # an optimizer.Update
    losses: dict            # {tag: scalar}, in the order of the columns of metrics.csv
    pictures: tuple         # (images [N, H, W, 3], labels [N, H, W, 1], class maps [N, H, W]) of the batch
    finite: tf.Tensor       # bool scalar, whether all weights are finite
    saver: tf.train.Saver   # of the weights and the optimizer's state


class Run(object):
    """Manages one training, but does not compute its steps.

        with Run(conf, settings, classes, towers) as run:
            for attempt in run.attempts():  # one, plus another each time a machine is lost
                with attempt:
                    graph = ...
                    with run.session(graph, net_input, config) as sess:
                        for step in run.steps():
                            ...
                            run.log(step, values)
                            if run.is_due(step, conf.save_interval):
                                run.save(step)

    Attributes:
      first_step: the first step to train: 0, or the one after the checkpoint that training resumes from.
      input: the compat.Input of the initial weights; None if it is not known.
      signal: the interrupts.Pending of a session; its `number` is the signal that has arrived, or None.
    """

    def __init__(self, conf, settings, classes, towers):
        """
        Args:
          conf: the flags as attributes.
          settings: {name: value} of everything that decides the result, see run_settings.settings_from_flags.
          classes: a Classes.
          towers: the Towers of the training.
        """
        self.conf, self.first_step, self.input, self.signal = conf, 0, None, interrupts.Pending()
        self._classes, self._towers, self._cluster = classes, towers, towers.cluster
        self._folder = RunFolder(conf.modeldir, settings)

    def __enter__(self):
        """Locks modeldir and finds the step and the weights to start from; modeldir's run is not changed yet.

        Raises:
          UserError: another training holds modeldir, it holds a run with other settings, the weights cannot be read, or
            a folder or file cannot be written.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._folder.locked())
            output_files.make_dir(self.conf.logdir, 'logdir')
            output_files.check_file(self.conf.logfile, 'logfile')
            stack.callback(self._cluster.finish)
            self._begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    # where to start ----------------------------------------------------------------------------------------------

    def _begin(self):
        """Reads the newest checkpoint and the records of the earlier steps, or opens the pre-trained weights."""
        conf, self._pretrained = self.conf, None
        self.first_step, self._values, self.input = self._folder.resume(conf.resume)
        if self.first_step == 0 and conf.pretrain_file:
            self._pretrained = pretrained.open_pretrained(conf.pretrain_file, conf.encoder_name)
            self.input = self._pretrained.input
        self._records = records.Records(conf, self._folder.run_id, self._classes)
        self._records.read(self.first_step)

    def finished(self):
        """Returns whether there is nothing left to do; if so, prints a line on how to continue."""
        conf = self.conf
        if self.lacks_validation():
            return False
        if self.first_step <= conf.num_steps:
            expired = self.out_of_patience()
            if expired:
                print('%s holds a training that --patience=%d ended after step %d: %s; raise --patience or give 0 to '
                      'continue, begin again with --resume=never or score it with --option=test --valid_step=best' % (
                          conf.modeldir, conf.patience, self.first_step - 1, expired))
            return bool(expired)
        print('%s holds a finished training of --num_steps=%d: raise that to continue with a longer schedule, '
              'begin again with --resume=never or score it with --option=test' % (
                  conf.modeldir, self.first_step - 1))
        return True

    def out_of_patience(self):
        """Returns a clause on the best validation if it is --patience validations old, otherwise ''."""
        if not (self.conf.patience and self.conf.valid_interval):
            return ''
        best = self._records.best()
        if best is None or best[2] < self.conf.patience:
            return ''
        return 'the best mean IoU, %.2f %% in step %d, is %d validation%s old' % (
            100 * best[1], best[0], best[2], '' if best[2] == 1 else 's')

    def lacks_validation(self):
        """Returns whether the run was stopped after the last step was saved but before its validation."""
        last = self.first_step - 1
        return last >= 0 and self.is_due(last, self.conf.valid_interval) and self._records.lacks_scores(last)

    def attempts(self):
        """Yields contexts to train in: one, plus another, from the newest checkpoint, each time a machine is lost."""
        for number, attempt in enumerate(self._cluster.attempts()):
            if number:
                self._begin()
            yield attempt

    @contextlib.contextmanager
    def session(self, graph, net_input, config):
        """Opens a session and the records, and loads the weights to start from.

        Inside, SIGINT and SIGTERM end the training after the current step.

        Args:
          graph: a TrainingGraph, of the current graph.
          net_input: the compat.Input of the network.
          config: a tf.ConfigProto.

        Yields:
          the tf.Session.

        Raises:
          UserError: the weights do not fit the network, a machine lacks a device, or something cannot be written.
          cluster.Lost: a machine of the cluster was lost; the context of attempts() handles it.
        """
        with self._cluster.session(config) as sess, contextlib.closing(self._records):
            self._towers.check_devices(sess)
            self._sess, self._graph = sess, graph
            self._load(net_input)
            self._folder.start(graph.saver, self.first_step, net_input)
            self._records.open(self.first_step, sess.graph, list(graph.losses))
            self._bar = tqdm(range(self.first_step, self.conf.num_steps + 1), desc='train', unit='step',
                             mininterval=1.0, initial=self.first_step, total=self.conf.num_steps + 1)
            with memory.report_exhaustion('--batch_size, --input_height or --input_width'), self._bar, \
                    interrupts.deferred() as self.signal:
                yield sess

    def _load(self, net_input):
        """Sets the variables to their initial values and prints the source of these."""
        conf, graph, sess, weights = self.conf, self._graph, self._sess, self._pretrained
        variables = graph.net.variables
        if self.first_step:
            prefix = '%s/%s-%d' % (conf.modeldir, checkpoints.NEWEST, self.first_step - 1)
            saved = variables + graph.update.state
            found = {name: value.shape for name, value in self._values.items()}
            checkpoints.check_fit(weight_names.variable_shapes(saved), found, prefix)
            sess.run(tf.local_variables_initializer())
            checkpoints.load_values(sess, saved, self._values)
            print('resumed from %s: step %d of %d is next' % (prefix, self.first_step, conf.num_steps))
        else:
            sess.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        self._values = {}  # to free the memory
        if weights is None:
            return
        print(pretrained.restore_pretrained(sess, variables, weights, conf.encoder_name, conf.restore_decoder))
        if weights.input:
            print(pretrained.describe_input(weights.input, net_input))
        if weights.compat not in (None, conf.compat):
            print('note: these weights were made for --compat=%s, but this run has --compat=%s' % (
                weights.compat, conf.compat))

    # in the session ----------------------------------------------------------------------------------------------

    def is_due(self, step, interval):
        """Returns whether a step is a multiple of `interval` or the last one; False for an interval of 0."""
        return interval > 0 and (step % interval == 0 or step == self.conf.num_steps)

    def steps(self):
        """Yields the steps from first_step to num_steps, or until --patience runs out, with a progress bar.

        Raises:
          interrupts.Interrupted: a signal arrived; the step is complete and its weights are saved.
        """
        for step in self._bar:
            expired = self.out_of_patience()
            if expired:
                if step > self.first_step and not self.is_due(step - 1, self.conf.save_interval):
                    self.save(step - 1)
                print('\nstopped by --patience=%d: %s' % (self.conf.patience, expired))
                break
            yield step
            if self.signal.number:
                self.save(step)
                print('\ninterrupted in step %d: the weights are saved in %s' % (step, self.conf.modeldir))
                raise interrupts.Interrupted(self.signal.number)
        print('trained: checkpoints in %s, losses in %s, TensorBoard in %s' % (
            self.conf.modeldir, self.conf.logfile, self.conf.logdir))

    def log(self, step, values, pictures=()):
        """Records a step in the log, in metrics.csv and for TensorBoard.

        Args:
          step: its number.
          values: {tag: number} of the graph's losses and of records.RATES.
          pictures: for TensorBoard, uint8 RGB [n, h, w, 3].

        Raises:
          UserError: the loss is not finite, or the records cannot be written.
        """
        self._check_finite(values['loss/total'], 'the loss', step)
        self._records.add(step, values, pictures)
        self._bar.set_postfix(loss='%.3f' % values['loss/total'], refresh=False)

    def save(self, step):
        """Saves the weights after `step`, once its records are on the disk.

        Raises:
          UserError: a weight is not finite, or the checkpoint cannot be written.
        """
        self._check_finite(0 if self._sess.run(self._graph.finite) else np.nan, 'a weight', step)
        self._records.sync()
        self._folder.save(self._sess, self._graph.saver, step)

    def save_unfinished(self, step):
        """Saves the weights before `step`, which failed, if the session still works."""
        if step > self.first_step:
            with contextlib.suppress(tf.errors.OpError, RuntimeError):  # the session was closed
                self.save(step - 1)

    def log_scores(self, step, scores):
        """Records the scores of the weights after `step`; saves these as the best if their mean IoU is the highest.

        Args:
          step: its number.
          scores: a dict as metrics.scores returns it, with the mean cross-entropy as `loss` and a sentence, or '', as
            `note`.

        Raises:
          UserError: something cannot be written.
        """
        mean_iou, earlier = scores['mean_iou'], self._records.mean_iou.values()
        best = mean_iou > max((value for value in earlier if not np.isnan(value)), default=-1)  # False for nan
        if best:
            lost = [other for other in range(self.first_step) if other not in self._records.mean_iou]
            self._folder.save_best(self._sess, self._graph.saver, step, keep=lost)
        self._records.add_scores(step, scores)
        ious = ', '.join('%s %s' % (name, '-' if np.isnan(value) else '%.1f' % (100 * value))
                         for name, value in zip(self._records.class_names, scores['iou']))
        with contextlib.suppress(BrokenPipeError):  # training continues even if stdout is closed
            tqdm.write('step %d: mean IoU %.2f %%, pixel accuracy %.2f %%, loss %.4f%s%s' % (
                step, 100 * mean_iou, 100 * scores['pixel_accuracy'], scores['loss'],
                ', the best so far' if best else '',
                '; only one class counts' if np.sum(~np.isnan(scores['iou'])) == 1 else ''))
            tqdm.write('  IoU: ' + ious)
            if scores['note']:
                tqdm.write('  note: ' + scores['note'])

    def _check_finite(self, value, name, step):
        if not np.isfinite(value):
            raise UserError(
                '%s is not finite in step %d: training has diverged and stops (earlier checkpoints in %s are kept): '
                'lower --learning_rate=%g or, with weights that are not pre-trained, train batch norm (--train_bn).' % (
                    name, step, self.conf.modeldir, self.conf.learning_rate))


class RunFolder(object):
    """The folder modeldir of a training: its lock, settings and checkpoints."""

    def __init__(self, modeldir, flags):
        """
        Args:
          modeldir: the folder; it is created if it does not exist.
          flags: the settings that decide the result, as run_settings.settings_from_flags returns them.
        """
        self.path = output_files.make_dir(modeldir, 'modeldir')
        self._flags, self._started = flags, False
        self._kept, self._max_to_keep = [], 0  # steps in TensorFlow's state file, in the order they were saved
        self.run_id = uuid.uuid4().hex[:8]

    @contextlib.contextmanager
    def locked(self):
        """Locks the folder against other trainings; the lock ends with the process, even if it is killed.

        Raises:
          UserError: another training holds the lock, or the lock file cannot be written.
        """
        path = os.path.join(self.path, LOCK)
        output_files.check_file(path, 'modeldir', inside=True)
        lock, holder = filelock.FileLock(path), self._holder(path)  # read first: older versions of filelock empty it
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError('another training (%s) is using %s: wait until it ends or give another --modeldir.' % (
                holder, quoted(self.path)))
        except OSError as error:
            raise UserError('%s cannot be written (%s): free space or give another --modeldir.' % (
                quoted(path), reason(error)))
        try:
            # On a full disk the lock still works, but its holder's description is missing.
            with contextlib.suppress(OSError), open(path, 'w') as file:
                file.write('process %d on %s' % (os.getpid(), socket.gethostname()))
            yield
        finally:
            lock.release()

    @staticmethod
    def _holder(path):
        """Returns the lock file's description of the process that holds it."""
        with contextlib.suppress(OSError), open(path, 'rb') as file:
            return quoted(file.read(99).decode('utf-8', 'replace')) or 'process unknown'
        return 'process unknown'

    def resume(self, mode):
        """Finds the checkpoint to resume from; writes nothing.

        Args:
          mode: 'auto' resumes only from checkpoints with the same settings, 'must' from any checkpoints; 'never'
            starts afresh.

        Returns:
          (first_step, values, net_input): the first step to train, {name: array} of the newest undamaged checkpoint and
          the compat.Input of its training; (0, {}, None) to start afresh.

        Raises:
          UserError: the checkpoints have other settings, all are damaged or, with 'must', there are none.
        """
        steps = checkpoints.checkpoint_steps(self.path)
        mode = 'auto' if self._started else mode  # once started, the checkpoints belong to this run
        if mode == 'must' and not steps:
            raise UserError('--resume=must: %s holds no complete checkpoint to resume from.' % quoted(self.path))
        if mode == 'never':
            return 0, {}, None
        known = run_settings.read(self.path)
        self.run_id = known.get('run') or self.run_id  # even if that run ended before its first checkpoint
        if not steps:
            return 0, {}, None
        self._compare(known.get('flags'), steps[-1], mode)
        for step in reversed(steps):
            path = os.path.join(self.path, '%s-%d' % (checkpoints.NEWEST, step))
            try:
                values = checkpoints.read_values(path)
            except weight_files.NotLinked:  # the path is the problem, and earlier checkpoints share it
                raise
            except UserError as error:
                print('%s training resumes from an earlier one.' % error, file=sys.stderr)
                continue
            return step + 1, values, known.get('input')
        raise UserError('every checkpoint in %s is damaged: begin again with --resume=never.' % quoted(self.path))

    def _compare(self, known, newest, mode):
        """Prints the settings that differ from the folder's run; raises UserError unless `mode` is 'must'.

        A finished run may always be resumed with a larger num_steps.
        """
        ways = 'begin again with --resume=never (the old run is kept in folder %s) or give another --modeldir' % OLD
        if known is None:
            if mode == 'auto':
                raise UserError('%s holds checkpoints of a run with unknown settings, up to step %d: resume with '
                                '--resume=must, %s.' % (quoted(self.path), newest, ways))
            return
        changes = run_settings.changed_settings(known, self._flags)
        if not changes:
            return
        longer = [change.name for change in changes] == ['num_steps'] and newest == changes[0].known < changes[0].now
        listed = some(['%s=%s (now %s)' % (name, quoted(known, MOST_VALUE), quoted(
            now if now != '' else 'none', MOST_VALUE)) for name, known, now in changes], 3, MOST_CHANGED)
        if mode == 'auto' and not longer:
            raise UserError('%s holds a run with other settings: %s; resume with --resume=must, %s.' % (
                quoted(self.path, MOST_DIR), listed, ways))
        print('changed settings: ' + listed)

    def start(self, saver, first_step, net_input):
        """Prepares the folder for saving: writes the settings and, if first_step is 0, sets an older run aside.

        Args:
          saver: a tf.train.Saver, whose max_to_keep is the number of checkpoints to keep; 0 keeps all.
          first_step: the first step to train.
          net_input: the compat.Input of the network.

        Raises:
          UserError: something cannot be written.
        """
        self._remove_leftovers()
        if not first_step:
            self._set_aside()
        self._kept, self._max_to_keep = checkpoints.checkpoint_steps(self.path), saver.saver_def.max_to_keep
        run_settings.write(self.path, self._flags, net_input, self.run_id)
        self._started = True

    def _set_aside(self):
        """Moves the files of an older run into a new subfolder: old, old2..."""
        names = [name for name in sorted(os.listdir(self.path)) if os.path.isfile(os.path.join(self.path, name))
                 and re.match(r'(model|best)\.ckpt-\d+\.|checkpoint$|metrics\.csv|settings\.json$', name)]
        if not any('.ckpt-' in name for name in names):
            return
        candidates = (os.path.join(self.path, OLD + number) for number in itertools.chain(
            [''], map(str, itertools.count(2))))
        old = next(path for path in candidates if not os.path.lexists(path))
        try:
            os.mkdir(old)
            for name in sorted(names, key=lambda name: name.endswith('.index'), reverse=True):
                os.rename(os.path.join(self.path, name), os.path.join(old, name))
        except OSError as error:
            raise UserError('the older run in %s cannot be moved to %s (%s): give another --modeldir.' % (
                quoted(self.path), quoted(old), reason(error)))
        print('the older run is kept in %s' % old)

    def save_best(self, sess, saver, step, keep=()):
        """Saves the weights as the run's best and removes the previous best; raises UserError if that fails.

        Args:
          sess, saver: as in save().
          step: the step.
          keep: steps whose scores are lost: a best checkpoint of theirs may be better, and is not removed.
        """
        earlier = [other for other in checkpoints.checkpoint_steps(self.path, checkpoints.BEST)
                   if other != step and other not in keep]
        self._save(sess, saver, step, checkpoints.BEST)
        for other in earlier:
            self._remove(checkpoints.BEST, other)

    def save(self, sess, saver, step):
        """Saves a checkpoint, removes surplus ones and returns its path.

        Raises:
          UserError: the checkpoint cannot be written; no incomplete file is left.
        """
        path = self._save(sess, saver, step, checkpoints.NEWEST)
        kept = [other for other in self._kept if other != step] + [step]
        surplus = len(kept) - self._max_to_keep if self._max_to_keep else 0
        self._kept = kept[max(0, surplus):]
        self._write_state()
        for other in kept[:max(0, surplus)]:
            with contextlib.suppress(OSError):  # a surplus checkpoint does no harm
                self._remove(checkpoints.NEWEST, other)
        return path

    def _remove(self, kind, step):
        """Removes a checkpoint's files by their exact names.

        TensorFlow's Saver would use the path as a glob pattern: for the folder `exp?` it removes checkpoints in `exp1`.
        """
        name = re.compile(r'%s-%d\.(index|meta|data-\d+-of-\d+)' % (re.escape(kind), step))
        for found in sorted(filter(name.fullmatch, os.listdir(self.path)), reverse=True):  # .data last
            os.remove(os.path.join(self.path, found))

    def _write_state(self):
        """Writes TensorFlow's state file `checkpoint`, which lists the checkpoints that are kept."""
        paths = [os.path.join(self.path, '%s-%d' % (checkpoints.NEWEST, step)) for step in self._kept]
        with self._reported(os.path.join(self.path, 'checkpoint')):
            tf.train.update_checkpoint_state(self.path, paths[-1], paths)

    def _save(self, sess, saver, step, kind):
        path = os.path.join(self.path, '%s-%d' % (kind, step))
        with self._reported(path):
            if os.path.exists(path + '.index'):  # left by an earlier run; it must never coexist with new data
                os.remove(path + '.index')
            # With write_state=False the saver neither counts checkpoints nor removes any.
            saver.save(sess, os.path.join(self.path, kind), step, write_meta_graph=False, write_state=False)
            output_files.sync(glob.glob(glob.escape(path) + '.*'))
            return path

    @contextlib.contextmanager
    def _reported(self, path):
        """Turns a failure to write `path` into a UserError and removes incomplete files."""
        try:
            yield
        except (tf.errors.OpError, OSError, ValueError) as error:  # ValueError: the folder is gone
            self._remove_leftovers()
            raise UserError('%s cannot be written (%s): free space or give another --modeldir.' % (
                quoted(path), reason(error)))

    def _remove_leftovers(self):
        """Removes incomplete files left by an interrupted save."""
        for pattern in LEFTOVERS:
            for path in glob.glob(os.path.join(glob.escape(self.path), pattern)):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)


def trains_batch_norm(conf):
    """Returns whether batch norm is trained.

    Raises:
      UserError: --train_bn is given although --freeze_encoder keeps the encoder from being trained.
    """
    if conf.freeze_encoder and conf.train_bn:
        raise UserError('--freeze_encoder and --train_bn exclude each other: batch norm is in the encoder.')
    return not (conf.pretrain_file or conf.freeze_encoder) if conf.train_bn is None else conf.train_bn


def all_finite(variables):
    """Returns a bool scalar tensor, true if all values of the variables are finite; each is checked on its own device.

    Vectors on the same device are checked together: four of five variables are vectors, so one op for each would add
    many ops to the graph.
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
