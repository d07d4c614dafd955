"""Overlapping windows of an image: where they lie, and their scores blended into those of the whole image."""

import collections

import numpy as np

# How windows lie along one side of an image. starts: their first pixels; weights: float32 [length] of each, which
# wherever they overlap add up to 1.
Side = collections.namedtuple('Side', 'starts weights')


def starts(size, length, overlap):
    """First pixels of as few windows as cover a side, evenly spread, neighbours sharing `overlap` of one or more.

    Args:
      size: pixels of the side.
      length: pixels of a window, at most size.
      overlap: a fraction below 1.
    """
    step = max(1, int(length * (1 - overlap)))
    gaps = -(-(size - length) // step)
    return [i * (size - length) // max(gaps, 1) for i in range(gaps + 1)]


def side(size, length, overlap):
    """The Side of `size` pixels under windows of `length`.

    A window counts most in its middle, where the network sees most around a pixel, and next to nothing at its ends:
    sin^2(pi * (x + 1/2) / length), over the sum of all windows there. It depends on the place in the window alone.
    """
    places = starts(size, length, overlap)
    bell = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
    total = np.zeros(size)
    for start in places:
        total[start:start + length] += bell
    return Side(places, [(bell / total[start:start + length]).astype(np.float32) for start in places])


def number(size, window, overlap):
    """How many windows (h, w) an image of (H, W) is covered by."""
    return len(starts(size[0], window[0], overlap)) * len(starts(size[1], window[1], overlap))


def blended(score, image, window, overlap):
    """The scores of an image by those of its windows, from the top to the bottom.

    No more rows are held than a window has: the sum of the weights is known beforehand, so the rows above the next
    windows are finished.

    Args:
      score: a function from pixels [h, w, 3] to their scores, float32 [h, w, num_classes].
      image: [H, W, 3].
      window: (h, w), at most (H, W).
      overlap: the fraction of a window that neighbours share at least, below 1.

    Yields:
      float32 [n, W, num_classes], the scores of the next n rows, valid until the next ones are asked for.
    """
    height, width = window
    rows, columns = side(image.shape[0], height, overlap), side(image.shape[1], width, overlap)
    band = None  # [h, W, num_classes]
    for top, weights_y, below in zip(rows.starts, rows.weights, rows.starts[1:] + [image.shape[0]]):
        for left, weights_x in zip(columns.starts, columns.weights):
            scores = score(image[top:top + height, left:left + width])
            if band is None:
                band = np.zeros([height, image.shape[1], scores.shape[2]], np.float32)
            band[:, left:left + width] += scores * (weights_y[:, np.newaxis] * weights_x)[:, :, np.newaxis]
        finished = below - top
        yield band[:finished]
        band[:height - finished] = band[finished:]
        band[height - finished:] = 0
