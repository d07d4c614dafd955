"""Refines class maps with the paper's fully connected CRF, which aligns them with image edges, in other processes.

Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials (2011). The processes
are spawned, as TensorFlow does not survive a fork. They import neither TensorFlow nor a module that imports it, so they
start quickly.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import signal

import numpy as np

from utils.data import image_files
from utils.data.pixels import AS_STORED
from utils.system.errors import UserError, quoted, reason

INSTALL = 'pip install -r requirements-crf.txt'
LEAST_PROBABILITY = 1e-5  # lower values are raised to this before the logarithm, as in pydensecrf's unary_from_softmax
# The lattice stores coordinates in 16 bits; they grow with pixels / sxy and with 255 / srgb (the flag is at least 0.2).
MOST_GAUSSIAN_REACH, MOST_BILATERAL_REACH = 10000, 5000
MOST_SCORE_BYTES = 2 ** 31 - 1  # the most that Python 3.7 can send to a process and that the library can index
SCORE_COPIES = 10  # most copies of an image's scores, including the original, while the image is refined
USED = 0.5  # the fraction of the free memory that may be used
PIXEL_BYTES = 400  # memory of the lattice per pixel


@dataclasses.dataclass(frozen=True)
class Settings:
    """Parameters of the CRF."""

    iterations: int  # of mean-field inference
    gaussian_sxy: float  # standard deviation of the smoothness term, in pixels
    gaussian_weight: float  # factor of the smoothness term
    bilateral_sxy: float  # standard deviation of the appearance term in position, in pixels
    bilateral_srgb: float  # standard deviation of the appearance term in colour, in levels of 0 to 255
    bilateral_weight: float  # factor of the appearance term


@dataclasses.dataclass(frozen=True)
class Work:
    """Limits on the processes and their memory."""

    processes: int  # maximum number of processes at a time
    most_bytes: float  # maximum memory of all images that are refined at the same time
    keep_scores: bool  # whether the predictions keep their scores


def settings_from_flags(conf):
    """Returns the Settings that the flags choose, or None without --crf; raises UserError if the library is missing."""
    if not conf.crf:
        return None
    try:
        from pydensecrf import densecrf  # noqa: F401
    except ImportError as error:
        raise UserError('--crf needs the package pydensecrf2 (%s): %s, or leave --crf out.' % (reason(error), INSTALL))
    return Settings(**{field.name: getattr(conf, 'crf_' + field.name) for field in dataclasses.fields(Settings)})


def softmax(logits):
    """Returns the softmax over the last axis of logits [..., num_classes], float32 of the same shape."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float32)
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def refine(image, scores, are_probabilities, settings, unknown=None):
    """Returns the class map after mean-field inference.

    The energy is the sum of -log(probability) over the pixels and, over each pair of pixels of different classes, of
    gaussian_weight * exp(-|p|^2 / (2 gaussian_sxy^2))
    + bilateral_weight * exp(-|p|^2 / (2 bilateral_sxy^2) - |I|^2 / (2 bilateral_srgb^2)),
    where p and I are the differences of the pair in position and colour (DeepLab v2, equation 3).

    Args:
      image: uint8 [H, W, 3], RGB.
      scores: float32 [H, W, num_classes], logits or probabilities.
      are_probabilities: whether the scores are probabilities; otherwise they are logits.
      settings: a Settings.
      unknown: (limit, label), to give pixels whose highest marginal is below the limit the label; or None.

    Returns:
      int32 [H, W].
    """
    from pydensecrf import densecrf

    height, width, num_classes = scores.shape
    probabilities = scores if are_probabilities else softmax(scores)
    unary = -np.log(np.clip(probabilities, LEAST_PROBABILITY, 1.0))
    crf = densecrf.DenseCRF2D(width, height, num_classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(-1, num_classes).T, np.float32))  # [num_classes, H * W]
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_weight)
    crf.addPairwiseBilateral(sxy=settings.bilateral_sxy, srgb=settings.bilateral_srgb, rgbim=image,
                             compat=settings.bilateral_weight)
    marginals = np.asarray(crf.inference(settings.iterations))  # [num_classes, H * W]
    classes = marginals.argmax(axis=0).astype(np.int32)
    if unknown:
        classes[marginals.max(axis=0) < unknown[0]] = unknown[1]
    return classes.reshape(height, width)


def refined(predictions, images, are_probabilities, settings, work, image_format=AS_STORED, unknown=None):
    """Yields the predictions in their order, with refined class maps.

    Args:
      predictions: a generator of Predictions that hold scores; it is closed at the end.
      images: the paths of the images in the list.
      are_probabilities: whether the scores are probabilities, not logits.
      settings: a Settings.
      work: a Work.
      image_format: the ImageFormat of the images.
      unknown: as in refine().

    Raises:
      UserError: an image is too large, or the process that was refining it died or failed.
    """
    with contextlib.closing(predictions), _Processes(
            work.processes, (are_probabilities, settings, unknown)) as processes:
        running = collections.deque()  # (process, Prediction, bytes), oldest first; process is None for a fault

        def finished():
            process, prediction, _ = running.popleft()
            if prediction.fault:
                return prediction
            return dataclasses.replace(prediction, classes=processes.result(process, images[prediction.index]))

        for prediction in predictions:
            if prediction.fault:
                running.append((None, prediction, 0))
                continue
            path, scores = images[prediction.index], prediction.scores
            _check_size(path, scores, settings)
            size = SCORE_COPIES * scores.nbytes + PIXEL_BYTES * scores[:, :, 0].size
            while running and (len(running) >= work.processes
                               or size + sum(one[2] for one in running) > work.most_bytes):
                yield finished()
            process = processes.send((image_files.load_image(path, image_format), scores), path)
            if not work.keep_scores:
                prediction = dataclasses.replace(prediction, scores=None)
            running.append((process, prediction, size))
        while running:
            yield finished()


def _check_size(path, scores, settings):
    """Raises UserError if an image is so large that a counter in the library would overflow."""
    most = min(MOST_GAUSSIAN_REACH * settings.gaussian_sxy, MOST_BILATERAL_REACH * settings.bilateral_sxy)
    if scores.nbytes > MOST_SCORE_BYTES or max(scores.shape[:2]) > most:
        raise UserError('%s: %dx%d pixels and %d classes are too many for --crf; scale the image down, raise '
                        '--crf_gaussian_sxy or --crf_bilateral_sxy, or leave --crf out.' % (
                            quoted(path), scores.shape[1], scores.shape[0], scores.shape[2]))


class _Processes(object):
    """Processes that each refine one image at a time; they are terminated when the context ends."""

    def __init__(self, most, constants):
        """
        Args:
          most: maximum number of processes at a time.
          constants: the arguments of refine() that follow the scores.
        """
        self._most, self._constants = most, constants
        self._started, self._idle = [], collections.deque()  # (Process, Connection)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process, connection in self._started:
            process.terminate()
            process.join()
            connection.close()

    def send(self, work, path):
        """Sends (image, scores) to an idle or new process and returns the process; fewer than `most` must be busy."""
        if not self._idle:
            self._start(path)
        process = self._idle.popleft()
        with _death_named(process, path):
            process[1].send(work)
        return process

    def result(self, process, path):
        """Waits for a process and returns the class map of the image at path; the process is then idle."""
        with _death_named(process, path):
            classes, fault = process[1].recv()
        if fault:
            raise UserError('%s: the CRF failed (%s): lower --num_threads or leave --crf out.' % (quoted(path), fault))
        self._idle.append(process)
        return classes

    def _start(self, path):
        """Starts an idle process; raises UserError, which names the image at path, if that fails."""
        context = multiprocessing.get_context('spawn')
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,) + self._constants, daemon=True)
        with _without_ctrl_c():
            try:
                process.start()
            except OSError as error:
                raise UserError('%s: no process for the CRF could be started (%s): lower --num_threads.' % (
                    quoted(path), reason(error)))
        theirs.close()  # so that the pipe ends when the process ends
        self._started.append((process, ours))
        self._idle.append((process, ours))


@contextlib.contextmanager
def _without_ctrl_c():
    """Blocks Ctrl-C within a `with` block and in the processes that are started there, if the system can do that.

    Ctrl-C is sent to all processes of the group, but the main process terminates those of the CRF itself. On Windows,
    where no signal can be blocked, they ignore it once they have started, see _work.
    """
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _death_named(process, path):
    """Turns the unexpected end of a process into a UserError that names its image."""
    try:
        yield
    except (EOFError, OSError):
        process[0].join()
        raise UserError("%s: the CRF's process ended (exit code %s), perhaps for lack of memory: lower --num_threads, "
                        'scale the image down or leave --crf out.' % (quoted(path), process[0].exitcode))


def _work(connection, *constants):
    """Refines each (image, scores) that arrives until the other end is closed; runs in each process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        while True:
            image, scores = connection.recv()
            try:
                answer = refine(image, scores, *constants), None
            except Exception as error:  # the main process reports it
                answer = None, reason(error)
            connection.send(answer)
