"""Memory that must stay constant over a long training and many predictions, and lists of a million lines."""

import collections
import os

import numpy as np
from PIL import Image

from tests import stress
from tests.stress import runs

SECONDS, MEMORY, CASES = 3600.0, 16 << 30, 3
STEPS, IMAGES, A_SECOND = 5000, 2000, 10  # the most of both, and how many per second of the part's time
# Images share some random sizes. Each new size adds 12 KB of memory until TensorFlow has oneDNN's code for the last
# 1,024 shapes of each op in each thread, which took about 8,000 images and 40 MB.
SIZES = 64
LINES, START_SECONDS, START_BYTES = 10 ** 6, 10.0, 10 ** 9
GROWTH, SHORT_GROWTH = 1.03, 1.10  # allowed from a fifth of the run to its end; the latter for shorter runs

Amount = collections.namedtuple('Amount', 'count whole what')  # how many; whether that is the full number; of what


def run(case):
    (training, predictions, long_list)[case.number % 3](case)
    return stress.RIGHT


def summary(shared):
    """Returns what was measured."""
    return '\n'.join(runs.told(shared))


def training(case):
    steps = int(np.clip(case.seconds * A_SECOND, 200, STEPS))
    one = runs.Run(case.folder, num_steps=steps, save_interval=max(1, steps // 50), valid_interval=max(1, steps // 25),
                   valid_num_steps=2, max_to_keep=3)
    assert_flat(case, one, one.steps, Amount(steps, steps == STEPS, 'steps'))


def predictions(case):
    count, folder = int(np.clip(case.seconds * A_SECOND, 100, IMAGES)), os.path.join(case.folder, 'images')
    os.makedirs(folder)
    runs.Run(case.folder, num_steps=2, save_interval=2, valid_interval=0).finish()
    sizes = case.rng.randint(17, 130, [SIZES, 2])
    for number in range(count):
        pixels = case.rng.randint(0, 256, [8, 8, 3]).astype(np.uint8)
        Image.fromarray(pixels).resize(tuple(sizes[case.rng.randint(SIZES)])).save(
            os.path.join(folder, '%04d.png' % number))
    one = runs.Run(case.folder, option='predict', image_dir=folder, visual='false', data_dir='')
    out_dir = one.flags['out_dir']
    assert_flat(case, one, lambda: sum(map(len, (files for _, _, files in os.walk(out_dir)))),
                Amount(count, count == IMAGES, 'predictions'))


def assert_flat(case, one, done, amount):
    """Checks that memory at the end is as after a fifth of the Amount; done() returns how many things are done."""
    process, (count, whole, what) = one.start(), amount
    fifth, last = [], []
    try:
        while process.poll() is None:
            number = done()
            try:
                now = runs.resident(process.pid)[0]
            except (OSError, KeyError):  # it has just ended
                break
            if count // 5 <= number <= count // 4:
                fifth.append(now)
            elif number >= count * 0.95:
                last.append(now)
            one.until(lambda number=number: done() >= number + count // 100)
        assert process.wait() == 0, one.output()[-2000:]
    finally:
        one.end()
    early, late = np.median(fifth), np.median(last)
    runs.tell(case, '%d %s: %.1f MB after a fifth, %.1f MB at the end' % (count, what, early / 1e6, late / 1e6))
    assert late <= early * (GROWTH if whole else SHORT_GROWTH), 'from %.1f to %.1f MB in %d %s' % (
        early / 1e6, late / 1e6, count, what)


def long_list(case):
    seconds = {}
    with open(os.path.join(runs.ROOT, 'dataset', 'sample', 'train.txt')) as file:
        lines = file.read().splitlines()
    for count in (len(lines), LINES):
        folder = os.path.join(case.folder, str(count))
        os.makedirs(folder)
        path = os.path.join(folder, 'list.txt')
        with open(path, 'w') as file:
            file.write('\n'.join(lines[number % len(lines)] for number in range(count)) + '\n')
        one = runs.Run(folder, data_list=path, valid_interval=0, num_steps=10 ** 6, save_interval=10 ** 6)
        process = one.start()
        try:
            assert one.until(lambda one=one: one.steps() >= 1), one.output()[-2000:]
            seconds[count], most = cpu_seconds(process.pid), runs.resident(process.pid)[1]
        finally:
            one.end()
        runs.tell(case, '%d lines: first step after %.1f s of processor time, %.0f MB at most' % (
            count, seconds[count], most / 1e6))
    beyond = seconds[LINES] - seconds[len(lines)]
    assert beyond <= START_SECONDS, '%.1f s more than with a short list' % beyond
    assert most <= START_BYTES, '%.0f MB' % (most / 1e6)


def cpu_seconds(pid):
    """Returns the processor time of a process so far, which does not depend on the load of the machine."""
    with open('/proc/%d/stat' % pid) as file:
        fields = file.read().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf('SC_CLK_TCK'))
