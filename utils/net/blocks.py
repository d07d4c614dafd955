"""The ResNets as data: the blocks of each encoder, and the place and shape of every convolution in them."""

import collections

Block = collections.namedtuple('Block', 'depth units stride rate')


def resnet_blocks(units, depth=256):
    """The four blocks of a ResNet at output stride 8: dilation stands in for the last two strides.

    Args:
      units: numbers of bottleneck units, e.g. (3, 4, 23, 3).
      depth: channels of the first block's output; each further block has twice as many.
    """
    return [
        Block(depth, units[0], 1, 1),
        Block(2 * depth, units[1], 2, 1),
        Block(4 * depth, units[2], 1, 2),
        Block(8 * depth, units[3], 1, 4),
    ]


BLOCKS = {
    'deeplab': resnet_blocks((3, 4, 23, 3)),
    'res101': resnet_blocks((3, 4, 23, 3)),
    'res50': resnet_blocks((3, 4, 6, 3)),
}


def root_depth(blocks):
    """Channels of conv1, a quarter of the first block's as in its own bottlenecks."""
    return blocks[0].depth // 4


def convolutions(blocks):
    """Yields (stage, unit, index, kernel shape) of each convolution.

    Stage 1 is conv1 alone, stages 2 to 5 are the blocks; units count from 1; index 0 is the unit's shortcut
    and 1, 2, 3 are its bottleneck convolutions.
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
