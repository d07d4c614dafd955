"""Graph-mode TensorFlow for every test, and the settings that a Model takes."""

import os
import types

import pytest

from utils import runtime

runtime.prepare()

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
