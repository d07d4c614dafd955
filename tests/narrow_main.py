"""Runs main.py or main_msc.py with a 16th of the channels: python tests/narrow_main.py main|main_msc FLAGS."""

import importlib
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from utils.net.blocks import BLOCKS, resnet_blocks  # noqa: E402  once the path is set
from utils.system import command_line  # noqa: E402

UNITS = (0, 0, 1, 1)  # units of each block; tests that resume such a training in their own process use them too

if __name__ == '__main__':
    program = importlib.import_module(sys.argv[1])
    BLOCKS.update((name, resnet_blocks(UNITS, depth=16)) for name in BLOCKS)
    sys.exit(command_line.run(program.main, sys.argv[1:], program.sample_args))
