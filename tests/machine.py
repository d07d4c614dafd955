"""What tests take of the machine: ports that nothing uses, and files that may grow no further, as on a full disk."""

import contextlib
import resource
import socket


def free_ports(count):
    """Ports of loopback, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def full_disk(most_bytes):
    """Inside, every file ends at so many bytes, of processes that are started there too: a write beyond is refused.

    Python ignores the signal that comes with it, SIGXFSZ.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:  # before pytest writes of the test, perhaps into a long file
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
