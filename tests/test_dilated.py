"""Values and gradients of all forms of dilated convolution, against plain numpy."""

import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf

from utils.net import dilated, layers

RANDOM = np.random.RandomState(0)


def numpy_dilated(inputs, kernel, rate):
    """Returns the SAME convolution of [N, h, w, C] with a dilated [k, k, C, D] kernel, tap by tap."""
    reach = rate * (kernel.shape[0] // 2)
    padded = np.pad(inputs, [(0, 0), (reach, reach), (reach, reach), (0, 0)], 'constant')
    height, width = inputs.shape[1:3]
    taps = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
    return sum(np.einsum('nhwc,cd->nhwd', padded[:, i * rate:i * rate + height, j * rate:j * rate + width],
                         kernel[i, j]) for i, j in taps)


def naive_smooth_GI(inputs, kernel, rate, fix_w):
    """Returns out_i = sum_j fix_w[j, i] * group_j, group by group; group (a, b) has the pixels a::rate, b::rate."""
    regular = numpy_dilated(inputs, kernel, rate)
    size = -(-np.array(inputs.shape[1:3]) // rate) * rate
    full = np.zeros((inputs.shape[0],) + tuple(size) + (kernel.shape[3],))
    # Outside the map, a group has the values that its convolution gives on zero padding.
    wide = np.pad(inputs, [(0, 0), (0, size[0] - inputs.shape[1]), (0, size[1] - inputs.shape[2]), (0, 0)], 'constant')
    groups = numpy_dilated(wide, kernel, rate)
    assert np.allclose(groups[:, :inputs.shape[1], :inputs.shape[2]], regular)
    for i in range(rate * rate):
        for j in range(rate * rate):
            full[:, i // rate::rate, i % rate::rate] += fix_w[j, i] * groups[:, j // rate::rate, j % rate::rate]
    return full[:, :inputs.shape[1], :inputs.shape[2]]


def naive_smooth_SSC(inputs, kernel, rate, fix_w):
    shared = fix_w[:, :, 0, 0, 0].copy()
    shared[rate - 1, rate - 1] += 1
    channels = [numpy_dilated(inputs[..., c:c + 1], shared[:, :, None, None], 1) for c in range(inputs.shape[3])]
    return numpy_dilated(np.concatenate(channels, axis=3), kernel, rate)


NAIVE = {
    'regular': lambda inputs, kernel, rate, fix_w: numpy_dilated(inputs, kernel, rate),
    'decompose': lambda inputs, kernel, rate, fix_w: numpy_dilated(inputs, kernel, rate),
    'smooth_GI': naive_smooth_GI,
    'smooth_SSC': naive_smooth_SSC,
}


def make_case(dilated_type, rate, size, batch=2, depth=3):
    inputs = RANDOM.randn(batch, size[0], size[1], depth).astype(np.float32)
    kernel = RANDOM.randn(3, 3, depth, 4).astype(np.float32)
    shape = dilated.lookup(dilated_type)[1]
    fix_w = None if shape is None else recipe.value('fix_w', shape(rate))
    return inputs, kernel, fix_w


@pytest.mark.parametrize('size', [(9, 9), (8, 12), (3, 7)])
@pytest.mark.parametrize('rate', [2, 4])
@pytest.mark.parametrize('dilated_type', sorted(dilated.DILATED_TYPES))
@pytest.mark.parametrize('native', [True, False])
def test_against_numpy(dilated_type, rate, size, native, monkeypatch):
    monkeypatch.setattr(dilated, 'native_gradient_works', lambda: native)
    inputs, kernel, fix_w = make_case(dilated_type, rate, size)
    with tf.Graph().as_default(), tf.Session() as sess:
        x = tf.placeholder(tf.float32, [None, None, None, 3])
        extra = {} if fix_w is None else {'fix_w': tf.constant(fix_w)}
        found = sess.run(dilated.lookup(dilated_type)[0](x, tf.constant(kernel), rate=rate, **extra), {x: inputs})
    assert recipe.relative_error(found, NAIVE[dilated_type](inputs, kernel, rate, fix_w)) <= 1e-5


@pytest.mark.parametrize('rate', [2, 4])
@pytest.mark.parametrize('dilated_type', sorted(dilated.DILATED_TYPES))
def test_gradients_against_finite_differences(dilated_type, rate):
    inputs, kernel, fix_w = make_case(dilated_type, rate, (5, 6))
    arrays = [a for a in (inputs, kernel, fix_w) if a is not None]
    with tf.Graph().as_default(), tf.Session() as sess:
        tensors = [tf.constant(a) for a in arrays]
        outputs = dilated.lookup(dilated_type)[0](tensors[0], tensors[1], rate, *tensors[2:])
        probe = RANDOM.randn(*outputs.shape.as_list())
        gradients = sess.run(tf.gradients(tf.reduce_sum(outputs * tf.constant(probe, tf.float32)), tensors))
    for which, (array, gradient) in enumerate(zip(arrays, gradients)):
        direction = RANDOM.randn(*array.shape)
        ends = []
        for sign in (1, -1):
            moved = [a.astype(np.float64) for a in arrays]
            moved[which] = moved[which] + sign * 1e-4 * direction
            moved += [None] * (3 - len(moved))
            ends.append(np.sum(NAIVE[dilated_type](moved[0], moved[1], rate, moved[2]) * probe))
        assert abs(np.sum(gradient * direction) - (ends[0] - ends[1]) / 2e-4) <= 1e-3 * np.linalg.norm(gradient)


def test_native_and_decomposed_forms_agree_in_gradient(monkeypatch):
    if not dilated.native_gradient_works():
        pytest.skip('this TensorFlow cannot train native dilations on this processor')
    inputs, kernel, _ = make_case('regular', 3, (10, 11))
    results = []
    for native in (True, False):
        monkeypatch.setattr(dilated, 'native_gradient_works', lambda native=native: native)
        with tf.Graph().as_default(), tf.Session() as sess:
            tensors = [tf.constant(inputs), tf.constant(kernel)]
            outputs = dilated.regular(tensors[0], tensors[1], 3)
            results.append(sess.run([outputs] + tf.gradients(tf.reduce_sum(outputs ** 2), tensors)))
    for native, other in zip(*results):
        assert recipe.relative_error(native, other) <= 1e-5


@pytest.mark.parametrize('side,size', [(3, (4, 5)), (7, (9, 6)), (7, (2, 3))])
def test_shared_filter_forms_agree_in_value_and_gradient(side, size):
    inputs, outer = RANDOM.randn(2, 2, size[0], size[1], 3).astype(np.float32)
    shared = RANDOM.randn(side, side).astype(np.float32)
    results = []
    for form in (layers.share_filter, dilated.share_filter_on_cpu):
        with tf.Graph().as_default(), tf.Session() as sess:
            image = tf.placeholder(tf.float32, [None, None, None, 3])  # sizes are not known when the graph is built
            tensors = [image, tf.constant(shared)]
            outputs = form(*tensors)
            results.append(sess.run([outputs] + tf.gradients(outputs, tensors, tf.constant(outer)), {image: inputs}))
    for one, other in zip(*results):
        assert recipe.relative_error(one, other) <= 1e-5


def test_smoothing_starts_as_the_identity():
    inputs, kernel, _ = make_case('regular', 2, (7, 9))
    reference = numpy_dilated(inputs, kernel, 2)
    for dilated_type in ('smooth_GI', 'smooth_SSC'):
        function, shape, start = dilated.lookup(dilated_type)
        with tf.Graph().as_default(), tf.Session() as sess:
            fix_w = tf.get_variable('fix_w', shape(2), initializer=start)
            found = function(tf.constant(inputs), tf.constant(kernel), 2, fix_w)
            sess.run(tf.global_variables_initializer())
            assert recipe.relative_error(sess.run(found), reference) <= 1e-5


def test_unknown_type_names_the_valid_ones():
    with pytest.raises(ValueError, match='decompose, regular, smooth_GI, smooth_SSC'):
        dilated.lookup('dense')
