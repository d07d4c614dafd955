"""Memory: how much this process may still allocate, and an error that names the settings to lower if none is left."""

import contextlib
import os
from typing import NamedTuple

import psutil
import tensorflow.compat.v1 as tf

from utils.system import runtime
from utils.system.errors import UserError, reason


class CgroupFiles(NamedTuple):
    """Where a version of cgroups keeps a group's memory figures."""
    controller: str  # the folder in the mount; '' in version 2
    limit: str  # the file that holds the limit
    used: str  # the file that holds the usage
    reclaimable: str  # the name, in memory.stat, of the part of the usage that caches files and is freed on demand


CGROUP_VERSIONS = (CgroupFiles('', 'memory.max', 'memory.current', 'inactive_file'),
                   CgroupFiles('memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'))


@contextlib.contextmanager
def report_exhaustion(settings):
    """Turns TensorFlow's ResourceExhaustedError in a `with` block into a UserError that names the settings to lower."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise UserError('out of memory (%s): lower %s.' % (reason(error), settings))


def free(proc='/proc', cgroup=runtime.CGROUP):
    """Returns how many bytes of main memory this process may still allocate; infinity if this is unknown.

    This is the smallest of three numbers: the machine's available memory, what the limits of the process's cgroups (of
    a container or a batch job) leave, and what its address space limit (`ulimit -v`) leaves.
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
    """Returns the integer after a name in a file with lines `name number`; `unknown` if there is none."""
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        for words in map(str.split, file):
            if len(words) > 1 and words[0] == name:
                return int(words[1])
    return unknown


def _cgroup_folders(proc, cgroup, controller):
    """Returns the folders of the process's cgroup and of all cgroups above it, whose limits apply too."""
    folders = [os.path.join(cgroup, controller)]  # in a container, only its own cgroup is mounted
    with contextlib.suppress(OSError, ValueError), open(os.path.join(proc, 'self', 'cgroup')) as file:
        for _, controllers, path in (line.rstrip('\n').split(':', 2) for line in file):
            if controller in controllers.split(','):
                parts = path.strip('/').split('/')
                folders += [os.path.join(folders[0], *parts[:i + 1]) for i in range(len(parts))]
    return folders


def _left_in_cgroup(folder, files):
    """Returns the bytes that a cgroup's limit leaves, counting cached files as free; infinity without a limit."""
    try:
        limit, used = runtime.read_words(folder, files.limit, files.used)
        return int(limit) - int(used) + _value(os.path.join(folder, 'memory.stat'), files.reclaimable, unknown=0)
    except (OSError, ValueError):  # 'max' means no limit
        return float('inf')
