"""The ResNet encoders as data: their blocks, and the position, names and shape of every convolution."""

import functools
import typing


class Block(typing.NamedTuple):
    """A block of bottleneck units of the same depth and dilation rate."""

    depth: int   # channels of the output, 4 times as many as inside the bottlenecks
    units: int   # number of bottleneck units
    stride: int  # stride of the first unit; the others have stride 1
    rate: int    # dilation rate of the 3x3 convolutions


class Encoder(typing.NamedTuple):
    """A ResNet and the names used in its weights files."""

    units: tuple  # number of bottleneck units in each block
    scopes: typing.Callable  # (stage, unit, index) of `convolutions` -> (scope of the weights, scope of the batch norm)
    family: str   # naming scheme of the decoder's variables: 'caffe' or 'slim'
    keras: str    # name of the published weights in keras.applications


def caffe_scopes(stage, unit, index):
    """Returns the scopes of a convolution in the Caffe model, such as ('res4b22_branch2c', 'bn4b22_branch2c')."""
    if stage == 1:
        return 'conv1', 'bn_conv1'
    if stage in (2, 5):
        letter = chr(ord('a') + unit - 1)
    else:
        letter = 'a' if unit == 1 else 'b%d' % (unit - 1)
    branch = '%d%s_branch%s' % (stage, letter, ('1', '2a', '2b', '2c')[index])
    return 'res' + branch, 'bn' + branch


def slim_scopes(root, stage, unit, index):
    """Returns the scopes of a convolution and its batch norm in TF-slim's model `root`.

    For example, 'resnet_v1_50/block3/unit_2/bottleneck_v1/conv2' and the same followed by '/BatchNorm'.
    """
    if stage == 1:
        scope = root + '/conv1'
    else:
        conv = ('shortcut', 'conv1', 'conv2', 'conv3')[index]
        scope = '%s/block%d/unit_%d/bottleneck_v1/%s' % (root, stage - 1, unit, conv)
    return scope, scope + '/BatchNorm'


def slim(root):
    """Returns slim_scopes for the model `root`, such as 'resnet_v1_50'."""
    return functools.partial(slim_scopes, root)


ENCODERS = {
    'deeplab': Encoder((3, 4, 23, 3), caffe_scopes, 'caffe', 'resnet101'),
    'res152': Encoder((3, 8, 36, 3), slim('resnet_v1_152'), 'slim', 'resnet152'),
    'res101': Encoder((3, 4, 23, 3), slim('resnet_v1_101'), 'slim', 'resnet101'),
    'res50': Encoder((3, 4, 6, 3), slim('resnet_v1_50'), 'slim', 'resnet50'),
}


def resnet_blocks(units, depth=256):
    """Returns the four Blocks of a ResNet at output stride 8, where dilation replaces the last two strides.

    Args:
      units: number of bottleneck units of each block, e.g. (3, 4, 23, 3).
      depth: output channels of the first block; each later block has twice as many as the previous one.
    """
    return [
        Block(depth, units[0], 1, 1),
        Block(2 * depth, units[1], 2, 1),
        Block(4 * depth, units[2], 1, 2),
        Block(8 * depth, units[3], 1, 4),
    ]


BLOCKS = {name: resnet_blocks(encoder.units) for name, encoder in ENCODERS.items()}


def root_depth(blocks):
    """Returns the number of output channels of conv1, a quarter of the depth of the first block."""
    return blocks[0].depth // 4


def depths(blocks):
    """Returns a list of the numbers of channels after pool1 and after each block."""
    found = [root_depth(blocks)]
    for block in blocks:
        found.append(block.depth if block.units else found[-1])  # tests have blocks without a unit
    return found


def convolutions(blocks):
    """Yields (stage, unit, index, kernel shape) of each convolution.

    Stage 1 is conv1 alone; stages 2 to 5 are the blocks. Units are numbered from 1. Index 0 is the shortcut of the
    first unit of a block; 1, 2 and 3 are the convolutions of a bottleneck.
    """
    channels = root_depth(blocks)
    yield 1, 1, 1, (7, 7, 3, channels)
    for stage, block in enumerate(blocks, 2):
        for unit in range(1, block.units + 1):
            if unit == 1:
                yield stage, unit, 0, (1, 1, channels, block.depth)
            yield stage, unit, 1, (1, 1, channels, block.depth // 4)
            yield stage, unit, 2, (3, 3, block.depth // 4, block.depth // 4)
            yield stage, unit, 3, (1, 1, block.depth // 4, block.depth)
            channels = block.depth
