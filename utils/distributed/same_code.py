"""Checks that all machines of a cluster run the same TensorFlow and the same code; others are rejected."""

import contextlib
import glob
import hashlib
import os
import time

import tensorflow.compat.v1 as tf

from utils.system.command_line import REPO
from utils.system.errors import UserError, quoted, reason

DECIDING = ('*.py', os.path.join('utils', '**', '*.py'))  # the files of the project that affect the computation
CONTAINER = 'same_code'  # the resource container of two variables on each task other than 0
RUNS, REFUSED = ('runs', tf.string), ('refused', tf.bool)  # described() of the task; whether task 0 has rejected it
ASK_SECONDS, POLL_SECONDS = 60.0, 0.5


def checksum(folder=REPO):
    """Returns a checksum of the names and contents of the DECIDING files in a folder; this does not need git."""
    found = hashlib.sha1()
    for path in sorted(path for pattern in DECIDING for path in glob.glob(
            os.path.join(glob.escape(folder), pattern), recursive=True)):
        with open(path, 'rb') as file:
            content = file.read().replace(b'\r\n', b'\n')
        found.update(('%s %d\n' % (os.path.relpath(path, folder).replace(os.sep, '/'), len(content))).encode())
        found.update(content)
    return found.hexdigest()


def described():
    """Returns 'VERSION CHECKSUM', the TensorFlow version and the project's checksum on this machine."""
    return '%s %s' % (tf.__version__, checksum())


@contextlib.contextmanager
def announced(cluster):
    """Publishes what this task runs, and yields a function that returns whether task 0 has rejected it.

    For all tasks other than 0.
    """
    with cluster.session_on(cluster.index) as sess:
        sess.run([_assign(RUNS, described()), _assign(REFUSED, False)])
        refused = _read(REFUSED)
        yield lambda: sess.run(refused)


def agrees(cluster, task):
    """Returns, on task 0, whether another task runs the same; False if that task has gone.

    Raises:
      UserError: the task runs something else, in which case it is notified; or it does not report what it runs.
    """
    try:
        other = _ask(cluster, task)
    except (tf.errors.UnavailableError, tf.errors.AbortedError):
        return False
    except tf.errors.InvalidArgumentError:  # TensorFlow 1.15 does not understand a request from TensorFlow 2
        _refuse(cluster, task)
        raise UserError('%s runs a TensorFlow that is not compatible with %s on this machine: install the same version '
                        'on all machines.' % (cluster.name(task), tf.__version__))
    except tf.errors.OpError as error:
        raise UserError('%s does not report its versions of TensorFlow and of this project (%s): install the same '
                        'versions on all machines.' % (cluster.name(task), reason(error)))
    if other == described():
        return True
    _refuse(cluster, task)
    version = other.partition(' ')[0]
    if version != tf.__version__:
        raise UserError('%s runs TensorFlow %s, but this machine runs %s: install the same version on all machines.' % (
            cluster.name(task), quoted(version), tf.__version__))
    raise UserError('%s runs another version of this project than this machine: copy the same files to all machines.'
                    % cluster.name(task))


def refusal(cluster):
    """Returns the UserError for a task that was rejected."""
    return UserError('%s rejected this machine, because it does not run TensorFlow %s or another version of this '
                     'project: install the same on all machines.' % (cluster.name(0), tf.__version__))


def _refuse(cluster, task):
    """Notifies a task that it is rejected, if it can be reached."""
    with contextlib.suppress(tf.errors.OpError), cluster.session_on(task, timeout_ms=5000) as sess:
        sess.run(_assign(REFUSED, True))


def _ask(cluster, task):
    """Returns described() of another task; a task that has just started has ASK_SECONDS to publish it."""
    end = time.time() + ASK_SECONDS
    with cluster.session_on(task, timeout_ms=int(1000 * ASK_SECONDS)) as sess:
        runs = _read(RUNS)
        while True:
            try:
                return sess.run(runs).decode('utf-8', 'replace')
            except (tf.errors.FailedPreconditionError, tf.errors.NotFoundError):  # it is not published yet
                if time.time() > end:
                    raise
            time.sleep(POLL_SECONDS)


# TensorFlow 1.15 and 2 must understand each other's requests. TensorFlow 2 omits attributes with default values, but
# 1.15 needs them all. These raw ops have no such attributes; queues have some.
def _variable(name, dtype):
    return tf.raw_ops.VarHandleOp(dtype=dtype, shape=[], container=CONTAINER, shared_name=name)


def _assign(variable, value):
    return tf.raw_ops.AssignVariableOp(resource=_variable(*variable), value=tf.constant(value))


def _read(variable):
    return tf.raw_ops.ReadVariableOp(resource=_variable(*variable), dtype=variable[1])
