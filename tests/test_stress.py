"""The stress suite's harness: how the end of a case is reported, what is kept, and that a case can be repeated."""

import os
import signal
import time
import types

import numpy as np
import pytest

from tests import stress
from tests.stress import damages, harness, kill


def ends(tmp_path, run, **limits):
    """Runs a case and returns its Outcome and the names of the files that are kept."""
    part = types.SimpleNamespace(run=run, **limits)
    outcome = harness.run_case(part, 'part', 7, harness.Run(1, str(tmp_path), 60, 1))
    return outcome, sorted(os.listdir(str(tmp_path)))


def test_a_right_case_leaves_nothing(tmp_path):
    def run(case):
        with open(os.path.join(case.folder, 'file'), 'w') as file:
            file.write('text')
        return stress.REFUSED

    outcome, kept = ends(tmp_path, run)
    assert (outcome.kind, outcome.text, kept) == (stress.REFUSED, '', [])
    assert outcome.memory > 10 ** 7


def fails(case):
    print('what was tried: %s' % case.rng.bytes(4))
    assert case.number == 8, 'eight is wanted'


def never_ends(case):
    if os.fork():  # the child process must end too
        time.sleep(10 ** 4)
    time.sleep(10 ** 4)


@pytest.mark.parametrize('run, told, limits', [
    (fails, 'AssertionError: eight is wanted', {}),
    (lambda case: os.kill(os.getpid(), signal.SIGKILL), 'ended by signal 9', {}),
    (lambda case: os._exit(3), 'ended with 3', {}),
    (never_ends, 'no end within 0.5 seconds', {'SECONDS': 0.5}),
    (lambda case: len(bytearray(3 << 30)), 'MemoryError: ', {'MEMORY': 2 << 30}),
    (lambda case: 'so so', "ValueError: a part returned 'so so'", {}),
], ids=['assertion', 'signal', 'exit', 'time', 'memory', 'word'])
def test_failures_are_told_and_kept(tmp_path, run, told, limits):
    outcome, kept = ends(tmp_path, run, **limits)
    assert outcome.kind == '' and outcome.text.startswith(told)
    assert kept == ['part-7', 'part-7.txt']


def test_a_case_repeats(tmp_path):
    texts = []
    for folder in ('one', 'two'):
        (tmp_path / folder).mkdir()
        ends(tmp_path / folder, fails)
        texts.append((tmp_path / folder / 'part-7.txt').read_text())
    assert texts[0].splitlines()[0] == texts[1].splitlines()[0] != ''
    assert 'eight is wanted' in texts[0]


def test_kills_are_counted(tmp_path):
    line = '%s save task 0 signal %d at 1:02: step 3, exit code %s\n'
    (tmp_path / 'told.txt').write_text(''.join(line % one for one in (
        ('main', 9, -9), ('cluster', 15, 143), ('main', 9, -9), ('main', 9, None), ('main', 2, 130))))
    assert kill.summary(str(tmp_path)) == '4 kills: cluster SIGTERM 1, main SIGINT 1, main SIGKILL 2'


@pytest.mark.parametrize('change', damages.ALL)
def test_damages_change_and_repeat(change):
    data = b'\0\0\0\x05names' * 40
    found = [[change(np.random.RandomState(seed), data) for seed in range(9)] for _ in range(2)]
    assert found[0] == found[1] and len(set(found[0])) > 3
    assert sum(one != data for one in found[0]) >= 8
