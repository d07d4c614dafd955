"""The queue-based reader: several threads load and augment images ahead of the network, in an order of their own."""

import collections
import contextlib

import numpy as np
import tensorflow.compat.v1 as tf

from utils.data import augment, data_check, image_files
from utils.label_utils import preprocess
from utils.system.errors import UserError

DEVICE = '/cpu:0'  # of the reader's ops: on a GPU each would cost a copy of the image there and back
MOST_BYTES = 1 << 30  # of all images that are in work or wait, about
BYTES_IN_WORK = 40  # of a pixel of a whole image: decoded, converted to floats, its label


class ImageReader(object):
    """Reads pairs of image and label: shuffled and augmented without end, or once, whole and one by one.

    Every thread has a queue of its own: thread t reads the samples t, t + num_threads and so on, and one more thread
    takes from these queues in turn. So the order, like every sample's scale, mirror and crop, depends on the seed
    alone, not on the number of threads or on which is the quickest.

    Files are opened in Python, where a fault is reported with the file's name; TensorFlow ops that the queue's threads
    run decode JPEGs, as the original's did, and do all the rest. Other images and labels are decoded by Pillow.
    """

    def __init__(self, images, labels, classes, net_input, num_threads=1, seed=0):
        """
        Args:
          images: paths.
          labels: paths, '' where there is no label.
          classes: a Classes; other label values than 0..num_classes-1 and ignore_label are a fault, and ignore_label is
            the value of padding and of missing labels.
          net_input: a compat.Input, channel order and mean of what the network gets.
          num_threads: how many threads load and augment; fewer where the images are so large that they would fill the
            memory.
          seed: of order and augmentation, 0..2**32-1.
        """
        self.images, self.labels = images, labels
        self.classes, self.net_input, self.seed = classes, net_input, seed
        self.num_threads = at_most(num_threads, BYTES_IN_WORK * largest_area(images))
        self._positions = []  # of each thread, the sample that it reads next
        self._orders = {}  # epoch -> permutation
        self._errors = []
        self._inspected = set()  # indices whose labels are known to be right
        self._recent = collections.deque(maxlen=4 * self.num_threads)  # paths, more than all threads have in work

    def training_batch(self, batch_size, augmentation):
        """Random crops: images float32 [N, h, w, 3] minus the mean, labels int32 [N, h, w, 1].

        Args:
          augmentation: an augment.Augmentation, whose size is (h, w); smaller images are padded at the bottom and the
            right.
        """
        height, width = augmentation.size

        def produce(thread):
            encoded, pixels, label, scaled, offset, mirror = tf.py_func(
                lambda t: self._load_random(t, augmentation), [thread],
                [tf.string, tf.uint8, tf.int32, tf.int32, tf.int32, tf.bool])
            image, label = augment.crop_pair(
                decoded(encoded, pixels), with_channels(label, 1), augment.Placement(scaled, offset, mirror),
                augmentation.size, smooth=augmentation.random_scale)
            image = preprocess(image, self.net_input)
            return augment.pad_pair(image, label, augmentation.size, self.classes.ignore_label)

        ahead = at_most(batch_size * (1 + self.num_threads), 16 * height * width)
        with tf.device(DEVICE):
            merged = self._merged(produce, max(ahead, batch_size), [[height, width, 3], [height, width, 1]])
            return merged.dequeue_many(batch_size)

    def single(self, faults=None):
        """The next whole image [1, H, W, 3] and its label [1, H, W, 1], in the order of the list, each once.

        Args:
          faults: a dict that gets {index: sentence} of what cannot be read, which is then one pixel; without it the
            first such file ends the run.
        """
        def produce(thread):
            encoded, pixels, label = tf.py_func(lambda t: self._load_next(t, faults), [thread],
                                                [tf.string, tf.uint8, tf.int32])
            return preprocess(decoded(encoded, pixels), self.net_input), with_channels(label, 1)

        with tf.device(DEVICE):
            image, label = self._merged(produce, 2).dequeue()
            return with_channels(image, 3)[tf.newaxis], with_channels(label, 1)[tf.newaxis]

    @contextlib.contextmanager
    def running(self, sess, start=0):
        """Runs the threads from sample `start`; inside, a file's fault is raised as the UserError it is."""
        self._positions = [start + thread for thread in range(self.num_threads)]
        coord = tf.train.Coordinator()
        threads = tf.train.start_queue_runners(sess, coord)
        try:
            yield
        except tf.errors.OpError:  # a closed queue, of which the threads know why
            self._raise_first_cause()
            coord.raise_requested_exception()
            raise
        finally:
            coord.request_stop()
            with contextlib.suppress(tf.errors.OpError):  # reported above, by its first cause
                coord.join(threads, stop_grace_period_secs=30, ignore_live_threads=True)

    def _merged(self, produce, capacity, shapes=None):
        """A queue of what produce(thread) makes in all threads, (image, label), in the order of the samples."""
        queues = [tf.FIFOQueue(1, [tf.float32, tf.int32], shapes) for _ in range(self.num_threads)]
        merged = tf.FIFOQueue(capacity, [tf.float32, tf.int32], shapes)
        passed_on = tf.no_op()
        for thread, queue in enumerate(queues):
            tf.train.add_queue_runner(tf.train.QueueRunner(queue, [queue.enqueue(produce(thread))]))
            with tf.control_dependencies([passed_on]):
                image, label = queue.dequeue()
            passed_on = merged.enqueue([image, label])
        tf.train.add_queue_runner(tf.train.QueueRunner(merged, [passed_on]))
        return merged

    def _next(self, thread):
        k = self._positions[thread]
        self._positions[thread] += self.num_threads
        return k

    def _load_next(self, thread, faults):
        """What _load returns of the thread's next image; StopIteration, the end for its queue, after the last.

        With faults, JPEGs are decoded here, by the same decoder: in the graph, one that is damaged ends the run.
        """
        k = self._next(thread)
        if k >= len(self.images):
            raise StopIteration
        if faults is None:
            return self._load(k)
        try:
            pixels = image_files.load_image(self.images[k])
            return b'', pixels, self._load_label(k, pixels.shape[:2])
        except UserError as error:
            faults[k] = str(error)
            return b'', np.zeros([1, 1, 3], np.uint8), np.zeros([1, 1, 1], np.int32)

    def _load_random(self, thread, augmentation):
        """What _load returns of the thread's next sample, and what augment.draw chooses for it."""
        k = self._next(thread)
        epoch, place = divmod(k, len(self.images))
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = augment.shuffled(self.seed, epoch, len(self.images))
        encoded, pixels, label = self._load(self._orders[epoch][place])
        return (encoded, pixels, label) + augment.draw(augmentation, self.seed, k, label.shape[:2])

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
            return np.full(tuple(size) + (1,), self.classes.ignore_label, np.int32)
        label = image_files.load_label(path, self.classes)
        if index not in self._inspected:
            problems = data_check.inspect_label(self.images[index], size, path, label, self.classes)[2]
            if problems:
                raise UserError(problems[0])
            self._inspected.add(index)
        return label.astype(np.int32)[:, :, np.newaxis]

    def _raise_first_cause(self):
        """Raises the UserError of a file that stopped the threads, if one did."""
        if self._errors:
            raise self._errors[0] from None
        for path in list(self._recent):  # TensorFlow's decoder does not name the file that it fails on
            image_files.load_image(path)


def at_most(wanted, item_bytes):
    """How many items of a size may be in memory: `wanted` if MOST_BYTES allow it, at least one."""
    return max(1, min(wanted, MOST_BYTES // max(1, item_bytes)))


def largest_area(images, looked_at=32):
    """Pixels of the largest of some images spread over the list; unreadable ones are reported when they are read."""
    areas = [0]
    for path in images[::max(1, len(images) // looked_at)]:
        with contextlib.suppress(UserError):
            height, width = image_files.image_size(path)
            areas.append(height * width)
    return max(areas)


def decoded(encoded, pixels):
    """uint8 [H, W, 3]: a JPEG's, or `pixels` where `encoded` is empty."""
    image = tf.cond(tf.equal(encoded, ''), lambda: pixels, lambda: tf.image.decode_jpeg(encoded, channels=3))
    return with_channels(image, 3)


def with_channels(image, channels):
    """The image with a static shape of [None, None, channels]."""
    image.set_shape([None, None, channels])
    return image
