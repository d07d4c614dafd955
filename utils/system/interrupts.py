"""Signals that stop a run: the first lets it finish what it does, the second ends it at once."""

import contextlib
import os
import signal
import sys
import threading

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A run that ended early but in good order; `number` is the signal that asked for it."""

    def __init__(self, number):
        super(Interrupted, self).__init__('signal %d' % number)
        self.number = number


class Pending(object):
    """The signal that came, None as long as none did."""

    number = None

    def handle(self, number, frame=None):
        self.number = self.number or number

    def watch(self, pipe):
        """Acts on the numbers of signals that come through a pipe, until it is closed."""
        with os.fdopen(pipe, 'rb', 0) as stream:
            numbers = (byte[0] for byte in iter(lambda: stream.read(1), b'') if byte[0] in STOPPING)
            for came, number in enumerate(numbers):
                if came:
                    os._exit(128 + number)  # TensorFlow's threads would hold up any other end
                self.handle(number)
                print('\nstopping after this step; a second signal stops at once', file=sys.stderr)


@contextlib.contextmanager
def at_once():
    """Inside, Ctrl-C ends the process: an import drops what is raised in its callbacks, and the run would go on."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(
        signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def deferred():
    """Inside, SIGINT and SIGTERM only set the number of the Pending that this yields; a second one ends the process.

    Python's handlers do not run while a step computes, so a thread waits for the signals. Outside the main thread,
    where Python allows no handlers, signals act as before.
    """
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    watcher = threading.Thread(target=pending.watch, args=(read_end,), daemon=True)
    watcher.start()
    previous = [(number, signal.signal(number, pending.handle)) for number in STOPPING]
    wakeup = signal.set_wakeup_fd(write_end)
    try:
        yield pending
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous:
            signal.signal(number, handler)
        os.close(write_end)
        watcher.join()
