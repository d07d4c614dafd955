"""DeepLab v2 on three scales: python main_msc.py --option=train|test|predict|export|check.

The flags are those of main.py; by default the gradients of ten single images are averaged for one update. The bundled
sample uses dataset/sample.flags, then dataset/sample_msc.flags.
"""

import functools
import os
import sys

from absl import flags

import main as single_scale
from utils.system import command_line, interrupts

FLAGS = single_scale.FLAGS
FLAGS.set_default('batch_size', 1)
FLAGS.set_default('grad_update_every', 10)
flags.adopt_module_key_flags(single_scale)  # so that --help shows them

SAMPLE_FLAGS = (single_scale.SAMPLE_FLAGS, os.path.join('dataset', 'sample_msc.flags'))
sample_args = functools.partial(single_scale.sample_args, flag_files=SAMPLE_FLAGS)


def main():
    with interrupts.at_once():
        single_scale.prepare()
        from model_msc import Model_msc  # once the environment is set
    single_scale.run_option(Model_msc)


if __name__ == '__main__':
    sys.exit(command_line.run(main, default_args=sample_args))
