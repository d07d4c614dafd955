"""What the iterations of one update add up: gradients, and the moves of batch norm's averages, kept aside till then."""

import tensorflow.compat.v1 as tf


def zeros_beside(variables, name):
    """A local variable of zeros on each one's device, zero again once its initializer has run."""
    beside = []
    for variable in variables:
        with tf.colocate_with(variable.op):
            beside.append(tf.get_variable(
                '%s/%s' % (variable.op.name, name), variable.shape, initializer=tf.initializers.zeros(),
                trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES], use_resource=True))
    return beside


def zeroed(variables):
    """Ops that set variables to zero."""
    return [tf.assign(variable, tf.zeros_like(variable)) for variable in variables]


def move_averages(statistics, decay):
    """Ops that move averages towards what a batch has: average -= (average - seen) * (1 - decay).

    Args:
      statistics: [(variable of an average, tensor of what was seen)].
    """
    return [tf.assign_sub(average, (average - seen) * (1 - decay)) for average, seen in statistics]


def collect(variables, gradients, statistics, settings):
    """Keeps the gradients and the averages' moves of several iterations beside their variables, which stay as they are.

    So the averages, like the weights, are those of whole updates, wherever a run is stopped.

    Args:
      variables, gradients: lists of one length.
      statistics: as move_averages.
      settings: an optimizer.Settings.

    Returns:
      (ops of an iteration; the mean gradients, tensors; ops that move the averages, once a step; the local variables
      to be zeroed after it).
    """
    sums = zeros_beside(variables, 'gradient_sum')
    averages = [average for average, _ in statistics]
    moves = zeros_beside(averages, 'move')
    ops = [tf.assign_add(s, g / settings.grad_update_every) for s, g in zip(sums, gradients)]
    ops += [tf.assign_sub(move, (average + move - seen) * (1 - settings.bn_decay))
            for move, (average, seen) in zip(moves, statistics)]
    applied = [tf.assign_add(average, move.read_value()) for average, move in zip(averages, moves)]
    return ops, [s.read_value() for s in sums], applied, sums + moves
