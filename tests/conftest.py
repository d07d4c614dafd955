"""Graph-mode TensorFlow for every test, and the settings that a Model takes."""

import os
import signal
import threading
import types

import machine
import pytest

from utils.net.blocks import BLOCKS, resnet_blocks
from utils.system import runtime

runtime.import_tensorflow()

# As a job in the background; its programs are to be interrupted. pytest-xdist's workers have it of their parent.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def settings():
    """A function from changed flags to all flags of main.py at their defaults, as an object with attributes."""
    from absl import flags

    import main  # noqa: F401  defines the flags

    def make(**changed):
        values = {flag.name: flag.default for flag in flags.FLAGS.flags_by_module_dict()['main']}
        values.update(changed)
        return types.SimpleNamespace(**values)

    return make


@pytest.fixture
def full_disk():
    """A context manager in which every file ends at so many bytes: a write beyond is refused, as on a full disk."""
    return machine.full_disk


@pytest.fixture
def narrow(monkeypatch):
    """A 16th of the channels; a function from {encoder_name: units of its blocks} to fewer units."""
    def shrink(units):
        for encoder_name, counts in units.items():
            monkeypatch.setitem(BLOCKS, encoder_name, resnet_blocks(counts, depth=16))

    shrink({encoder_name: [block.units for block in blocks] for encoder_name, blocks in BLOCKS.items()})
    return shrink
