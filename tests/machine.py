"""Resources of the machine that tests use: free ports, and a limit on file sizes that simulates a full disk."""

import contextlib
import resource
import socket


def free_ports(count):
    """Returns `count` different free ports of the loopback address."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def full_disk(most_bytes):
    """Limits the size of every file of this process and of processes started inside, so that larger writes fail.

    Python ignores the signal SIGXFSZ that the system sends with the failure.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:  # before pytest writes its report of the test, which may go to a longer file
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
