"""The update of the weights: learning rate schedules, optimizers, weight decay and gradient accumulation."""

import dataclasses
import math
import typing

import tensorflow.compat.v1 as tf

from utils.system.errors import UserError
from utils.training import losses

# Learning rate -----------------------------------------------------------------------------------------------------
#
# Each schedule takes a step, from 0 to num_steps, and an object with the flags as attributes. It returns the factor by
# which --learning_rate is multiplied.

def poly(step, conf):
    """Returns (1 - step / num_steps) ** power (DeepLab v2, section 4.1)."""
    return (1.0 - step / float(conf.num_steps)) ** conf.power


def cosine(step, conf):
    """Returns (1 + cos(pi * step / num_steps)) / 2 (Loshchilov and Hutter 2017, equation 5, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * step / conf.num_steps))


def staircase(step, conf):
    """Returns step_factor ** floor(step / step_size), Caffe's 'step' policy."""
    return conf.step_factor ** (step // conf.step_size)


SCHEDULES = {
    'poly': poly,
    'cosine': cosine,
    'step': staircase,
}


def learning_rate(step, conf):
    """Returns the encoder's learning rate in a step, following --schedule with a linear warm-up over --warmup_steps.

    The last step, num_steps, only reports the losses of the final weights, so its learning rate is 0 for all schedules.
    """
    if step >= conf.num_steps:
        return 0.0
    rate = conf.learning_rate * SCHEDULES[conf.schedule](step, conf)
    return rate * (step + 1) / conf.warmup_steps if step < conf.warmup_steps else rate


# Optimizers --------------------------------------------------------------------------------------------------------
#
# Each takes a learning rate (a scalar tensor) and an object with the flags as attributes, and returns a
# tf.train.Optimizer. Checkpoints contain all variables of the optimizer, whatever their names.

def momentum(rate, conf):
    """Returns SGD with momentum: v = momentum * v + gradient, variable -= rate * v."""
    return tf.train.MomentumOptimizer(rate, conf.momentum)


def adam(rate, conf):
    """Returns Adam (Kingma and Ba 2015); --momentum is beta1, the decay rate of the first moment.

    Raises:
      UserError: --momentum is 1, but Adam divides by 1 - beta1.
    """
    if conf.momentum >= 1:
        raise UserError('--momentum=%g: give a number below 1 with --optimizer=%s.' % (conf.momentum, conf.optimizer))
    return tf.train.AdamOptimizer(rate, beta1=conf.momentum)


OPTIMIZERS = {
    'momentum': momentum,
    'adamw': adam,
}
# Optimizers with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2): the decay is not part of the
# gradient, but is multiplied by the learning rate and subtracted from the weights.
DECOUPLED_DECAY = ('adamw',)


# The update --------------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Update:
    """The ops of an update: run `accumulate` grad_update_every times, then `apply` once."""
    accumulate: typing.Optional[tf.Operation]  # adds gradients to local variables; None if grad_update_every is 1
    apply: tf.Operation
    state: list  # the variables of the optimizers, which checkpoints must contain


def rate_groups(net, conf):
    """Returns the network's trainable variables as a list of (variables, factor of their learning rate).

    The decoder's weights and biases have the factors in --decoder_rate. With --freeze_encoder, only they are trained.
    """
    weights_factor, biases_factor = conf.decoder_rate
    groups = net.rate_groups()
    found = [(groups['decoder_weights'], weights_factor), (groups['decoder_biases'], biases_factor)]
    return found if conf.freeze_encoder else [(groups['encoder'], 1.0)] + found


def build_update(groups, gradients, rate, conf, statistics=(), loss_scale=1.0):
    """Builds the ops that update the weights and the moving averages of batch norm.

    Args:
      groups: a list of (variables, factor of their learning rate); each group has its own optimizer.
      gradients: the gradients of the loss without weight decay, times loss_scale, in the order of the variables.
      rate: the learning rate, a scalar tensor.
      conf: an object with the flags as attributes.
      statistics: for trained batch norm, a list of (variable of a moving average, tensor: value of the batch).
      loss_scale: a factor other than 1 in float16, so that small gradients do not underflow. Large gradients overflow
        occasionally, so if the factor is not 1, an update is applied only if all gradients are finite.

    Returns:
      an Update.
    """
    variables = [v for members, _ in groups for v in members]
    if loss_scale != 1.0:
        gradients = [gradient / loss_scale for gradient in gradients]

    # With several iterations per update, gradients and changes of batch norm's averages are accumulated in separate
    # variables. Thus weights and averages always result from complete updates, no matter when a run is stopped.
    averages = [average for average, _ in statistics]
    if conf.grad_update_every > 1:
        sums, moves = local_zeros(variables, 'gradient_sum'), local_zeros(averages, 'move')
        accumulate = tf.group(
            *[tf.assign_add(s, g / conf.grad_update_every) for s, g in zip(sums, gradients)]
            + [tf.assign_sub(move, (average + move - seen) * (1 - conf.bn_decay))
               for move, (average, seen) in zip(moves, statistics)])
        gradients = [s.read_value() for s in sums]
        moved = [tf.assign_add(average, move.read_value()) for average, move in zip(averages, moves)]
    else:
        sums, moves, accumulate = [], [], None
        moved = move_averages(statistics, conf.bn_decay)

    # Here, `gradients` are the gradients of the whole update: summed over the towers, averaged over the iterations,
    # without loss scale and weight decay. This is the place to clip or change them.
    decayed = {v.op.name for v in losses.decayed_variables(variables)}
    decoupled = conf.optimizer in DECOUPLED_DECAY
    final = {v.op.name: add_decay(v, g, conf) if v.op.name in decayed and not decoupled else g
             for v, g in zip(variables, gradients)}
    optimizers = [OPTIMIZERS[conf.optimizer](rate * multiplier, conf) for _, multiplier in groups]

    def apply():
        ops = []
        for optimizer, (members, multiplier) in zip(optimizers, groups):
            shrunk = [tf.assign_sub(v, rate * multiplier * decay_gradient(v, final[v.op.name], conf)) for v in members
                      if v.op.name in decayed and decoupled]
            # Leave the name scope of tf.cond, which would become a part of the names of the optimizer's variables.
            with tf.control_dependencies(shrunk), tf.name_scope(None):
                ops.append(optimizer.apply_gradients([(final[v.op.name], v) for v in members]))
        return tf.group(*ops)

    applied = apply() if loss_scale == 1.0 else if_finite(gradients, apply)
    with tf.control_dependencies([applied] + (moved if sums else [])):
        zeroed = [tf.assign(variable, tf.zeros_like(variable)) for variable in sums + moves]
    state = [v for optimizer in optimizers for v in optimizer.variables()]
    return Update(accumulate, tf.group(*([applied] + moved + zeroed)), state)


def move_averages(statistics, decay):
    """Returns ops that update moving averages: average -= (average - value) * (1 - decay).

    Args:
      statistics: a list of (variable of a moving average, tensor: value of the batch).
      decay: the fraction of the average that is kept.
    """
    return [tf.assign_sub(average, (average - seen) * (1 - decay)) for average, seen in statistics]


def local_zeros(variables, name):
    """Creates a local variable of zeros for each variable, with the same shape and on the same device.

    Local variables are not saved in checkpoints; tf.local_variables_initializer() sets them to zero.
    """
    zeros = []
    for variable in variables:
        with tf.colocate_with(variable.op):
            zeros.append(tf.get_variable(
                '%s/%s' % (variable.op.name, name), variable.shape, initializer=tf.initializers.zeros(),
                trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES], use_resource=True))
    return zeros


def decay_gradient(variable, gradient, conf):
    """Returns the gradient of losses.weight_decay_loss, computed on the variable's device after `gradient`.

    If weight decay were part of the loss, TensorFlow would first compute its gradients for all weights and keep them
    until the end of the step, which takes as much memory as the weights.
    """
    with tf.colocate_with(variable.op), tf.control_dependencies([gradient]):
        value = variable.read_value()
        return tf.gradients(losses.weight_decay_loss(value, conf.weight_decay), value)[0]


def add_decay(variable, gradient, conf):
    """Returns the gradient plus the gradient of the weight decay."""
    decay = decay_gradient(variable, gradient, conf)
    with tf.colocate_with(variable.op):
        return gradient + decay


def if_finite(gradients, update):
    """Returns an op that runs the op built by update() only if all gradients are finite."""
    finite = tf.reduce_all([tf.reduce_all(tf.is_finite(gradient)) for gradient in gradients])

    def updated():
        with tf.control_dependencies([update()]):
            return tf.constant(True)

    return tf.cond(finite, updated, lambda: tf.constant(False)).op
