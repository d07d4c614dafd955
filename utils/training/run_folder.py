"""The folder of a training run: who may write to it, what settings made it, and its checkpoints, whole and counted."""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import socket

import tensorflow.compat.v1 as tf

from utils.system import output_files
from utils.system.errors import UserError, quoted, reason
from utils.weights import checkpoints, run_settings

LOCK = '.lock'
# What TensorFlow's saver and our own files are called until they are whole.
LEFTOVERS = ('model.ckpt-*.tempstate*', 'model.ckpt-*_temp*', 'checkpoint.tmp*', run_settings.FILE + '.*.tmp')
# The flags that decide what a training computes; all others only where it writes, how often and how fast.
DECIDING = (
    'num_steps', 'random_seed', 'weight_decay', 'learning_rate', 'power', 'momentum', 'grad_update_every',
    'encoder_name', 'dilated_type', 'compat', 'pretrain_file', 'restore_decoder', 'train_bn', 'bn_decay', 'data_list',
    'data_dir', 'batch_size', 'input_height', 'input_width', 'num_classes', 'ignore_label', 'random_scale',
    'random_mirror', 'random_scale_range', 'decoder_rate', 'freeze_encoder', 'loss', 'ohem_fraction', 'class_weights',
    'channel_order', 'img_mean', 'palette', 'mixed_precision')
PATHS = ('data_list', 'data_dir', 'pretrain_file', 'palette', 'class_weights')


def deciding(conf, model_name):
    """{name: value} of the settings that decide what a training computes.

    Args:
      conf: the flags as attributes.
      model_name: the class that trains, which multi-scale changes.
    """
    settings = {name: getattr(conf, name) for name in DECIDING}
    settings['img_mean'] = conf.img_mean or None  # --img_mean= is none
    for name in PATHS:  # however the path is written
        settings[name] = os.path.realpath(settings[name]) if os.path.exists(settings[name]) else settings[name]
    return dict(settings, model=model_name)


class RunFolder(object):
    """A training's modeldir."""

    def __init__(self, modeldir, flags, net_input):
        """
        Args:
          modeldir: the folder; it is made if there is none.
          flags: the settings that decide the result, as `deciding` gives them.
          net_input: the compat.Input that the network gets.
        """
        self.path = output_files.make_dir(modeldir, 'modeldir')
        self._flags, self._input = flags, net_input

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

    def check(self):
        """Raises UserError if the folder holds checkpoints of another run, one with other settings."""
        steps = checkpoints.checkpoint_steps(self.path)
        if not steps:
            return
        remedy = 'give another --modeldir or empty this one'
        known = run_settings.read(self.path).get('flags')
        if known is None:
            raise UserError('%s holds checkpoints of a run with unknown settings, up to step %d: %s.' % (
                quoted(self.path), steps[-1], remedy))
        now = json.loads(json.dumps(self._flags))  # as they are in the file
        changed = ['%s=%s (now %s)' % (name, quoted(known.get(name)), quoted(now[name]))
                   for name in sorted(now) if known.get(name) != now[name]]
        if changed:
            more = ' and %d more' % (len(changed) - 3) if len(changed) > 3 else ''
            raise UserError('%s holds a run with other settings: %s%s; %s.' % (
                quoted(self.path), ', '.join(changed[:3]), more, remedy))
        print('%s holds checkpoints of the same settings up to step %d: training starts afresh and replaces them one '
              'by one; until then, the highest step is the newest' % (self.path, steps[-1]))

    def start(self, saver):
        """Writes the settings; what a killed run left half written is removed, its whole checkpoints are counted."""
        self._remove_leftovers()
        steps = checkpoints.checkpoint_steps(self.path)
        saver.recover_last_checkpoints([os.path.join(self.path, 'model.ckpt-%d' % step) for step in steps])
        run_settings.write(self.path, self._flags, self._input)

    def save(self, sess, saver, step):
        """Saves a checkpoint and returns its path; UserError, and nothing half written, if that fails."""
        path = os.path.join(self.path, 'model.ckpt')
        index = '%s-%d.index' % (path, step)
        try:
            if os.path.exists(index):  # of an earlier start: never beside new data
                os.remove(index)
            return saver.save(sess, path, step, write_meta_graph=False)
        except (tf.errors.OpError, OSError, ValueError) as error:  # ValueError: the folder is gone
            self._remove_leftovers()
            raise UserError('%s-%d cannot be written (%s): free space or give another --modeldir.' % (
                quoted(path), step, reason(error)))

    def _remove_leftovers(self):
        """Removes what a save that was stopped in the middle left."""
        for pattern in LEFTOVERS:
            for path in glob.glob(os.path.join(glob.escape(self.path), pattern)):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
