"""The image reader: several threads load and augment images ahead of time, in a reproducible order."""

import collections
import contextlib
import typing

import numpy as np
import tensorflow.compat.v1 as tf

from utils.data import augment, data_check, image_files
from utils.data.pixels import AS_STORED
from utils.label_utils import preprocess
from utils.system.errors import UserError

DEVICE = '/cpu:0'  # for the reader's ops; on a GPU, each op would copy the image to the GPU and back
MOST_BYTES = 1 << 30  # approximate memory limit for all images that are in threads or in queues
BYTES_IN_WORK = 40  # memory per pixel of an image in a thread: the decoded image, its float copies and the label


class Sample(typing.NamedTuple):
    """A sample as read from files; the fields are arrays or tensors."""
    number: typing.Any  # the number k in the endless sequence of samples
    encoded: typing.Any  # the bytes of a JPEG file for TensorFlow to decode; otherwise b''
    pixels: typing.Any  # uint8 RGB [H, W, 3] if Python decoded the file; otherwise [0, 0, 3]
    label: typing.Any  # int32 [H, W, 1]


SAMPLE_TYPES = Sample(number=tf.int64, encoded=tf.string, pixels=tf.uint8, label=tf.int32)


class ImageReader(object):
    """Reads pairs of image and label: either shuffled and augmented without end, or each whole image once, in order.

    Every thread has its own queue: thread t reads samples t, t + num_threads, t + 2 * num_threads and so on. Another
    thread takes samples from these queues in turn. Thus the order and the augmentation of the samples depend only on
    the seed, not on the number of threads or on their timing.

    Files are opened in Python, so that errors name the file. As in the original, TensorFlow decodes grey and RGB JPEGs;
    Pillow decodes other images and labels.
    """

    def __init__(self, images, labels, classes, net_input, num_threads=1, seed=0, image_format=AS_STORED):
        """
        Args:
          images: a list of paths.
          labels: a list of paths; '' for an image without a label.
          classes: a Classes. Label values other than 0..num_classes-1 and ignore_label are errors; padding and missing
            labels become ignore_label.
          net_input: a compat.Input, the format of the network's input.
          num_threads: the number of threads that load and augment images. For large images, fewer threads are used to
            limit the memory.
          seed: the seed for order and augmentation, 0..2**32-1.
          image_format: the ImageFormat of the images.
        """
        self.images, self.labels = images, labels
        self.classes, self.net_input, self.seed, self.image_format = classes, net_input, seed, image_format
        self.num_threads = at_most(num_threads, BYTES_IN_WORK * largest_area(images))
        self._positions = []  # for each thread, the number of the sample that it reads next
        self._orders = {}  # {epoch: permutation}
        self._errors = []  # exceptions raised in threads
        self._inspected = set()  # indices of the labels that have been checked
        self._recent = collections.deque(maxlen=4 * self.num_threads)  # recent paths, including all images in progress

    def training_batch(self, batch_size, augmentation):
        """Builds the ops that read a batch of shuffled, augmented crops.

        Args:
          batch_size: the number of samples, N.
          augmentation: an augment.Augmentation, whose size is (h, w). Smaller images are padded at the bottom and the
            right.

        Returns:
          tensors (images, labels): float32 [N, h, w, 3] minus the mean, and int32 [N, h, w, 1].
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
        """Builds the ops that read the next whole image; each image is read once, in the order of the list.

        Args:
          faults: a dict to which {index: sentence} is added for each file that cannot be read; a black pixel replaces
            such an image. If None, the first such file ends the run.

        Returns:
          tensors (image, label): float32 [1, H, W, 3] minus the mean, and int32 [1, H, W, 1].
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
        """Runs the threads within a `with` block, beginning with sample number `start`.

        Raises:
          UserError: a file could not be read. This replaces the tf.errors.OpError of the closed queue.
        """
        self._positions = [start + thread for thread in range(self.num_threads)]
        coord = tf.train.Coordinator()
        threads = tf.train.start_queue_runners(sess, coord)
        try:
            yield
        except tf.errors.OpError:  # the queue was closed; the threads have the reason
            self._raise_first_cause()
            coord.raise_requested_exception()
            raise
        finally:
            coord.request_stop()
            with contextlib.suppress(tf.errors.OpError):  # its cause has been raised above
                coord.join(threads, stop_grace_period_secs=30, ignore_live_threads=True)

    def _merged(self, produce, capacity, shapes=None):
        """Returns a queue of pairs (image, label) in the order of the samples; produce(thread) builds the pair."""
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
        """Returns the number of the thread's next sample and advances by num_threads."""
        k = self._positions[thread]
        self._positions[thread] += self.num_threads
        return k

    def _load_next(self, thread, faults):
        """Loads the thread's next Sample in list order; after the last one, raises StopIteration, which ends the queue.

        With `faults`, JPEGs are decoded here, with the same decoder. In the graph, a damaged JPEG would end the run.
        """
        k = self._next_number(thread)
        if k >= len(self.images):
            raise StopIteration
        if faults is None:
            return self._load(k, k)
        try:
            pixels = image_files.load_image(self.images[k], self.image_format)
            return Sample(k, b'', pixels, self._load_label(k, pixels.shape[:2]))
        except UserError as error:
            faults[k] = str(error)
            return Sample(k, b'', np.zeros([1, 1, 3], np.uint8), np.zeros([1, 1, 1], np.int32))

    def _load_shuffled(self, thread):
        """Loads the thread's next Sample in the shuffled order of the epoch."""
        k = self._next_number(thread)
        epoch, place = divmod(k, len(self.images))
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = augment.shuffled(self.seed, epoch, len(self.images))
        return self._load(k, self._orders[epoch][place])

    def _load(self, k, index):
        """Loads the image and the label at an index of the list as Sample number k."""
        path = self.images[index]
        self._recent.append(path)
        with self._keeping_errors():
            encoded, size = image_files.read_jpeg(path, self.image_format) or (b'', None)
            pixels = np.zeros([0, 0, 3], np.uint8) if encoded else image_files.load_image(path, self.image_format)
            return Sample(k, encoded, pixels, self._load_label(index, size or pixels.shape[:2]))

    def _load_label(self, index, size):
        """Loads the label of an image with size (H, W) as int32 [H, W, 1]; checks it the first time."""
        path = self.labels[index]
        if not path:
            return np.full(tuple(size) + (1,), self.classes.ignore_label, np.int32)
        label = image_files.load_label(path, self.classes)
        if index not in self._inspected:
            problems = data_check.inspect_label(
                self.images[index], size, path, label, self.classes, self._orientation(index, size, label))[2]
            if problems:
                raise UserError(problems[0])
            self._inspected.add(index)
        return label.astype(np.int32)[:, :, np.newaxis]

    def _orientation(self, index, size, label):
        """Returns the EXIF orientation of an image if it may explain why its label has another size; otherwise 1."""
        if label.shape == tuple(size)[::-1] != tuple(size) and not self.image_format.apply_exif:
            return image_files.read_image(self.images[index], self.image_format).orientation
        return 1

    def _change(self, k, image, label, changes, fill):
        """Applies augment.change to sample k and keeps its errors."""
        with self._keeping_errors():
            return augment.change(image, label, changes, self.seed, k, fill)

    @contextlib.contextmanager
    def _keeping_errors(self):
        """Keeps an exception for _raise_first_cause, as TensorFlow passes on only its text."""
        try:
            yield
        except Exception as error:
            self._errors.append(error)
            raise

    def _raise_first_cause(self):
        """Raises the exception that stopped the threads, such as the UserError for a file."""
        if self._errors:
            raise self._errors[0] from None
        for path in list(self._recent):  # TensorFlow's decoder does not name the file
            image_files.load_image(path, self.image_format)


def at_most(wanted, item_bytes):
    """Returns `wanted`, or fewer so that as many items of item_bytes take at most MOST_BYTES, but at least 1."""
    return max(1, min(wanted, MOST_BYTES // max(1, item_bytes)))


def largest_area(images, count=32):
    """Returns the number of pixels of the largest among about `count` images, spaced evenly in the list.

    Images that cannot be read are skipped; the error is raised when they are loaded.
    """
    areas = [0]
    for path in images[::max(1, len(images) // count)]:
        with contextlib.suppress(UserError):
            height, width = image_files.image_size(path)
            areas.append(height * width)
    return max(areas)


def decoded(sample):
    """Returns (image, label) for a Sample of tensors: uint8 RGB [H, W, 3] and int32 [H, W, 1]."""
    image = tf.cond(tf.equal(sample.encoded, ''), lambda: sample.pixels,
                    lambda: tf.image.decode_jpeg(sample.encoded, channels=3))
    return with_channels(image, sample.label)


def with_channels(image, label):
    """Sets the static shapes of image and label to [None, None, 3] and [None, None, 1]; returns both."""
    image.set_shape([None, None, 3])
    label.set_shape([None, None, 1])
    return image, label
