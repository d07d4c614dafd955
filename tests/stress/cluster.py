"""Helpers of a cluster on loopback that are slow, die and return, join late, or run other code."""

import os
import shutil
import signal
import time

import tensorflow.compat.v1 as tf

from tests import stress
from tests.stress import runs

SECONDS, MEMORY = 400.0, 16 << 30
STEPS, TASKS = 24, 3
OTHER_PYTHON = 'STRESS_OTHER_PYTHON'  # environment variable with the path of the Python of another TensorFlow
OTHERS = [os.path.expanduser('~/.cache/deeplab-v2-ci/tensorflow%d/bin/python' % version) for version in (1, 2)]


def training(folder, tasks=TASKS):
    return runs.Run(folder, tasks=tasks, num_steps=STEPS, save_interval=5, valid_interval=0, batch_size=6,
                    train_bn='false')


def other_python():
    """Returns the path of the Python of another TensorFlow; '' if there is none."""
    path = os.environ.get(OTHER_PYTHON, OTHERS[tf.__version__.startswith('1.')])
    return path if os.path.exists(path) else ''


def summary(shared):
    """Returns a line about which other TensorFlow was tried."""
    return 'another TensorFlow: ' + (other_python() or 'not tried, %s names no python of one' % OTHER_PYTHON)


def run(case):
    works = [slow, dying, late, other_code] + ([other_tensorflow] if other_python() else [])
    work = works[case.number % len(works)]
    print(work.__name__, flush=True)
    one = training(case.folder, 2 if work in (other_code, other_tensorflow) else TASKS)
    try:
        work(case, one)
        if work in (other_code, other_tensorflow):
            return stress.REFUSED
        one.finish()
    finally:
        one.end()
    one.no_traceback()
    whole = runs.never_stopped(training(os.path.join(case.shared, 'whole')))
    runs.assert_equal(one, whole)
    return stress.RIGHT


def slow(case, one):
    """Stops a helper for five seconds, and checks that the machines connect only to loopback addresses."""
    one.start_all()
    task, step = 1 + case.rng.randint(TASKS - 1), case.rng.randint(STEPS - 4)
    one.until(lambda: one.steps() >= step + 1)
    one.processes[task].send_signal(signal.SIGSTOP)
    time.sleep(5)
    assert_loopback(one)
    one.processes[task].send_signal(signal.SIGCONT)


def dying(case, one):
    """Kills a helper once or twice; it returns after a while."""
    for _ in range(1 + case.rng.randint(2)):
        one.start_all()
        task, step = 1 + case.rng.randint(TASKS - 1), min(STEPS - 2, one.steps() + 1 + case.rng.randint(10))
        one.until(lambda step=step: one.steps() >= step)
        paused = one.output().count('training pauses until it is back')
        one.signal(task, signal.SIGKILL)
        one.until(lambda paused=paused: one.output().count('training pauses until it is back') > paused)
        time.sleep(case.rng.uniform(0, 3))


def late(case, one):
    """Starts task 0 first, then one helper, and the other one later."""
    one.start(0)
    one.until_told('waiting for task 1')
    one.start(1)
    time.sleep(case.rng.uniform(0, 6))
    one.start(2)


def other_code(case, one):
    """Runs a helper with other code of the project: one byte more."""
    folder = os.path.join(case.folder, 'project')
    for name in ('utils', 'tests'):
        shutil.copytree(os.path.join(runs.ROOT, name), os.path.join(folder, name), ignore=shutil.ignore_patterns(
            'golden', '__pycache__'))
    names = [name for name in os.listdir(runs.ROOT) if name.endswith('.py')]
    for name in names:
        shutil.copy(os.path.join(runs.ROOT, name), folder)
    with open(os.path.join(folder, sorted(names)[case.rng.randint(len(names))]), 'a') as file:
        file.write('#')
    one.start(1, script=os.path.join(folder, 'tests', 'narrow_main.py'))
    assert_named(one, ['runs another version of this project'])


def other_tensorflow(case, one):
    """Runs a helper with another TensorFlow."""
    one.start(1, python=other_python())
    assert_named(one, ['runs TensorFlow', 'runs a TensorFlow'])


def assert_named(one, words):
    """Checks that task 0 ends with a sentence that names task 1, and task 1 with one that names task 0."""
    one.start(0)
    codes = [one.processes[task].wait() for task in (0, 1)]
    runs.assert_refused(one.output(0), codes[0], ['task 1 (%s) %s' % (one.addresses[1], some) for some in words])
    runs.assert_refused(one.output(1), codes[1], ['task 0 (%s) rejected this' % one.addresses[0]])


def assert_loopback(one):
    """Checks that all connections of the processes are to this machine's loopback address."""
    inodes = set()
    for process in one.processes.values():
        for descriptor in os.listdir('/proc/%d/fd' % process.pid):
            try:
                inodes.add(os.readlink('/proc/%d/fd/%s' % (process.pid, descriptor)))
            except OSError:  # it has been closed
                continue
    seen = 0
    for name in ('tcp', 'tcp6'):
        with open('/proc/net/' + name) as file:
            for fields in (line.split() for line in file.read().splitlines()[1:]):
                remote = fields[2].split(':')[0]
                if 'socket:[%s]' % fields[9] in inodes and set(remote) != {'0'}:
                    seen += 1
                    assert remote.endswith(('0100007F', '00000000000001000000')), remote
    print('%d connections, all on loopback' % seen)
    assert seen
