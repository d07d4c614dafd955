"""How large an image, or a window of it, the free memory allows: an estimate made before any is taken."""

import threading

from tqdm import tqdm

from utils.system import memory, runtime

# What a pass takes of a pixel and of a pixel's class at most. Measured as the peak over the network's own, ResNet-101
# at 0.26 to 2 megapixels on both TensorFlows: 450 to 880 bytes with 21 classes, multi-scale 825, and 1,420 with 150.
PIXEL_BYTES, CLASS_BYTES = 700, 8
KEPT_BYTES = 4  # of a pixel's class: the scores of the passes before
MESSAGE_BYTES = (1 << 31) - (1 << 20)  # that gRPC carries, but for what describes the tensor
USED = 0.75  # of the free memory: the estimate is one
SIDES = (1025, 769, 513, 321)  # of windows, pixels


class Room(object):
    """The free memory, as it is before the first image; the devices of a machine share it and this object."""

    def __init__(self, num_classes, magnified=1.0, devices=1, sent=False):
        """
        Args:
          num_classes: channels of the scores.
          magnified: pixels that the network gets of one pixel of an image, above 1 for scales above 1.
          devices: how many score an image at the same time.
          sent: whether the scores of an image go from one machine to another, which takes no message above 2 GB.
        """
        self._num_classes, magnified = num_classes, max(1.0, magnified)
        self._pixel_bytes = (PIXEL_BYTES + CLASS_BYTES * num_classes) * magnified + KEPT_BYTES * num_classes
        # What a GPU has left, nothing tells in time; there a pass is tried.
        self.bytes = float('inf') if runtime.on_gpu() else USED * memory.free() / devices
        if sent:
            self.bytes = min(self.bytes, self.needed((1, MESSAGE_BYTES // (4 * num_classes))))
        self._untold = threading.Semaphore()

    def needed(self, size):
        """Bytes that a pass over an image or window of `size` (h, w) takes, about."""
        return self._pixel_bytes * size[0] * size[1]

    def window(self, size):
        """(h, w) of the windows for an image of `size`, which is the size itself if the image fits as a whole.

        The smallest ones are taken if none fit.
        """
        if self.needed(size) <= self.bytes:
            return size
        windows = [(min(side, size[0]), min(side, size[1])) for side in SIDES]
        band = [4 * self._num_classes * window[0] * size[1] for window in windows]  # of the blended scores
        return next((one for one, rows in zip(windows, band) if self.needed(one) + rows <= self.bytes), windows[-1])

    def tell(self, size, window):
        """Says, of the first image that it is called for, that one of `size` is scored in windows."""
        if self._untold.acquire(blocking=False):
            tqdm.write('an image of %dx%d pixels takes about %.1f GB of memory as a whole, and %.1f GB may be used: '
                       'images as large are predicted in windows of %dx%d (--window=%d,%d sets their size)' % (
                           (size[1], size[0], self.needed(size) / 1e9, self.bytes / 1e9) + window[::-1] + window))

    def exhausted(self, size):
        """Notes that a pass over `size` did not fit; False if no smaller window is left to try."""
        self.bytes = min(self.bytes, 0.99 * self.needed(size))
        return self.window(size) != size
