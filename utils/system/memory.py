"""Memory: how much this process can still allocate, and a helpful error when memory is exhausted."""

import contextlib
import os
from typing import NamedTuple

import psutil
import tensorflow.compat.v1 as tf

from utils.system import runtime
from utils.system.errors import UserError, reason


class CgroupFiles(NamedTuple):
    """The names of the files in which a version of cgroups reports memory."""
    controller: str  # the folder in the mount; '' in version 2
    limit: str  # the file that contains the limit
    used: str  # the file that contains the usage
    reclaimable: str  # the name in memory.stat of the file cache: used memory that is freed on demand


CGROUP_VERSIONS = (CgroupFiles('', 'memory.max', 'memory.current', 'inactive_file'),
                   CgroupFiles('memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'))


@contextlib.contextmanager
def report_exhaustion(settings):
    """Turns TensorFlow's ResourceExhaustedError in a `with` block into a UserError.

    Args:
      settings: the settings to lower, for the message.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise UserError('out of memory (%s): lower %s.' % (reason(error), settings))


def free(proc='/proc', cgroup=runtime.CGROUP):
    """Returns how many bytes of main memory this process can still allocate; infinity if this is unknown.

    This is the minimum of the machine's available memory, the memory left within the limits of the process's cgroups
    (of a container or a batch job), and the address space left within its limit (`ulimit -v`).
    """
    left = [float('inf')]
    with contextlib.suppress(OSError):
        left.append(psutil.virtual_memory().available)
    left += [_left_in_cgroup(folder, files) for files in CGROUP_VERSIONS
             for folder in _cgroup_folders(proc, cgroup, files.controller)]
    if hasattr(psutil, 'RLIMIT_AS'):  # on Linux
        limit = psutil.Process().rlimit(psutil.RLIMIT_AS)[0]
        if limit != psutil.RLIM_INFINITY:
            left.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(left))


def _value(path, name, unknown):
    """Returns the number for a name in a file with lines `name number`; `unknown` if it is not there."""
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        for words in map(str.split, file):
            if len(words) > 1 and words[0] == name:
                return int(words[1])
    return unknown


def _cgroup_folders(proc, cgroup, controller):
    """Returns the folders of the process's cgroup and of its parents, whose limits also apply."""
    folders = [os.path.join(cgroup, controller)]  # in a container, only the container's cgroup is mounted
    with contextlib.suppress(OSError, ValueError), open(os.path.join(proc, 'self', 'cgroup')) as file:
        for _, controllers, path in (line.rstrip('\n').split(':', 2) for line in file):
            if controller in controllers.split(','):
                parts = path.strip('/').split('/')
                folders += [os.path.join(folders[0], *parts[:i + 1]) for i in range(len(parts))]
    return folders


def _left_in_cgroup(folder, files):
    """Returns the bytes left within the limit of a cgroup, counting cached files as free; infinity without a limit."""
    try:
        limit, used = runtime.read_words(folder, files.limit, files.used)
        return int(limit) - int(used) + _value(os.path.join(folder, 'memory.stat'), files.reclaimable, unknown=0)
    except (OSError, ValueError):  # 'max' means no limit
        return float('inf')
