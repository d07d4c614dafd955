"""The numerical differences between the original, the paper's Caffe graph and TF-slim, in one table."""

import math
import typing

from utils.system.errors import UserError, quoted

MOST_MEAN = 3.4e38  # TensorFlow's float32


class Input(typing.NamedTuple):
    """The format of the network's input."""

    channel_order: str  # 'bgr' or 'rgb'
    img_mean: tuple     # three floats in that order; they are subtracted from the pixels (0 to 255)


class Numerics(typing.NamedTuple):
    """The settings of one --compat mode."""

    epsilon: float        # of batch norm
    conv1_pad: tuple      # zeros (before, after) added to height and width before conv1; None for SAME padding
    pool1_pad: tuple      # zeros (before, after) added to height and width before pool1; None for SAME padding
    align_corners: bool   # whether logits, labels and multi-scale inputs are resized with aligned corners, and scaled
    #                       sizes are rounded accordingly; for labels of 8k+1 pixels, this equals Caffe's label[::8]
    gaussian_aspp: bool   # whether decoder weights start from N(0, 0.01) and biases at 0; otherwise both from Glorot's
    scales: tuple         # the scales from which random scaling chooses; None for uniform in [0.5, 1.5]
    test_multiple: int    # test images are padded to a multiple of this, plus 1; None for no padding
    input: Input          # the default format of the input


COMPAT = {
    'original': Numerics(
        epsilon=1e-3, conv1_pad=None, pool1_pad=None, align_corners=False, gaussian_aspp=False,
        scales=None, test_multiple=None, input=Input('bgr', (104.00698793, 116.66876762, 122.67891434))),
    # Caffe's pool1 pads by 1 and rounds its output size up. An additional row of zeros at the end has this effect for
    # even sizes and none for odd sizes, as the pooling is VALID. After the ReLU no value is negative, so zeros never
    # change a maximum.
    'caffe': Numerics(
        epsilon=1e-5, conv1_pad=(3, 3), pool1_pad=(1, 2), align_corners=True, gaussian_aspp=True,
        scales=(0.5, 0.75, 1.0, 1.25, 1.5), test_multiple=8, input=Input('bgr', (104.008, 116.669, 122.675))),
    'slim': Numerics(
        epsilon=1e-5, conv1_pad=(3, 3), pool1_pad=None, align_corners=False, gaussian_aspp=False,
        scales=None, test_multiple=None, input=Input('rgb', (123.68, 116.78, 103.94))),
}


def numerics(compat):
    """Returns the Numerics of a --compat mode; raises ValueError for an unknown one."""
    if compat not in COMPAT:
        raise ValueError("compat '%s' is not one of %s" % (compat, ', '.join(sorted(COMPAT))))
    return COMPAT[compat]


def input_from_file(channel_order, img_mean):
    """Returns the Input of a channel order and a mean that a file gives; raises ValueError if they are no such."""
    if channel_order not in ('bgr', 'rgb') or not isinstance(img_mean, (list, tuple)) or len(img_mean) != 3 or not all(
            isinstance(value, (int, float)) and abs(value) <= MOST_MEAN for value in img_mean):  # NaN is refused too
        raise ValueError('its channel_order or img_mean is not valid')
    return Input(channel_order, tuple(map(float, img_mean)))


def input_from_flags(default, channel_order=None, img_mean=None):
    """Returns the Input for the flags --channel_order and --img_mean.

    Args:
      default: the Input of a --compat mode or of a weights file.
      channel_order: 'bgr' or 'rgb'; the default mean is reordered accordingly. None keeps the default order.
      img_mean: three numbers, as text, in the channel order; None keeps the default mean.

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
