"""Signals that stop a run: after the first, the run finishes its current step; the second ends it immediately."""

import contextlib
import os
import signal
import socket
import sys
import threading

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Raised when a run stops, after finishing its step, because of the signal `number`."""

    def __init__(self, number):
        super(Interrupted, self).__init__('signal %d' % number)
        self.number = number


class Pending(object):
    """The first signal that was received: its `number`, or None if there was none."""

    number = None

    def handle(self, number, frame=None):
        self.number = self.number or number

    def watch(self, arriving):
        """Reads the numbers of signals from a socket and reacts to them, until the other end is closed."""
        with arriving:
            numbers = (byte[0] for byte in iter(lambda: arriving.recv(1), b'') if byte[0] in STOPPING)
            for count, number in enumerate(numbers):
                if count:
                    os._exit(128 + number)  # any other exit would wait for TensorFlow's threads
                self.handle(number)
                print('\nstopping after this step; a second signal stops immediately', file=sys.stderr)


@contextlib.contextmanager
def at_once():
    """Makes Ctrl-C end the process immediately within a `with` block. Useful around imports.

    KeyboardInterrupt can get lost during an import, which ignores exceptions in its callbacks.
    """
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
    """Defers SIGINT and SIGTERM in a `with` block and yields a Pending, which keeps the first signal.

    A second signal ends the process. Python's signal handlers do not run while TensorFlow computes a step, so a thread
    waits for the signals. Python allows handlers only in the main thread; in other threads this does nothing.
    """
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    arriving, sent = socket.socketpair()  # no pipe: Windows cannot make one non-blocking
    sent.setblocking(False)
    watcher = threading.Thread(target=pending.watch, args=(arriving,), daemon=True)
    watcher.start()
    previous = [(number, signal.signal(number, pending.handle)) for number in STOPPING]
    wakeup = signal.set_wakeup_fd(sent.fileno())
    try:
        yield pending
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous:
            signal.signal(number, handler)
        sent.close()
        watcher.join()
