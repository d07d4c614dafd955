"""Kills a training at random moments: after resuming, it must equal one that was never stopped."""

import collections
import os
import signal
import time

from tests import stress
from tests.stress import runs
from utils.weights import checkpoints

SECONDS, MEMORY = 400.0, 16 << 30
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KINDS = ('main', 'main_msc', 'cluster')  # kinds of trainings; one of each kind is never stopped
MOMENTS = ('save', 'validation', 'start', 'end', 'step', 'save')
STEPS, SAVE_INTERVAL, VALID_INTERVAL = 20, 3, 4
CODES = {signal.SIGTERM: (143, -15, 0, None), signal.SIGINT: (130, -2, 0, None), signal.SIGKILL: (-9, None)}


def training(folder, kind):
    cluster = kind == 'cluster'
    return runs.Run(folder, 'main_msc' if kind == 'main_msc' else 'main', tasks=3 if cluster else 1,
                    num_steps=STEPS, save_interval=SAVE_INTERVAL, valid_interval=VALID_INTERVAL, valid_num_steps=2,
                    batch_size=3 if cluster else 2, train_bn='false' if cluster else 'true')


def run(case):
    kind = KINDS[case.number % 3]
    one = training(case.folder, kind)
    whole = runs.never_stopped(training(os.path.join(case.shared, kind), kind))
    try:
        for turn in range(1 + case.rng.randint(3)):
            stop(one, case, SIGNALS[(case.number // 3 + turn) % 3], kind)
        one.finish()
    finally:
        one.end()
    one.no_traceback()
    runs.assert_equal(one, whole)
    return stress.RIGHT


def summary(shared):
    """Returns how many processes of each kind of run were stopped by each signal."""
    stopped = [line.split() for line in runs.told(shared) if not line.endswith('exit code None')]  # it had ended before
    counts = collections.Counter((words[0], signal.Signals(int(words[5])).name) for words in stopped)
    return '%d kills: %s' % (len(stopped), ', '.join('%s %s %d' % (key + (counts[key],)) for key in sorted(counts)))


def stop(one, case, number, kind):
    """Starts all processes that are not running, and sends one of them a signal at a random moment."""
    rng = case.rng
    task = rng.randint(3) if kind == 'cluster' else 0
    moment = MOMENTS[rng.randint(len(MOMENTS))]
    one.start_all()
    wait(one, moment, rng)
    assert one.processes[0].poll() in (None, 0), one.output(0)[-2000:]  # otherwise it failed by itself
    code, step = one.signal(task, number), one.steps()
    text = '%s %s task %d signal %d at %s: step %d, exit code %s' % (  # summary() parses this line
        kind, moment, task, number, time.strftime('%X'), step, code)
    runs.tell(case, text)
    assert code in CODES[number], one.output(task)[-2000:]
    if task == 0 and number != signal.SIGKILL:
        runs.assert_whole(one.flags['modeldir'])
    if task == 0 and code in (130, 143) and 'interrupted in step' in one.output(0)[-300:]:
        saved = checkpoints.checkpoint_steps(one.flags['modeldir'])[-1]
        assert saved == step - 1, 'step %d is saved of %d' % (saved, step - 1)


def wait(one, moment, rng):
    """Waits for a moment, and then for a short random time, so that the moment has probably not passed yet."""
    if moment == 'start':
        time.sleep(rng.uniform(0, 6))
    elif moment == 'end':
        one.until(lambda: one.steps() > STEPS, revive=True)
        time.sleep(rng.uniform(0, 0.5))
    elif moment == 'save':
        since, folder = one.steps(), one.flags['modeldir']
        one.until(lambda: one.steps() > since + 1 and os.path.isdir(folder) and any(
            'temp' in name for name in os.listdir(folder)), revive=True)
        time.sleep(rng.uniform(0, 0.02))
    else:
        step = min(STEPS, one.steps() + 1 + rng.randint(8))
        if moment == 'validation':
            step = min(STEPS, (step // VALID_INTERVAL + 1) * VALID_INTERVAL)
        one.until(lambda: one.steps() > step, revive=True)
        time.sleep(rng.uniform(0, 0.3))
