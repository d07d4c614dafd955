"""Sets up graph-mode TensorFlow for every test, and provides the fixtures that several test files use."""

import os
import signal
import threading
import types

import machine
import pytest

from utils.net.blocks import BLOCKS, resnet_blocks
from utils.system import runtime

runtime.import_tensorflow()

# A shell starts background jobs with SIGINT ignored, and the programs that tests interrupt would inherit that.
# pytest-xdist's workers inherit the handler of their parent.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def settings():
    """Returns a function that returns all flags of main.py as attributes: the given ones, others at their defaults."""
    from absl import flags

    import main  # noqa: F401  defines the flags

    def make(**changed):
        values = {flag.name: flag.default for flag in flags.FLAGS.flags_by_module_dict()['main']}
        values.update(changed)
        return types.SimpleNamespace(**values)

    return make


@pytest.fixture
def full_disk():
    """Returns a context manager that simulates a full disk, see machine.full_disk."""
    return machine.full_disk


@pytest.fixture
def narrow(monkeypatch):
    """Narrows all encoders to a 16th of the channels; returns a function that sets {encoder_name: units per block}."""
    def shrink(units):
        for encoder_name, counts in units.items():
            monkeypatch.setitem(BLOCKS, encoder_name, resnet_blocks(counts, depth=16))

    shrink({encoder_name: [block.units for block in blocks] for encoder_name, blocks in BLOCKS.items()})
    return shrink
