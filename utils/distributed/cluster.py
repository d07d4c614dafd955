"""Several machines, each a TensorFlow server: task 0 works on the devices of all, the others serve theirs.

Nothing of it is encrypted or asks who calls: it belongs on a private network.
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
TASK_TYPES = ('chief', 'master', 'worker')  # of TF_CONFIG; all are tasks of JOB, in this order
SHARED = ('train', 'test', 'predict')  # values of --option whose work several machines share
END = 'end'  # of the queue on a helper that ends it
POLL_SECONDS = 1.0
LOST_SECONDS = 20.0  # without an answer, after which a machine is given up
ENDED_SECONDS = 3.0  # the same where nothing listens any more
ANSWERS, REFUSES, SILENT = 'answers', 'refuses', 'silent'  # a server; a machine on which nothing listens; neither
CLOSE_SECONDS = 5.0
PAUSED = '%s: training pauses until it is back, then goes on from the newest checkpoint'
GONE = (tf.errors.UnavailableError, tf.errors.AbortedError)  # what fails at once when a process has ended
FAILED = (tf.errors.OpError, RuntimeError)  # what a session raises; the latter where it was closed
QUICK_SECONDS, MOST_QUICK = 20.0, 5  # a loss within so many seconds, so many times in a row, is no accident


class Lost(Exception):
    """A machine is gone in the middle of the work; the text names it."""


class Attempt(object):
    """A context that keeps a Lost that ends it as `lost`, and lets any other exception pass."""

    lost = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.lost = error if isinstance(error, Lost) else None
        return self.lost is not None


def _cause(error):
    """What a UserError was made of, if it was; any other error itself.

    A machine that goes while weights are read or written looks like a checkpoint that cannot be.
    """
    return error.__context__ if isinstance(error, UserError) and error.__context__ else error


def from_flags(conf):
    """The Cluster that --cluster and --task_index, or the environment's TF_CONFIG, describe.

    Raises:
      UserError: they are not as they should be, or a host has no address.
    """
    if conf.cluster:
        addresses = [address.strip() for address in conf.cluster]
        if conf.task_index is None:
            raise UserError('--cluster needs --task_index: which of its %d machines this one is, from 0.' %
                            len(addresses))
        index, source = conf.task_index, '--cluster'
    elif conf.option in SHARED and os.environ.get(TF_CONFIG):
        addresses, index = _from_environment(os.environ[TF_CONFIG])
        source = TF_CONFIG
    else:
        addresses, index, source = [], conf.task_index or 0, '--cluster'
    if index >= max(1, len(addresses)):
        raise UserError('--task_index=%d is outside 0..%d, the tasks of %s.' % (
            index, max(0, len(addresses) - 1), source))
    if addresses and conf.option not in SHARED:
        raise UserError('--cluster is for --option=%s: --option=%s works on one machine.' % (
            ' and '.join([', '.join(SHARED[:-1]), SHARED[-1]]), conf.option))
    for address in addresses if len(addresses) > 1 else ():
        _check_address(address, source)
    if len(set(addresses)) < len(addresses):
        raise UserError('%s names a machine twice: %s.' % (source, quoted(','.join(addresses))))
    return Cluster(addresses if len(addresses) > 1 else [], index)


def _from_environment(text):
    """(addresses, index) of a TF_CONFIG, whose chief comes before its workers."""
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
        raise UserError('%s in the environment is not understood (%s): correct it or unset it.' % (
            TF_CONFIG, reason(error)))
    raise UserError("%s names tasks of the type '%s': name all machines as chief and worker, or unset it." % (
        TF_CONFIG, quoted(others[0])))


def _check_address(address, source):
    host, colon, port = address.rpartition(':')
    if not colon or not host or not re.match(r'\d{1,5}$', port) or not 0 < int(port) < 65536:
        raise UserError("%s: '%s' is no host:port." % (source, quoted(address)))
    try:
        socket.getaddrinfo(host.strip('[]'), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError("%s: the host of '%s' is not known (%s)." % (source, quoted(address), reason(error)))


class Cluster(object):
    """The machines of a run; without addresses this one alone, for which most of it does nothing."""

    def __init__(self, addresses=(), index=0):
        """
        Args:
          addresses: 'host:port' of each task.
          index: of this one.
        """
        self.addresses, self.index = list(addresses), index
        self.job, self.tasks = (JOB, len(addresses)) if addresses else ('localhost', 1)
        self._server = None
        self._met = False  # whether the other tasks have been reached
        self._lost = None  # the text of a Lost

    def name(self, task):
        return 'task %d (%s)' % (task, self.addresses[task])

    def start(self, config):
        """Starts this task's server, which gives its devices a tf.ConfigProto; UserError if the port is in use."""
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
            raise UserError('port %d of %s cannot be opened (%s): end what uses it or choose another port in the '
                            'list of the machines.' % (port, quoted(address), reason(error)))

    def serve(self):
        """What the tasks but 0 do: they serve their devices until task 0 ends."""
        print('%s of %d serves its devices to %s' % (self.name(self.index), self.tasks, self.name(0)))
        ended, failures = threading.Event(), []

        def wait():
            try:
                self._run_on(self.index, lambda queue: queue.dequeue())
            except Exception as error:  # handed to the thread that waits
                failures.append(error)
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        try:
            with same_code.told(self) as refused:
                while not ended.wait(POLL_SECONDS):  # in turns, so that signals are seen
                    if refused():
                        raise same_code.refusal(self)
        except tf.errors.OpError as error:
            failures.append(error)
        if failures:
            raise UserError('%s cannot go on (%s).' % (self.name(self.index), reason(failures[0])))
        print('%s has ended: done' % self.name(0))

    @contextlib.contextmanager
    def session_on(self, task, timeout_ms=0):
        """A tf.Session for ops on a task's processor, made inside; it needs no other task than that one and this."""
        config = tf.ConfigProto(operation_timeout_in_ms=timeout_ms, device_filters=self._filters(task))
        place = '/job:%s/task:%d/device:CPU:0' % (JOB, task)
        with tf.Graph().as_default(), tf.device(place), tf.Session(self._server.target, config=config) as sess:
            yield sess

    def _run_on(self, task, make_op, timeout_ms=0):
        """Runs an op on a task's queue END."""
        with self.session_on(task, timeout_ms) as sess:
            sess.run(make_op(tf.FIFOQueue(1, tf.int32, [[]], shared_name=END)))

    def _filters(self, task):
        """What keeps a session to the devices of a task and of this one, whatever becomes of the others."""
        return sorted({'/job:%s/task:%d' % (JOB, one) for one in (task, self.index)})

    def finish(self):
        """Tells the other tasks that the work has ended."""
        for task in range(1, self.tasks) if self._met else ():
            with contextlib.suppress(tf.errors.OpError):  # one that is gone is told nothing
                if _answers(self.addresses[task]):
                    self._run_on(task, lambda queue: queue.enqueue(0), timeout_ms=5000)

    def wait(self):
        """Waits until all other tasks answer; a line names those that do not."""
        missing, told = list(range(1, self.tasks)), None
        while missing:
            missing = [task for task in missing if not (
                _answers(self.addresses[task]) and same_code.agrees(self, task))]
            if missing and missing != told:
                print('waiting for ' + ', '.join(map(self.name, missing)), file=sys.stderr)
                told = missing
            time.sleep(POLL_SECONDS if missing else 0)
        self._met = True

    @contextlib.contextmanager
    def met(self):
        """Inside, all other tasks have answered once; at the end, whatever it is, they are told."""
        try:
            self.wait()
            yield
        finally:
            self.finish()

    def dismiss(self):
        """Tells the other tasks, once they answer, that there is nothing to do."""
        with self.met():
            pass

    def session_with(self, task, config):
        """A tf.Session on the devices of a task and of this one, which the loss of any other does not disturb."""
        if not self.addresses:
            return tf.Session(config=config)
        own = tf.ConfigProto()
        own.CopyFrom(config)
        own.isolate_session_state = True
        own.device_filters.extend(self._filters(task))
        return tf.Session(self._server.target, config=own)

    def gone(self, task, error):
        """What to say of a task if it is why a session_with it has failed; '' if it is not."""
        error = _cause(error)
        if task == self.index or not isinstance(error, FAILED):
            return ''
        if not isinstance(error, GONE):
            time.sleep(POLL_SECONDS)  # a dying process takes its time to close its port
            if _answers(self.addresses[task]):
                return ''
        return self.name(task) + ' is gone'

    @contextlib.contextmanager
    def session(self, config):
        """A tf.Session on all devices; what fails in it since a machine is gone is raised as Lost.

        State is that of this session alone: one after a loss shares nothing with those before.
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

    def attempts(self):
        """Yields contexts to do the work in: one, and another after each loss of a machine, once all tasks answer.

            for attempt in cluster.attempts():
                with attempt:
                    ...

        finish() must be called at the end, whatever it is.

        Raises:
          UserError: several losses in a row soon after the beginning.
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
                raise UserError('%s: %d times in a row within %d seconds; see what that machine says.' % (
                    attempt.lost, quick, QUICK_SECONDS))
            print('\n' + PAUSED % attempt.lost, file=sys.stderr)
            time.sleep(POLL_SECONDS)

    def _name_lost(self, error):
        """What to say of a machine that an error comes from; '' if it comes from none."""
        gone = isinstance(error, GONE)
        time.sleep(POLL_SECONDS if gone else 0)  # a dying process takes its time to close its port
        silent = [task for task in range(1, self.tasks) if not _answers(self.addresses[task])]
        if silent:
            return self.name(silent[0]) + ' is gone'
        if not gone:
            return ''
        named = re.search(r'remote target \S*task:(\d+)', str(error)) or re.search(r'task:(\d+)', str(error))
        known = named and 0 < int(named.group(1)) < self.tasks
        return (self.name(int(named.group(1))) if known else 'a machine') + ' was gone for a moment'

    def _begin_again(self):
        """Replaces this process by one that goes on from the newest checkpoint."""
        print('\n' + PAUSED % self._lost, file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable] + sys.argv + ['--resume=auto'])

    @contextlib.contextmanager
    def _watched(self, sess):
        """Closes the session, whose run then fails, when a task is silent."""
        ended = threading.Event()

        def lost(task, text):
            if not self._lost:
                self._lost = text
                threading.Thread(target=sess.close, daemon=True).start()
                if not ended.wait(CLOSE_SECONDS):  # TensorFlow 1.15 waits for the machine, whatever is closed
                    self._begin_again()

        with self.listening(lost):
            try:
                yield
            finally:
                ended.set()

    @contextlib.contextmanager
    def listening(self, lost):
        """Inside, a thread calls lost(task, what to say of it) for each task that is silent for too long, once.

        What runs on a process that ends fails at once by itself, but for the setting up of a session, which waits; a
        process that was stopped, or a machine without power, answers nothing.
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


def _answers(address, timeout=2.0):
    """Whether a server answers at host:port."""
    return _reached(address, timeout) == ANSWERS


def _reached(address, timeout):
    """What is found at host:port: one of ANSWERS, REFUSES and SILENT.

    gRPC's server speaks first; a process that was stopped just lets connect.
    """
    host, _, port = address.rpartition(':')
    try:
        with socket.create_connection((host.strip('[]'), int(port)), timeout) as connection:
            return ANSWERS if connection.recv(1) else SILENT
    except ConnectionRefusedError:
        return REFUSES
    except OSError:
        return SILENT
