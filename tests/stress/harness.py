"""Runs one case of a part in a forked process with limits of time and memory, and returns how it ended."""

import collections
import contextlib
import faulthandler
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import zlib

import numpy as np

from tests import stress

POLL_SECONDS = 0.005

# What the cases of a part share. seed: --seed; folder: of the part, which holds `shared`; seconds: for the whole part;
# patience: factor of the time limit of a case.
Run = collections.namedtuple('Run', 'seed folder seconds patience')

# kind: RIGHT, REFUSED or '' for a failure; text: of the failure; seconds: taken; memory: bytes of the largest process.
Outcome = collections.namedtuple('Outcome', 'kind text seconds memory')


def run_case(part, name, number, run):
    """Runs one case of a part and returns its Outcome; if the case fails, its files are kept.

    Args:
      part: a module, see tests/stress/__init__.py.
      name: the part's name.
      number: the case's number.
      run: a Run.
    """
    own = os.path.join(run.folder, '%s-%d' % (name, number))
    os.makedirs(own)
    rng = np.random.RandomState(zlib.crc32(('%d %s %d' % (run.seed, name, number)).encode()))
    case = stress.Case(number, rng, own, os.path.join(run.folder, 'shared'), run.seconds)
    outcome = in_fork(lambda: part.run(case), own + '.txt', run.patience * getattr(part, 'SECONDS', stress.SECONDS),
                      getattr(part, 'MEMORY', stress.MEMORY))
    if outcome.kind:
        os.remove(own + '.txt')
        shutil.rmtree(own, ignore_errors=True)
    return outcome


def prepare(part, folder):
    """Runs the part's prepare, if it has one, and returns its Outcome."""
    shared = os.path.join(folder, 'shared')
    os.makedirs(shared)

    def work():
        part.prepare(shared)
        return stress.RIGHT

    if not hasattr(part, 'prepare'):
        return Outcome(stress.RIGHT, '', 0, 0)
    return in_fork(work, shared + '.txt', 600, stress.MEMORY)


def in_fork(work, output, seconds, memory):
    """Runs work() in a forked process, whose process group is killed at the end, and returns the Outcome.

    Args:
      work: a function that returns a kind.
      output: path of the file for everything that it prints.
      seconds, memory: its limits.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.time()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        _child(work, output, write_end, memory)
    os.close(write_end)
    with open(read_end, 'rb', 0) as results:
        late = False
        try:
            ended, status, usage = _wait(pid, started + seconds)
            if not ended:
                late = True
        finally:  # also after Ctrl-C
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        if late:
            _, status, usage = os.wait4(pid, 0)
        os.set_blocking(results.fileno(), False)
        result = (results.read(10 ** 5) or b'').decode('utf-8', 'replace')
    kind, _, text = result.partition('\n')
    if late:
        kind, text = '', 'no end within %g seconds' % seconds
    elif not result:
        kind, text = '', 'ended by signal %d' % (status & 127) if status & 127 else 'ended with %d' % (status >> 8)
    return Outcome(kind, text, time.time() - started, usage.ru_maxrss * 1024)


def _wait(pid, deadline):
    """Waits for a process and returns os.wait4's result; (0, 0, None) at the deadline."""
    while time.time() < deadline:
        result = os.wait4(pid, os.WNOHANG)
        if result[0]:
            return result
        time.sleep(POLL_SECONDS)
    return 0, 0, None


def _child(work, output, pipe, memory):
    """Runs work() in the forked process and never returns."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for standard in (1, 2):
        os.dup2(file, standard)
    # The parent may have replaced them.
    sys.stdout, sys.stderr = (os.fdopen(standard, 'w', closefd=False) for standard in (1, 2))
    faulthandler.enable(sys.stderr)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        kind = work()
        if kind not in (stress.RIGHT, stress.REFUSED):
            raise ValueError('a part returned %r' % (kind,))
        result = kind + '\n'
    except BaseException as error:  # also SystemExit
        traceback.print_exc()
        result = '\n%s: %s' % (type(error).__name__, ' '.join(str(error).split())[:400])
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(pipe, result.encode('utf-8', 'replace')[:60000])
    os._exit(0)
