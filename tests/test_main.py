"""Runs the programs as commands, and checks what they write, print and refuse."""

import contextlib
import functools
import glob
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from absl.testing import flagsaver
from narrow_main import UNITS
from PIL import Image

import main
from utils.system import command_line

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')
SMALL = ['--flagfile=' + os.path.join(ROOT, 'tests', 'small.flags')]


def run_process(program, *args, **settings):
    """Runs a program of the repo in its own process, in the folder `cwd`; returns (exit code, stdout, stderr)."""
    process = subprocess.run([sys.executable, os.path.join(ROOT, program)] + list(args), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, universal_newlines=True, **settings)
    return process.returncode, process.stdout, process.stderr


def run(*args, **changed):
    """Runs main.py in this process, which need not start TensorFlow again; returns (exit code, stdout, stderr).

    The keyword argument `main` replaces its main().
    """
    with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(
            io.StringIO()) as stderr:
        code = command_line.run(changed.get('main', main.main), ['main.py'] + list(args), main.sample_args)
    return code, stdout.getvalue(), stderr.getvalue()


@pytest.fixture(autouse=True)
def in_the_repo(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def small(narrow):
    """Narrows the ResNet-50 to a 16th of the channels and one unit per block."""
    narrow({'res50': UNITS})


def flag_file(path, flags):
    """Writes flags to a file, so that every option takes them; returns the flag that names it."""
    with open(str(path), 'w') as file:
        file.write('\n'.join(flags) + '\n')
    return '--flagfile=%s' % path


def places(folder):
    return [flag_file(str(folder) + '.flags', ['--%s=%s' % (flag, os.path.join(str(folder), name)) for flag, name in [
        ('modeldir', 'model'), ('logdir', 'log'), ('logfile', 'log.txt'), ('out_dir', 'output')]])]


def refused(*args):
    """Runs main.py, which must end with exit code 1 and one sentence; returns stderr."""
    code, _, stderr = run(*args)
    assert code == 1, stderr
    told = [line for line in stderr.replace('\r', '\n').split('\n') if line.startswith('error: ')]
    assert len(told) == 1, stderr
    return told[0]


def train(folder, *program):
    """Trains on the sample with a folder as the working folder; returns (stdout, stderr)."""
    code, stdout, stderr = run_process(*program, '--option=train', *(SMALL + [
        '--num_steps=3', '--save_interval=1', '--max_to_keep=3']), cwd=str(folder))
    assert code == 0, stderr
    return stdout, stderr


@pytest.fixture(scope='module')
def trained_small(tmp_path_factory):
    """Returns a folder with a trained network like `small`."""
    folder = tmp_path_factory.mktemp('small')
    train(folder, 'tests/narrow_main.py', 'main')
    return folder


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Returns a folder in which main.py --option=train has run on the sample, and what it printed."""
    folder = tmp_path_factory.mktemp('trained')
    stdout, stderr = train(folder, 'main.py')
    # only our own lines, above all none of TensorFlow's
    assert [line for line in re.split('[\r\n]', stderr) if line and not line.startswith(('train:', 'check '))] == []
    assert sorted(os.listdir(str(folder))) == ['log', 'log.txt', 'model']
    return folder, stdout


def test_train_leaves_checkpoints_and_a_log(trained):
    folder, stdout = trained
    steps = sorted(os.path.basename(path) for path in glob.glob(str(folder / 'model' / '*.index')))
    assert steps == ['model.ckpt-%d.index' % step for step in (1, 2, 3)]
    names = [name for name, _ in tf.train.list_variables(str(folder / 'model' / 'model.ckpt-3'))]
    assert 'resnet_v1_50/conv1/weights/Momentum' in names and 'resnet_v1_50/conv1/BatchNorm/moving_mean' in names
    lines = (folder / 'log.txt').read_text().splitlines()
    assert [line.split(', ')[0] for line in lines] == ['0', '1', '2', '3']
    assert all(np.isfinite(float(line.split(', ')[1])) for line in lines)
    assert 'batch norm is trained' in stdout and 'trained: checkpoints in' in stdout


def test_deterministic_runs_write_the_same(tmp_path):
    """TensorFlow 2's switch changes the graph, because its cross-entropy op has no deterministic form on GPUs."""
    found = []
    for name in ('one', 'two'):
        flags = SMALL + places(tmp_path / name) + ['--num_steps=2', '--valid_interval=2', '--valid_num_steps=1']
        code, _, stderr = run_process('tests/narrow_main.py', 'main', '--option=train', '--deterministic', *flags)
        assert code == 0, stderr
        data, = (tmp_path / name / 'model').glob('model.ckpt-2.data*')
        found.append(((tmp_path / name / 'log.txt').read_bytes(), data.read_bytes()))
    assert found[0] == found[1] and len(found[0][0].splitlines()) == 3
    events, = (tmp_path / 'one' / 'log').glob('events*')
    graph, = [event.graph_def for event in tf.train.summary_iterator(str(events)) if event.graph_def]
    ops = {node.op for node in tf.GraphDef.FromString(graph).node}
    assert ('SparseSoftmaxCrossEntropyWithLogits' in ops) == tf.__version__.startswith('1.')


def test_event_files_hold_scalars_pictures_and_the_graph(trained):
    folder, _ = trained
    scalars, pictures, graphs = {}, {}, 0
    for path in glob.glob(str(folder / 'log' / 'events*')):
        for event in tf.train.summary_iterator(path):
            graphs += bool(event.graph_def)
            for value in event.summary.value:
                if value.HasField('image'):
                    pictures.setdefault(value.tag, []).append((event.step, value.image.height, value.image.width))
                else:
                    scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    assert graphs == 1
    assert sorted(scalars) == ['images_per_second', 'learning_rate', 'loss/cross_entropy', 'loss/l2', 'loss/total']
    assert all(sorted(steps) == [0, 1, 2, 3] for steps in scalars.values())
    for step, loss in scalars['loss/total'].items():
        assert loss == pytest.approx(scalars['loss/cross_entropy'][step] + scalars['loss/l2'][step], rel=1e-5)
    assert scalars['learning_rate'][3] == 0
    assert sorted(pictures) == ['classes/0', 'input_label_prediction/0', 'input_label_prediction/1']
    assert pictures['input_label_prediction/0'] == [(step, 33, 99) for step in range(4)]


@pytest.mark.parametrize('runner', [run, functools.partial(run_process, 'main_msc.py')], ids=['main', 'main_msc'])
def test_test_prints_a_table(trained, runner):
    code, stdout, stderr = runner('--option=test', '--valid_num_steps=3', *(SMALL + places(trained[0])))
    assert code == 0, stderr
    assert 'model.ckpt-3' in stdout  # the newest checkpoint
    for word in ('pixel accuracy', 'mean IoU', 'background', 'orange', 'mug'):
        assert word in stdout
    figures = json.loads((trained[0] / 'output' / 'metrics.json').read_text())
    assert figures['checkpoint'].endswith('model.ckpt-3') and figures['list'].endswith('val.txt')
    assert figures['flags']['num_classes'] == 6 and len(figures['iou']) == 6
    matrix = np.array(figures['confusion_matrix'])
    assert figures['pixel_accuracy'] == pytest.approx(np.trace(matrix) / matrix.sum())
    assert Image.open(str(trained[0] / 'output' / 'confusion_matrix.png')).size[0] > 100


def test_valid_step_chooses_the_checkpoint(trained_small, small):
    code, stdout, _ = run('--option=test', *(SMALL + places(trained_small) + [
        '--valid_step=1', '--valid_num_steps=1']))
    assert code == 0 and 'model.ckpt-1' in stdout


def test_predict_writes_grey_and_coloured_masks(trained):
    folder, _ = trained
    code, stdout, stderr = run('--option=predict', '--test_step=2', *(SMALL + places(folder)))
    assert code == 0, stderr
    assert 'model.ckpt-2' in stdout and '20 predictions' in stdout
    with open(os.path.join(SAMPLE, 'val.txt')) as file:
        images = [line.split()[0].lstrip('/') for line in file]
    names = [os.path.splitext(os.path.basename(path))[0] for path in images]
    assert sorted(os.listdir(str(folder / 'output' / 'prediction'))) == sorted(n + '_mask.png' for n in names)
    assert sorted(os.listdir(str(folder / 'output' / 'visual_prediction'))) == sorted(
        n + '_mask_visual.png' for n in names)
    mask = Image.open(str(folder / 'output' / 'prediction' / (names[0] + '_mask.png')))
    visual = Image.open(str(folder / 'output' / 'visual_prediction' / (names[0] + '_mask_visual.png')))
    assert mask.mode == 'L' and visual.mode == 'RGB'
    assert mask.size == visual.size == Image.open(os.path.join(SAMPLE, images[0])).size
    assert np.asarray(mask).max() < 6
    colours = {(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)}
    assert {tuple(pixel) for pixel in np.asarray(visual).reshape(-1, 3)} <= colours


def masks(folder):
    return {name: np.asarray(Image.open(os.path.join(str(folder), 'prediction', name)))
            for name in os.listdir(os.path.join(str(folder), 'prediction'))}


def test_predict_in_windows_at_several_scales(trained_small, small, tmp_path):
    flags = SMALL + places(trained_small) + ['--option=predict', '--test_num_steps=2', '--novisual']
    merging = ['--eval_scales=0.5,1.0', '--eval_flip', '--eval_merge=max']
    found = {}
    for name, more in (('plain', []), ('covered', ['--window=999,999']), ('merged', merging)):
        code, _, stderr = run(*(flags + more + ['--out_dir=%s' % (tmp_path / name)]))
        assert code == 0, stderr
        found[name] = masks(tmp_path / name)
    code, stdout, stderr = run_process('tests/narrow_main.py', 'main', *(flags + merging + [
        '--window=64,81', '--overlap=0.5', '--out_dir=%s' % (tmp_path / 'windows')]))
    assert code == 0 and '2 predictions' in stdout and 'Traceback' not in stderr, stderr
    found['windows'] = masks(tmp_path / 'windows')
    assert len(found['plain']) == 2
    for name, mask in found['plain'].items():
        np.testing.assert_array_equal(found['covered'][name], mask)
        for kind in ('merged', 'windows'):
            assert found[kind][name].shape == mask.shape and found[kind][name].max() < 6
        assert (found['windows'][name] != mask).any()  # the windows have an effect
        assert (found['windows'][name] == found['merged'][name]).mean() > 0.5  # but a small one


def test_predict_without_visual_and_with_a_list_of_images_alone(trained_small, small, tmp_path):
    picture = sorted(os.listdir(os.path.join(SAMPLE, 'JPEGImages')))[0]
    (tmp_path / 'list.txt').write_text('/JPEGImages/%s\n' % picture)
    code, _, stderr = run('--option=predict', *(SMALL + places(trained_small) + [
        '--out_dir=%s' % tmp_path, '--test_data_list=%s' % (tmp_path / 'list.txt'), '--novisual']))
    assert code == 0, stderr
    assert len(os.listdir(str(tmp_path / 'prediction'))) == 1 and not (tmp_path / 'visual_prediction').exists()


def test_overlays_and_cityscapes_ids(tmp_path, small):
    name = sorted(os.listdir(os.path.join(SAMPLE, 'JPEGImages')))[0]
    shutil.copy(os.path.join(SAMPLE, 'JPEGImages', name), str(tmp_path / 'ulm_000001_000019_leftImg8bit.jpg'))
    (tmp_path / 'list.txt').write_text('ulm_000001_000019_leftImg8bit.jpg\n')
    flags = [flag_file(tmp_path / 'my.flags', [
        '--flagfile=dataset/sample.flags', '--data_dir=%s' % tmp_path, '--test_data_list=%s' % (tmp_path / 'list.txt'),
        '--data_list=%s' % (tmp_path / 'train.txt'), '--num_classes=19', '--palette=cityscapes', '--id_format=labelIds',
        '--overlay'])] + places(tmp_path)
    (tmp_path / 'train.txt').write_text('ulm_000001_000019_leftImg8bit.jpg label.png\n')
    size = Image.open(os.path.join(SAMPLE, 'JPEGImages', name)).size
    Image.fromarray(np.full(size[::-1], 3, np.uint8)).save(str(tmp_path / 'label.png'))
    train = ['--option=train', '--num_steps=1', '--batch_size=1', '--input_height=33', '--input_width=33',
             '--valid_interval=0']
    assert run(*(flags + train))[0] == 0
    code, _, stderr = run(*(flags + ['--option=predict']))
    assert code == 0, stderr
    mask = Image.open(str(tmp_path / 'output' / 'prediction' / 'ulm_000001_000019_pred_labelIds.png'))
    assert set(np.unique(mask)) <= {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    overlay = Image.open(str(tmp_path / 'output' / 'overlay_prediction' / 'ulm_000001_000019_overlay.png'))
    assert overlay.size[0] > size[0]  # with the legend
    fewer = flags + ['--option=predict', '--num_classes=18']
    assert 'trained with --num_classes=19' in refused(*fewer)
    (tmp_path / 'model' / 'settings.json').unlink()
    assert '--id_format=labelIds' in refused(*fewer)


def test_check_reads_all_lists(tmp_path):
    code, stdout, stderr = run('--option=check')
    assert code == 0, stderr
    assert 'images 60, labels 60' in stdout and 'images 20, labels 20' in stdout and 'orange' in stdout
    image, label, flags = copy_of_the_sample(tmp_path)
    spoil(image, label, flags)
    code, stdout, stderr = run('--option=check', *flags)
    assert code == 1 and 'has the value 99' in stdout and 'error: the data has 1 problem' in stderr


def test_pretrained_weights(trained_small, small, tmp_path):
    old = tf.train.load_checkpoint(str(trained_small / 'model' / 'model.ckpt-3'))
    with tf.Graph().as_default(), tf.Session() as sess:  # slim's own checkpoint is recognised by its classifier
        variables = [tf.Variable(old.get_tensor(name), name=name) for name in old.get_variable_to_shape_map()
                     if 'Momentum' not in name]
        variables.append(tf.Variable(np.zeros([1, 1, 128, 1000], np.float32), name='resnet_v1_50/logits/weights'))
        sess.run(tf.global_variables_initializer())
        tf.train.Saver(variables).save(sess, str(tmp_path / 'resnet_v1_50.ckpt'), write_meta_graph=False)
    (tmp_path / 'log.txt').write_text('an older run\n')
    flags = SMALL + places(tmp_path) + ['--num_steps=1', '--learning_rate=1e-6', '--option=train',
                                        '--restore_decoder', '--pretrain_file=%s' % (tmp_path / 'resnet_v1_50.ckpt')]
    code, stdout, stderr = run(*flags)
    assert code == 0, stderr
    assert 'made for --compat=slim' in stdout and 'decoder' in stdout
    assert 'input: --channel_order=rgb --img_mean=123.68,116.78,103.94, which these weights were made for' in stdout
    assert 'batch norm is frozen' in stdout and 'restored' in stdout
    assert 'note: the earlier %s is kept as %s.old' % ((tmp_path / 'log.txt',) * 2) in stdout
    assert (tmp_path / 'log.txt.old').read_text() == 'an older run\n'
    new = tf.train.load_checkpoint(str(tmp_path / 'model' / 'model.ckpt-1'))
    name = 'resnet_v1_50/block4/unit_1/bottleneck_v1/conv1/'
    np.testing.assert_array_equal(old.get_tensor(name + 'BatchNorm/gamma'), new.get_tensor(name + 'BatchNorm/gamma'))
    np.testing.assert_allclose(old.get_tensor(name + 'weights'), new.get_tensor(name + 'weights'), atol=1e-3)
    code, stdout, stderr = run(*(flags + places(tmp_path / 'slim') + ['--compat=slim']))
    assert code == 0 and 'note' not in stdout, stderr


@pytest.mark.parametrize('number, exit_code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_weights(tmp_path, number, exit_code):
    flags = SMALL + places(tmp_path) + ['--option=train', '--num_steps=100000', '--save_interval=100000']
    process = subprocess.Popen([sys.executable, 'tests/narrow_main.py', 'main'] + flags, cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    log = tmp_path / 'log.txt'
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 3):
        time.sleep(0.2)
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == exit_code and 'Traceback' not in stderr, stderr
    step = int(re.search(r'interrupted in step (\d+)', stdout).group(1))
    assert step >= 3 and (tmp_path / 'model' / ('model.ckpt-%d.index' % step)).exists()


def test_msc_trains_and_accumulates(tmp_path, small):
    from model_msc import Model_msc
    flags = SMALL + places(tmp_path) + ['--option=train', '--num_steps=1', '--batch_size=1', '--grad_update_every=2',
                                        '--save_interval=5']
    code, _, stderr = run(*flags, main=lambda: main.run_option(Model_msc))
    assert code == 0, stderr
    assert len((tmp_path / 'log.txt').read_text().splitlines()) == 2
    assert sorted(path.name for path in (tmp_path / 'model').glob('*.index')) == [
        'model.ckpt-0.index', 'model.ckpt-1.index']


def copy_of_the_sample(folder):
    """Copies one image of the sample as a data set; returns the paths of its image and label, and the flags."""
    name = sorted(os.listdir(os.path.join(SAMPLE, 'JPEGImages')))[0]
    image, label = str(folder / 'image.jpg'), str(folder / 'label.png')
    shutil.copy(os.path.join(SAMPLE, 'JPEGImages', name), image)
    shutil.copy(os.path.join(SAMPLE, 'SegmentationClassAug', name.replace('.jpg', '.png')), label)
    (folder / 'list.txt').write_text('image.jpg label.png\n')
    lists = ['--%s=%s' % (flag, folder / 'list.txt') for flag in ('data_list', 'valid_data_list', 'test_data_list')]
    return image, label, SMALL + [flag_file(folder / 'my.flags', [
        '--check_labels=true', '--data_dir=%s' % folder, '--num_steps=1'] + lists)] + places(folder)


def truncate(image, label, flags):
    with open(image, 'r+b') as file:
        file.truncate(500)


def resize(image, label, flags):
    Image.open(label).resize((20, 20)).save(label)


def spoil(image, label, flags):
    pixels = np.array(Image.open(label))
    pixels[3, 3] = 99
    Image.fromarray(pixels).save(label)


def no_lines(image, label, flags):
    with open(os.path.join(os.path.dirname(image), 'list.txt'), 'w') as file:
        file.write('# nothing\n')


def pipe_as_log(image, label, flags):
    pipe = os.path.join(os.path.dirname(image), 'pipe')
    os.mkfifo(pipe)
    flags.append('--logfile=' + pipe)


@pytest.mark.parametrize('spoiler, told', [
    (lambda image, label, flags: os.remove(image), 'image.jpg'),
    (lambda image, label, flags: os.remove(label), 'label.png'),
    (truncate, 'image.jpg'),
    (resize, 'label.png is 20x20'),
    (spoil, 'has the value 99'),
    (no_lines, 'list.txt'),
    (lambda image, label, flags: flags.append('--data_list=none.txt'), 'none.txt'),
    (lambda image, label, flags: flags.append('--modeldir=%s/model' % image), '--modeldir'),
    (lambda image, label, flags: flags.append('--logdir=%s/log' % image), '--logdir'),
    (pipe_as_log, 'pipe is a named pipe'),
    (lambda image, label, flags: flags.append('--pretrain_file=none.ckpt'), 'none.ckpt'),
    (lambda image, label, flags: flags.append('--palette=none.palette'), 'none.palette'),
    (lambda image, label, flags: flags.extend(['--learning_rate=1e30', '--num_steps=5']), '--learning_rate'),
])
def test_bad_input_of_training(small, tmp_path, spoiler, told):
    image, label, flags = copy_of_the_sample(tmp_path)
    spoiler(image, label, flags)
    assert told in refused('--option=train', *flags)


def test_values_outside_the_classes_are_told_without_the_first_scan_too(small, tmp_path):
    image, label, flags = copy_of_the_sample(tmp_path)
    spoil(image, label, flags)
    assert 'has the value 99' in refused('--option=train', *(flags + ['--check_labels=false']))


def test_a_batch_without_a_valid_pixel_trains(small, tmp_path):
    """Of the images of the two steps, one is void. With the void one alone, there would be nothing to learn."""
    image, label, flags = copy_of_the_sample(tmp_path)
    shutil.copy(label, str(tmp_path / 'sound.png'))
    Image.fromarray(np.full(Image.open(label).size[::-1], 255, np.uint8)).save(label)
    assert 'all pixels of all labels are' in refused('--option=train', *flags)
    (tmp_path / 'list.txt').write_text('image.jpg label.png\nimage.jpg sound.png\n')
    code, _, stderr = run('--option=train', *(flags + ['--batch_size=1']))
    assert code == 0, stderr


@pytest.mark.parametrize('option, args, told', [
    ('test', ['--modeldir=no_such_folder'], 'no_such_folder'),
    ('test', ['--valid_step=7'], '--valid_step to one of 3, 2, 1'),
    ('predict', ['--test_step=7'], '--test_step to one of 3, 2, 1'),
    ('test', ['--encoder_name=res101'], 'res50'),
    ('test', ['--num_classes=5', '--palette='], '--num_classes=6'),
    ('predict', ['--out_dir=README.md'], '--out_dir'),
])
def test_bad_input_of_test_and_predict(trained, option, args, told):
    assert told in refused('--option=' + option, *(SMALL + places(trained[0]) + args))
