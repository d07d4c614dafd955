"""Counts the floating-point operations of the networks' convolutions; a multiply-add counts as 2."""

from utils.net.blocks import BLOCKS, convolutions

ASPP_BRANCHES = 4


def forward(encoder_name, height, width, num_classes=21):
    """Returns (operations for one image of height x width pixels, operations of its first convolution alone).

    Multiplications with padding are included.
    """
    height, width = (height + 1) // 2, (width + 1) // 2
    total = first = depth = 0
    for stage, unit, index, (kernel, _, channels, depth) in convolutions(
            BLOCKS[encoder_name]):
        if unit == 1 and index == 0 and stage in (2, 3):  # after max pooling; the stride of the second block
            height, width = (height + 1) // 2, (width + 1) // 2
        operations = 2 * kernel * kernel * channels * depth * height * width
        first = first or operations
        total += operations
    return total + ASPP_BRANCHES * 2 * 9 * depth * num_classes * height * width, first


def training(encoder_name, height, width, num_classes=21):
    """Returns the operations of a training step: forward pass and gradients with respect to weights and inputs.

    Each of the three takes as many operations, but the gradient with respect to the image is not computed.
    """
    total, first = forward(encoder_name, height, width, num_classes)
    return 3 * total - first


def mixing(dilated_type, shape, rate):
    """Returns the operations of smoothing a map of shape [N, h, w, C].

    smooth_GI multiplies its groups by a matrix [r*r, r*r]; other types apply a (2r-1)x(2r-1) filter.
    """
    number, height, width, channels = shape
    if dilated_type == 'smooth_GI':
        padded = number * rate * rate * -(-height // rate) * -(-width // rate) * channels
        return 2 * rate * rate * padded
    return 2 * (2 * rate - 1) ** 2 * number * height * width * channels
