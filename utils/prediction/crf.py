"""The paper's fully connected CRF, which makes a class map follow the edges of the image, in separate processes.

Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials (2011). The processes
do not import TensorFlow, which does not survive a fork, nor any module that does, so they start as fast as numpy.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import signal

import numpy as np

from utils.data import image_files
from utils.system.errors import UserError, quoted, reason

INSTALL = 'pip install -r requirements-crf.txt'
LEAST_PROBABILITY = 1e-5  # before the logarithm, as in pydensecrf's unary_from_softmax
# The lattice keeps coordinates in 16 bits; they grow with pixels / sxy, and with 255 / srgb (0.2 and more, main.py).
MOST_GAUSSIAN_REACH, MOST_BILATERAL_REACH = 10000, 5000
MOST_SCORE_BYTES = 2 ** 31 - 1  # the most that Python 3.7 sends to a process and that the library counts
SCORE_COPIES = 10  # of an image's scores at most while it is refined, including the original
USED = 0.5  # of the free memory
PIXEL_BYTES = 400  # of the lattice, for each pixel


@dataclasses.dataclass(frozen=True)
class Settings:
    """Parameters of the CRF."""

    iterations: int  # of mean-field inference
    gaussian_sxy: float  # deviation in pixels of the smoothness term
    gaussian_weight: float  # factor of its energy
    bilateral_sxy: float  # deviation in pixels of the appearance term
    bilateral_srgb: float  # deviation in grey levels of the appearance term
    bilateral_weight: float  # factor of its energy


@dataclasses.dataclass(frozen=True)
class Work:
    """How the work is divided."""

    processes: int  # at most
    most_bytes: float  # for all images that are in work at the same time
    keep_scores: bool  # whether the predictions keep their scores


def settings_from_flags(conf):
    """Returns the Settings of the flags, None without --crf; UserError if the library is missing."""
    if not conf.crf:
        return None
    try:
        from pydensecrf import densecrf  # noqa: F401
    except ImportError as error:
        raise UserError('--crf needs the package pydensecrf2 (%s): %s, or leave --crf out.' % (reason(error), INSTALL))
    return Settings(**{field.name: getattr(conf, 'crf_' + field.name) for field in dataclasses.fields(Settings)})


def softmax(logits):
    """Returns the probabilities of logits [..., num_classes], float32 of the same shape."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float32)
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def refine(image, scores, are_probabilities, settings):
    """Returns the class map after mean-field inference.

    The energy is -log of the network's probabilities plus, for each pair of pixels of different classes,
    gaussian_weight * exp(-|p|^2 / 2 gaussian_sxy^2) + bilateral_weight * exp(-|p|^2 / 2 bilateral_sxy^2 - |I|^2 / 2
    bilateral_srgb^2) of their distances in place, p, and colour, I (DeepLab v2, equation 3).

    Args:
      image: uint8 [H, W, 3], RGB.
      scores: float32 [H, W, num_classes], logits or probabilities.
      are_probabilities: whether the scores are probabilities; otherwise they are logits.
      settings: a Settings.

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
    return marginals.argmax(axis=0).reshape(height, width).astype(np.int32)


def refined(predictions, images, are_probabilities, settings, work):
    """Yields the predictions in their order, with refined class maps.

    Args:
      predictions: a generator of Predictions that hold scores; it is closed at the end.
      images: paths of the list's images.
      are_probabilities: whether the scores are probabilities, not logits.
      settings: a Settings.
      work: a Work.

    Raises:
      UserError: an image is too large, or a process died or failed at it.
    """
    with contextlib.closing(predictions), _Processes(work.processes, (are_probabilities, settings)) as processes:
        running = collections.deque()  # (process, Prediction, bytes), oldest first; a fault has no process

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
            process = processes.send((image_files.load_image(path), scores), path)
            if not work.keep_scores:
                prediction = dataclasses.replace(prediction, scores=None)
            running.append((process, prediction, size))
        while running:
            yield finished()


def _check_size(path, scores, settings):
    """Raises UserError for an image so large that a counter of the library would overflow."""
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
          most: processes at most.
          constants: the arguments of refine() after the scores.
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
        context = multiprocessing.get_context('spawn')
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,) + self._constants, daemon=True)
        # Ctrl-C reaches all processes of a group. They start with it blocked, as this process terminates them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        except OSError as error:
            raise UserError('%s: no process for the CRF could be started (%s): lower --num_threads.' % (
                quoted(path), reason(error)))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the pipe ends when the process ends
        self._started.append((process, ours))
        self._idle.append((process, ours))


@contextlib.contextmanager
def _death_named(process, path):
    """Turns the end of a process into a UserError that names its image."""
    try:
        yield
    except (EOFError, OSError):
        process[0].join()
        raise UserError("%s: the CRF's process ended (exit code %s), perhaps for lack of memory: lower --num_threads, "
                        'scale the image down or leave --crf out.' % (quoted(path), process[0].exitcode))


def _work(connection, *constants):
    """Refines the (image, scores) that arrive, until the other end is closed; runs in each process."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            image, scores = connection.recv()
            try:
                answer = refine(image, scores, *constants), None
            except Exception as error:  # a traceback in a process would be lost
                answer = None, reason(error)
            connection.send(answer)
