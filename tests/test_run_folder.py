"""A training's folder: its lock, settings that must not be mixed, and checkpoints, complete and limited in number."""

import os
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

from utils.net.compat import Input
from utils.system.errors import UserError
from utils.training.run import RunFolder
from utils.weights import checkpoints, run_settings, weight_files

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BGR = Input('bgr', (1.0, 2.5, 3.0))


def make_folder(path, **flags):
    return RunFolder(str(path), dict({'num_steps': 20, 'img_mean': None}, **flags))


def save_steps(folder, steps, max_to_keep=5, size=4):
    """Starts a run, or resumes it from the newest checkpoint, and saves these steps of one variable."""
    with tf.Graph().as_default(), tf.Session() as sess:
        variable = tf.get_variable('v', [size], use_resource=True, initializer=tf.initializers.ones())
        saver = tf.train.Saver([variable], max_to_keep=max_to_keep)
        sess.run(variable.initializer)
        folder.start(saver, folder.resume('must')[0] if checkpoints.checkpoint_steps(folder.path) else 0, BGR)
        return [folder.save(sess, saver, step) for step in steps]


def test_settings_are_kept_beside_the_checkpoints(tmp_path):
    assert run_settings.read(str(tmp_path / 'none')) == {}
    folder = make_folder(tmp_path / 'model')
    assert folder.resume('auto') == (0, {}, None)
    assert save_steps(folder, [0, 3])[1] == str(tmp_path / 'model' / 'model.ckpt-3')
    assert run_settings.read(folder.path) == {'flags': {'num_steps': 20, 'img_mean': None}, 'input': BGR,
                                              'run': folder.run_id}
    path = tmp_path / 'model' / 'settings.json'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())  # some editors add a byte order mark
    assert run_settings.read(folder.path)['input'] == BGR


def test_damaged_settings_are_reported(tmp_path):
    (tmp_path / 'settings.json').write_bytes(b'\xff{')
    with pytest.raises(UserError, match='settings.json is damaged'):
        run_settings.read(str(tmp_path))


@pytest.mark.parametrize('text', ['[' * 10 ** 5, '{"input": %s, "flags": {}}'] + [
    '{"input": {"channel_order": %s, "img_mean": %s}, "flags": {}}' % pair for pair in (
        ('"bgr"', '[1, 2]'), ('"bgr"', '[NaN, 1, 2]'), ('"bgr"', '[1e39, 1, 2]'), ('"bgr"', '"123"'),
        ('"xyz"', '[1, 2, 3]'), ('null', '[1, 2, 3]'))])
def test_an_input_that_is_none_is_damage(tmp_path, text):
    (tmp_path / 'settings.json').write_text(text)
    with pytest.raises(UserError, match='settings.json is damaged') as error:
        run_settings.read(str(tmp_path))
    assert len(str(error.value)) <= 300


def test_a_run_of_other_settings_is_gone_on_from_only_if_asked_to(tmp_path, capsys):
    save_steps(make_folder(tmp_path), [3])
    with pytest.raises(UserError) as error:
        make_folder(tmp_path, num_steps=30, img_mean=['1', '2', '3']).resume('auto')
    assert len(str(error.value)) <= 300
    for words in ('num_steps=20 (now 30)', 'img_mean=None', '--modeldir', '--resume=must', '--resume=never'):
        assert words in str(error.value)
    step, values, net_input = make_folder(tmp_path, num_steps=30).resume('must')
    assert (step, values['v'].tolist(), net_input) == (4, [1] * 4, BGR)
    assert 'num_steps=20 (now 30)' in capsys.readouterr().out
    assert make_folder(tmp_path).resume('auto')[0] == 4
    assert make_folder(tmp_path, num_steps=30).resume('never') == (0, {}, None)
    os.remove(str(tmp_path / 'settings.json'))
    with pytest.raises(UserError, match='unknown settings.*--modeldir'):
        make_folder(tmp_path).resume('auto')
    assert make_folder(tmp_path).resume('must')[0] == 4
    with pytest.raises(UserError, match='--resume=must'):
        make_folder(tmp_path / 'empty').resume('must')


def test_changed_settings_are_told_in_few_characters(tmp_path):
    folder = tmp_path / ('folder' * 20)
    folder.mkdir()
    names = ('class_weights', 'data_dir', 'data_list', 'pretrain_file')
    save_steps(make_folder(folder, **dict.fromkeys(names, 'x' * 200)), [3])
    with pytest.raises(UserError) as error:
        make_folder(folder, **dict.fromkeys(names, 'x' * 200 + 'y')).resume('auto')
    assert len(str(error.value)) <= 300 and 'xy) and 3 more; resume with --resume=must' in str(error.value)


def test_a_finished_run_goes_on_with_a_longer_schedule(tmp_path):
    save_steps(make_folder(tmp_path), [20])
    assert make_folder(tmp_path, num_steps=30).resume('auto')[0] == 21
    for flags in ({'num_steps': 10}, {'num_steps': 30, 'img_mean': ['1', '2', '3']}):
        with pytest.raises(UserError, match='num_steps'):
            make_folder(tmp_path, **flags).resume('auto')


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    save_steps(make_folder(tmp_path), [3, 5])
    (tmp_path / 'model.ckpt-5.data-00000-of-00001').write_bytes(b'\0')
    assert make_folder(tmp_path).resume('auto')[0] == 4
    assert 'model.ckpt-5 is damaged' in capsys.readouterr().err
    (tmp_path / 'model.ckpt-3.index').write_bytes(b'\0')
    with pytest.raises(UserError, match='--resume=never'):
        make_folder(tmp_path).resume('auto')


def test_an_older_run_is_kept_when_another_begins(tmp_path):
    for runs in range(3):
        folder = make_folder(tmp_path)
        with tf.Graph().as_default(), tf.Session() as sess:
            saver = tf.train.Saver([tf.get_variable('v', [4], use_resource=True)])
            sess.run(tf.global_variables_initializer())
            folder.start(saver, 0, BGR)
            folder.save(sess, saver, runs)
            folder.save_best(sess, saver, runs + 10)
            folder.save_best(sess, saver, runs + 11)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob('**/*.index')} == {
        'old/model.ckpt-0.index', 'old/best.ckpt-11.index', 'old2/model.ckpt-1.index', 'old2/best.ckpt-12.index',
        'model.ckpt-2.index', 'best.ckpt-13.index'}
    assert checkpoints.find_checkpoint(str(tmp_path), 'best') == str(tmp_path / 'best.ckpt-13')
    assert checkpoints.find_checkpoint(str(tmp_path)) == str(tmp_path / 'model.ckpt-2')


def test_paths_that_mean_the_same_file_are_the_same_setting(tmp_path, settings, monkeypatch):
    (tmp_path / 'list.txt').write_text('')
    monkeypatch.chdir(tmp_path)
    one, other = [run_settings.settings_from_flags(settings(data_list=path), model='Model') for path in (
        './list.txt', str(tmp_path / 'list.txt'))]
    assert one == other and one['model'] == 'Model'
    assert (run_settings.settings_from_flags(settings(), model='Model')
            != run_settings.settings_from_flags(settings(), model='Model_msc'))


def test_only_one_training_at_a_time_and_a_dead_one_holds_nothing(tmp_path):
    program = ('import sys; from utils.training.run import RunFolder\n'
               'with RunFolder(sys.argv[1], {}).locked(): print("held", flush=True); '
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
    save_steps(make_folder(tmp_path), [0, 2, 4], max_to_keep=3)
    save_steps(make_folder(tmp_path), [6, 8], max_to_keep=3)
    assert checkpoints.checkpoint_steps(str(tmp_path)) == [4, 6, 8]
    assert checkpoints.find_checkpoint(str(tmp_path)) == str(tmp_path / 'model.ckpt-8')


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
        folder.start(saver, 0, BGR)
        os.remove(str(tmp_path / 'model' / 'settings.json'))
        os.rmdir(str(tmp_path / 'model'))
        try:
            path = folder.save(sess, saver, 1)  # TensorFlow 2 creates the folder again
            assert os.path.exists(path + '.index')
        except UserError as error:
            assert '--modeldir' in str(error)


def test_damaged_settings_are_reported_as_such_when_the_checkpoint_is_opened(tmp_path):
    save_steps(make_folder(tmp_path), [3])
    (tmp_path / 'settings.json').write_text('{')
    with pytest.raises(UserError) as error:
        weight_files.open_checkpoint(str(tmp_path / 'model.ckpt-3'))
    assert 'settings.json is damaged' in str(error.value) and 'copy or download' not in str(error.value)


def test_what_is_no_file_at_the_place_of_the_lock_is_named(tmp_path):
    (tmp_path / '.lock').mkdir()
    message = '/.lock is a folder, not a regular file: remove it or give another --modeldir.$'
    with pytest.raises(UserError, match=message), RunFolder(str(tmp_path), {}).locked():
        pass
