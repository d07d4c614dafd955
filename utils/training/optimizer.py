"""Momentum SGD with the poly rate, faster for the decoder, on gradients summed over some iterations."""

import collections

import tensorflow.compat.v1 as tf

from utils.training import accumulation, towers

# momentum: of the velocity v = momentum * v + gradient; variable -= rate * v.
# grad_update_every: how many gradients are averaged for one update.
# weight_decay: the gradient of a variable that decays is raised by weight_decay * variable.
# loss_scale: gradients are those of the loss times this, divided by it, so that float16 holds small ones.
# bn_decay: of batch norm's moving averages.
Settings = collections.namedtuple('Settings', 'momentum grad_update_every weight_decay loss_scale bn_decay')
Settings.__new__.__defaults__ = (1, 0.0, 1.0, 0.9)

# One update is `accumulate`, run grad_update_every times, and then `apply`; with grad_update_every 1 `accumulate` is
# None. slots: the variables of the momentum. What accumulates is in local variables, to be initialised.
Update = collections.namedtuple('Update', 'accumulate apply slots')

DECODER_RATES = (10.0, 20.0)  # of the decoder's weights and biases, times the encoder's


def poly(learning_rate, step, num_steps, power):
    """The rate of `step`: learning_rate * (1 - step / num_steps) ** power, 0 at the end (DeepLab v2, section 4.1)."""
    return learning_rate * (1.0 - step / float(num_steps)) ** power


def rate_groups(net, decoder_rates=DECODER_RATES, freeze_encoder=False):
    """[(variables, multiplier of the rate)]: encoder, unless it is frozen, decoder weights, decoder biases."""
    groups = net.rate_groups()
    decoder = [(groups['decoder_weights'], decoder_rates[0]), (groups['decoder_biases'], decoder_rates[1])]
    return decoder if freeze_encoder else [(groups['encoder'], 1.0)] + decoder


def build_update(loss, groups, learning_rate, settings, statistics=(), decayed=()):
    """Ops that lower the loss and, with weight_decay, half the sum of squares of some variables.

    Args:
      loss: a towers.Loss, without the weight decay.
      groups: a list of (variables, multiplier of the rate).
      learning_rate: scalar tensor.
      settings: a Settings.
      statistics: [(variable of a moving average, tensor of what it moves to)], for batch norm.
      decayed: the variables that decay.

    Returns:
      An Update.
    """
    variables = [v for members, _ in groups for v in members]
    gradients = scaled_gradients(loss, variables, settings.loss_scale)
    if settings.grad_update_every > 1:
        ops, gradients, moves, kept = accumulation.collect(variables, gradients, statistics, settings)
        accumulate = tf.group(*ops)
    else:
        accumulate, moves, kept = None, accumulation.move_averages(statistics, settings.bn_decay), []
    by_variable = dict(zip([v.op.name for v in variables], gradients))
    for v in decayed:
        if v.op.name not in by_variable:  # of a frozen encoder
            continue
        by_variable[v.op.name] = decay(v, by_variable[v.op.name], settings.weight_decay)
    optimizers = [tf.train.MomentumOptimizer(learning_rate * multiplier, settings.momentum) for _, multiplier in groups]

    def update():
        return tf.group(*[optimizer.apply_gradients([(by_variable[v.op.name], v) for v in members])
                          for optimizer, (members, _) in zip(optimizers, groups)])

    applied = update() if settings.loss_scale == 1.0 else if_finite(gradients, update)
    with tf.control_dependencies([applied] + (moves if kept else [])):
        zeroed = accumulation.zeroed(kept)
    slots = [optimizer.get_slot(v, 'momentum') for optimizer, (members, _) in zip(optimizers, groups) for v in members]
    return Update(accumulate, tf.group(*([applied] + moves + zeroed)), slots)


def if_finite(gradients, update):
    """update()'s op, which runs only if all gradients are finite: in float16 a large one overflows now and then."""
    finite = tf.reduce_all([tf.reduce_all(tf.is_finite(gradient)) for gradient in gradients])

    def updated():
        with tf.control_dependencies([update()]):
            return tf.constant(True)

    return tf.cond(finite, updated, lambda: tf.constant(False)).op


def scaled_gradients(loss, variables, loss_scale):
    """The gradients of a towers.Loss, computed at loss_scale times their size."""
    if loss_scale == 1.0:
        return towers.gradients(loss, variables)
    scaled = loss._replace(value=loss.value * loss_scale)
    return [gradient / loss_scale for gradient in towers.gradients(scaled, variables)]


def decay(variable, gradient, weight_decay):
    """gradient + weight_decay * variable, on the variable's device."""
    # The product waits for the gradient: in the loss, TensorFlow would compute those of all the weights first and
    # hold them, as much memory as the weights themselves, to the end of the step.
    with tf.colocate_with(variable.op), tf.control_dependencies([gradient]):
        return gradient + weight_decay * variable.read_value()
