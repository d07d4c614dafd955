"""Several machines, as processes on loopback: equal to one, whatever dies in between; mistakes are told by name."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from machine import free_ports

from utils.system import cluster, same_code
from utils.system.errors import UserError
from utils.weights import checkpoints

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEPS = 24


def flags(**changed):
    return types.SimpleNamespace(**dict({'cluster': None, 'task_index': None, 'option': 'train'}, **changed))


def tf_config(tasks, kind, index):
    return json.dumps({'cluster': tasks, 'task': {'type': kind, 'index': index}})


@pytest.mark.parametrize('changed, words', [
    ({'cluster': ['127.0.0.1:1', '127.0.0.1:2']}, '--cluster needs --task_index'),
    ({'cluster': ['127.0.0.1:1', '127.0.0.1:2'], 'task_index': 2}, '--task_index=2 is outside 0..1'),
    ({'task_index': 1}, '--task_index=1 is outside 0..0'),
    ({'cluster': ['127.0.0.1', '127.0.0.1:2'], 'task_index': 0}, "'127.0.0.1' is no host:port"),
    ({'cluster': ['127.0.0.1:70000', '127.0.0.1:2'], 'task_index': 0}, 'is no host:port'),
    ({'cluster': ['no-such-host.invalid:1', '127.0.0.1:2'], 'task_index': 1},
     "the host of 'no-such-host.invalid:1' is not known"),
    ({'cluster': ['127.0.0.1:1', '127.0.0.1:1'], 'task_index': 0}, 'names a machine twice'),
    ({'cluster': ['127.0.0.1:1', '127.0.0.1:2'], 'task_index': 0, 'option': 'export'},
     '--cluster is for --option=train, test and predict: --option=export works on one machine'),
])
def test_bad_flags(changed, words):
    with pytest.raises(UserError) as error:
        cluster.from_flags(flags(**changed))
    assert words in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize('text, words', [
    ('{', 'TF_CONFIG in the environment is not understood'),
    ('[]', 'TF_CONFIG in the environment is not understood'),
    (tf_config({'worker': ['127.0.0.1:1']}, 'worker', 3), 'task index 3 of 1'),
    (tf_config({'worker': [1, 2]}, 'worker', 1), 'not understood'),
    (tf_config({'worker': ['127.0.0.1:1'], 'ps': ['127.0.0.1:2']}, 'worker', 0), "of the type 'ps'"),
])
def test_bad_tf_config(text, words, monkeypatch):
    monkeypatch.setenv('TF_CONFIG', text)
    with pytest.raises(UserError) as error:
        cluster.from_flags(flags())
    assert words in str(error.value) and len(str(error.value)) < 300
    assert cluster.from_flags(flags(option='export')).tasks == 1


def test_tf_config(monkeypatch):
    tasks = {'worker': ['127.0.0.1:2', '127.0.0.1:3'], 'chief': ['127.0.0.1:1']}
    for kind, index, place, option in (('chief', 0, 0, 'train'), ('worker', 0, 1, 'test'), ('worker', 1, 2, 'predict')):
        monkeypatch.setenv('TF_CONFIG', tf_config(tasks, kind, index))
        found = cluster.from_flags(flags(option=option))
        assert found.addresses == ['127.0.0.1:%d' % port for port in (1, 2, 3)] and found.index == place
    monkeypatch.setenv('TF_CONFIG', tf_config({'worker': ['127.0.0.1:1']}, 'worker', 0))
    assert cluster.from_flags(flags()).addresses == []
    given = cluster.from_flags(flags(cluster=['127.0.0.1:8', ' 127.0.0.1:9'], task_index=1))  # before the environment
    assert given.addresses == ['127.0.0.1:8', '127.0.0.1:9'] and given.index == 1


def test_a_port_in_use():
    with socket.socket() as other:
        other.bind(('', 0))
        other.listen(1)
        port = other.getsockname()[1]
        machines = cluster.Cluster(['127.0.0.1:%d' % port, '127.0.0.1:1'], 0)
        with pytest.raises(UserError, match='port %d of 127.0.0.1:%d cannot be opened' % (port, port)):
            machines.start(tf.ConfigProto())


def test_losses_in_quick_succession_end_the_run(monkeypatch, capsys):
    monkeypatch.setattr(cluster, 'POLL_SECONDS', 0)
    calls = []

    def work():
        calls.append(len(calls))
        raise cluster.Lost('task 1 (a:1) is gone')

    with pytest.raises(UserError, match='task 1 .a:1. is gone: 5 times in a row'):
        cluster.Cluster().lasting(work)
    assert calls == [0, 1, 2, 3, 4] and 'training pauses until it is back' in capsys.readouterr().err
    assert cluster.Cluster().lasting(lambda: 7) == 7


class Run(object):
    """The processes of a short training of a narrow network, each with its output in a file."""

    def __init__(self, folder, tasks):
        self.folder, self.processes, self.outputs = folder, {}, {}
        self.addresses = ['127.0.0.1:%d' % port for port in free_ports(tasks)] if tasks > 1 else []

    def start(self, task):
        names = {name: os.path.join(str(self.folder), name) for name in ('modeldir', 'logdir', 'logfile')}
        command = [sys.executable, os.path.join(ROOT, 'tests', 'narrow_main.py'), 'main', '--flagfile=' + os.path.join(
            ROOT, 'dataset', 'sample.flags'), '--num_steps=%d' % STEPS, '--save_interval=5', '--valid_interval=0',
            '--batch_size=6', '--input_height=33', '--input_width=33', '--nocheck_labels', '--train_bn=false',
            '--learning_rate=1e-5'] + ['--%s=%s' % item for item in names.items()]
        if self.addresses:
            command += ['--cluster=' + ','.join(self.addresses), '--task_index=%d' % task]
        path = os.path.join(str(self.folder), 'task%d.txt' % task)
        with open(path, 'a') as output:
            self.processes[task] = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def output(self, task):
        with open(os.path.join(str(self.folder), 'task%d.txt' % task)) as file:
            return file.read()

    def losses(self):
        try:
            with open(os.path.join(str(self.folder), 'logfile')) as file:
                return [float(line.split(', ')[1]) for line in file.read().splitlines()]
        except (OSError, IndexError):
            return []

    def until(self, steps):
        while len(self.losses()) < steps:
            assert self.processes[0].poll() is None, self.output(0)
            time.sleep(0.02)

    def until_told(self, words):
        while words not in self.output(0):
            assert self.processes[0].poll() is None, self.output(0)
            time.sleep(0.02)

    def kill(self, task):
        self.processes[task].kill()
        self.processes[task].wait()

    def codes(self):
        return [self.processes[task].wait() for task in sorted(self.processes)]

    def end(self):
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def start(tmp_path):
    with contextlib.ExitStack() as stack:
        def make(name, tasks):
            (tmp_path / name).mkdir()
            run = Run(tmp_path / name, tasks)
            stack.callback(run.end)
            for task in reversed(range(tasks)):
                run.start(task)
            return run
        yield make


def test_three_machines_equal_one_whatever_dies(start):
    one = start('one', 1)
    assert one.codes() == [0], one.output(0)
    three = start('three', 3)
    three.until(8)
    three.kill(1)
    three.until_told('training pauses until it is back')
    assert 'task 1 (%s) ' % three.addresses[1] in three.output(0)
    three.start(1)
    three.until(14)
    three.kill(0)  # the others serve on
    three.start(0)
    assert three.codes() == [0, 0, 0], three.output(0)
    np.testing.assert_allclose(three.losses(), one.losses(), rtol=1e-4)
    assert len(three.losses()) == STEPS + 1
    assert three.output(0).count('resumed from') == 2
    assert 'serves its devices to task 0' in three.output(2) and 'has ended: done' in three.output(2)


def test_a_signal_ends_all_in_good_order(start):
    run = start('three', 2)
    run.until(3)
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.codes() == [143, 0], run.output(0)
    assert checkpoints.checkpoint_steps(str(run.folder / 'modeldir'))[-1] == len(run.losses()) - 1


def refusal_of(helper, refusals):
    try:
        helper.serve()
    except UserError as error:
        refusals.append(str(error))


def test_another_tensorflow_or_project_is_refused_by_name(monkeypatch):
    addresses = ['127.0.0.1:%d' % port for port in free_ports(2)]
    chief, helper = (cluster.Cluster(addresses, index) for index in range(2))
    for machine in (chief, helper):
        machine.start(tf.ConfigProto())
    own = same_code.described()
    for runs, words in (('1.2.3 ' + own.split()[1], 'runs TensorFlow 1.2.3, this one %s: ' % tf.__version__),
                        (tf.__version__ + ' 0a', 'runs another state of this project')):
        said, refusals = iter([runs, own]), []
        monkeypatch.setattr(same_code, 'described', said.__next__)  # the helper's call comes first
        thread = threading.Thread(target=refusal_of, args=(helper, refusals), daemon=True)
        thread.start()
        while same_code._ask(chief, 1) != runs:  # until it is said, not what was said before
            pass
        with pytest.raises(UserError) as error:
            chief.wait()
        assert str(error.value).startswith('task 1 (%s) %s' % (addresses[1], words)) and len(str(error.value)) < 300
        thread.join()
        assert 'task 0 (%s) refused this machine' % addresses[0] in refusals[0]


def test_the_checksum_is_of_names_and_contents_of_the_code(tmp_path):
    (tmp_path / 'utils' / 'net').mkdir(parents=True)
    (tmp_path / 'tests').mkdir()
    seen = []
    for name, text in (('main.py', 'a'), ('utils/net/b.py', 'b'), ('utils/net/b.py', 'c'), ('utils/c.py', ''),
                       ('tests/test.py', 'd'), ('log.txt', 'e')):
        (tmp_path / name).write_text(text)
        seen.append(same_code.checksum(str(tmp_path)))
    assert len(set(seen[:4])) == 4 and seen[3:] == seen[3:4] * 3
    (tmp_path / 'main.py').rename(tmp_path / 'main2.py')
    assert same_code.checksum(str(tmp_path)) not in seen


def test_who_is_missing_is_named(start):
    run = start('alone', 2)
    run.kill(1)
    run.until_told('waiting for task 1 (%s)' % run.addresses[1])
    run.processes[0].send_signal(signal.SIGINT)
    assert run.processes[0].wait() == 130
