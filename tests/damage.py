"""Changes bytes of weights files at random places: each file must be read, or reported in a printable sentence."""

import numpy as np

from utils.system.errors import UserError
from utils.weights import pretrained


def count_reported(path, seeds, stride=1, reach=0):
    """Damages a file repeatedly and returns how often that was reported.

    Args:
      path: a py.path of a weights file for res50; it is overwritten.
      seeds: the number of damaged files; each has three bytes changed, at or near lower-case letters of the file.
      stride: uses only every stride-th letter.
      reach: the largest distance of a changed byte from its letter.
    """
    content = np.frombuffer(path.read_binary(), np.uint8)
    places = np.flatnonzero((content > 96) & (content < 123))[::stride]
    reported = 0
    for seed in range(seeds):
        rng = np.random.RandomState(seed)
        damaged = content.copy()
        damaged[rng.choice(places, 3) + rng.randint(-reach, reach + 1, 3)] = rng.randint(0, 256, 3)
        path.write_binary(damaged.tobytes())
        try:
            pretrained.open_pretrained(str(path), 'res50')
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) <= 400
            reported += 1
    return reported
