"""A training's folder: its lock, the settings that it refuses to mix, and checkpoints that are whole and counted."""

import os
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

from utils.net.compat import Input
from utils.system.errors import UserError
from utils.training import run_folder
from utils.training.run_folder import RunFolder
from utils.weights import checkpoints, run_settings, weight_files

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BGR = Input('bgr', (1.0, 2.5, 3.0))


def make_folder(path, **flags):
    return RunFolder(str(path), dict({'num_steps': 20, 'img_mean': None}, **flags), BGR)


def save_steps(folder, steps, max_to_keep=5, size=4):
    """Starts a run in the folder and saves these steps of one variable."""
    with tf.Graph().as_default(), tf.Session() as sess:
        variable = tf.get_variable('v', [size], use_resource=True, initializer=tf.initializers.ones())
        saver = tf.train.Saver([variable], max_to_keep=max_to_keep)
        sess.run(variable.initializer)
        folder.start(saver)
        return [folder.save(sess, saver, step) for step in steps]


def test_settings_are_kept_beside_the_checkpoints(tmp_path):
    assert run_settings.read(str(tmp_path / 'none')) == {}
    folder = make_folder(tmp_path / 'model')
    folder.check()
    assert save_steps(folder, [0, 3])[1] == str(tmp_path / 'model' / 'model.ckpt-3')
    assert run_settings.read(folder.path) == {'flags': {'num_steps': 20, 'img_mean': None}, 'input': BGR}


def test_damaged_settings_are_reported(tmp_path):
    (tmp_path / 'settings.json').write_bytes(b'\xff{')
    with pytest.raises(UserError, match='settings.json is damaged'):
        run_settings.read(str(tmp_path))


def test_a_run_of_other_settings_is_not_replaced(tmp_path, capsys):
    save_steps(make_folder(tmp_path), [3])
    with pytest.raises(UserError) as error:
        make_folder(tmp_path, num_steps=30, img_mean=['1', '2', '3']).check()
    for words in ('num_steps=20 (now 30)', 'img_mean=None', '--modeldir'):
        assert words in str(error.value)
    make_folder(tmp_path).check()
    assert 'afresh' in capsys.readouterr().out
    os.remove(str(tmp_path / 'settings.json'))
    with pytest.raises(UserError, match='unknown settings.*--modeldir'):
        make_folder(tmp_path).check()


def test_paths_that_mean_the_same_file_are_the_same_setting(tmp_path, settings, monkeypatch):
    (tmp_path / 'list.txt').write_text('')
    monkeypatch.chdir(tmp_path)
    one, other = [run_folder.deciding(settings(data_list=path), 'Model') for path in (
        './list.txt', str(tmp_path / 'list.txt'))]
    assert one == other and one['model'] == 'Model'
    assert run_folder.deciding(settings(), 'Model') != run_folder.deciding(settings(), 'Model_msc')


def test_only_one_training_at_a_time_and_a_dead_one_holds_nothing(tmp_path):
    program = ('import sys; from utils.training.run_folder import RunFolder; from utils.net.compat import Input\n'
               'with RunFolder(sys.argv[1], {}, Input("bgr", (0, 0, 0))).locked(): print("held", flush=True); '
               'sys.stdin.read()')
    other = subprocess.Popen([sys.executable, '-c', program, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, universal_newlines=True)
    assert other.stdout.readline() == 'held\n'
    folder = make_folder(tmp_path)
    with pytest.raises(UserError, match='process %d on .* --modeldir' % other.pid), folder.locked():
        pass
    other.kill()
    other.communicate()
    with folder.locked():
        pass


def test_checkpoints_of_an_earlier_start_are_counted(tmp_path):
    save_steps(make_folder(tmp_path), [22, 24, 26], max_to_keep=3)
    save_steps(make_folder(tmp_path), [0, 2], max_to_keep=3)
    assert checkpoints.checkpoint_steps(str(tmp_path)) == [0, 2, 26]
    assert checkpoints.find_checkpoint(str(tmp_path)) == str(tmp_path / 'model.ckpt-26')


def test_what_a_killed_save_left_is_removed(tmp_path):
    left = ['model.ckpt-7.data-00000-of-00001.tempstate123', 'checkpoint.tmp0a1b', 'settings.json.99.tmp']
    for name in left + ['mine.tmp']:
        (tmp_path / name).write_text('x')
    (tmp_path / 'model.ckpt-8_temp_abc').mkdir()
    (tmp_path / 'model.ckpt-8_temp_abc' / 'part-00000-of-00001.index').write_text('x')
    save_steps(make_folder(tmp_path), [1])
    assert sorted(os.listdir(str(tmp_path))) == [
        'checkpoint', 'mine.tmp', 'model.ckpt-1.data-00000-of-00001', 'model.ckpt-1.index', 'settings.json']


def test_a_full_disk_leaves_nothing_half_written(tmp_path, full_disk):
    folder = make_folder(tmp_path)
    save_steps(folder, [1])
    before = sorted(os.listdir(str(tmp_path)))
    with pytest.raises(UserError) as error, full_disk(100000):
        save_steps(folder, [2], size=100000)
    assert 'model.ckpt-2 cannot be written (' in str(error.value) and 'File too large' in str(error.value)
    assert '--modeldir' in str(error.value) and 'Graph execution error' not in str(error.value)
    assert sorted(os.listdir(str(tmp_path))) == before


def test_a_folder_that_vanishes_is_reported(tmp_path):
    folder = make_folder(tmp_path / 'model')
    with tf.Graph().as_default(), tf.Session() as sess:
        saver = tf.train.Saver([tf.get_variable('v', [1], use_resource=True)])
        sess.run(tf.global_variables_initializer())
        folder.start(saver)
        os.remove(str(tmp_path / 'model' / 'settings.json'))
        os.rmdir(str(tmp_path / 'model'))
        try:
            path = folder.save(sess, saver, 1)  # TensorFlow 2 makes the folder anew
            assert os.path.exists(path + '.index')
        except UserError as error:
            assert '--modeldir' in str(error)


def test_damaged_settings_are_reported_as_such_when_the_checkpoint_is_opened(tmp_path):
    save_steps(make_folder(tmp_path), [3])
    (tmp_path / 'settings.json').write_text('{')
    with pytest.raises(UserError) as error:
        weight_files.open_checkpoint(str(tmp_path / 'model.ckpt-3'))
    assert 'settings.json is damaged' in str(error.value) and 'copy or download' not in str(error.value)
