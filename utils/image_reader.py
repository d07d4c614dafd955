"""The queue-based reader: several threads load, augment and batch images ahead of the network."""

import collections
import contextlib

import numpy as np
import tensorflow.compat.v1 as tf

from utils.data import data_check, image_files
from utils.system.errors import UserError

DEVICE = '/cpu:0'  # of the reader's ops: on a GPU each would cost a copy of the image there and back


class ImageReader(object):
    """Reads pairs of image and label: shuffled and augmented without end, or once, whole and one by one.

    Files are opened in Python, where a fault is told by the file's name; TensorFlow ops that the queue's threads run
    decode JPEGs, as the original's did, and do all the rest. Other images and labels are decoded by Pillow.
    """

    def __init__(self, images, labels, img_mean, channel_order='bgr', num_classes=21, ignore_label=255,
                 palette=None, num_threads=1):
        """
        Args:
          images: paths.
          labels: paths, '' where there is no label.
          img_mean: three floats in channel_order, subtracted.
          channel_order: 'bgr' or 'rgb', of what the network gets.
          num_classes: labels other than 0..num_classes-1 and ignore_label are a fault.
          ignore_label: the label value of padding and of missing labels.
          palette: a Palette to read colour-coded labels with, or None.
          num_threads: how many threads load and augment.
        """
        self.images, self.labels = images, labels
        self.img_mean, self.channel_order = img_mean, channel_order
        self.num_classes, self.ignore_label, self.palette = num_classes, ignore_label, palette
        self.num_threads = num_threads
        self._errors = []
        self._inspected = set()  # indices whose labels are known to be right
        self._recent = collections.deque(maxlen=100)  # paths, more than all threads and queues hold

    def training_batch(self, batch_size, input_size, random_scale=True, random_mirror=True, scales=None):
        """Random crops: images float32 [N, h, w, 3] minus the mean, labels int32 [N, h, w, 1].

        Args:
          input_size: (h, w) of the crops; smaller images are padded at the bottom and the right.
          random_scale: scale by uniform [0.5, 1.5], or by one of `scales` if given.
          random_mirror: mirror with probability 0.5.
        """
        with tf.device(DEVICE):
            image, label, _ = self._load_next(shuffle=True)
            size = tf.shape(image)[:2]
            scaled = scale_size(size, scales) if random_scale else size
            offset = random_integers(tf.maximum(scaled - input_size, 0) + 1)
            mirror = tf.random_uniform([]) < 0.5 if random_mirror else tf.constant(False)
            image, label = crop_pair(image, label, scaled, offset, mirror, input_size, smooth=random_scale)
            image, label = pad_pair(self._preprocess(image), label, input_size, self.ignore_label)
            return tf.train.batch([image, label], batch_size, num_threads=self.num_threads,
                                  capacity=batch_size * (2 + self.num_threads))

    def single(self):
        """The next whole image [1, H, W, 3], its label [1, H, W, 1] and its index [1] in the list, each once.

        With several threads the order may differ from the list's; the index tells.
        """
        with tf.device(DEVICE):
            image, label, index = self._load_next(shuffle=False, num_epochs=1)
            return tf.train.batch([self._preprocess(image), label, index], 1, num_threads=self.num_threads,
                                  capacity=2 + 2 * self.num_threads, dynamic_pad=True)

    @contextlib.contextmanager
    def running(self, sess):
        """Runs the threads; inside, a file's fault is raised as the UserError it is, not as a closed queue."""
        sess.run(tf.local_variables_initializer())
        coord = tf.train.Coordinator()
        threads = tf.train.start_queue_runners(sess, coord)
        try:
            yield
        except tf.errors.OpError:
            self._raise_first_cause()
            raise
        finally:
            coord.request_stop()
            with contextlib.suppress(tf.errors.OpError):  # told above, by its first cause
                coord.join(threads, stop_grace_period_secs=30, ignore_live_threads=True)

    def _load_next(self, shuffle, num_epochs=None):
        index, = tf.train.slice_input_producer([np.arange(len(self.images))], shuffle=shuffle,
                                               num_epochs=num_epochs)
        encoded, pixels, label = tf.py_func(self._load, [index], [tf.string, tf.uint8, tf.int32])
        image = tf.cond(tf.equal(encoded, ''), lambda: pixels, lambda: tf.image.decode_jpeg(encoded, channels=3))
        image.set_shape([None, None, 3])
        label.set_shape([None, None, 1])
        return image, label, index

    def _load(self, index):
        """A JPEG's bytes, or b'' and the pixels uint8 [H, W, 3] of another image; the label int32 [H, W, 1]."""
        path = self.images[index]
        self._recent.append(path)
        try:
            encoded, size = image_files.read_jpeg(path) or (b'', None)
            pixels = np.zeros([0, 0, 3], np.uint8) if encoded else image_files.load_image(path)
            return encoded, pixels, self._load_label(index, size or pixels.shape[:2])
        except Exception as error:
            self._errors.append(error)
            raise

    def _load_label(self, index, size):
        path = self.labels[index]
        if not path:
            return np.full(tuple(size) + (1,), self.ignore_label, np.int32)
        label = image_files.load_label(path, self.palette)
        if index not in self._inspected:
            problems = data_check.inspect_label(self.images[index], size, path, label, self.num_classes,
                                                self.ignore_label)[2]
            if problems:
                raise UserError(' '.join(problems))
            self._inspected.add(index)
        return label.astype(np.int32)[:, :, np.newaxis]

    def _raise_first_cause(self):
        """Raises the UserError of a file that stopped the threads, if one did."""
        if self._errors:
            raise self._errors[0] from None
        for path in list(self._recent):  # TensorFlow's decoder does not name the file that it fails on
            image_files.load_image(path)

    def _preprocess(self, image):
        """RGB [H, W, 3] -> float32 in channel_order, minus the mean."""
        # One product with a permutation, exact, takes a third of the time of tf.reverse and a subtraction.
        order = np.eye(3, dtype=np.float32)[::-1 if self.channel_order == 'bgr' else 1]
        pixels = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
        pixels = tf.nn.xw_plus_b(pixels, order, -np.array(self.img_mean, np.float32))
        return tf.reshape(pixels, tf.shape(image))


def random_integers(ends):
    """A random integer in 0..end-1 for each end of an int32 vector."""
    return tf.cast(tf.random_uniform(tf.shape(ends)) * tf.cast(ends, tf.float32), tf.int32)


def scale_size(size, scales=None):
    """int32 [2] -> int(size * scale) for a random scale: uniform in [0.5, 1.5], or one of `scales`."""
    if scales is None:
        scale = tf.random_uniform([], 0.5, 1.5)
    else:
        scale = tf.constant(scales, tf.float32)[tf.random_uniform([], 0, len(scales), tf.int32)]
    return tf.maximum(tf.cast(tf.cast(size, tf.float32) * scale, tf.int32), 1)


def crop_pair(image, label, scaled, offset, mirror, input_size, smooth=True):
    """The pixels of a crop of the scaled and mirrored pair, and no others.

    They are those of scaling all of both, the image bilinearly and the label by its nearest neighbour (TensorFlow's
    legacy rules), mirroring and slicing; but for rounding in the image, below 0.01 of 255 levels.

    Args:
      image: uint8 [H, W, 3].
      label: int32 [H, W, 1].
      scaled: int32 [2], the size to scale to.
      offset: int32 [2], the crop's first row and column there, after mirroring.
      mirror: boolean scalar, left to right.
      input_size: (h, w) of the crop; it is smaller where the scaled image is.
      smooth: False where scaled is the image's own size, whose pixels are then taken as they are.

    Returns:
      float32 (uint8 if not smooth) [min(h, scaled h), min(w, scaled w), 3] and int32 of the same size, 1.
    """
    size, shown = tf.shape(image)[:2], tf.minimum(scaled, input_size)
    rows = offset[0] + tf.range(shown[0])
    columns = offset[1] + tf.range(shown[1])
    columns = tf.where(mirror, scaled[1] - 1 - columns, columns)
    step = tf.cast(size, tf.float32) / tf.cast(scaled, tf.float32)
    rows, columns = tf.cast(rows, tf.float32) * step[0], tf.cast(columns, tf.float32) * step[1]
    label = gather_pixels(label, rows, columns)
    if not smooth:
        return gather_pixels(image, rows, columns), label
    # Pixels beyond the last centre are the edge's (tf.pad would take five times as long); a box from right to left
    # mirrors.
    image = tf.concat([image, image[-1:]], axis=0)
    image = tf.concat([image, image[:, -1:]], axis=1)  # [H + 1, W + 1, 3]
    corners = tf.stack([rows[0], columns[0], rows[-1], columns[-1]])
    box = corners / tf.cast(tf.concat([size, size], 0), tf.float32)
    return tf.image.crop_and_resize(image[tf.newaxis], box[tf.newaxis], [0], shown)[0], label


def gather_pixels(image, rows, columns):
    """[H, W, C] at the whole parts of float row and column positions: [len(rows), len(columns), C]."""
    last = tf.shape(image)[:2] - 1
    rows = tf.minimum(tf.cast(rows, tf.int32), last[0])
    columns = tf.minimum(tf.cast(columns, tf.int32), last[1])
    # Columns are gathered as rows of the transpose, which are copied whole and not value by value.
    image = tf.transpose(tf.gather(image, rows), [1, 0, 2])  # [W, len(rows), C]
    return tf.transpose(tf.gather(image, columns), [1, 0, 2])


def pad_pair(image, label, input_size, ignore_label):
    """Both at input_size (h, w), padded at the bottom and the right: the image by 0, the label by ignore_label."""
    missing = tf.maximum(input_size - tf.shape(image)[:2], 0)
    pad = tf.stack([[0, missing[0]], [0, missing[1]], [0, 0]])
    image, label = tf.pad(image, pad), tf.pad(label, pad, constant_values=ignore_label)
    image.set_shape(list(input_size) + [3])
    label.set_shape(list(input_size) + [1])
    return image, label
