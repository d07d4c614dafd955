"""The queue-based reader: several threads load and augment images ahead of the network, in a reproducible order."""

import collections
import contextlib
import typing

import numpy as np
import tensorflow.compat.v1 as tf

from utils.data import augment, data_check, image_files
from utils.label_utils import preprocess
from utils.system.errors import UserError

DEVICE = '/cpu:0'  # where the reader's ops run: on a GPU, each would copy the image there and back
MOST_BYTES = 1 << 30  # rough limit of the memory of all images that threads work on or queues hold
BYTES_IN_WORK = 40  # memory per pixel of a whole image that a thread works on: decoded, as floats, and its label


class Sample(typing.NamedTuple):
    """A sample as it is read, of arrays or of tensors."""
    number: typing.Any  # its number k in the endless sequence of samples
    encoded: typing.Any  # the bytes of a JPEG, which TensorFlow decodes; b'' for other images
    pixels: typing.Any  # uint8 RGB [H, W, 3] of an image that is no JPEG; [0, 0, 3] for JPEGs
    label: typing.Any  # int32 [H, W, 1]


SAMPLE_TYPES = Sample(number=tf.int64, encoded=tf.string, pixels=tf.uint8, label=tf.int32)


class ImageReader(object):
    """Reads pairs of image and label: shuffled and augmented without end, or each whole image once in order.

    Every thread has its own queue: thread t reads the samples t, t + num_threads and so on, and one more thread takes
    from these queues in turn. So the order and the augmentation of the samples depend on the seed alone, not on the
    number of threads or on their timing.

    Files are opened in Python, where faults are reported with the file's name. JPEGs are decoded by TensorFlow, as in
    the original, other images and labels by Pillow.
    """

    def __init__(self, images, labels, classes, net_input, num_threads=1, seed=0):
        """
        Args:
          images: paths of the images.
          labels: paths of their labels; '' for an image without one.
          classes: a Classes. Label values other than 0..num_classes-1 and ignore_label are refused; padding and missing
            labels are ignore_label.
          net_input: a compat.Input, the channel order and the mean of the network's input.
          num_threads: number of threads that load and augment; fewer are used if the images are so large that they
            would fill the memory.
          seed: seed of order and augmentation, 0..2**32-1.
        """
        self.images, self.labels = images, labels
        self.classes, self.net_input, self.seed = classes, net_input, seed
        self.num_threads = at_most(num_threads, BYTES_IN_WORK * largest_area(images))
        self._positions = []  # for each thread, the number of the sample that it reads next
        self._orders = {}  # epoch -> permutation
        self._errors = []
        self._inspected = set()  # indices of the labels that were checked
        self._recent = collections.deque(maxlen=4 * self.num_threads)  # paths, more than all threads work on

    def training_batch(self, batch_size, augmentation):
        """Returns tensors of augmented crops: images float32 [N, h, w, 3] minus the mean, labels int32 [N, h, w, 1].

        Args:
          batch_size: N.
          augmentation: an augment.Augmentation, whose size is (h, w); smaller images are padded at the bottom and the
            right.
        """
        height, width = augmentation.size
        mean = np.array(self.net_input.img_mean, np.float32)
        fill = augment.Fill(mean[::-1] if self.net_input.channel_order == 'bgr' else mean, self.classes.ignore_label)

        def produce(thread):
            sample = Sample(*tf.py_func(self._load_shuffled, [thread], SAMPLE_TYPES))
            image, label = decoded(sample)
            placement = augment.Placement(*tf.py_func(
                lambda k, size: augment.draw(augmentation, self.seed, k, size), [sample.number, tf.shape(label)[:2]],
                augment.PLACEMENT_TYPES))
            image, label = augment.crop_pair(image, label, placement, augmentation.size, augmentation.random_scale)
            if augmentation.changes:
                image, label = with_channels(*tf.py_func(
                    lambda k, *pair: self._change(k, *pair, augmentation.changes, fill), [sample.number, image, label],
                    [tf.float32, tf.int32]))
            image = preprocess(image, self.net_input)
            return augment.pad_pair(image, label, augmentation.size, self.classes.ignore_label)

        ahead = at_most(batch_size * (1 + self.num_threads), 16 * height * width)
        with tf.device(DEVICE):
            merged = self._merged(produce, max(ahead, batch_size), [[height, width, 3], [height, width, 1]])
            return merged.dequeue_many(batch_size)

    def single(self, faults=None):
        """Returns tensors of the next whole image [1, H, W, 3] and its label [1, H, W, 1], each once in list order.

        Args:
          faults: a dict to which {index: sentence} is added for each file that cannot be read; a black pixel takes its
            place. If None, the first such file ends the run.
        """
        def produce(thread):
            sample = Sample(*tf.py_func(lambda t: self._load_next(t, faults), [thread], SAMPLE_TYPES))
            image, label = decoded(sample)
            return preprocess(image, self.net_input), label

        with tf.device(DEVICE):
            image, label = with_channels(*self._merged(produce, 2).dequeue())
            return image[tf.newaxis], label[tf.newaxis]

    @contextlib.contextmanager
    def running(self, sess, start=0):
        """Runs the threads from sample number `start`; inside, a fault of a file is raised as its UserError."""
        self._positions = [start + thread for thread in range(self.num_threads)]
        coord = tf.train.Coordinator()
        threads = tf.train.start_queue_runners(sess, coord)
        try:
            yield
        except tf.errors.OpError:  # the queue was closed; the threads know why
            self._raise_first_cause()
            coord.raise_requested_exception()
            raise
        finally:
            coord.request_stop()
            with contextlib.suppress(tf.errors.OpError):  # reported above, by its first cause
                coord.join(threads, stop_grace_period_secs=30, ignore_live_threads=True)

    def _merged(self, produce, capacity, shapes=None):
        """Returns a queue of the pairs (image, label) that produce(thread) makes in each thread, in sample order."""
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

    def _next_number(self, thread):
        k = self._positions[thread]
        self._positions[thread] += self.num_threads
        return k

    def _load_next(self, thread, faults):
        """Loads the thread's next Sample in list order; StopIteration, the end for its queue, after the last.

        With `faults`, JPEGs are decoded here, by the same decoder: a damaged one in the graph would end the run.
        """
        k = self._next_number(thread)
        if k >= len(self.images):
            raise StopIteration
        if faults is None:
            return self._load(k, k)
        try:
            pixels = image_files.load_image(self.images[k])
            return Sample(k, b'', pixels, self._load_label(k, pixels.shape[:2]))
        except UserError as error:
            faults[k] = str(error)
            return Sample(k, b'', np.zeros([1, 1, 3], np.uint8), np.zeros([1, 1, 1], np.int32))

    def _load_shuffled(self, thread):
        """Loads the thread's next Sample in the shuffled order of its epoch."""
        k = self._next_number(thread)
        epoch, place = divmod(k, len(self.images))
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = augment.shuffled(self.seed, epoch, len(self.images))
        return self._load(k, self._orders[epoch][place])

    def _load(self, k, index):
        """Loads the image and the label at an index of the list as the k-th Sample."""
        path = self.images[index]
        self._recent.append(path)
        with self._keeping_errors():
            encoded, size = image_files.read_jpeg(path) or (b'', None)
            pixels = np.zeros([0, 0, 3], np.uint8) if encoded else image_files.load_image(path)
            return Sample(k, encoded, pixels, self._load_label(index, size or pixels.shape[:2]))

    def _load_label(self, index, size):
        """Loads the label of an image of a size (H, W) as int32 [H, W, 1], checked when it is first read."""
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

    def _change(self, k, image, label, changes, fill):
        with self._keeping_errors():
            return augment.change(image, label, changes, self.seed, k, fill)

    @contextlib.contextmanager
    def _keeping_errors(self):
        """Keeps an exception for _raise_first_cause; TensorFlow would pass on its text alone."""
        try:
            yield
        except Exception as error:
            self._errors.append(error)
            raise

    def _raise_first_cause(self):
        """Raises the exception that stopped the threads: the UserError of a file, or that of an augmentation."""
        if self._errors:
            raise self._errors[0] from None
        for path in list(self._recent):  # TensorFlow's decoder does not name the file
            image_files.load_image(path)


def at_most(wanted, item_bytes):
    """Returns how many items of so many bytes to keep: `wanted` if MOST_BYTES allow it, at least one."""
    return max(1, min(wanted, MOST_BYTES // max(1, item_bytes)))


def largest_area(images, looked_at=32):
    """Returns the pixels of the largest of some images spread over the list; unreadable ones are left for later."""
    areas = [0]
    for path in images[::max(1, len(images) // looked_at)]:
        with contextlib.suppress(UserError):
            height, width = image_files.image_size(path)
            areas.append(height * width)
    return max(areas)


def decoded(sample):
    """Returns (image, label) of a Sample of tensors: uint8 RGB [H, W, 3] and int32 [H, W, 1]."""
    image = tf.cond(tf.equal(sample.encoded, ''), lambda: sample.pixels,
                    lambda: tf.image.decode_jpeg(sample.encoded, channels=3))
    return with_channels(image, sample.label)


def with_channels(image, label):
    """Returns both with their static shapes [None, None, 3] and [None, None, 1]."""
    image.set_shape([None, None, 3])
    label.set_shape([None, None, 1])
    return image, label
