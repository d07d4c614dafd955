"""Signals: the first one takes effect when the work is done, the second one ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from utils.system import interrupts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize('number', interrupts.STOPPING)
def test_the_first_signal_is_kept(number):
    """Runs in its own process, because pytest-xdist may run a test outside the main thread, which gets the signals."""
    code = ('import os, signal\nfrom utils.system import interrupts\n'
            'before = signal.getsignal({0})\n'
            'with interrupts.deferred() as pending:\n'
            '    assert pending.number is None\n'
            '    os.kill(os.getpid(), {0})\n'
            '    assert pending.number == {0}\n'
            'assert signal.getsignal({0}) == before').format(int(number))
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stderr=subprocess.PIPE)
    assert process.returncode == 0 and b'stopping after this step' in process.stderr, process.stderr


def test_ctrl_c_ends_an_import_at_once():
    """This holds even in a callback, where Python ignores exceptions."""
    code = ('import os, signal, weakref\nfrom utils.system import interrupts\n'
            'class Module(object):\n    pass\n'
            'module = Module()\n'
            'ref = weakref.ref(module, lambda ref: os.kill(os.getpid(), signal.SIGINT))\n'
            'with interrupts.at_once():\n'
            '    pass\n'
            'assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n'
            'with interrupts.at_once():\n'
            '    del module\n'
            'print("it went on")')
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, b'', b'')


def test_the_second_signal_ends_the_process_while_native_code_runs():
    """While a native function computes for hours, no Python handler runs."""
    code = ('import hashlib, os, signal, threading\nfrom utils.system import interrupts\n'
            'with interrupts.deferred():\n'
            '    for seconds, number in (0.2, signal.SIGINT), (0.4, signal.SIGTERM):\n'
            '        threading.Timer(seconds, os.kill, (os.getpid(), number)).start()\n'
            '    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 ** 31 - 1)\nprint("on")')
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.returncode == 128 + signal.SIGTERM and process.stdout == b'' and b'stopping' in process.stderr


def test_other_threads_may_use_it():
    seen = []

    def work():
        with interrupts.deferred() as pending:
            seen.append(pending.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
