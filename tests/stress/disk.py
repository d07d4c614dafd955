"""Disks that fill up or become read-only, and folders that vanish: files must be complete, and losses reported."""

import contextlib
import ctypes
import glob
import os
import shutil
import subprocess
import time

from tests import stress
from tests.machine import full_disk
from tests.stress import runs

SECONDS, MEMORY = 300.0, 16 << 30
FAULTS = ('full', 'read-only', 'vanishing')
PLACES = ('all', 'logdir', 'modeldir', 'out_dir', 'logfile')
STEPS = 40
NEW_MOUNTS = 0x20000  # CLONE_NEWNS: the mounts of this process end with it, however it ends


def prepare(folder):
    """Trains a network for the predictions."""
    runs.Run(folder, num_steps=2, save_interval=2, valid_interval=0).finish()


def run(case):
    fault, place = FAULTS[case.number % 3], PLACES[case.number // 3 % 5]
    if fault == 'vanishing' and place in ('all', 'logfile'):
        place = ('modeldir', 'logdir', 'out_dir')[case.rng.randint(3)]
    disk = os.path.join(case.folder, 'disk')
    os.makedirs(disk)
    with mounted(disk, fault, case.rng) as limit:
        flags = {name: os.path.join(disk, 'log' if name == 'logfile' else name)
                 for name in (runs.OUTPUTS if place == 'all' else (place,))}
        one = predicting(case, flags) if place == 'out_dir' else runs.Run(
            case.folder, num_steps=STEPS, save_interval=2, valid_interval=3, valid_num_steps=1, **flags)
        print('%s: %s of %s' % (fault, place, 'a tmpfs' if limit is None else 'RLIMIT_FSIZE=%d' % limit), flush=True)
        early = fault == 'read-only' and place not in ('out_dir', 'logfile')  # open files prevent it later
        if early and limit is None:
            make_read_only(disk)
        with contextlib.ExitStack() as stack:
            if limit is not None:
                stack.enter_context(full_disk(limit))
            process = one.start()
        try:
            if fault != 'full' and not early:
                broken(one, disk, flags, fault, case.rng)
            code = process.wait()
        finally:
            one.end()
        one.no_traceback()
        runs.assert_whole(case.folder)
        print('exit code %d: %s' % (code, one.output()[-400:]))
        if code:
            runs.assert_refused(one.output(), code, ['--' + name for name in flags] + list(flags.values()) + [
                os.path.basename(value) for value in flags.values()])
            return stress.REFUSED
        assert_complete(one, place)
        return stress.RIGHT


def predicting(case, flags):
    return runs.Run(case.folder, option='predict', modeldir=os.path.join(case.shared, 'modeldir'), overlay='true',
                    save_probabilities='true', **flags)


def broken(one, disk, flags, fault, rng):
    """Waits for a random moment of the run, then breaks the disk."""
    first = flags.get('out_dir') if one.flags.get('option') == 'predict' else None
    step = rng.randint(1, STEPS - 5)
    if first:
        one.until(lambda: len(glob.glob(os.path.join(first, '**', '*.png'), recursive=True)) >= 1 + step % 5)
    else:
        one.until(lambda: one.steps() >= step)
    if fault == 'vanishing':
        for path in flags.values():
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, path + '.gone')  # at once, unlike removing one file after another
            shutil.rmtree(path + '.gone', ignore_errors=True)
    else:
        while one.running(0) and not make_read_only(disk):  # a file that is open for writing prevents it
            time.sleep(0.002)


def make_read_only(disk):
    """Makes a mounted disk read-only; returns whether that was possible."""
    return not subprocess.call(['mount', '-o', 'remount,ro', disk], stderr=subprocess.DEVNULL)


def assert_complete(one, place):
    """Checks that a run that ended with exit code 0 has written all its output."""
    if one.flags.get('option') == 'predict':
        assert os.path.isdir(one.flags['out_dir']), 'it ended with 0 and its out_dir is gone'
        with open(os.path.join(runs.ROOT, 'dataset', 'sample', 'val.txt')) as file:
            count = len(file.read().splitlines())
        masks = glob.glob(os.path.join(one.flags['out_dir'], '**', '*.png'), recursive=True)
        assert len(masks) >= 3 * count, '%d pictures of %d images' % (len(masks), count)
        return
    assert one.steps() == STEPS + 1, '%d lines of the log' % one.steps()
    assert os.path.exists(os.path.join(one.flags['modeldir'], 'model.ckpt-%d.index' % STEPS))
    assert glob.glob(os.path.join(one.flags['logdir'], 'events*')), 'it ended with 0 and its events are gone'


@contextlib.contextmanager
def mounted(path, fault, rng):
    """Mounts a small disk at a path; yields None, or the largest file size if nothing can be mounted."""
    size = int(rng.uniform(0.05, 3.0) * (1 << 20)) if fault == 'full' else 64 << 20
    own = not os.getuid() and not ctypes.CDLL(None).unshare(NEW_MOUNTS) and not subprocess.call(
        ['mount', '--make-rprivate', '/'], stderr=subprocess.DEVNULL)
    if not own or subprocess.call(['mount', '-t', 'tmpfs', '-o', 'size=%d' % size, 'stress', path],
                                  stderr=subprocess.DEVNULL):
        yield size if fault == 'full' else None
        return
    try:
        yield None
    finally:
        subprocess.check_call(['umount', '-l', path])
