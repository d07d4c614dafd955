"""Memory: how much this process may still take, and a report of its exhaustion that says what to lower."""

import contextlib
import os
import resource

import tensorflow.compat.v1 as tf

from utils.system import runtime
from utils.system.errors import UserError, reason

# Of a control group, by version: its folder below the mount, the files of its limit and of its use, and the name in
# memory.stat of what it uses for files and would give back.
GROUPS = (('', 'memory.max', 'memory.current', 'inactive_file'),
          ('memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'))


@contextlib.contextmanager
def enough_for(what):
    """Turns TensorFlow's report of exhausted memory into a UserError; `what` are the settings to lower."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise UserError('out of memory (%s): lower %s.' % (reason(error), what))


def free(proc='/proc', cgroup=runtime.CGROUP):
    """Bytes of main memory that this process may still take; infinite where nothing tells.

    It is the least of what the machine has available, what the limits of the process's control groups (a container's,
    a batch job's) leave, and what its own limit of address space (`ulimit -v`) does.
    """
    rooms = [1024 * _value(os.path.join(proc, 'meminfo'), 'MemAvailable:')]
    rooms += [_group_room(folder, files) for files in GROUPS for folder in _group_folders(proc, cgroup, files[0])]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        rooms.append(limit - 1024 * _value(os.path.join(proc, 'self', 'status'), 'VmSize:', unknown=0))
    return max(0, min(rooms))


def _value(path, name, unknown=float('inf')):
    """The number after a name in a file of `name number` lines."""
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        for words in map(str.split, file):
            if len(words) > 1 and words[0] == name:
                return int(words[1])
    return unknown


def _group_folders(proc, cgroup, controller):
    """The folders of the process's control group and of all those above it, which limit it too."""
    folders = [os.path.join(cgroup, controller)]  # in a container, its own group is all that is mounted
    with contextlib.suppress(OSError, ValueError), open(os.path.join(proc, 'self', 'cgroup')) as file:
        for _, controllers, path in (line.rstrip('\n').split(':', 2) for line in file):
            if controller in controllers.split(','):
                parts = path.strip('/').split('/')
                folders += [os.path.join(folders[0], *parts[:i + 1]) for i in range(len(parts))]
    return folders


def _group_room(folder, files):
    """What a control group's limit leaves, counting files that are kept in memory as free; infinite without one."""
    _, limit, used, reclaimable = files
    try:
        (most,), (now,) = runtime.read_words(folder, limit), runtime.read_words(folder, used)
        return int(most) - int(now) + _value(os.path.join(folder, 'memory.stat'), reclaimable, unknown=0)
    except (OSError, ValueError):  # 'max' is none
        return float('inf')
