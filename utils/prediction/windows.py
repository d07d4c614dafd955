"""Computes the size and positions of overlapping windows of an image, and blends their scores."""

import threading
from typing import List, NamedTuple

import numpy as np
from tqdm import tqdm

from utils.system import memory, runtime

# An upper estimate of the memory that a pass of the network needs per pixel, and per pixel and class. The measured peak
# above the weights, for ResNet-101 at 0.26 to 2 megapixels on both versions of TensorFlow, was 450 to 880 bytes per
# pixel with 21 classes (825 with multi-scale) and 1,420 with 150.
PIXEL_BYTES, CLASS_BYTES = 700, 8
KEPT_BYTES = 4  # per pixel and class: the merged scores of earlier passes
MESSAGE_BYTES = (1 << 31) - (1 << 20)  # the largest tensor that gRPC can send
USED = 0.75  # the fraction of the free memory that may be used, since the need is only estimated
SIDES = (1025, 769, 513, 321)  # of windows, in pixels, largest first


class FreeMemory(object):
    """The free memory before the first image, and the size of windows that fit into it.

    The devices of a machine share its memory and one FreeMemory.
    """

    def __init__(self, num_classes, scales=(1.0,), devices=1, sent=False):
        """
        Args:
          num_classes: channels of the scores.
          scales: of the image, with one pass for each; the largest determines the memory needed.
          devices: number of devices that score an image at the same time.
          sent: whether the scores of an image are sent between machines, in a message of at most 2 GB.
        """
        magnified = max(1.0, max(scales) ** 2)  # pixels of the network's input for each pixel of the image
        self._num_classes = num_classes
        self._pixel_bytes = (PIXEL_BYTES + CLASS_BYTES * num_classes) * magnified + KEPT_BYTES * num_classes
        # The free memory of a GPU is not known in advance: there a pass is tried, and exhausted() called if it fails.
        self.bytes = float('inf') if runtime.on_gpu() else USED * memory.free() / devices
        if sent:
            self.bytes = min(self.bytes, self.needed((1, MESSAGE_BYTES // (4 * num_classes))))
        self._first = threading.Semaphore()  # acquired by the first call of announce()

    def needed(self, size):
        """Estimates how many bytes a pass over an image or window of `size` (h, w) needs."""
        return self._pixel_bytes * size[0] * size[1]

    def window(self, size):
        """Returns (h, w) of the windows for an image of `size`, which is `size` itself if the whole image fits.

        If no windows fit, the smallest are returned.
        """
        if self.needed(size) <= self.bytes:
            return size
        choices = [(min(side, size[0]), min(side, size[1])) for side in SIDES]
        for window in choices:
            band_bytes = 4 * self._num_classes * window[0] * size[1]  # of the blended scores
            if self.needed(window) + band_bytes <= self.bytes:
                return window
        return choices[-1]

    def announce(self, size, window):
        """Prints that an image of `size` is scored in windows of size `window`; only the first call prints."""
        if self._first.acquire(blocking=False):
            tqdm.write('a whole image of %dx%d pixels needs about %.1f GB of memory, but only %.1f GB may be used: '
                       'images of this size are predicted in windows of %dx%d (--window=%d,%d sets their size)' % (
                           (size[1], size[0], self.needed(size) / 1e9, self.bytes / 1e9) + window[::-1] + window))

    def exhausted(self, size):
        """Records that a pass over `size` did not fit; returns whether there is a smaller window to try."""
        self.bytes = min(self.bytes, 0.99 * self.needed(size))
        return self.window(size) != size


class Side(NamedTuple):
    """The positions and weights of windows along one side of an image."""

    starts: List[int]  # the first pixel of each window
    weights: List[np.ndarray]  # float32 [length] of each window; they add up to 1 at every pixel of the side


def starts(size, length, overlap):
    """Returns the first pixel of each window: as few windows as possible, evenly spaced, that cover a side.

    Args:
      size: length of the side, in pixels.
      length: length of a window, in pixels; at most size.
      overlap: the least fraction of a window that neighbours share; below 1.
    """
    step = max(1, int(length * (1 - overlap)))
    gaps = -(-(size - length) // step)
    return [i * (size - length) // max(gaps, 1) for i in range(gaps + 1)]


def side(size, length, overlap):
    """Returns the Side of `size` pixels that is covered by windows of `length`.

    A window's weight is largest in its middle, where the network sees the most context, and close to 0 at its ends:
    sin^2(pi * (x + 1/2) / length), divided by the sum of all windows at that pixel.
    """
    places = starts(size, length, overlap)
    bell = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
    total = np.zeros(size)
    for start in places:
        total[start:start + length] += bell
    return Side(places, [(bell / total[start:start + length]).astype(np.float32) for start in places])


def number(size, window, overlap):
    """Returns how many windows (h, w) cover an image of (H, W)."""
    return len(starts(size[0], window[0], overlap)) * len(starts(size[1], window[1], overlap))


def blended(score, image, window, overlap, report=lambda done, count: None):
    """Blends the scores of an image's windows, from top to bottom.

    Only as many rows are kept as a window has: as the weights are normalized in advance, all rows above the next
    windows are final.

    Args:
      score: a function from pixels [h, w, 3] to their scores, float32 [h, w, num_classes].
      image: [H, W, 3].
      window: (h, w), at most (H, W).
      overlap: the least fraction of a window that neighbours share; below 1.
      report: a function called before each window with the numbers of finished windows and of all windows.

    Yields:
      float32 [n, W, num_classes], the scores of the next n rows. The array is reused: it is valid only until the next
      one is requested.
    """
    height, width = window
    rows, columns = side(image.shape[0], height, overlap), side(image.shape[1], width, overlap)
    done, count = 0, len(rows.starts) * len(columns.starts)
    band = None  # [h, W, num_classes]
    for top, weights_y, below in zip(rows.starts, rows.weights, rows.starts[1:] + [image.shape[0]]):
        for left, weights_x in zip(columns.starts, columns.weights):
            report(done, count)
            scores = score(image[top:top + height, left:left + width])
            done += 1
            if band is None:
                band = np.zeros([height, image.shape[1], scores.shape[2]], np.float32)
            band[:, left:left + width] += scores * (weights_y[:, np.newaxis] * weights_x)[:, :, np.newaxis]
        finished = below - top
        yield band[:finished]
        band[:height - finished] = band[finished:]
        band[height - finished:] = 0
