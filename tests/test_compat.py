"""The settings of --compat: what the network gets, and how test images are padded."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from utils.net import compat, layers
from utils.system.errors import UserError


def test_channel_order_turns_the_modes_mean():
    original = compat.numerics('original').input
    rgb = compat.input_from_flags(original, 'rgb')
    assert rgb.channel_order == 'rgb' and rgb.img_mean == original.img_mean[::-1]
    assert compat.input_from_flags(original, 'bgr') == compat.input_from_flags(original) == original
    assert compat.input_from_flags(original, 'rgb', ['1', '2', '3.5']) == compat.Input('rgb', (1, 2, 3.5))


@pytest.mark.parametrize('mean', [['1', '2'], ['1', '2', 'x'], ['1', '2', '3', '4'], ['1', '2', 'nan']])
def test_a_bad_mean_is_reported(mean):
    with pytest.raises(UserError, match='--img_mean'):
        compat.input_from_flags(compat.numerics('caffe').input, None, mean)


def test_unknown_mode_names_the_valid_ones():
    with pytest.raises(ValueError, match='caffe, original, slim'):
        compat.numerics('torch')


@pytest.mark.parametrize('size, wanted', [((65, 65), (65, 65)), ((66, 64), (73, 65)), ((375, 500), (377, 505))])
def test_pad_to_multiple(size, wanted):
    with tf.Graph().as_default(), tf.Session() as sess:
        x = tf.placeholder(tf.float32, [1, None, None, 3])
        found = sess.run(layers.pad_to_multiple(x, 8), {x: np.ones((1,) + size + (3,))})
    assert found.shape == (1,) + wanted + (3,)
    assert found.sum() == size[0] * size[1] * 3 and (found[:, :size[0], :size[1]] == 1).all()
