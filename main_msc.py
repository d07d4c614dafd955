"""Trains, tests or predicts with DeepLab v2 on three scales: python main_msc.py --option=train|test|predict.

The flags are those of main.py; by default the gradients of ten single images make one update.
"""

import sys

from main import FLAGS, sample_args
from utils.system import command_line, runtime

FLAGS.set_default('batch_size', 1)
FLAGS.set_default('grad_update_every', 10)


def main():
    runtime.prepare(FLAGS.xla)
    from model_msc import Model_msc  # once the environment is set
    getattr(Model_msc(FLAGS), FLAGS.option)()


if __name__ == '__main__':
    sys.exit(command_line.run(main, default_args=sample_args))
