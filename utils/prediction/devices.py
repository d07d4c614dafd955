"""Several devices that score a list's images, each one image at a time, with weights and a thread of its own."""

import collections
import contextlib
import functools
import re
import sys
import threading

import tensorflow.compat.v1 as tf
from tqdm import tqdm

from utils.prediction import scores

JOIN_SECONDS = 0.1
AHEAD = 2  # images of a device at most that wait, are scored, or are done and wait for one before them


class Stopped(Exception):
    """Nobody waits any more for what a device is at."""


def predictions(reader, setup, desc, towers, tolerant=False):
    """Yields what scores.Pass.predictions does, the same, by all devices of a training's towers.

    Other machines need neither images nor checkpoint. One that is gone leaves its images to the other devices.
    """
    names, cluster = towers.devices[:max(1, len(reader.images))], towers.cluster
    with cluster.met():
        if len(names) == 1:
            yield from scores.Pass(reader, setup, tolerant).predictions(desc)
            return
        progress = scores.bar(len(reader.images), desc)
        pool = _Pool([_Device(name) for name in names], setup, towers, scores.shown(progress))
        images = scores.Images(reader, setup.session_config, tolerant)
        with contextlib.closing(progress), cluster.listening(pool.lose), pool, images.reading() as reads:
            for prediction in pool.scored(reads):
                yield prediction
                progress.set_postfix_str('', refresh=False)
                progress.update()


class _Device(object):
    """A device and what it is at, which the pool's condition guards."""

    def __init__(self, name):
        self.name, self.task = name, int(re.search(r'task:(\d+)', name).group(1))
        self.job = None  # the Read that it scores
        self.windows = (0, 0)  # of that, done and all
        self.lost = False  # whether its machine is gone
        self.thread = None


class _Pool(object):
    """Scores by all devices while its context lasts."""

    def __init__(self, devices, setup, towers, show):
        """
        Args:
          devices: _Devices, the first of them of this machine.
          setup: a Setup.
          towers: the Towers that the devices are of.
          show: called with the number of windows that are done and of all, of the images that devices are at.
        """
        together = sum(device.task == 0 for device in devices)
        sent = setup.keep_scores and together < len(devices)
        self._setup = setup._replace(tiling=setup.tiling._replace(devices=together, sent=sent))
        self._devices, self._towers, self._show = devices, towers, show
        self._changed = threading.Condition()  # guards what follows
        self._jobs, self._results = collections.deque(), {}  # Reads; {index: Prediction}
        self._failure, self._stopped = None, False
        self._building = threading.Lock()
        self._room = None

    def __enter__(self):
        for device in self._devices:
            device.thread = threading.Thread(target=self._work, args=(device,), daemon=True)
            device.thread.start()
        return self

    def __exit__(self, *error):
        """Waits until every device is through with its window or image, but not for machines that are gone."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for device in self._devices:  # to its very end: a process that ends while a thread frees a session is aborted
            while device.thread.is_alive() and not device.lost:
                device.thread.join(JOIN_SECONDS)

    def scored(self, reads):
        """Yields the Predictions of Reads, in their order."""
        waiting = collections.deque()  # indices
        for read in reads:
            while len(waiting) >= AHEAD * sum(not device.lost for device in self._devices):
                yield self._result(waiting.popleft())
            waiting.append(read.index)
            with self._changed:
                self._jobs.append(read)
                self._changed.notify_all()
        while waiting:
            yield self._result(waiting.popleft())

    def _result(self, index):
        """Waits for the Prediction of an image; what failed on any device is raised here."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or index in self._results)
            if self._failure:
                raise self._failure
            return self._results.pop(index)

    def lose(self, task, text):
        """Gives what the devices of a task are at to the others; text says what is the matter with it."""
        with self._changed:
            lost = [device for device in self._devices if device.task == task and not device.lost]
            for device in lost:
                device.lost = True
            self._jobs.extendleft(device.job for device in lost if device.job)
            told = lost and not self._stopped
            self._changed.notify_all()
        if told:
            tqdm.write('%s: its images go to the others' % text, file=sys.stderr)

    def _work(self, device):
        """What the thread of a device does."""
        try:
            with self._scorer(device) as score:
                while True:
                    self._done(device, scores.predicted(
                        self._next(device), score, functools.partial(self._report, device)))
        except Stopped:
            pass
        except Exception as error:  # handed to the thread that waits
            self._fail(device, error)

    @contextlib.contextmanager
    def _scorer(self, device):
        """A function as Scorer's call without the session, on a device."""
        cluster, config = self._towers.cluster, self._setup.session_config
        with tf.Graph().as_default(), cluster.session_with(device.task, config) as sess:
            self._towers.check_devices(sess, [device.name])  # before the network is built, which takes its time
        with tf.Graph().as_default():
            with self._building, tf.device(device.name):  # one after another: the first one asks for the free memory
                scorer = scores.Scorer(self._setup, self._room)
                self._room = scorer.room
            with cluster.session_with(device.task, config) as sess:
                with tf.device('/job:%s/task:0/device:CPU:0' % cluster.job):  # which has the checkpoint
                    scorer.load(sess)
                yield functools.partial(scorer, sess)

    def _next(self, device):
        """Waits for a Read for the device; Stopped if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stopped or device.lost)
            self._check(device)
            device.job = self._jobs.popleft()
            return device.job

    def _done(self, device, prediction):
        with self._changed:
            self._check(device)
            self._results[prediction.index] = prediction
            device.job, device.windows = None, (0, 0)
            self._changed.notify_all()

    def _report(self, device, done, count):
        """Shows the windows of all devices; Stopped where the image is no longer waited for."""
        with self._changed:
            self._check(device)
            device.windows = done, count
            self._show(*map(sum, zip(*[one.windows for one in self._devices if not one.lost])))

    def _check(self, device):
        if self._stopped or device.lost:
            raise Stopped()

    def _fail(self, device, error):
        """Notes an error in a device's thread: the loss of its machine, or what ends the run."""
        gone = self._towers.cluster.gone(device.task, error)
        if gone:
            self.lose(device.task, gone)
            return
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
