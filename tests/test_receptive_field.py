"""Effective receptive fields and their gridding: of known stacks, of networks, and from the command line."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

from benchmarks import receptive_field
from model import Model
from utils.net import compat, dilated
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')
SIDE = 65


def stack_field(layer, count=3):
    """Returns the field of the centre after `count` 3x3 layers with all weights 1, on ones [1, 65, 65, 1]."""
    with tf.Graph().as_default(), tf.Session() as sess:
        first = maps = tf.ones([1, SIDE, SIDE, 1])
        for _ in range(count):
            maps = layer(maps, tf.ones([3, 3, 1, 1]))
        return sess.run(receptive_field.field(tf.reduce_sum(receptive_field.centre(maps)), first))


def regular(rate):
    return lambda maps, kernel: dilated.regular(maps, kernel, rate)


@pytest.mark.parametrize('rate', [1, 2, 4])
def test_the_field_of_a_plain_stack_is_that_of_pascals_triangle_for_three(rate):
    line = np.zeros(SIDE)
    line[SIDE // 2 + rate * np.arange(-3, 4)] = [1, 3, 6, 7, 6, 3, 1]  # (1 + x + 1/x)^3
    np.testing.assert_allclose(stack_field(regular(rate)), np.outer(line, line), rtol=1e-6)


def test_the_field_does_not_depend_on_signs():
    with tf.Graph().as_default(), tf.Session() as sess:
        source = tf.ones([1, 3, 3, 2])
        target = tf.reduce_sum(source * np.array([2.0, -3.0], np.float32))
        np.testing.assert_allclose(sess.run(receptive_field.field(target, source)), np.full([3, 3], 5))


@pytest.mark.parametrize('rate', [2, 4])
def test_a_dilated_stack_is_a_grid_and_smoothed_ones_are_not(rate):
    side, groups = 2 * rate - 1, rate * rate
    pure = receptive_field.gridding(stack_field(regular(rate)), rate)
    assert pure > 0.9
    start = {name: np.asarray(value, np.float32) for name, value in [
        ('GI', np.eye(groups)), ('SSC', np.zeros([side, side, 1, 1, 1]))]}
    mixed = {'GI': np.full([groups, groups], 1.0 / groups, np.float32), 'SSC': start['SSC'] + 1}
    mixed['SSC'][rate - 1, rate - 1] = 0  # the layer adds 1 here, which makes a box of ones
    for name, function in (('GI', dilated.group_interaction), ('SSC', dilated.smooth_shared)):
        scores = [receptive_field.gridding(stack_field(
            lambda maps, kernel, w=fix_w, f=function: f(maps, kernel, rate, tf.constant(w))), rate)
            for fix_w in (start[name], (start[name] + mixed[name]) / 2, mixed[name])]
        assert scores[0] == pytest.approx(pure, abs=1e-5)
        assert scores[0] > scores[1] + 0.2 and abs(scores[2]) < 0.1, (name, scores)


def spectrum(values, u, v):
    """Returns |F(u, v)| / F(0, 0), computed by the definition."""
    rows, columns = np.arange(values.shape[0]), np.arange(values.shape[1])
    waves = np.exp(-2j * np.pi * (u * rows[:, None] + v * columns[None]))
    return abs((values * waves).sum()) / values.sum()


@pytest.mark.parametrize('rate, shape', [(2, (41, 41)), (3, (20, 33)), (4, (17, 9)), (4, (41, 41))])
def test_gridding_is_its_formula(rate, shape):
    values = np.random.RandomState(0).uniform(size=shape) ** 3
    values[::rate] += 0.5
    around, half = values.copy(), 0.5 / rate
    around[shape[0] // 2, shape[1] // 2] = 0
    peaks = []
    for a in range(rate):
        for b in range(rate):
            beside = np.mean([spectrum(around, a / float(rate) + i * half, b / float(rate) + j * half)
                              for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j])
            if a or b:
                peaks.append(spectrum(around, a / float(rate), b / float(rate)) - beside)
    assert receptive_field.gridding(values, rate) == pytest.approx(np.mean(peaks), abs=1e-9)


def test_gridding_of_what_is_known():
    grid = np.zeros([64, 64])
    grid[::4, ::4] = 1
    assert receptive_field.gridding(grid, 4) == pytest.approx(1, abs=0.01)
    assert receptive_field.gridding(np.roll(grid, 1, 0), 4) == pytest.approx(1, abs=0.01)  # wherever the grid begins
    assert receptive_field.gridding(grid, 2) == pytest.approx(0, abs=0.01)  # a grid with another period
    assert receptive_field.gridding(np.ones([64, 64]), 4) == pytest.approx(0, abs=0.01)
    line = np.exp(-0.5 * (np.arange(65) - 32.0) ** 2 / 8 ** 2)
    assert receptive_field.gridding(np.outer(line, line), 4) == pytest.approx(0, abs=0.01)
    point = np.zeros([65, 65])
    point[32, 32] = 1
    assert np.isnan(receptive_field.gridding(point, 4))
    point[30, 31] = 1
    assert receptive_field.gridding(point, 4) == pytest.approx(0, abs=1e-9)
    centred = grid.copy()
    centred[32, 32] = 1e6  # the contribution of the shortcuts
    assert receptive_field.gridding(centred, 4) == pytest.approx(receptive_field.gridding(grid, 4))


def test_extent():
    values = np.full([30, 30], 0.045)
    values[:5, :20] = 0.046
    values[0, 0] = 1
    assert receptive_field.extent(values) == 10


@pytest.fixture
def built(narrow):
    """Returns a function from a dilated_type and fix_w's value (None: its initial one) to [(name, rate, field)]."""
    narrow({'res50': (1, 1, 1, 2)})

    def make(dilated_type, fix_w=None):
        trained = receptive_field.Trained('', '', {
            'encoder_name': 'res50', 'dilated_type': dilated_type, 'compat': 'original', 'num_classes': 5,
            'decoder': 'aspp'}, compat.numerics('original').input)
        picture = np.random.RandomState(2).randint(0, 256, [150, 140, 3]).astype(np.uint8)
        with tf.Graph().as_default(), tf.Session() as sess:
            tf.set_random_seed(3)
            fed = tf.placeholder(tf.uint8, [None, None, 3])
            net, fields = receptive_field.build(trained, fed, 129)
            sess.run(tf.global_variables_initializer())
            for variable in net.variables:
                if variable.op.name.endswith('/fix_w') and fix_w is not None:
                    variable.load(np.full(variable.shape.as_list(), fix_w, np.float32), sess)
            names, rates, tensors = zip(*fields)
            return list(zip(names, rates, sess.run(tensors, {fed: picture})))

    return make


def test_fields_of_a_network(built):
    fields = built('regular')
    assert [(name, rate, values.shape) for name, rate, values in fields] == [
        ('image', None, (129, 129)), ('block3, rate 2', 2, (17, 17)), ('block4, rate 4', 4, (17, 17))]
    for _, rate, values in fields[1:]:
        reached = np.zeros([17, 17], bool)
        reached[8 % rate::rate, 8 % rate::rate] = True  # from the centre (8, 8)
        assert values[reached].max() > 0 and (values[~reached] == 0).all()
    assert np.count_nonzero(fields[1][2]) == 9 and np.count_nonzero(fields[2][2]) == 25
    assert fields[0][2][64, 64] > 0


@pytest.mark.parametrize('dilated_type, fix_w', [('smooth_GI', 0.25), ('smooth_SSC', 0.5)])
def test_smoothing_lowers_the_gridding_of_a_network(built, dilated_type, fix_w):
    plain, start, smoothed = built('regular'), built(dilated_type), built(dilated_type, fix_w)
    for one, two, three in zip(plain[1:], start[1:], smoothed[1:]):
        np.testing.assert_allclose(one[2], two[2], rtol=1e-4, atol=1e-6 * one[2].max())
        scores = [receptive_field.gridding(values, one[1]) for values in (one[2], three[2])]
        assert scores[0] > 0.7 and scores[1] < 0.3, (one[0], scores)


@pytest.fixture
def conf(tmp_path, settings, narrow):
    """Returns a function from a dilated_type to the flags of a training of two steps on the sample."""
    narrow({'res50': (0, 0, 1, 1)})

    def make(dilated_type):
        values = {flag: str(tmp_path / dilated_type / flag) for flag in ('modeldir', 'logdir', 'logfile', 'out_dir')}
        return settings(data_dir=SAMPLE, num_classes=6, encoder_name='res50', input_height=33, input_width=33,
                        batch_size=2, num_steps=2, check_labels=False, dilated_type=dilated_type,
                        learning_rate=1e-3, data_list=os.path.join(SAMPLE, 'train.txt'), **values)

    return make


@pytest.fixture
def flags(monkeypatch, tmp_path):
    """Returns a function that sets the command's flags."""
    def make(**changed):
        values = {'labels': None, 'step': None, 'data_list': '', 'data_dir': '', 'num_images': 2, 'size': 65,
                  'output': str(tmp_path / 'field.png')}
        values.update(changed)
        monkeypatch.setattr(receptive_field, 'FLAGS', types.SimpleNamespace(**values))

    return make


def test_checkpoints_side_by_side(conf, flags, capsys, tmp_path):
    folders = []
    for dilated_type in ('regular', 'smooth_GI', 'smooth_SSC'):
        Model(conf(dilated_type)).train()
        folders.append(conf(dilated_type).modeldir)
    capsys.readouterr()
    flags(modeldir=folders, labels=['a $x_1', 'b\x1b', 'c' * 100])
    receptive_field.main()
    told = capsys.readouterr().out
    assert told.count('block3, rate 2: extent') == told.count('gridding 0.') / 2 == 3
    assert '(smooth_SSC, ' in told and 'model.ckpt-2' in told and '\x1b' not in told
    with Image.open(str(tmp_path / 'field.png')) as picture:
        assert picture.size[0] > 1000 and np.asarray(picture.convert('RGB')).std() > 20


def test_bad_input_is_refused(conf, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))

    def refused(told, **changed):
        flags(**changed)
        with pytest.raises(UserError, match=told):
            receptive_field.main()

    conf_ = conf('regular')
    refused('there is no directory', modeldir=[str(tmp_path / 'none')])
    refused('there are 1 --labels but 2 folders in --modeldir', modeldir=['a', 'b'], labels=['a'])
    refused('there is no directory', modeldir=[])  # model, which is not in this folder
    refused('no complete checkpoint', modeldir=[str(tmp_path)])
    Model(conf_).train()
    folder, path = [conf_.modeldir], os.path.join(conf_.modeldir, 'settings.json')
    refused('must end in one of', modeldir=folder, output='field.txt')
    refused('no complete checkpoint of step 7', modeldir=folder, step=7)
    refused('none.txt does not exist', modeldir=folder, data_list=str(tmp_path / 'none.txt'))
    (tmp_path / 'list.txt').write_text('none.jpg\n')
    refused('none.jpg', modeldir=folder, data_list=str(tmp_path / 'list.txt'), data_dir=str(tmp_path))
    with open(path) as file:
        text = file.read()
    for old, new, told in (
            ('"res50"', '"res9"', 'encoder_name=res9'), ('"num_classes": 6', '"num_classes": "6"', 'damaged'),
            ('"num_classes": 6', '"num_classes": 7', 'does not fit'), ('"compat"', '"c"', 'compat=None')):
        with open(path, 'w') as file:
            file.write(text.replace(old, new))
        refused(told, modeldir=folder)
    os.remove(path)
    refused('has no settings.json', modeldir=folder)
    assert not (tmp_path / 'field.png').exists()


def test_a_network_that_sees_nothing_is_told(conf, flags):
    zero = conf('regular')
    Model(zero).train()
    prefix = os.path.join(zero.modeldir, 'model.ckpt-2')
    reader = tf.train.load_checkpoint(prefix)
    with tf.Graph().as_default(), tf.Session() as sess:
        variables = [tf.Variable(0 * reader.get_tensor(name), name=name, use_resource=False)
                     for name in reader.get_variable_to_shape_map()]
        sess.run(tf.global_variables_initializer())
        tf.train.Saver(variables).save(sess, prefix, write_meta_graph=False)
    flags(modeldir=[zero.modeldir])
    with pytest.raises(UserError, match='gradient at the centre is zero'):
        receptive_field.main()


def test_the_command_line(tmp_path):
    process = subprocess.run([sys.executable, os.path.join(ROOT, 'benchmarks', 'receptive_field.py'),
                              '--modeldir=none'], cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             universal_newlines=True)
    assert process.returncode == 1
    assert [line[:25] for line in process.stderr.splitlines()] == ['error: there is no direct']
