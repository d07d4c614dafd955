"""Folders with names that TensorFlow takes for patterns, such as `exp?` or `lr[3e-3]`, work like any others."""

import os
import shutil
import tempfile

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from test_main import flag_file, in_the_repo, run, small  # noqa: F401  fixtures
from test_run_folder import make_folder, save_steps

from utils import checkpoint
from utils.data.image_files import read_file
from utils.system.errors import UserError
from utils.weights import checkpoints, weight_files

ODD = ['exp?', 'lr[3e-3]', 'a\\b', 'a*b', '{x}', 'a]', '[!a]', 'ü[1]', 'tail\\']
SMALL = ['--flagfile=tests/small.flags']


def names_in(folder):
    return sorted(os.listdir(str(folder)))


@pytest.mark.parametrize('name', ODD)
def test_checkpoints_are_counted_and_removed_by_their_exact_names(tmp_path, name):
    others = [tmp_path / other for other in ('exp1', 'exp2', 'lr3', 'ab', 'axb', '1')]
    for other in others:
        save_steps(make_folder(other), [0, 2, 4])
    before = [names_in(other) for other in others]
    folder = make_folder(tmp_path / name)
    save_steps(folder, [0, 2, 4], max_to_keep=2)
    save_steps(make_folder(tmp_path / name), [6], max_to_keep=2)
    assert checkpoints.checkpoint_steps(folder.path) == [4, 6]
    assert len([found for found in names_in(folder.path) if '.ckpt-' in found]) == 4
    assert tf.train.get_checkpoint_state(folder.path).all_model_checkpoint_paths == [
        os.path.join(folder.path, 'model.ckpt-%d' % step) for step in (4, 6)]
    assert [names_in(other) for other in others] == before


@pytest.mark.parametrize('name', ODD + [os.fsdecode(b'\xff')])
def test_checkpoints_are_read_by_their_exact_names(tmp_path, name):
    plain = save_steps(make_folder(tmp_path / 'plain'), [3])[0]
    folder = str(tmp_path / name)
    shutil.copytree(os.path.dirname(plain), folder)
    prefix = os.path.join(folder, 'model.ckpt-3')
    left = set(os.listdir(tempfile.gettempdir()))
    assert checkpoints.read_values(prefix)['v'].tolist() == [1, 1, 1, 1]
    assert weight_files.open_weights(prefix).shapes == weight_files.open_weights(plain).shapes
    assert checkpoints.read_fitting(prefix, {'v': (4,)})['v'].tolist() == [1, 1, 1, 1]
    assert {found for found in os.listdir(tempfile.gettempdir()) if found.startswith('checkpoint-')} <= left
    os.remove(prefix + '.data-00000-of-00001')
    with pytest.raises(UserError, match='damaged or incomplete'):
        checkpoints.read_values(prefix)


def test_a_sound_checkpoint_without_links_is_not_called_damaged(tmp_path, monkeypatch):
    save_steps(make_folder(tmp_path / '[1]'), [3])

    def refuse(*args, **kwargs):
        raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(os, 'symlink', refuse)
    for read in (lambda: checkpoints.read_values(str(tmp_path / '[1]' / 'model.ckpt-3')),
                 lambda: make_folder(tmp_path / '[1]').resume('auto')):
        with pytest.raises(UserError, match='takes its name for a pattern.*not permitted.*rename') as error:
            read()
        assert 'damaged' not in str(error.value) and len(str(error.value)) <= 300


def test_a_temporary_folder_of_such_a_name_is_not_used(tmp_path, monkeypatch):
    save_steps(make_folder(tmp_path / 'a\\b'), [3])
    (tmp_path / 'pbs.1234[5].server').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'pbs.1234[5].server'))
    assert checkpoints.read_values(str(tmp_path / 'a\\b' / 'model.ckpt-3'))['v'].tolist() == [1, 1, 1, 1]


def work(folder, name):
    """Trains, resumes, tests, predicts and exports with all outputs in folder/name; returns results to compare."""
    place = os.path.join(str(folder), name)
    flags = SMALL + [flag_file(os.path.join(str(folder), 'places.flags'), [
        '--%s=%s' % (flag, os.path.join(place, flag)) for flag in (
            'modeldir', 'logdir', 'logfile', 'out_dir', 'export_dir')])]
    modeldir = os.path.join(place, 'modeldir')

    def done(*args):
        code, stdout, stderr = run(*(flags + list(args)))
        assert code == 0, stderr
        return stdout

    for steps in ('2', '4'):
        done('--option=train', '--num_steps=' + steps, '--resume=must' if steps == '4' else '--resume=auto',
             '--save_interval=1', '--max_to_keep=2', '--valid_interval=2')
    assert checkpoints.checkpoint_steps(modeldir) == [3, 4]
    done('--option=test')
    done('--option=predict', '--test_num_steps=2')
    done('--option=export')
    done('--option=train', '--resume=never', '--num_steps=1', '--restore_decoder', '--pretrain_file=' + modeldir,
         '--valid_interval=0', '--modeldir=' + modeldir + '2')
    saved = os.path.join(place, 'copy.ckpt-0')
    weights = weight_files.open_weights(checkpoints.newest_in(modeldir))
    checkpoint.save_weights(weights, saved)
    with open(os.path.join(place, 'logfile')) as file:
        log = file.read()
    masks = {mask: read_file(os.path.join(place, 'out_dir', mask), 1 << 20)
             for mask in names_in(os.path.join(place, 'out_dir')) if mask.endswith('.png')}
    with tf.Graph().as_default(), tf.Session() as sess:
        tf.saved_model.loader.load(sess, ['serve'], os.path.join(place, 'export_dir'))
    values = [checkpoints.read_values(prefix) for prefix in (
        os.path.join(modeldir, 'model.ckpt-4'), modeldir + '2/model.ckpt-1', saved)]
    return log, masks, values, checkpoint.describe(weights).partition(':')[2]


def test_the_name_of_a_folder_changes_no_result(tmp_path, small):  # noqa: F811
    log, masks, values, text = work(tmp_path, 'plain')
    assert masks
    found = work(tmp_path, 'lr[3e-3]*?\\')
    assert found[0] == log and found[1] == masks and found[3] == text
    for one, other in zip(found[2], values):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
