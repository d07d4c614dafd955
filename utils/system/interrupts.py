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

    def handle(self, number, frame):
        if self.number is not None:
            os._exit(128 + number)  # TensorFlow's threads would hold up any other end
        self.number = number
        print('\nstopping after this step; a second %s stops at once' % (
            'Ctrl-C' if number == signal.SIGINT else 'signal'), file=sys.stderr)


@contextlib.contextmanager
def deferred():
    """Inside, SIGINT and SIGTERM only set the number of the Pending that this yields; a second one ends the process.

    Outside the main thread, where Python allows no handlers, signals act as before.
    """
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    previous = [(number, signal.signal(number, pending.handle)) for number in STOPPING]
    try:
        yield pending
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
