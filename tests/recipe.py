"""Makes the weights, images and labels of the golden arrays, each from a name or a seed alone."""

import zlib

import numpy as np
import tensorflow.compat.v1 as tf

from utils.weights import checkpoints


def value(name, shape, seed=0):
    """Returns a float32 array for the variable `name`: He-scaled weights, batch norm and fix_w near the identity."""
    random = np.random.RandomState((zlib.crc32(name.encode()) + 7919 * seed) & 0x7FFFFFFF)
    leaf = name.rsplit('/', 1)[-1]
    if leaf == 'weights':
        array = random.randn(*shape) * np.sqrt(2.0 / int(np.prod(shape[:-1])))
    elif leaf == 'gamma':
        array = random.uniform(0.3, 0.9, shape)
    elif leaf == 'moving_variance':
        array = random.uniform(0.5, 1.5, shape)
    elif leaf == 'fix_w':
        array = (np.eye(shape[0]) if len(shape) == 2 else 0.0) + random.randn(*shape) * 0.05
    else:
        array = random.randn(*shape) * 0.1
    return array.astype(np.float32)


def image(batch, height, width, seed=0):
    """Returns float32 images [batch, height, width, 3]: noisy 8x8 squares around 0."""
    random = np.random.RandomState(1000 + seed)
    squares = random.uniform(-110, 130, (batch, height // 8 + 2, width // 8 + 2, 3))
    pixels = np.kron(squares, np.ones((1, 8, 8, 1)))[:, :height, :width]
    return (pixels + random.randn(batch, height, width, 3) * 8).astype(np.float32)


def label(batch, height, width, num_classes, seed=0):
    """Returns uint8 labels [batch, height, width, 1]: 8x8 squares of a class or of 255."""
    random = np.random.RandomState(2000 + seed)
    squares = random.randint(0, num_classes + 1, (batch, height // 8 + 2, width // 8 + 2, 1))
    pixels = np.kron(squares, np.ones((1, 8, 8, 1), int))[:, :height, :width]
    return np.where(pixels == num_classes, 255, pixels).astype(np.uint8)


def assign(sess, variables, seed=0):
    """Sets the variables to the values of value(), and everything else in the graph to its initial value."""
    named = {variable.op.name: variable for variable in variables}
    others = [v for v in tf.global_variables() + tf.local_variables() if v.op.name not in named]
    sess.run(tf.variables_initializer(others))
    checkpoints.load_values(sess, named.values(), {
        name: value(name, variable.shape.as_list(), seed) for name, variable in named.items()})


def load(sess, net, seed=0):
    """Sets a network's variables to the values of value(), and everything else in the graph to its initial value.

    If the network's batch norm is folded, so are the values.
    """
    others = [v for v in tf.global_variables() + tf.local_variables() if v not in net.variables]
    sess.run(tf.variables_initializer(others))
    values = {name: value(name, shape, seed) for name, shape in net.shapes.items()}
    checkpoints.load_values(sess, net.variables, net.folded(values))


def relative_error(found, reference):
    """Returns ||found - reference|| / ||reference||."""
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    assert found.shape == reference.shape
    return np.linalg.norm(found - reference) / np.linalg.norm(reference)


def torch_value(name, shape):
    """Returns the array for a name in kazuto1011's state dicts, as in kazuto_deeplab_2x65x65.npz."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    leaf = name.split('.')[-1]
    if leaf == 'num_batches_tracked':
        return np.array(7, np.int64)
    if len(shape) == 4:
        return (random.randn(*shape) * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)
    if leaf == 'running_var':
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if leaf == 'weight':
        return random.uniform(0.3, 0.9, shape).astype(np.float32)
    return (random.randn(*shape) * 0.1).astype(np.float32)
