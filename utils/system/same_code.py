"""Whether all machines of a cluster run the same TensorFlow and the same code; one that does not is named."""

import glob
import hashlib
import os

import tensorflow.compat.v1 as tf

from utils.system.command_line import REPO
from utils.system.errors import UserError, quoted, reason

TOLD = 'code'  # of the queue on a helper that holds what it runs
DIFFERS = 1  # to the queue that ends a helper: it ends as it runs something else
ASK_SECONDS = 60.0
DECIDING = ('*.py', os.path.join('utils', '**', '*.py'))  # the project's files that decide what is computed


def checksum(folder=REPO):
    """A checksum of the names and contents of the project's DECIDING files; git may be missing."""
    found = hashlib.sha1()
    for path in sorted(path for pattern in DECIDING for path in glob.glob(
            os.path.join(glob.escape(folder), pattern), recursive=True)):
        with open(path, 'rb') as file:
            content = file.read().replace(b'\r\n', b'\n')
        found.update(('%s %d\n' % (os.path.relpath(path, folder).replace(os.sep, '/'), len(content))).encode())
        found.update(content)
    return found.hexdigest()


def described():
    """What this machine runs: 'VERSION CHECKSUM'."""
    return '%s %s' % (tf.__version__, checksum())


def tell(cluster):
    """On a helper: says what it runs to whoever asks."""
    cluster.run_on(cluster.index, lambda _: _queue().enqueue(described()))


def agrees(cluster, task):
    """On task 0: whether a task that answers runs the same; False if it is gone meanwhile.

    Raises:
      UserError: it runs something else, and is told so, or it does not say.
    """
    try:
        other = cluster.run_on(task, _ask, timeout_ms=int(1000 * ASK_SECONDS)).decode('utf-8', 'replace')
    except (tf.errors.UnavailableError, tf.errors.AbortedError):
        return False
    except tf.errors.OpError as error:
        raise UserError('%s does not say which TensorFlow and code it runs (%s): install the same on all machines.' % (
            cluster.name(task), reason(error)))
    if other == described():
        return True
    version = other.partition(' ')[0]
    try:
        cluster.run_on(task, lambda end: end.enqueue(DIFFERS), timeout_ms=5000)
    except tf.errors.OpError:  # it is gone, or does not hear
        pass
    if version != tf.__version__:
        raise UserError('%s runs TensorFlow %s, this one %s: install the same on all machines.' % (
            cluster.name(task), quoted(version), tf.__version__))
    raise UserError('%s runs another state of this project than this one: bring the same to all machines.' % (
        cluster.name(task)))


def refused(cluster):
    """The UserError of a helper that was told that it differs."""
    return UserError('%s refused this machine, as it runs another TensorFlow than %s or another state of this project: '
                     'bring the same to all machines.' % (cluster.name(0), tf.__version__))


def _queue():
    return tf.FIFOQueue(1, tf.string, [[]], shared_name=TOLD)


def _ask(_):
    """What is in the queue, which is put back, as a task 0 that is started again asks again."""
    queue = _queue()
    told = queue.dequeue()
    with tf.control_dependencies([queue.enqueue(told)]):
        return tf.identity(told)
