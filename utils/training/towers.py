"""Towers: devices that share one set of variables and each compute a part of every batch."""

import collections
import re

import tensorflow.compat.v1 as tf

from utils.net import layers
from utils.system import runtime
from utils.system.errors import UserError
from utils.training.losses import Pixels

# value: a scalar tensor; parts: [[tensors] of each tower] that it is computed from on the first machine, and whose
# gradients are the work of the towers; none for a value of whatever origin.
Loss = collections.namedtuple('Loss', 'value parts')
Loss.__new__.__defaults__ = ((),)


class Towers(object):
    """The devices of a training, one or several, and the split of its batches over them."""

    def __init__(self, num_gpus, cluster, variables_on='spread'):
        """
        Args:
          num_gpus: towers of a machine: its first GPUs, or logical CPU devices where TensorFlow sees no GPU.
          cluster: the Cluster of machines.
          variables_on: 'spread' over the machines by size, or all on the 'chief', task 0.

        Raises:
          UserError: this machine has fewer GPUs.
        """
        kind, gpus = runtime.device_kind(), len(runtime.gpus())
        if gpus and num_gpus > gpus:
            raise UserError('--num_gpus=%d: TensorFlow sees %d GPU%s here: give at most that many.' % (
                num_gpus, gpus, 's' if gpus > 1 else ''))
        self.cluster, job = cluster, cluster.job
        self._chief = '/job:%s/task:0' % job
        self._variables = '/job:%s/device:%s:0' % (job, kind)
        self._tasks = cluster.tasks if variables_on == 'spread' else 1
        self._bytes = [0] * self._tasks  # of the variables on each task
        self.devices = ['/job:%s/task:%d/device:%s:%d' % (job, task, kind, index)
                        for task in range(cluster.tasks) for index in range(num_gpus)]

    def check_batch(self, batch_size):
        """UserError, with the nearest sizes that can be, if a batch cannot be divided by the towers."""
        towers = len(self.devices)
        if batch_size % towers:
            lower = batch_size // towers * towers
            raise UserError('--batch_size=%d cannot be divided by %d towers: give %s%d.' % (
                batch_size, towers, '%d or ' % lower if lower else '', lower + towers))

    def check_devices(self, sess, devices=None):
        """UserError if a machine of a session lacks one of the devices, by default of all towers."""
        with sess.graph.as_default():  # list_devices, if it is first, waits with Python's lock held: nothing else runs
            sess.run(tf.no_op())
        found = {device.name.replace('/replica:0', '') for device in sess.list_devices()}
        for device in devices or (self.devices if self._placed() else ()):
            if device not in found:
                task, kind, index = re.search(r'task:(\d+)/device:(.*):(\d+)', device).groups()
                raise UserError('%s has no %s:%s: give every machine the same --num_gpus, and GPUs or none.' % (
                    self.cluster.name(int(task)), kind, index))

    def chief(self):
        """A context of ops that are neither a tower's nor a variable's: on the first machine."""
        return tf.device(self._chief) if self._placed() else tf.device(None)

    def build(self, images, labels, build):
        """Builds a tower on each device, with its part of the batch.

        Args:
          images, labels: [N, H, W, 3] and [N, H, W, 1].
          build: a function from such a part and the first tower's network, None for that tower itself, to (network,
            logits to predict with, [Pixels of each set of logits]).

        Returns:
          (the first tower's network; logits [N, h, w, num_classes] and [Pixels of each set of logits] of the whole
          batch; the losses of each tower's Pixels, [[tensors] of each tower]).
        """
        count, net, results = len(self.devices), None, []
        for index, part in enumerate(zip(split(images, count), split(labels, count))):
            with self._on(self.devices[index]):
                built, logits, pixels = build(part, net)
            net = net or built
            results.append((logits, pixels))
        logits, pixels = zip(*results)
        whole = [Pixels(*map(joined, zip(*parts))) for parts in zip(*pixels)]
        return net, joined(logits), whole, [[one.losses for one in part] for part in pixels]

    def _placed(self):
        """Whether there is anything to place: one device is TensorFlow's own choice."""
        return len(self.devices) > 1

    def _on(self, device):
        if not self._placed():
            return tf.device(None)
        return tf.device(tf.train.replica_device_setter(
            ps_tasks=self._tasks, ps_device=self._variables, worker_device=device, ps_strategy=self._least_loaded))

    def _least_loaded(self, op):
        """The task with the fewest bytes of variables, which then gets that of a VarHandleOp too."""
        task = self._bytes.index(min(self._bytes))
        shape = tf.TensorShape(op.get_attr('shape'))
        self._bytes[task] += shape.num_elements() * op.get_attr('dtype').size
        return task


def gradients(loss, variables):
    """The gradients of a Loss, each tower's computed on its device and then added up on the variable's.

    One call of tf.gradients for all would add them by AddN, in an order that varies; see layers.ordered_sum.
    """
    if len(loss.parts) < 2:
        return tf.gradients(loss.value, variables)
    flat = [tensor for part in loss.parts for tensor in part]
    outer = iter(tf.gradients(loss.value, flat))
    found = [tf.gradients(part, variables, [next(outer) for _ in part], colocate_gradients_with_ops=True)
             for part in loss.parts]
    sums = []
    for variable, terms in zip(variables, zip(*found)):
        with tf.colocate_with(variable.op):
            sums.append(layers.ordered_sum(terms))
    return sums


def split(batch, count):
    """A list of `count` equal parts of [N, ...]."""
    return tf.split(batch, count) if count > 1 else [batch]


def joined(parts):
    """The parts of a batch as one."""
    return tf.concat(parts, axis=0) if len(parts) > 1 else parts[0]
