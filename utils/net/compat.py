"""Where the original, the paper's Caffe graph and TF-slim compute differently, as one table of settings."""

import math
import typing

from utils.system.errors import UserError, quoted


class Input(typing.NamedTuple):
    """What the network's input is."""

    channel_order: str  # 'bgr' or 'rgb'
    img_mean: tuple     # three floats in that order, subtracted


class Numerics(typing.NamedTuple):
    """The settings of a mode."""

    epsilon: float        # batch norm's epsilon
    conv1_pad: tuple      # (before, after) zeros around the image ahead of conv1, None for SAME
    pool1_pad: tuple      # (before, after) zeros around conv1's map ahead of pool1, None for SAME
    align_corners: bool   # how logits, labels and the multi-scale inputs are resized, and the latter's sizes; for
    #                       labels of 8k+1 pixels it is Caffe's label[::8] (and label[::16] at half the scale)
    gaussian_aspp: bool   # the decoder starts from N(0, 0.01) and zero biases, or from Glorot's uniform for both
    scales: tuple         # the random scales to choose from, None for uniform in [0.5, 1.5]
    test_multiple: int    # test images are padded to a multiple of this plus 1, None for as they are
    input: Input


COMPAT = {
    'original': Numerics(
        epsilon=1e-3, conv1_pad=None, pool1_pad=None, align_corners=False, gaussian_aspp=False,
        scales=None, test_multiple=None, input=Input('bgr', (104.00698793, 116.66876762, 122.67891434))),
    # pool1 pads 1 and rounds its size up: one more row of zeros below does that for even sizes and, as the
    # window is then VALID, nothing for odd ones. The map is not negative there, so zeros never win.
    'caffe': Numerics(
        epsilon=1e-5, conv1_pad=(3, 3), pool1_pad=(1, 2), align_corners=True, gaussian_aspp=True,
        scales=(0.5, 0.75, 1.0, 1.25, 1.5), test_multiple=8, input=Input('bgr', (104.008, 116.669, 122.675))),
    'slim': Numerics(
        epsilon=1e-5, conv1_pad=(3, 3), pool1_pad=None, align_corners=False, gaussian_aspp=False,
        scales=None, test_multiple=None, input=Input('rgb', (123.68, 116.78, 103.94))),
}


def numerics(compat):
    """The Numerics of a mode; ValueError with the valid names for an unknown one."""
    if compat not in COMPAT:
        raise ValueError("compat '%s' is not one of %s" % (compat, ', '.join(sorted(COMPAT))))
    return COMPAT[compat]


def chosen_input(default, channel_order=None, img_mean=None):
    """The Input that flags choose.

    Args:
      default: the Input of a mode or of a weights file.
      channel_order: 'bgr' or 'rgb'; the default's mean follows it. None keeps the default's.
      img_mean: three numbers in the channel order, or None for the default's.

    Raises:
      UserError: img_mean is not three finite numbers.
    """
    if channel_order and channel_order != default.channel_order:
        default = Input(channel_order, default.img_mean[::-1])
    if img_mean:
        try:
            mean = tuple(float(value) for value in img_mean)
        except ValueError:
            mean = ()
        if len(mean) != 3 or not all(map(math.isfinite, mean)):
            raise UserError('--img_mean=%s: give three numbers, such as 104,117,123.' % quoted(','.join(img_mean)))
        default = default._replace(img_mean=mean)
    return default
