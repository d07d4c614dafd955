"""Which numerics weights were made for, as an entry of a TensorFlow checkpoint."""

import json
import math

from utils.net.compat import COMPAT, Input

NAME = 'made_for'  # of a scalar string variable that no network has


def encode(compat, network_input):
    """The entry's text.

    Args:
      compat: a --compat mode or None.
      network_input: an Input or None.
    """
    order, mean = network_input or (None, None)
    return json.dumps({'compat': compat, 'channel_order': order, 'img_mean': mean}, sort_keys=True)


def decode(text):
    """(compat, Input), either of them None if the entry leaves it open; ValueError for what `encode` does not write."""
    entry = json.loads(text)
    try:
        compat, order, mean = entry['compat'], entry['channel_order'], entry['img_mean']
        known = compat is None or compat in COMPAT
        if known and order is None and mean is None:
            return compat, None
        if known and order in ('bgr', 'rgb') and len(mean) == 3 and all(map(math.isfinite, mean)):
            return compat, Input(order, tuple(mean))
    except (LookupError, TypeError, OverflowError):
        pass
    raise ValueError('%s is not understood' % NAME)
