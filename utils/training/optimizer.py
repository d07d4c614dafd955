"""Momentum SGD with the poly rate, faster for the decoder, on gradients summed over some iterations."""

import collections

import tensorflow.compat.v1 as tf

# one update is every run of `accumulate`, grad_update_every times, and then one of `apply`
Update = collections.namedtuple('Update', 'accumulate apply slots')

DECODER_WEIGHTS_RATE = 10.0
DECODER_BIASES_RATE = 20.0


def poly(learning_rate, step, num_steps, power):
    """The rate of `step`: learning_rate * (1 - step / num_steps) ** power, 0 at the end (DeepLab v2, section 4.1)."""
    return learning_rate * (1.0 - step / float(num_steps)) ** power


def rate_groups(net):
    """[(variables, multiplier of the rate)]: encoder, decoder weights, decoder biases."""
    weights, biases = zip(*net.decoder_variables)
    decoder = {v.op.name for v in weights + biases}
    trainable = {v.op.name for v in tf.trainable_variables()}
    encoder = [v for v in net.variables if v.op.name in trainable and v.op.name not in decoder]
    return [(encoder, 1.0), (list(weights), DECODER_WEIGHTS_RATE), (list(biases), DECODER_BIASES_RATE)]


def build_update(loss, groups, learning_rate, momentum, grad_update_every=1, update_ops=(), loss_scale=1.0,
                 weight_decay=0.0, decayed=()):
    """Ops that lower the loss and, with weight_decay, half the sum of squares of some variables.

    Args:
      loss: scalar tensor, without the weight decay.
      groups: a list of (variables, multiplier of the rate).
      learning_rate: scalar tensor.
      momentum: of the velocity v = momentum * v + gradient; variable -= rate * v.
      grad_update_every: how many gradients are averaged per update.
      update_ops: ops to run with every gradient (batch norm's averages).
      loss_scale: the gradients are those of the loss times this, divided by it, so that float16 holds small ones.
      weight_decay: the gradients of the variables `decayed` are raised by weight_decay * variable.

    Returns:
      An Update. With grad_update_every 1 the gradient goes straight into `apply` and `accumulate` is None.
    """
    variables = [v for members, _ in groups for v in members]
    if loss_scale == 1.0:
        gradients = tf.gradients(loss, variables)
    else:
        gradients = [gradient / loss_scale for gradient in tf.gradients(loss * loss_scale, variables)]
    accumulate, after = None, []
    if grad_update_every > 1:
        sums = [tf.get_variable(v.op.name + '/gradient_sum', v.shape, initializer=tf.initializers.zeros(),
                                trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES], use_resource=True)
                for v in variables]
        adds = [tf.assign_add(s, g / grad_update_every) for s, g in zip(sums, gradients)]
        accumulate = tf.group(*(adds + list(update_ops)))
        gradients, update_ops, after = [s.read_value() for s in sums], (), sums
    by_variable = dict(zip([v.op.name for v in variables], gradients))
    for v in decayed:
        by_variable[v.op.name] = decay(v, by_variable[v.op.name], weight_decay)
    apply_ops, slots = [], []
    for members, multiplier in groups:
        optimizer = tf.train.MomentumOptimizer(learning_rate * multiplier, momentum)
        apply_ops.append(optimizer.apply_gradients([(by_variable[v.op.name], v) for v in members]))
        slots += [optimizer.get_slot(v, 'momentum') for v in members]
    with tf.control_dependencies(apply_ops):
        zeroed = [tf.assign(s, tf.zeros_like(s)) for s in after]
    return Update(accumulate, tf.group(*(apply_ops + list(update_ops) + zeroed)), slots)


def decay(variable, gradient, weight_decay):
    """gradient + weight_decay * variable."""
    # The product waits for the gradient: in the loss, TensorFlow would compute those of all the weights first and
    # hold them, as much memory as the weights themselves, to the end of the step.
    with tf.control_dependencies([gradient]):
        return gradient + weight_decay * variable.read_value()
