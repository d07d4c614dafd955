"""Several machines, each with a TensorFlow server: task 0 uses the devices of all tasks; the others provide theirs.

There is no encryption and no authentication: use this only on a private network.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time

import tensorflow.compat.v1 as tf

from utils.distributed import same_code
from utils.system.errors import UserError, quoted, reason

JOB = 'worker'
TF_CONFIG = 'TF_CONFIG'
TASK_TYPES = ('chief', 'master', 'worker')  # in TF_CONFIG; all of them become tasks of JOB, in this order
SHARED = ('train', 'test', 'predict')  # values of --option that can use several machines
END = 'end'  # the name of a queue on each task other than 0; an element in it ends the task
POLL_SECONDS = 1.0
LOST_SECONDS = 20.0  # a machine is lost if it has not answered for this time
ENDED_SECONDS = 3.0  # the same for a machine that refuses connections
# A server answers; the machine refuses the connection, as nothing listens on the port; or there is no answer.
ANSWERS, REFUSES, SILENT = 'answers', 'refuses', 'silent'
CLOSE_SECONDS = 5.0
PAUSED = '%s: training pauses until it is back, then resumes from the newest checkpoint'
GONE = (tf.errors.UnavailableError, tf.errors.AbortedError)  # raised immediately when a remote process has ended
FAILED = (tf.errors.OpError, RuntimeError)  # raised by a session; RuntimeError if it was closed
# If a machine is lost within QUICK_SECONDS of the start MOST_QUICK times in a row, the run ends.
QUICK_SECONDS, MOST_QUICK = 20.0, 5


def from_flags(conf):
    """Returns the Cluster for --cluster and --task_index, or for the environment variable TF_CONFIG.

    Raises:
      UserError: the settings are invalid, or a host name cannot be resolved.
    """
    if conf.cluster:
        addresses = [address.strip() for address in conf.cluster]
        if conf.task_index is None:
            raise UserError('--cluster needs --task_index: give the index of this machine among the %d, from 0.' %
                            len(addresses))
        index, source = conf.task_index, '--cluster'
    elif conf.option in SHARED and os.environ.get(TF_CONFIG):
        addresses, index = _from_environment(os.environ[TF_CONFIG])
        source = TF_CONFIG
    else:
        addresses, index, source = [], conf.task_index or 0, '--cluster'
    if index >= max(1, len(addresses)):
        raise UserError('--task_index=%d is outside 0..%d: give the index of this machine in %s.' % (
            index, max(0, len(addresses) - 1), source))
    if addresses and conf.option not in SHARED:
        raise UserError('--cluster works only with --option=%s: leave it out for --option=%s.' % (
            ' and '.join([', '.join(SHARED[:-1]), SHARED[-1]]), conf.option))
    for address in addresses if len(addresses) > 1 else ():
        _check_address(address, source)
    if len(set(addresses)) < len(addresses):
        raise UserError('%s contains a machine twice: %s.' % (source, quoted(','.join(addresses))))
    return Cluster(addresses if len(addresses) > 1 else [], index)


def _from_environment(text):
    """Returns (addresses, index of this task) for the text of TF_CONFIG; the chief comes before the workers."""
    try:
        config = json.loads(text)
        cluster, task = config['cluster'], config['task']
        others = sorted(set(list(cluster) + [task['type']]) - set(TASK_TYPES))
        if not others:
            addresses = [address for kind in TASK_TYPES for address in cluster.get(kind, [])]
            own = cluster[task['type']]
            before = sum(len(cluster.get(kind, [])) for kind in TASK_TYPES[:TASK_TYPES.index(task['type'])])
            if not 0 <= int(task['index']) < len(own) or not all(isinstance(one, str) for one in addresses):
                raise ValueError('task index %s of %d' % (task['index'], len(own)))
            return addresses, before + int(task['index'])
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError('the environment variable %s is invalid (%s): correct it or unset it.' % (
            TF_CONFIG, reason(error)))
    raise UserError("%s contains tasks of type '%s': list all machines as chief or worker, or unset it." % (
        TF_CONFIG, quoted(others[0])))


def _check_address(address, source):
    """Raises UserError unless the address is host:port with a known host; the message names its `source`."""
    host, colon, port = address.rpartition(':')
    if not colon or not host or not re.match(r'\d{1,5}$', port) or not 0 < int(port) < 65536:
        raise UserError("%s: '%s' is not of the form host:port." % (source, quoted(address)))
    try:
        socket.getaddrinfo(host.strip('[]'), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError("%s: the host of '%s' cannot be resolved (%s): check its name." % (
            source, quoted(address), reason(error)))


class Lost(Exception):
    """Raised when a machine is lost during the work; the message names it."""


class Attempt(object):
    """A context manager that catches Lost and stores it in the attribute `lost`; it passes on other exceptions."""

    lost = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.lost = error if isinstance(error, Lost) else None
        return self.lost is not None


class Cluster(object):
    """The machines of a run. Without addresses there is only this machine, and most methods do nothing."""

    def __init__(self, addresses=(), index=0):
        """
        Args:
          addresses: a list of 'host:port', one for each task.
          index: the index of this task.
        """
        self.addresses, self.index = list(addresses), index
        self.job, self.tasks = (JOB, len(addresses)) if addresses else ('localhost', 1)
        self._server = None
        self._met = False  # whether the other tasks have been reached
        self._lost = None  # the message of a Lost

    def name(self, task):
        """Returns a task's name for messages, such as 'task 1 (host:2222)'."""
        return 'task %d (%s)' % (task, self.addresses[task])

    def start(self, config):
        """Starts this task's server.

        Args:
          config: a tf.ConfigProto for its devices.

        Raises:
          UserError: the port is in use or cannot be opened.
        """
        if not self.addresses:
            return
        address = self.addresses[self.index]
        port = int(address.rpartition(':')[2])
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(('', port))
            self._server = tf.train.Server(tf.train.ClusterSpec({JOB: self.addresses}), JOB, self.index, config=config)
        except (OSError, tf.errors.OpError) as error:
            raise UserError('port %d of %s cannot be opened (%s): end the program that uses it, or choose another port '
                            'in the list of machines.' % (port, quoted(address), reason(error)))

    def serve(self):
        """Provides this task's devices to task 0 until task 0 ends. Tasks other than 0 do only this.

        Raises:
          UserError: task 0 refused this machine, or the server failed.
        """
        print('%s of %d provides its devices to %s' % (self.name(self.index), self.tasks, self.name(0)))
        ended, failures = threading.Event(), []

        def wait():
            try:
                self._run_on(self.index, lambda queue: queue.dequeue())
            except Exception as error:  # the main thread reports it
                failures.append(error)
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        try:
            with same_code.announced(self) as refused:
                while not ended.wait(POLL_SECONDS):  # with a timeout, so that signals are handled
                    if refused():
                        raise same_code.refusal(self)
        except tf.errors.OpError as error:
            failures.append(error)
        if failures:
            raise UserError('%s can no longer provide its devices (%s): start it again.' % (
                self.name(self.index), reason(failures[0])))
        print('%s has ended: done' % self.name(0))

    def wait(self):
        """Waits until all other tasks answer, and prints which ones are missing.

        Raises:
          UserError: a task runs another version of TensorFlow or of this project.
        """
        missing, printed = list(range(1, self.tasks)), None
        while missing:
            missing = [task for task in missing if not (
                _answers(self.addresses[task]) and same_code.agrees(self, task))]
            if missing and missing != printed:
                print('waiting for ' + ', '.join(map(self.name, missing)), file=sys.stderr)
                printed = missing
            time.sleep(POLL_SECONDS if missing else 0)
        self._met = True

    @contextlib.contextmanager
    def met(self):
        """Waits for all other tasks at the beginning and stops them at the end, even after an error."""
        try:
            self.wait()
            yield
        finally:
            self.finish()

    def finish(self):
        """Stops the other tasks, as the work is finished."""
        for task in range(1, self.tasks) if self._met else ():
            with contextlib.suppress(tf.errors.OpError):  # the task may be gone already
                if _answers(self.addresses[task]):
                    self._run_on(task, lambda queue: queue.enqueue(0), timeout_ms=5000)

    def dismiss(self):
        """Stops the other tasks as soon as they answer, as there is nothing to do."""
        with self.met():
            pass

    def attempts(self):
        """Yields contexts in which to do the work: one at first, and another after each loss of a machine.

            for attempt in cluster.attempts():
                with attempt:
                    ...

        Each is yielded when all tasks answer. finish() must be called at the end, even after an error.

        Raises:
          UserError: a machine was lost soon after the start several times in a row.
        """
        quick = 0
        while True:
            self.wait()
            attempt, started = Attempt(), time.time()
            yield attempt
            if attempt.lost is None:
                return
            quick = quick + 1 if time.time() - started < QUICK_SECONDS else 0
            if quick == MOST_QUICK:
                raise UserError('%s, %d times in a row within %d seconds: see the messages on that machine.' % (
                    attempt.lost, quick, QUICK_SECONDS))
            print('\n' + PAUSED % attempt.lost, file=sys.stderr)
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def session(self, config):
        """Yields a tf.Session on all devices; errors caused by the loss of a machine are raised as Lost.

        The state of the session is isolated: after a loss, a new session shares no variables with earlier ones.
        """
        if not self.addresses:
            with tf.Session(config=config) as sess:
                yield sess
            return
        config.isolate_session_state = True
        self._lost = None
        try:
            with tf.Session(self._server.target, config=config) as sess, self._watched(sess):
                yield sess
        except FAILED + (UserError,) as error:
            why = _cause(error)
            lost = isinstance(why, FAILED) and (self._lost or self._name_lost(why))
            if not lost:
                raise
            raise Lost(lost)

    def _name_lost(self, error):
        """Returns text that names the lost machine that caused an error, or '' if no machine was lost."""
        gone = isinstance(error, GONE)
        time.sleep(POLL_SECONDS if gone else 0)  # a dying process needs a moment to close its port
        silent = [task for task in range(1, self.tasks) if not _answers(self.addresses[task])]
        if silent:
            return self.name(silent[0]) + ' is gone'
        if not gone:
            return ''
        named = re.search(r'remote target \S*task:(\d+)', str(error)) or re.search(r'task:(\d+)', str(error))
        known = named and 0 < int(named.group(1)) < self.tasks
        return (self.name(int(named.group(1))) if known else 'a machine') + ' was gone for a moment'

    @contextlib.contextmanager
    def _watched(self, sess):
        """Closes the session when a task stops answering, so that the session's current run fails."""
        ended = threading.Event()

        def lost(task, text):
            if not self._lost:
                self._lost = text
                threading.Thread(target=sess.close, daemon=True).start()
                if not ended.wait(CLOSE_SECONDS):  # TensorFlow 1.15 waits for the machine even after close()
                    self._restart_process()

        with self.listening(lost):
            try:
                yield
            finally:
                ended.set()

    def _restart_process(self):
        """Replaces this process with one that resumes from the newest checkpoint."""
        print('\n' + PAUSED % self._lost, file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable] + sys.argv + ['--resume=auto'])

    def session_with(self, task, config):
        """Returns a tf.Session on the devices of a task and of this one; the loss of other tasks does not affect it."""
        if not self.addresses:
            return tf.Session(config=config)
        own = tf.ConfigProto()
        own.CopyFrom(config)
        own.isolate_session_state = True
        own.device_filters.extend(self._filters(task))
        return tf.Session(self._server.target, config=own)

    def gone(self, task, error):
        """Returns text such as 'task 1 (host:port) is gone' if this caused an error in session_with; otherwise ''."""
        error = _cause(error)
        if task == self.index or not isinstance(error, FAILED):
            return ''
        if not isinstance(error, GONE):
            time.sleep(POLL_SECONDS)  # a dying process needs a moment to close its port
            if _answers(self.addresses[task]):
                return ''
        return self.name(task) + ' is gone'

    @contextlib.contextmanager
    def listening(self, lost):
        """Runs a thread that calls lost(task, text) once for each task that does not answer for too long.

        Ops on a process that has ended fail immediately. This thread detects all other cases: a session that waits for
        a task during its setup, a suspended process, or a machine that lost power.

        Args:
          lost: a function of the index of the task and text such as 'task 1 (host:port) is gone'.
        """
        ended = threading.Event()

        def listen():
            heard = {task: time.time() for task in range(1, self.tasks)}
            while heard and not ended.wait(LOST_SECONDS / 12):
                for task in list(heard):
                    found = _reached(self.addresses[task], LOST_SECONDS / 12)
                    if found == ANSWERS:
                        heard[task] = time.time()
                        continue
                    most, text = (ENDED_SECONDS, ' is gone') if found == REFUSES else (
                        LOST_SECONDS, ' has not answered for %d seconds' % LOST_SECONDS)
                    if time.time() - heard[task] > most and not ended.is_set():
                        del heard[task]
                        lost(task, self.name(task) + text)

        threading.Thread(target=listen, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    @contextlib.contextmanager
    def session_on(self, task, timeout_ms=0):
        """Yields a tf.Session with its own graph for ops on a task's CPU; it needs only that task and this one."""
        config = tf.ConfigProto(operation_timeout_in_ms=timeout_ms, device_filters=self._filters(task))
        place = '/job:%s/task:%d/device:CPU:0' % (JOB, task)
        with tf.Graph().as_default(), tf.device(place), tf.Session(self._server.target, config=config) as sess:
            yield sess

    def _run_on(self, task, make_op, timeout_ms=0):
        """Runs make_op(queue), an op on the queue END of a task."""
        with self.session_on(task, timeout_ms) as sess:
            sess.run(make_op(tf.FIFOQueue(1, tf.int32, [[]], shared_name=END)))

    def _filters(self, task):
        """Returns device filters for a task and this one, so that a session does not depend on any other task."""
        return sorted({'/job:%s/task:%d' % (JOB, one) for one in (task, self.index)})


def _cause(error):
    """Returns the exception during whose handling a UserError was raised, if any; otherwise the error itself.

    If a machine is lost while weights are read or written, the UserError says that the checkpoint cannot be read or
    written, and only its cause reveals the loss.
    """
    return error.__context__ if isinstance(error, UserError) and error.__context__ else error


def _answers(address, timeout=2.0):
    """Returns whether a server answers at host:port."""
    return _reached(address, timeout) == ANSWERS


def _reached(address, timeout):
    """Returns ANSWERS, REFUSES or SILENT for the server at host:port.

    A gRPC server sends data first; a suspended process still accepts connections, but sends nothing.
    """
    host, _, port = address.rpartition(':')
    try:
        with socket.create_connection((host.strip('[]'), int(port)), timeout) as connection:
            return ANSWERS if connection.recv(1) else SILENT
    except ConnectionRefusedError:
        return REFUSES
    except OSError:
        return SILENT
