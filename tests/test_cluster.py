"""Several machines, as processes on loopback: they equal one machine, even if some die, and mistakes are named."""

import contextlib
import json
import signal
import socket
import threading
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from machine import free_ports

from tests.stress import runs
from utils.distributed import cluster, same_code
from utils.system.errors import UserError
from utils.weights import checkpoints

STEPS = 24


def flags(**changed):
    return types.SimpleNamespace(**dict({'cluster': None, 'task_index': None, 'option': 'train'}, **changed))


def tf_config(tasks, kind, index):
    return json.dumps({'cluster': tasks, 'task': {'type': kind, 'index': index}})


@pytest.mark.parametrize('changed, words', [
    ({'cluster': ['127.0.0.1:1', '127.0.0.1:2']}, '--cluster needs --task_index'),
    ({'cluster': ['127.0.0.1:1', '127.0.0.1:2'], 'task_index': 2}, '--task_index=2 is outside 0..1'),
    ({'task_index': 1}, '--task_index=1 is outside 0..0'),
    ({'cluster': ['127.0.0.1', '127.0.0.1:2'], 'task_index': 0}, "'127.0.0.1' is not of the form host:port"),
    ({'cluster': ['127.0.0.1:70000', '127.0.0.1:2'], 'task_index': 0}, 'is not of the form host:port'),
    ({'cluster': ['no-such-host.invalid:1', '127.0.0.1:2'], 'task_index': 1},
     "the host of 'no-such-host.invalid:1' cannot be resolved"),
    ({'cluster': ['127.0.0.1:1', '127.0.0.1:1'], 'task_index': 0}, 'contains a machine twice'),
    ({'cluster': ['127.0.0.1:1', '127.0.0.1:2'], 'task_index': 0, 'option': 'export'},
     '--cluster works only with --option=train, test and predict: leave it out for --option=export'),
])
def test_bad_flags(changed, words):
    with pytest.raises(UserError) as error:
        cluster.from_flags(flags(**changed))
    assert words in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize('text, words', [
    ('{', 'the environment variable TF_CONFIG is invalid'),
    ('[]', 'the environment variable TF_CONFIG is invalid'),
    (tf_config({'worker': ['127.0.0.1:1']}, 'worker', 3), 'task index 3 of 1'),
    (tf_config({'worker': [1, 2]}, 'worker', 1), 'is invalid'),
    (tf_config({'worker': ['127.0.0.1:1'], 'ps': ['127.0.0.1:2']}, 'worker', 0), "of type 'ps'"),
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
    # Flags take precedence over the environment.
    given = cluster.from_flags(flags(cluster=['127.0.0.1:8', ' 127.0.0.1:9'], task_index=1))
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

    with pytest.raises(UserError, match='task 1 .a:1. is gone, 5 times in a row'):
        for attempt in cluster.Cluster().attempts():
            with attempt:
                calls.append(len(calls))
                raise cluster.Lost('task 1 (a:1) is gone')
    assert calls == [0, 1, 2, 3, 4] and 'training pauses until it is back' in capsys.readouterr().err
    assert len(list(cluster.Cluster().attempts())) == 1
    with pytest.raises(ValueError, match='another'):
        for attempt in cluster.Cluster().attempts():
            with attempt:
                raise ValueError('another')


def test_a_file_that_could_not_be_written_since_a_machine_is_gone(monkeypatch):
    """While a machine is lost, the error counts as the loss and training continues; otherwise it ends the run."""
    machines = cluster.Cluster(['127.0.0.1:1', '127.0.0.1:2'])  # nothing listens there
    machines._server = types.SimpleNamespace(target='')  # a server in this process

    def save(error):
        with machines.session(tf.ConfigProto()):
            try:
                raise error
            except (tf.errors.OpError, OSError):
                raise UserError('model.ckpt-3 cannot be written.')

    with pytest.raises(cluster.Lost, match='task 1 .* is gone'):
        save(tf.errors.UnavailableError(None, None, 'failed to connect'))
    with pytest.raises(UserError, match='cannot be written'):
        save(OSError(28, 'No space left on device'))
    monkeypatch.setattr(cluster, '_answers', lambda address: True)
    with pytest.raises(UserError, match='cannot be written'):
        save(tf.errors.ResourceExhaustedError(None, None, 'No space left on device'))


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts the processes of a short training, one per machine, and returns their runs.Run."""
    with contextlib.ExitStack() as stack:
        def make(name, tasks):
            (tmp_path / name).mkdir()
            run = runs.Run(str(tmp_path / name), tasks=tasks, num_steps=STEPS, save_interval=5, valid_interval=0,
                           batch_size=6, train_bn='false', learning_rate=1e-5)
            stack.callback(run.end)
            run.start_all()
            return run
        yield make


def losses(run):
    return [float(line.split(', ')[1]) for line in runs.log_lines(run)]


def codes(run):
    """Waits until all tasks have ended and returns their exit codes."""
    return [run.processes[task].wait() for task in range(run.tasks)]


def test_three_machines_equal_one_whatever_dies(start):
    one = start('one', 1)
    assert codes(one) == [0], one.output()
    three = start('three', 3)
    assert three.until(lambda: three.steps() >= 8), three.output()
    three.signal(1, signal.SIGKILL)
    three.until_told('training pauses until it is back')
    assert 'task 1 (%s) ' % three.addresses[1] in three.output()
    three.start(1)
    assert three.until(lambda: three.steps() >= 14), three.output()
    three.signal(0, signal.SIGKILL)  # the other tasks keep running
    three.start(0)
    assert codes(three) == [0, 0, 0], three.output()
    np.testing.assert_allclose(losses(three), losses(one), rtol=1e-4)
    assert len(losses(three)) == STEPS + 1
    assert three.output().count('resumed from') == 2
    assert 'provides its devices to task 0' in three.output(2) and 'has ended: done' in three.output(2)


def test_a_signal_ends_all_in_good_order(start):
    run = start('three', 2)
    assert run.until(lambda: run.steps() >= 3), run.output()
    run.processes[0].send_signal(signal.SIGTERM)
    assert codes(run) == [143, 0], run.output()
    assert checkpoints.checkpoint_steps(run.flags['modeldir'])[-1] == len(losses(run)) - 1


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
    for other, words in (('1.2.3 ' + own.split()[1],
                          'runs TensorFlow 1.2.3, but this machine runs %s: ' % tf.__version__),
                         (tf.__version__ + ' 0a', 'runs another version of this project')):
        said, refusals = iter([other, own]), []
        monkeypatch.setattr(same_code, 'described', said.__next__)  # the helper's call comes first
        thread = threading.Thread(target=refusal_of, args=(helper, refusals), daemon=True)
        thread.start()
        while same_code._ask(chief, 1) != other:  # until the new value is published
            pass
        with pytest.raises(UserError) as error:
            chief.wait()
        assert str(error.value).startswith('task 1 (%s) %s' % (addresses[1], words)) and len(str(error.value)) < 300
        thread.join()
        assert 'task 0 (%s) rejected this machine' % addresses[0] in refusals[0]


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
    run.signal(1, signal.SIGKILL)
    run.until_told('waiting for task 1 (%s)' % run.addresses[1])
    assert run.signal(0, signal.SIGINT) == 130
