"""The folder of a training run: who may write to it, what settings made it, and its checkpoints, whole and counted."""

import contextlib
import fcntl
import glob
import itertools
import json
import os
import re
import shutil
import socket
import sys
import uuid
import zlib

import tensorflow.compat.v1 as tf

from utils.data.regular_files import read_file
from utils.system import output_files
from utils.system.errors import UserError, quoted, reason, some
from utils.weights import checkpoints, run_settings

LOCK = '.lock'
OLD = 'old'  # folders in modeldir for what --resume=never sets aside: old, old2...
MOST_DIR, MOST_VALUE, MOST_CHANGED = 44, 32, 86  # characters in the sentence about changed settings
# What TensorFlow's saver and our own files are called until they are whole.
LEFTOVERS = ('*.ckpt-*.tempstate*', '*.ckpt-*_temp*', 'checkpoint.tmp*', run_settings.FILE + '.*.tmp')
# The flags that decide what a training computes; all others only where it writes, how often, how fast and, as another
# machine would too, how it rounds (xla, deterministic).
DECIDING = (
    'num_steps', 'random_seed', 'weight_decay', 'learning_rate', 'power', 'momentum', 'grad_update_every',
    'encoder_name', 'decoder', 'dilated_type', 'compat', 'pretrain_file', 'restore_decoder', 'train_bn', 'bn_decay',
    'data_list', 'data_dir', 'batch_size', 'input_height', 'input_width', 'num_classes', 'ignore_label', 'random_scale',
    'random_mirror', 'random_scale_range', 'decoder_rate', 'freeze_encoder', 'loss', 'ohem_fraction', 'class_weights',
    'channel_order', 'img_mean', 'palette', 'mixed_precision')
PATHS = ('data_list', 'data_dir', 'pretrain_file', 'palette', 'class_weights')
READ_WHOLE = ('data_list', 'palette', 'class_weights')  # whose contents count as well as their names


def deciding(conf, model_name, towers=1):
    """{name: value} of the settings that decide what a training computes.

    Args:
      conf: the flags as attributes.
      model_name: the class that trains, which multi-scale changes.
      towers: parts of the batch with batch norm's statistics of their own.
    """
    return dict(values(conf, DECIDING), model=model_name, towers=towers)


def values(conf, names):
    """{name: value} of some of DECIDING, so that what means the same is the same, and other contents are not."""
    settings = {name: getattr(conf, name) for name in names}
    if 'img_mean' in settings:
        settings['img_mean'] = conf.img_mean or None  # --img_mean= is none
    for name in settings.keys() & set(PATHS):  # however the path is written
        settings[name] = os.path.realpath(settings[name]) if os.path.exists(settings[name]) else settings[name]
    for name in settings.keys() & set(READ_WHOLE):
        if os.path.isfile(settings[name]):
            with contextlib.suppress(OSError):  # reported by what reads it
                settings[name] += ' (crc32 %08x)' % zlib.crc32(read_file(settings[name], 1 << 31))
    return settings


class RunFolder(object):
    """A training's modeldir."""

    def __init__(self, modeldir, flags):
        """
        Args:
          modeldir: the folder; it is made if there is none.
          flags: the settings that decide the result, as `deciding` gives them.
        """
        self.path = output_files.make_dir(modeldir, 'modeldir')
        self._flags, self._started = flags, False
        self.run_id = uuid.uuid4().hex[:8]

    @contextlib.contextmanager
    def locked(self):
        """Keeps other trainings out; a process that ends in whatever way holds the folder no longer."""
        lock = self._open_lock()
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError('another training (%s) writes to %s: wait until it ends or give another --modeldir.' % (
                    quoted(os.read(lock, 99).decode('utf-8', 'replace')) or 'process unknown', quoted(self.path)))
            with contextlib.suppress(OSError):  # on a full disk the lock holds, though nobody can read whose it is
                os.ftruncate(lock, 0)
                os.write(lock, ('process %d on %s' % (os.getpid(), socket.gethostname())).encode())
            yield
        finally:
            os.close(lock)

    def _open_lock(self):
        path = os.path.join(self.path, LOCK)
        output_files.check_file(path, 'modeldir')
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise UserError('%s cannot be written (%s): free space or give another --modeldir.' % (
                quoted(path), reason(error)))

    def resume(self, mode):
        """Where training goes on, nothing being written yet.

        Args:
          mode: 'auto', from checkpoints of the same settings; 'never', from none; 'must', from those of any settings.

        Returns:
          (the step to begin with, {name: array} of the newest checkpoint that is whole, the compat.Input of its
          training); (0, {}, None) to start afresh.

        Raises:
          UserError: the checkpoints are of other settings, or with 'must' there are none.
        """
        steps = checkpoints.checkpoint_steps(self.path)
        mode = 'auto' if self._started else mode  # the run is this one
        if mode == 'must' and not steps:
            raise UserError('--resume=must: %s holds no complete checkpoint to go on from.' % quoted(self.path))
        if mode == 'never':
            return 0, {}, None
        known = run_settings.read(self.path)
        self.run_id = known.get('run') or self.run_id  # also of one that ended before its first checkpoint
        if not steps:
            return 0, {}, None
        self._compare(known.get('flags'), steps[-1], mode)
        for step in reversed(steps):
            path = os.path.join(self.path, '%s-%d' % (checkpoints.NEWEST, step))
            try:
                values = checkpoints.read_values(path)
            except UserError as error:
                print('%s training goes on from an earlier one.' % error, file=sys.stderr)
                continue
            return step + 1, values, known.get('input')
        raise UserError('every checkpoint in %s is damaged: begin again with --resume=never.' % quoted(self.path))

    def _compare(self, known, newest, mode):
        """Raises UserError if the folder's run has other settings, unless `mode` is 'must'."""
        ways = 'begin again with --resume=never (the old run is kept in its folder %s) or give another --modeldir' % OLD
        if known is None:
            if mode == 'auto':
                raise UserError('%s holds checkpoints of a run with unknown settings, up to step %d: go on with '
                                '--resume=must, %s.' % (quoted(self.path), newest, ways))
            return
        now = json.loads(json.dumps(self._flags))  # as they are in the file
        known = dict({'towers': 1, 'decoder': 'aspp'}, **known)  # which files of before there were such settings lack
        changed = [name for name in sorted(now) if known.get(name) != now[name]]
        longer = changed == ['num_steps'] and newest == known.get('num_steps') < now['num_steps']
        if not changed:
            return
        listed = some(['%s=%s (now %s)' % (name, quoted(known.get(name), MOST_VALUE), quoted(now[name], MOST_VALUE))
                       for name in changed], 3, MOST_CHANGED)
        if mode == 'auto' and not longer:
            raise UserError('%s holds a run of other settings: %s; go on with --resume=must, %s.' % (
                quoted(self.path, MOST_DIR), listed, ways))
        print('changed settings: ' + listed)

    def start(self, saver, first_step, net_input):
        """Writes the settings; with first_step 0 an older run is set aside, otherwise its checkpoints are counted.

        Args:
          saver: a tf.train.Saver.
          first_step: the step that training begins with.
          net_input: the compat.Input that the network gets.
        """
        self._remove_leftovers()
        if not first_step:
            self._set_aside()
        steps = checkpoints.checkpoint_steps(self.path)
        saver.recover_last_checkpoints([os.path.join(self.path, '%s-%d' % (checkpoints.NEWEST, step))
                                        for step in steps])
        run_settings.write(self.path, self._flags, net_input, self.run_id)
        self._started = True

    def _set_aside(self):
        """Moves the files of an older run into a new folder old, old2..."""
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

    def save_best(self, sess, saver, step):
        """Saves the weights as the best of the run, in place of the best before; UserError if that fails."""
        earlier = [other for other in checkpoints.checkpoint_steps(self.path, checkpoints.BEST) if other != step]
        self._save(sess, saver, step, checkpoints.BEST)
        for other in earlier:
            for path in sorted(glob.glob(os.path.join(
                    glob.escape(self.path), '%s-%d.*' % (checkpoints.BEST, other))), reverse=True):  # the index first
                os.remove(path)

    def save(self, sess, saver, step):
        """Saves a checkpoint and returns its path; UserError, and nothing half written, if that fails."""
        return self._save(sess, saver, step, checkpoints.NEWEST)

    def _save(self, sess, saver, step, kind):
        path = os.path.join(self.path, '%s-%d' % (kind, step))
        try:
            if os.path.exists(path + '.index'):  # of an earlier start: never beside new data
                os.remove(path + '.index')
            # The saver keeps count of the newest ones only.
            saver.save(sess, os.path.join(self.path, kind), step, write_meta_graph=False,
                       write_state=kind == checkpoints.NEWEST)
            output_files.sync(glob.glob(glob.escape(path) + '.*'))
            return path
        except (tf.errors.OpError, OSError, ValueError) as error:  # ValueError: the folder is gone
            self._remove_leftovers()
            raise UserError('%s cannot be written (%s): free space or give another --modeldir.' % (
                quoted(path), reason(error)))

    def _remove_leftovers(self):
        """Removes what a save that was stopped in the middle left."""
        for pattern in LEFTOVERS:
            for path in glob.glob(os.path.join(glob.escape(self.path), pattern)):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
