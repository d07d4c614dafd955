"""Towers: devices that share one set of variables, where each computes a part of every batch.

    parts, net = [], None
    for place, images in towers.split(batch):
        with place:
            net, outputs = ...  # the network, with the same variables on every tower
        parts.append(outputs)
    loss = ...  # a function of towers.joined(parts), the outputs of the whole batch
    gradients = towers.gradients(loss, variables, parts)
"""

import re

import tensorflow.compat.v1 as tf

from utils.net import layers
from utils.system import runtime
from utils.system.errors import UserError


class Towers(object):
    """The devices used in training, one or several. Each batch is split over them."""

    def __init__(self, num_gpus, cluster, variables_on='spread'):
        """
        Args:
          num_gpus: number of towers on each machine: its first GPUs, or logical CPU devices if TensorFlow sees no GPU.
          cluster: the Cluster of machines.
          variables_on: 'spread' places variables evenly, by size, on all machines; 'chief' places them all on task 0.

        Raises:
          UserError: this machine has GPUs, but fewer than num_gpus.
        """
        kind, gpus = runtime.device_kind(), len(runtime.gpus())
        if gpus and num_gpus > gpus:
            raise UserError('--num_gpus=%d, but TensorFlow sees only %d GPU%s here: give at most that many.' % (
                num_gpus, gpus, 's' if gpus > 1 else ''))
        self.cluster, job = cluster, cluster.job
        self._chief = '/job:%s/task:0' % job
        self._variables = '/job:%s/device:%s:0' % (job, kind)
        self._tasks = cluster.tasks if variables_on == 'spread' else 1
        self._bytes = [0] * self._tasks  # of the variables on each task
        self.devices = ['/job:%s/task:%d/device:%s:%d' % (job, task, kind, index)
                        for task in range(cluster.tasks) for index in range(num_gpus)]

    def check_batch(self, batch_size):
        """Raises UserError if a batch cannot be divided evenly among the towers; the message gives valid sizes."""
        towers = len(self.devices)
        if batch_size % towers:
            lower = batch_size // towers * towers
            raise UserError('--batch_size=%d is not divisible by the number of towers, %d: give %s%d.' % (
                batch_size, towers, '%d or ' % lower if lower else '', lower + towers))

    def check_devices(self, sess, devices=None):
        """Raises UserError if a machine of a session lacks one of the devices (by default, those of all towers)."""
        # If list_devices were the session's first call, it would wait for the machines while holding Python's global
        # interpreter lock, so no other thread could run.
        with sess.graph.as_default():
            sess.run(tf.no_op())
        found = {device.name.replace('/replica:0', '') for device in sess.list_devices()}
        for device in devices or (self.devices if self._placed() else ()):
            if device not in found:
                task, kind, index = re.search(r'task:(\d+)/device:(.*):(\d+)', device).groups()
                raise UserError('%s has no %s:%s: use the same --num_gpus on all machines, either all with GPUs or all '
                                'without.' % (
                    self.cluster.name(int(task)), kind, index))

    def chief(self):
        """Returns a context that places ops on the first machine, for ops that belong to no tower and no variable."""
        return tf.device(self._chief) if self._placed() else tf.device(None)

    def split(self, batch):
        """Splits a batch [N, ...]; returns a list with (context for the tower's device, part [n, ...]) per tower."""
        count = len(self.devices)
        parts = tf.split(batch, count) if count > 1 else [batch]
        return [(self._on(device), part) for device, part in zip(self.devices, parts)]

    def _placed(self):
        """Returns whether ops are placed explicitly; with a single device, TensorFlow places them."""
        return len(self.devices) > 1

    def _on(self, device):
        if not self._placed():
            return tf.device(None)
        return tf.device(tf.train.replica_device_setter(
            ps_tasks=self._tasks, ps_device=self._variables, worker_device=device, ps_strategy=self._least_loaded))

    def _least_loaded(self, op):
        """Returns the task with the fewest bytes of variables so far, and adds the bytes of a VarHandleOp to it."""
        task = self._bytes.index(min(self._bytes))
        shape = tf.TensorShape(op.get_attr('shape'))
        self._bytes[task] += shape.num_elements() * op.get_attr('dtype').size
        return task


def joined(parts):
    """Concatenates the outputs of the towers.

    Args:
      parts: a list with the list of outputs [n, ...] of each tower.

    Returns:
      a list of outputs [N, ...] for the whole batch.
    """
    return [tf.concat(towers, axis=0) if len(towers) > 1 else towers[0] for towers in zip(*parts)]


def gradients(loss, variables, parts=()):
    """Returns the gradients of a loss with respect to variables; each tower computes its part on its own device.

    The loss, a scalar on the first machine, may be any function of the towers' outputs. Its gradient with respect to
    the outputs is sent to the towers, and each tower computes its part of the variables' gradients. The parts are
    summed on the device of each variable. A single call of tf.gradients would sum them with AddN, in varying order; see
    layers.ordered_sum.

    Args:
      loss: a scalar tensor.
      variables: a list of variables.
      parts: a list with the list of outputs [n, ...] of each tower.

    Returns:
      a list of tensors, in the order of the variables.

    Raises:
      ValueError: there are several towers, and the loss depends on a variable other than through their outputs. That
        part of the gradient would be missing.
    """
    if len(parts) < 2:
        return tf.gradients(loss, variables)
    outputs = [output for part in parts for output in part]
    others = tf.gradients(loss, variables, stop_gradients=outputs)
    direct = [variable.op.name for variable, other in zip(variables, others) if other is not None]
    if direct:
        raise ValueError('the loss depends on %s other than through the outputs of the towers: compute everything that '
                         'the loss uses on the towers and return it' % direct[0])
    # These must be partial derivatives, as outputs of a tower may depend on each other. For example, fused logits
    # depend on the logits of each scale.
    outer = iter(tf.gradients(loss, outputs, stop_gradients=outputs))
    found = []
    for part in parts:
        pairs = [(output, gradient) for output, gradient in zip(part, outer) if gradient is not None]
        found.append(tf.gradients([output for output, _ in pairs], variables, [gradient for _, gradient in pairs],
                                  colocate_gradients_with_ops=True))
    sums = []
    for variable, terms in zip(variables, zip(*found)):
        with tf.colocate_with(variable.op):
            sums.append(layers.ordered_sum(terms))
    return sums
