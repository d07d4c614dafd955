"""Output files: what may be overwritten, what is kept, and what is left when the disk is full."""

import contextlib
import json
import os
import socket
import stat

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

from utils import write_to_log
from utils.system import output_files
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def make(kind, path):
    """Makes something that is not a regular file at the path."""
    if kind == 'a named pipe':
        os.mkfifo(path)
    elif kind == 'a folder':
        os.mkdir(path)
    elif kind == 'a socket':
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
            one.bind(path)
    else:
        os.symlink('target' if kind == 'a symbolic link' else 'nothing', path)


KINDS = ['a named pipe', 'a folder', 'a socket', 'a symbolic link', 'a dangling symbolic link']


@pytest.mark.parametrize('kind', KINDS)
def test_only_a_regular_file_is_written_to(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    (tmp_path / 'target').write_text('kept')
    make(kind, 'log.txt')
    before = sorted(os.listdir('.'))
    for function in (output_files.check_file, output_files.set_aside):
        with pytest.raises(UserError) as error:
            function('log.txt', 'logfile')
        assert str(error.value) == '--logfile=log.txt is %s: give the name of a regular file.' % kind.replace(
            'dangling ', '')
    if 'link' not in kind:
        with pytest.raises(UserError) as error:
            output_files.save_json({}, 'log.txt')
        assert "'log.txt' cannot be written (it is %s)" % kind in str(error.value)
    assert sorted(os.listdir('.')) == before and (tmp_path / 'target').read_text() == 'kept'


def test_a_device_is_refused():
    assert output_files.kind_of('/dev/null') == 'a device'  # it is examined, never written to


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / 'target').write_text('kept')
    os.symlink('target', str(tmp_path / 'scores.json'))
    output_files.save_json({'a': 1}, str(tmp_path / 'scores.json'))
    assert json.loads((tmp_path / 'scores.json').read_text()) == {'a': 1}
    assert not (tmp_path / 'scores.json').is_symlink() and (tmp_path / 'target').read_text() == 'kept'


def test_the_temporary_file_follows_no_link(tmp_path):
    (tmp_path / 'target').write_text('kept')
    os.symlink('target', str(tmp_path / ('a.png.%d.tmp' % os.getpid())))
    output_files.save_image(np.zeros([2, 2], np.uint8), str(tmp_path / 'a.png'))
    assert (tmp_path / 'target').read_text() == 'kept' and Image.open(str(tmp_path / 'a.png')).size == (2, 2)
    assert sorted(os.listdir(str(tmp_path))) == ['a.png', 'target']


def test_files_have_the_mode_that_the_user_set(tmp_path):
    mask = os.umask(0o027)
    try:
        output_files.save_json({}, str(tmp_path / 'a.json'))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(str(tmp_path / 'a.json')).st_mode) == 0o640


def test_all_older_logs_are_kept(tmp_path):
    path = str(tmp_path / 'new' / 'log.txt')
    assert output_files.set_aside(path, 'logfile') is None
    for run in 'abcd':
        write_to_log.write_log(run, path)
        kept = output_files.set_aside(path, 'logfile')
    assert kept == path + '.old4'
    texts = {name: (tmp_path / 'new' / name).read_text() for name in os.listdir(str(tmp_path / 'new'))}
    assert texts == {'log.txt.old': 'a\n', 'log.txt.old2': 'b\n', 'log.txt.old3': 'c\n', 'log.txt.old4': 'd\n'}


def test_folders(tmp_path):
    (tmp_path / 'file').write_text('')
    os.symlink('nothing', str(tmp_path / 'dangling'))
    os.mkfifo(str(tmp_path / 'pipe'))
    for name in ('file', 'dangling', 'pipe'):
        with pytest.raises(UserError, match='it is a.*--modeldir'):
            output_files.make_dir(str(tmp_path / name), 'modeldir')
    with pytest.raises(UserError, match='Not a directory.*--modeldir'):
        output_files.make_dir(str(tmp_path / 'file' / 'model'), 'modeldir')
    with pytest.raises(UserError, match='cannot write to .*--modeldir'):  # it was a RecursionError
        output_files.make_dir(str(tmp_path) + '/y' * 2500, 'modeldir')
    os.symlink(str(tmp_path), str(tmp_path / 'link'))  # the folder that the user names may be a link
    assert os.path.isdir(output_files.make_dir(str(tmp_path / 'link' / 'a' / 'b'), 'modeldir'))


def test_full_disk_leaves_no_half_file(tmp_path, full_disk):
    path = str(tmp_path / 'a.png')
    with pytest.raises(UserError) as error, full_disk(1000):
        output_files.save_image(np.random.RandomState(0).randint(0, 255, [99, 99]).astype(np.uint8), path)
    assert 'a.png' in str(error.value) and 'File too large' in str(error.value)
    assert os.listdir(str(tmp_path)) == []


def test_log_lines_are_whole_on_a_full_disk(tmp_path, full_disk):
    path = str(tmp_path / 'log.txt')
    with pytest.raises(UserError) as error, full_disk(25):
        for step in range(10):
            write_to_log.write_log('%d, 1.234567' % step, path)
    assert "log.txt' cannot be written (File too large)" in str(error.value) and '--logfile' in str(error.value)
    assert (tmp_path / 'log.txt').read_text() == '0, 1.234567\n1, 1.234567\n'


def test_the_log_follows_no_link(tmp_path):
    os.symlink('target', str(tmp_path / 'log.txt'))
    with pytest.raises(UserError, match='log.txt'):
        write_to_log.write_log('0, 1', str(tmp_path / 'log.txt'))
    assert not (tmp_path / 'target').exists()


def events(path):
    return list(tf.train.summary_iterator(path))


def test_events_are_what_tensorboard_reads(tmp_path):
    with tf.Graph().as_default() as graph:
        tf.constant(1.0, name='one')
        writers = [write_to_log.SummaryWriter(str(tmp_path), graph) for _ in range(2)]  # both in the same second
    assert writers[0].path != writers[1].path
    for step in range(3):
        writers[0].add_summary(write_to_log.scalar_summary({'loss': step / 2}), step)
    writers[0].add_summary(write_to_log.image_summary('a', np.zeros([1, 2, 6, 3], np.uint8)), 2)
    writers[0].flush()
    assert len(events(writers[0].path)) == 6
    for writer in writers:
        writer.close()
        writer.close()
    read = events(writers[0].path)
    assert read[0].file_version == 'brain.Event:2'
    assert tf.GraphDef.FromString(read[1].graph_def).node[0].name == 'one'
    assert [(e.step, e.summary.value[0].simple_value) for e in read[2:5]] == [(0, 0), (1, 0.5), (2, 1)]
    assert 0 < read[0].wall_time <= read[5].wall_time
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    for path in (str(tmp_path), writers[0].path):
        board = accumulator.EventAccumulator(path)
        board.Reload()
        assert [(e.step, e.value) for e in board.Scalars('loss')] == [(0, 0), (1, 0.5), (2, 1)]
        assert board.Images('a/0')[0].width == 6 and board.Graph().node[0].name == 'one'


def test_events_are_flushed_now_and_then(tmp_path, monkeypatch):
    writer = write_to_log.SummaryWriter(str(tmp_path))
    writer.add_summary(write_to_log.scalar_summary({'loss': 1}), 0)
    assert len(events(writer.path)) == 1
    monkeypatch.setattr(write_to_log, 'FLUSH_SECONDS', -1)
    writer.add_summary(write_to_log.scalar_summary({'loss': 1}), 1)
    assert len(events(writer.path)) == 3
    writer.close()


def test_a_full_disk_is_reported_and_leaves_whole_events(tmp_path, full_disk):
    writer = write_to_log.SummaryWriter(str(tmp_path))
    with pytest.raises(UserError) as error, full_disk(20000):
        for step in range(10 ** 6):
            writer.add_summary(write_to_log.scalar_summary({'loss': step}), step)
            if step % 10 == 0:
                writer.flush()
    assert 'File too large' in str(error.value) and '--logdir' in str(error.value)
    writer.close()  # in a finally block: no second report
    steps = [event.step for event in events(writer.path)[1:]]
    assert steps == list(range(len(steps))) and len(steps) > 100
    with pytest.raises(UserError, match='--logdir'), full_disk(10):
        write_to_log.SummaryWriter(str(tmp_path))


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(UserError, match='--logdir'):
        write_to_log.SummaryWriter(str(tmp_path / 'none'))
