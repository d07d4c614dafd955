"""Prediction on several devices: each device predicts one image at a time, in its own thread and session."""

import collections
import contextlib
import re
import sys
import threading

import tensorflow.compat.v1 as tf
from tqdm import tqdm

from utils.prediction import predictor, windows

JOIN_SECONDS = 0.1
AHEAD = 2  # the most images per device that are queued, in progress, or finished before an earlier image


class Stopped(Exception):
    """Raised in a device's thread when the result of its work is no longer needed."""


def predictions(single, reader, weights, description, towers, tolerant=False):
    """Yields the same Predictions as Predictor.predictions, bit for bit, computed on all devices of a Towers.

    Other machines need neither the images nor the checkpoint. If one fails, the other devices take over its images.

    Args:
      single: the Predictor for one device; each device gets a replica.
      reader, weights, description, tolerant: as in Predictor.predictions.
      towers: a Towers.

    Raises:
      UserError: as in Predictor.predictions; or a machine lacks one of the devices.
    """
    names, cluster, config = towers.devices[:max(1, len(reader.images))], towers.cluster, single.session_config
    with cluster.met(), contextlib.closing(predictor.Progress(len(reader.images), description)) as progress:
        pool = _Pool([_Device(name) for name in names], single, weights, towers, reader.classes.num_classes,
                     progress.show_window)
        with cluster.listening(pool.lose), pool, predictor.loading(reader, config, tolerant) as images:
            for prediction in pool.predictions(images):
                yield prediction
                progress.next_image()


class _Device(object):
    """A device and its current image; the pool's condition guards the attributes."""

    def __init__(self, name):
        self.name, self.task = name, int(re.search(r'task:(\d+)', name).group(1))
        self.job = None  # the LoadedImage in progress
        self.windows = (0, 0)  # (number of finished windows, number of all windows) of that image
        self.lost = False  # whether its machine has failed
        self.thread = None


class _Pool(object):
    """A context manager within which all devices predict images, each in its own thread."""

    def __init__(self, devices, single, weights, towers, num_classes, show_window):
        """
        Args:
          devices: a list of _Devices; the first is on this machine.
          single, weights, towers: as in predictions().
          num_classes: the number of channels of the scores.
          show_window: a function of the numbers of finished windows and of all windows of the images in progress.
        """
        self._devices, self._single, self._weights, self._towers = devices, single, weights, towers
        self._show_window, self._free_memory = show_window, None
        if not single.scoring.window:
            local = sum(device.task == 0 for device in devices)
            self._free_memory = windows.FreeMemory(num_classes, single.scoring.scales, local,
                                                   sent=single.scoring.keep_scores and local < len(devices))
        self._building = threading.Lock()
        self._changed = threading.Condition()  # guards the attributes below and those of the devices
        self._jobs, self._results = collections.deque(), {}  # LoadedImages; {index: Prediction}
        self._failure, self._stopped = None, False

    def __enter__(self):
        for device in self._devices:
            device.thread = threading.Thread(target=self._work, args=(device,), daemon=True)
            device.thread.start()
        return self

    def __exit__(self, *error):
        """Waits until every device has finished its window or image, except on machines that have failed."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for device in self._devices:  # wait for each thread: exiting while one frees its session aborts the process
            while device.thread.is_alive() and not device.lost:
                device.thread.join(JOIN_SECONDS)

    def predictions(self, images):
        """Yields the Prediction of each LoadedImage, in the order of the images."""
        waiting = collections.deque()  # indices
        for image in images:
            while len(waiting) >= AHEAD * sum(not device.lost for device in self._devices):
                yield self._result(waiting.popleft())
            waiting.append(image.index)
            with self._changed:
                self._jobs.append(image)
                self._changed.notify_all()
        while waiting:
            yield self._result(waiting.popleft())

    def _result(self, index):
        """Waits for the Prediction of an image and returns it; raises the error of any device that failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or index in self._results)
            if self._failure:
                raise self._failure
            return self._results.pop(index)

    def lose(self, task, text):
        """Puts the images of a lost machine back into the queue; `text` says what happened to the machine."""
        with self._changed:
            lost = [device for device in self._devices if device.task == task and not device.lost]
            for device in lost:
                device.lost = True
            self._jobs.extendleft(device.job for device in lost if device.job)
            reported = lost and not self._stopped
            self._changed.notify_all()
        if reported:
            tqdm.write('%s: the other devices take over its images' % text, file=sys.stderr)

    def _work(self, device):
        """Predicts images on a device until there are no more; runs in the device's thread."""
        try:
            with self._session(device) as (own, sess):
                while True:
                    image = self._next(device)
                    self._finish(device, own.predict(
                        sess, image, lambda done, count: self._report_window(device, done, count)))
        except Stopped:
            pass
        except Exception as error:  # _result raises it in the main thread
            self._fail(device, error)

    @contextlib.contextmanager
    def _session(self, device):
        """Yields (a Predictor on the device, its session), with the weights loaded."""
        cluster, config = self._towers.cluster, self._single.session_config
        with tf.Graph().as_default(), cluster.session_with(device.task, config) as sess:
            self._towers.check_devices(sess, [device.name])  # before building the network, which takes time
        own = self._single.replica(device.name, self._free_memory)
        with self._building:
            own.build()
        with own.graph.as_default(), cluster.session_with(device.task, config) as sess:
            with tf.device('/job:%s/task:0/device:CPU:0' % cluster.job):  # only task 0 needs to read the checkpoint
                own.load(sess, self._weights)
            yield own, sess

    def _next(self, device):
        """Waits for the device's next LoadedImage and returns it; raises Stopped if there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stopped or device.lost)
            self._check_needed(device)
            device.job = self._jobs.popleft()
            return device.job

    def _finish(self, device, prediction):
        """Delivers a device's Prediction; raises Stopped if it is no longer needed."""
        with self._changed:
            self._check_needed(device)
            self._results[prediction.index] = prediction
            device.job, device.windows = None, (0, 0)
            self._changed.notify_all()

    def _report_window(self, device, done, count):
        """Shows how many windows of all devices are finished; raises Stopped if the image is no longer needed."""
        with self._changed:
            self._check_needed(device)
            device.windows = done, count
            self._show_window(*map(sum, zip(*[one.windows for one in self._devices if not one.lost])))

    def _check_needed(self, device):
        if self._stopped or device.lost:
            raise Stopped()

    def _fail(self, device, error):
        """Handles an error in a device's thread: if its machine is lost, others take over; otherwise the run fails."""
        failed = self._towers.cluster.gone(device.task, error)
        if failed:
            self.lose(device.task, failed)
            return
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
