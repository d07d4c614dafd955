"""Several devices of one or more machines: they predict the same as one device, in order, even if machines die."""

import contextlib
import glob
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
import recipe
import tensorflow.compat.v1 as tf
from machine import free_ports
from narrow_main import UNITS
from PIL import Image

from model import Model
from model_msc import Model_msc
from utils.checkpoint import write_values
from utils.data import image_files
from utils.distributed import cluster, devices
from utils.distributed.towers import Towers
from utils.image_reader import ImageReader
from utils.prediction import predictor, windows
from utils.system import runtime
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')
WINDOWS = {'window': (33, 40), 'overlap': 0.6}


@pytest.fixture
def model(settings, narrow, tmp_path):
    """Returns a function that makes a Model from changed flags, with the recipe's weights, for narrow_main's network.

    One of the decoder's biases is changed so that no class prevails on an image of the sample.
    """
    narrow({'res50': UNITS})

    def make(machines=None, model_class=Model, **changed):
        flags = {'encoder_name': 'res50', 'num_classes': 6, 'modeldir': str(tmp_path), 'num_threads': 2}
        return model_class(settings(**dict(flags, **changed)), machines)

    with tf.Graph().as_default(), tf.Session() as sess:
        with open(os.path.join(SAMPLE, 'val.txt')) as file:
            image = image_files.load_image(os.path.join(SAMPLE, file.readline().split()[0].lstrip('/')))
        net, logits = make().scores(tf.constant(image[np.newaxis, :, :, ::-1] - np.float32(114)))
        recipe.load(sess, net)
        mean = sess.run(logits).mean(axis=(0, 1, 2))
    values = {name: recipe.value(name, shape) for name, shape in net.shapes.items()}
    values[next(name for name in values if name.endswith('/biases'))] -= mean
    write_values(values, types.SimpleNamespace(compat=None, input=None), str(tmp_path / 'model.ckpt-1'))
    return make


def photos(folder, count, broken=()):
    """Writes images of smooth random colours in various sizes, `broken` ones invalid; returns their paths."""
    paths = []
    for index in range(count):
        random = np.random.RandomState(index)
        path = folder / ('%d.png' % index)
        pixels = Image.fromarray(random.randint(0, 256, (4, 5, 3)).astype(np.uint8))
        pixels.resize(tuple(random.randint(35, 60, 2)), Image.BILINEAR).save(str(path))
        if index in broken:
            path.write_text('no image')
        paths.append(str(path))
    return paths


def predicted(model, paths, keep_scores=True):
    """Returns all Predictions of a model for the images, of which some may be broken."""
    reader = ImageReader(paths, [''] * len(paths), model.classes, model._follow_training('predict')[0], 2)
    prefix = os.path.join(model.conf.modeldir, 'model.ckpt-1')
    return list(model._predictions(reader, prefix, 'predict', model._scoring(), keep_scores=keep_scores))


def assert_same(found, wanted):
    assert [(one.index, one.fault) for one in found] == [(one.index, one.fault) for one in wanted]
    for one, other in zip(found, wanted):
        for name in ('label', 'classes', 'scores'):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize('images, broken, flags, counts', [
    (7, (2,), {}, (2, 3)), (2, (), {}, (3,)), (1, (), {}, (2,)), (3, (), WINDOWS, (2,)),
    (3, (), {'eval_scales': [0.5, 1.0], 'eval_flip': True}, (2,)), (3, (), {'model_class': Model_msc}, (2,)),
], ids=['a broken one', 'fewer than devices', 'one image', 'windows', 'scales', 'msc'])
def test_devices_predict_what_one_does(model, tmp_path, images, broken, flags, counts):
    """The predictions are equal bit for bit and in the order of the list."""
    paths = photos(tmp_path, images, broken)
    wanted = predicted(model(**flags), paths)
    assert [one.index for one in wanted if one.fault] == list(broken)
    assert len(np.unique(wanted[0].scores)) > 100
    for count in counts:
        assert_same(predicted(model(num_gpus=count, **flags), paths), wanted)


def test_a_bad_file_ends_a_test_by_its_name(model, tmp_path):
    paths = photos(tmp_path, 5, broken=(3,))
    maker = model(num_gpus=2)
    reader = ImageReader(paths, [''] * 5, maker.classes, maker._follow_training('predict')[0], 2)
    with pytest.raises(UserError, match='3.png'):
        list(maker._predictions(reader, str(tmp_path / 'model.ckpt-1'), 'test', maker._scoring()))
    assert threading.active_count() < 20


def test_the_memory_is_shared_and_windows_are_told_once(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(windows.memory, 'free', lambda: 8e9)
    monkeypatch.setattr(windows.runtime, 'on_gpu', lambda: False)
    assert windows.FreeMemory(21, devices=4).bytes == windows.FreeMemory(21).bytes / 4
    monkeypatch.setattr(windows.memory, 'free', lambda: 1e12)
    height = 2 ** 31 // (4 * 21 * 5000)  # with a width of 5000, more rows of scores do not fit into one message
    for rows, sent, whole in ((height + 1, False, True), (height + 1, True, False), (height - 5, True, True)):
        assert (windows.FreeMemory(21, sent=sent).window((rows, 5000)) == (rows, 5000)) == whole
    monkeypatch.setattr(windows.memory, 'free', lambda: 1e6)
    path = str(tmp_path / 'long.png')
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 350, 3)).astype(np.uint8)).save(path)
    one, two = predicted(model(num_gpus=2), [path] * 2)
    np.testing.assert_array_equal(one.scores, two.scores)
    assert capsys.readouterr().out.count('images of this size are predicted in windows of 321x40') == 1


# the pool, with a stand-in for the network ---------------------------------------------------------------------------


@pytest.fixture
def pool(monkeypatch):
    """Returns a function from score(task, image, report) and device names to a context of a running pool."""
    def make(score, *names, **machines):
        @contextlib.contextmanager
        def session(_, device):
            own = predictor.Predictor(None, predictor.Scoring())
            own.score = lambda sess, image, label, report: (score(device.task, image, report), None, None)
            yield own, None

        monkeypatch.setattr(devices._Pool, '_session', session)
        towers = types.SimpleNamespace(cluster=types.SimpleNamespace(
            gone=machines.get('gone', lambda task, error: '')))
        single = predictor.Predictor(None, predictor.Scoring())
        return devices._Pool([devices._Device('task:' + name) for name in names], single, None, towers, 21,
                             lambda *windows: None)

    return make


def reads(count, taken=None):
    for index in range(count):
        if taken is not None:
            taken.append(index)
        yield predictor.LoadedImage(index, index, None)


def test_little_is_read_ahead(pool):
    taken, slow = [], threading.Event()

    def score(task, image, report):
        if image == 1:
            slow.wait()
        return image

    with pool(score, '0', '0', '0') as running:
        found = running.predictions(reads(40, taken))
        assert next(found).classes == 0
        assert len(taken) <= devices.AHEAD * 3 + 1
        slow.set()
        assert [one.classes for one in found] == list(range(1, 40))
        assert not running._results and not running._jobs


def test_the_first_error_of_any_device_is_raised_and_all_stop(pool):
    def score(task, image, report):
        if image == 2:
            raise UserError('what happened')
        while image == 3:
            report(0, 2)
        return image

    with pytest.raises(UserError, match='what happened'), pool(score, '0', '0') as running:
        list(running.predictions(reads(9)))
    assert not any(device.thread.is_alive() for device in running._devices)


def test_a_stop_comes_between_windows(pool):
    started = threading.Event()

    def score(task, image, report):
        while image:
            report(0, 2)
            started.set()
        return image

    with pool(score, '0', '0', '0') as running:
        assert next(running.predictions(reads(9))).classes == 0
        started.wait()
    assert not any(device.thread.is_alive() for device in running._devices)


@pytest.mark.parametrize('silent', [True, False])
def test_images_of_a_lost_machine_go_to_the_others(pool, capsys, silent):
    """A lost machine is silent, or its sessions fail; results that it sends later are ignored."""
    taken, back, late = threading.Event(), threading.Event(), []

    def score(task, image, report):
        if not task:
            taken.wait()
            return image
        taken.set()
        if not silent:
            raise tf.errors.UnavailableError(None, None, 'Socket closed')
        back.wait()
        late.append(image)
        return -1

    with pool(score, '0', '1', '1', gone=lambda task, error: 'task 1 (a:1) is gone' if task else '') as running:
        if silent:
            threading.Thread(target=lambda: taken.wait() and running.lose(1, 'task 1 (a:1) is gone')).start()
        assert [one.classes for one in running.predictions(reads(9))] == list(range(9))
    back.set()
    assert capsys.readouterr().err == 'task 1 (a:1) is gone: the other devices take over its images\n'  # once
    for device in running._devices:
        device.thread.join()
    assert len(late) in ((1, 2) if silent else (0,)) and not running._results


# several machines ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mute():
    """Yields the address of a port that accepts connections but never answers, like a stopped process."""
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        one.listen(99)
        yield '127.0.0.1:%d' % one.getsockname()[1]


def test_a_silent_machine_is_told_once(monkeypatch):
    monkeypatch.setattr(cluster, 'LOST_SECONDS', 0.6)
    told, twice = [], threading.Event()
    with mute() as one, mute() as other:
        machines = cluster.Cluster(['127.0.0.1:1', one, other])

        def lost(*text):
            told.append(text)
            twice.set() if len(told) == 2 else None

        with machines.listening(lost):
            twice.wait()
            time.sleep(1)
    assert sorted(told) == [(task, '%s has not answered for 0 seconds' % machines.name(task)) for task in (1, 2)]


def servers(counts):
    """Starts servers with the given numbers of devices in this process; returns the Cluster of each task."""
    addresses = ['127.0.0.1:%d' % port for port in free_ports(len(counts))]
    machines = [cluster.Cluster(addresses, task) for task in range(len(counts))]
    for one, count in zip(machines, counts):
        one.start(runtime.session_config(num_cpus=count))
    return machines


@contextlib.contextmanager
def serving(machine):
    """Runs a server until it is told that the work has ended."""
    thread = threading.Thread(target=machine.serve, daemon=True)
    thread.start()
    yield
    thread.join()


def test_machines_predict_what_one_does(model, tmp_path):
    paths = photos(tmp_path, 5, broken=(1,))
    wanted = predicted(model(), paths)
    machines = servers([1, 1])
    with serving(machines[1]):
        assert_same(predicted(model(machines[0]), paths), wanted)


def test_a_machine_with_too_few_devices_is_named(model, tmp_path):
    machines = servers([2, 1])
    with serving(machines[1]), pytest.raises(
            UserError, match=r'task 1 \(127.0.0.1:\d+\) has no CPU:1: use the same'):
        predicted(model(machines[0], num_gpus=2), photos(tmp_path, 6) * 99)


def test_no_image_left_dismisses_the_others(model, tmp_path):
    flags = {'out_dir': str(tmp_path / 'out'), 'image': [photos(tmp_path, 1)[0]], 'option': 'predict'}
    model(**flags).predict()
    machines = servers([1, 1])
    with serving(machines[1]):
        model(machines[0], skip_existing=True, **flags).predict()


def test_error_of_a_device_that_is_there_is_no_loss():
    machines = servers([1, 1])
    error = tf.errors.InvalidArgumentError(None, None, 'a mistake')
    closed = tf.errors.UnavailableError(None, None, 'Socket closed')
    assert machines[0].gone(1, error) == machines[0].gone(0, closed) == ''
    assert machines[0].gone(1, closed) == machines[0].name(1) + ' is gone'
    assert Towers(1, machines[0]).devices[1].startswith('/job:worker/task:1/')


class Machines(object):
    """The processes of one command, each with its output in a file."""

    def __init__(self, folder, modeldir, tasks, *command):
        self.folder, addresses = folder, ['127.0.0.1:%d' % port for port in free_ports(tasks)]
        self.processes = []
        for task in range(tasks):
            places = ['--cluster=' + ','.join(addresses), '--task_index=%d' % task] if tasks > 1 else []
            places += ['--modeldir=%s' % (modeldir if task == 0 else 'nowhere')]  # only task 0 reads modeldir
            with open(self.path(task), 'w') as output:
                self.processes.append(subprocess.Popen(
                    [sys.executable, os.path.join(ROOT, 'tests', 'narrow_main.py'), 'main',
                     '--flagfile=' + os.path.join(ROOT, 'dataset', 'sample.flags'), '--out_dir=%s' % (folder / 'out')]
                    + places + list(command), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT))

    def path(self, task):
        return str(self.folder / ('task%d.txt' % task))

    def output(self, task):
        with open(self.path(task)) as file:
            return file.read()

    def until(self, words):
        while words not in self.output(0):
            assert self.processes[0].poll() is None, self.output(0)
            time.sleep(0.02)

    def until_masks(self, count):
        while len(glob.glob(str(self.folder / 'out' / 'prediction' / '*.png'))) < count:
            assert self.processes[0].poll() is None, self.output(0)
            time.sleep(0.01)

    def codes(self):
        return [process.wait() for process in self.processes]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()


def sample_of(out_dir):
    """Returns the flags of dataset/sample.flags that matter to test and predict."""
    return {'data_dir': SAMPLE, 'palette': os.path.join(SAMPLE, 'classes.txt'), 'out_dir': str(out_dir),
            'valid_data_list': os.path.join(SAMPLE, 'val.txt'), 'test_data_list': os.path.join(SAMPLE, 'val.txt')}


def test_the_scores_of_two_machines(model, tmp_path):
    model(option='test', **sample_of(tmp_path / 'one')).test()
    (tmp_path / 'two').mkdir()
    with Machines(tmp_path / 'two', tmp_path, 2, '--option=test', '--num_gpus=2') as machines:
        assert machines.codes() == [0, 0], machines.output(0) + machines.output(1)
    one, two = [json.loads((tmp_path / path / 'metrics.json').read_text()) for path in ('one', 'two/out')]
    assert one['confusion_matrix'] == two['confusion_matrix'] and np.sum(one['confusion_matrix']) > 1e5
    assert (np.sum(one['confusion_matrix'], axis=0) > 0).sum() > 2  # several classes are predicted
    assert 'has ended: done' in machines.output(1)


def test_a_machine_killed_in_the_middle(model, tmp_path):
    """The other machines predict its images; the masks equal those of one machine."""
    flags = {'window': (65, 65), 'overlap': 0.9}  # hundreds of windows per image, so that the others are far from done
    model(option='predict', **dict(flags, **sample_of(tmp_path / 'one'))).predict()
    (tmp_path / 'three').mkdir()
    with Machines(tmp_path / 'three', tmp_path, 3, '--option=predict', '--window=65,65', '--overlap=0.9') as machines:
        machines.until_masks(2)
        machines.processes[2].kill()
        assert machines.codes() == [0, 0, -signal.SIGKILL], machines.output(0)
    told = machines.output(0)
    assert told.count('is gone: the other devices take over its images') == 1 and 'Traceback' not in told
    for kind in ('prediction', 'visual_prediction'):
        names = sorted(os.listdir(str(tmp_path / 'one' / kind)))
        assert len(names) == 20 and names == sorted(os.listdir(str(tmp_path / 'three' / 'out' / kind)))
        for name in names:
            found, wanted = [(tmp_path / path / kind / name).read_bytes() for path in ('three/out', 'one')]
            assert found == wanted, name


def test_ctrl_c_ends_all_devices(model, tmp_path):
    with Machines(tmp_path, tmp_path, 1, '--option=predict', '--num_gpus=2', '--window=40,40', '--overlap=0.9') as run:
        run.until(', window ')
        run.processes[0].send_signal(signal.SIGINT)
        assert run.codes() == [130], run.output(0)
    assert 'interrupted' in run.output(0) and 'Traceback' not in run.output(0)
