"""The plain reference forms for the benchmarks: network, reader and colouring as in the original.

They use atrous_conv2d for dilated convolutions, a separate op for batch norm, and a copy of the network for every
scale, all with TensorFlow's default ops. The variables have the same names and shapes as in the product.
"""

import collections
import contextlib

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from utils.net.blocks import BLOCKS, ENCODERS, convolutions
from utils.net.decoders import ASPP
from utils.weights import weight_names

EPSILON = 1e-3
RATES = {4: 2, 5: 4}  # of the 3x3 convolutions of a stage
ASPP_RATES = (6, 12, 18, 24)
SCALES = (0.75, 0.5)
WEIGHT_DECAY = 0.0005
MOMENTUM = 0.9
GRAD_UPDATE_EVERY = 10

# losses: {tag: tensor}; accumulate: the op of every iteration, or None if `apply` does everything; apply: the op of
# every update; rate: the placeholder of the learning rate.
Training = collections.namedtuple('Training', 'losses accumulate apply rate')


# ---- the network ----

def network(images, encoder_name, num_classes):
    """Returns the logits [N, h/8, w/8, num_classes] for images [N, h, w, 3]; all calls share the same weights."""
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        return decode(encode(images, encoder_name), encoder_name, num_classes)


def encode(images, encoder_name):
    """Applies a ResNet of bottleneck units, version 1, with output stride 8: [N, H, W, 3] -> [N, H/8, W/8, 2048]."""
    net = shortcut = branch = images
    for stage, unit, index, shape in convolutions(BLOCKS[encoder_name]):
        names = weight_names.conv_scopes(encoder_name, stage, unit, index)
        stride = 2 if (stage, unit) == (3, 1) and index < 2 else 1
        if stage == 1:
            net = tf.nn.relu(conv_bn(images, names, shape, stride=2))
            net = tf.nn.max_pool(net, [1, 3, 3, 1], [1, 2, 2, 1], 'SAME')
        elif index == 0:
            shortcut = conv_bn(net, names, shape, stride)
        elif index == 1:
            shortcut = shortcut if unit == 1 else net
            branch = tf.nn.relu(conv_bn(net, names, shape, stride))
        elif index == 2:
            branch = tf.nn.relu(conv_bn(branch, names, shape, rate=RATES.get(stage, 1)))
        else:
            net = tf.nn.relu(conv_bn(branch, names, shape) + shortcut)
    return net


def decode(encoding, encoder_name, num_classes):
    """Returns the sum of four dilated convolutions with biases: [N, h, w, 2048] -> [N, h, w, num_classes]."""
    branches = []
    for scope, rate in zip(ASPP.SCOPES[ENCODERS[encoder_name].family], ASPP_RATES):
        outputs = conv2d(encoding, scope, [3, 3, encoding.shape[3], num_classes], rate=rate)
        biases = tf.get_variable(scope + '/biases', [num_classes], initializer=tf.initializers.zeros())
        branches.append(tf.nn.bias_add(outputs, biases))
    return tf.add_n(branches)


def conv2d(inputs, scope, shape, stride=1, rate=1):
    weights = tf.get_variable(scope + '/weights', shape)
    if rate > 1:
        return tf.nn.atrous_conv2d(inputs, weights, rate, padding='SAME')
    return tf.nn.conv2d(inputs, weights, strides=[1, stride, stride, 1], padding='SAME')


def conv_bn(inputs, names, shape, stride=1, rate=1):
    outputs = conv2d(inputs, names[0], shape, stride, rate)
    starts = zip(weight_names.BATCH_NORM, (1.0, 0.0, 0.0, 1.0))
    gamma, beta, mean, variance = [
        tf.get_variable(names[1] + '/' + leaf, shape[3:], initializer=tf.initializers.constant(start), trainable=False)
        for leaf, start in starts]
    return tf.nn.fused_batch_norm(outputs, gamma, beta, mean, variance, epsilon=EPSILON, is_training=False)[0]


# ---- training and inference ----

def all_logits(images, encoder_name, num_classes, multi_scale):
    """Returns [logits], or with multi_scale [fused, scale 1.0, 0.75, 0.5]; predictions use the first."""
    full = network(images, encoder_name, num_classes)
    if not multi_scale:
        return [full]
    scaled = [full]
    for scale in SCALES:
        size = tf.cast(tf.cast(tf.shape(images)[1:3], tf.float32) * scale, tf.int32)
        scaled.append(network(tf.image.resize_bilinear(images, size), encoder_name, num_classes))
    resized = [tf.image.resize_bilinear(logits, tf.shape(full)[1:3]) for logits in scaled[1:]]
    return [tf.reduce_max(tf.stack([full] + resized), axis=0)] + scaled


def inference(images, encoder_name, num_classes=21, multi_scale=False):
    """Returns the class indices [N, H, W] for images [N, H, W, 3]."""
    logits = all_logits(images, encoder_name, num_classes, multi_scale)[0]
    return tf.argmax(tf.image.resize_bilinear(logits, tf.shape(images)[1:3]), axis=3)


def cross_entropy(logits, labels, num_classes):
    """Returns the mean over the valid pixels: [N, h, w, num_classes], [N, H, W, 1] -> scalar."""
    small = tf.image.resize_nearest_neighbor(labels, tf.shape(logits)[1:3])
    small = tf.reshape(small, [-1])
    valid = tf.squeeze(tf.where(tf.less(small, num_classes)), 1)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.cast(tf.gather(small, valid), tf.int32),
        logits=tf.gather(tf.reshape(logits, [-1, num_classes]), valid)))


def training(images, labels, encoder_name, num_classes=21, multi_scale=False, grad_update_every=1):
    """Returns the Training (losses and ops) for images [N, H, W, 3] and labels [N, H, W, 1]."""
    entropy = tf.add_n([cross_entropy(logits, labels, num_classes)
                        for logits in all_logits(images, encoder_name, num_classes, multi_scale)])
    variables = tf.trainable_variables()
    decay = tf.add_n([WEIGHT_DECAY * tf.nn.l2_loss(v) for v in variables if v.op.name.endswith('/weights')])
    rate = tf.placeholder(tf.float32, [])
    gradients, accumulate, zero = tf.gradients(entropy + decay, variables), None, tf.no_op()
    if grad_update_every > 1:
        sums = [tf.Variable(tf.zeros(v.shape), trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES])
                for v in variables]
        accumulate = tf.group(*[tf.assign_add(s, g) for s, g in zip(sums, gradients)])
        gradients = [s / grad_update_every for s in sums]
    apply = momentum_update(variables, gradients, rate, ASPP.SCOPES[ENCODERS[encoder_name].family])
    if accumulate is not None:
        with tf.control_dependencies([apply]):
            zero = tf.group(*[tf.assign(s, tf.zeros(s.shape)) for s in sums])
    losses = {'loss/cross_entropy': entropy, 'loss/l2': decay, 'loss/total': entropy + decay}
    return Training(losses, accumulate, tf.group(apply, zero), rate)


def momentum_update(variables, gradients, rate, decoder_scopes):
    """Returns the op of an update with separate optimizers for the encoder, the decoder's weights and its biases."""
    groups = {1.0: [], 10.0: [], 20.0: []}
    for variable, gradient in zip(variables, gradients):
        scope, leaf = variable.op.name.rsplit('/', 1)
        multiplier = 1.0 if scope not in decoder_scopes else 20.0 if leaf == 'biases' else 10.0
        groups[multiplier].append((gradient, variable))
    return tf.group(*[tf.train.MomentumOptimizer(rate * multiplier, MOMENTUM).apply_gradients(pairs)
                      for multiplier, pairs in groups.items()])


# ---- smoothing, without the dilated convolution ----

def mix_groups(groups, fix_w):
    """Computes out_i = sum_j fix_w[j, i] * group_j with one op for each product and sum: [r*r*N, h, w, C] -> the same.
    """
    number = int(fix_w.shape[0])
    parts, mixed = tf.split(groups, number), []
    for i in range(number):
        total = fix_w[0, i] * parts[0]
        for j in range(1, number):
            total += fix_w[j, i] * parts[j]
        mixed.append(total)
    return tf.concat(mixed, axis=0)


def share_filter(inputs, rate, fix_w):
    """Applies one filter to all channels by a conv3d, with the channels as depth: [N, h, w, C] -> [N, h, w, C].

    fix_w is [2r-1, 2r-1, 1, 1, 1]; 1 is added at its centre.
    """
    side = 2 * rate - 1
    centre = np.zeros([side, side, 1, 1, 1], np.float32)
    centre[rate - 1, rate - 1] = 1
    return tf.nn.conv3d(inputs[..., tf.newaxis], fix_w + centre, strides=[1] * 5, padding='SAME')[..., 0]


# ---- data ----

def training_batch(images, labels, img_mean, batch_size, input_size, ignore_label=255):
    """Reads random crops of JPEGs and PNGs in one thread; returns float32 [N, h, w, 3] and int32 [N, h, w, 1]."""
    image_path, label_path = tf.train.slice_input_producer([images, labels], shuffle=True)
    image = tf.cast(tf.image.decode_jpeg(tf.read_file(image_path), channels=3), tf.float32)
    red, green, blue = tf.split(image, 3, axis=2)
    image = tf.concat([blue, green, red], axis=2) - tf.constant(img_mean, tf.float32)
    label = tf.image.decode_png(tf.read_file(label_path), channels=1)
    image, label = scale_and_mirror(image, label)
    image, label = crop(image, tf.cast(label, tf.float32), input_size, ignore_label)
    return tf.train.batch([image, tf.cast(label, tf.int32)], batch_size, num_threads=1)


def scale_and_mirror(image, label):
    size = tf.cast(tf.cast(tf.shape(image)[:2], tf.float32) * tf.random_uniform([], 0.5, 1.5), tf.int32)
    image = tf.image.resize_bilinear(image[tf.newaxis], size)[0]
    label = tf.image.resize_nearest_neighbor(label[tf.newaxis], size)[0]
    axes = tf.boolean_mask([0, 1, 2], tf.stack([False, tf.random_uniform([]) < 0.5, False]))
    return tf.reverse(image, axes), tf.reverse(label, axes)


def crop(image, label, input_size, ignore_label):
    """Pads the whole image and label, concatenates them and takes a random crop [h, w]."""
    missing = tf.maximum(tf.constant(input_size) - tf.shape(image)[:2], 0)
    pad = tf.stack([[0, missing[0]], [0, missing[1]], [0, 0]])
    joined = tf.concat([tf.pad(image, pad), tf.pad(label, pad, constant_values=ignore_label)], axis=2)
    joined = tf.random_crop(joined, list(input_size) + [4])
    return joined[:, :, :3], joined[:, :, 3:]


@contextlib.contextmanager
def running(sess):
    """Runs the thread of the queue within a `with` block."""
    coord = tf.train.Coordinator()
    threads = tf.train.start_queue_runners(sess, coord)
    yield
    coord.request_stop()
    coord.join(threads, stop_grace_period_secs=10, ignore_live_threads=True)


def decode_labels(mask, colours):
    """Converts a mask [h, w] to colours, uint8 [h, w, 3], pixel by pixel; values without a colour become black."""
    height, width = mask.shape
    picture = Image.new('RGB', (width, height))
    pixels = picture.load()
    table = [tuple(int(value) for value in colour) for colour in colours]
    for y, row in enumerate(mask):
        for x, index in enumerate(row):
            if index < len(table):
                pixels[x, y] = table[index]
    return np.array(picture)
