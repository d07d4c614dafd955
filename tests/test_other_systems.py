"""With everything hidden that Windows or macOS lack, each program still works; see other_system.py."""

import csv
import glob
import importlib.util
import os
import subprocess
import sys

import pytest

from utils.system import interrupts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TESTS = os.path.join(ROOT, 'tests')
HIDING = os.path.join(TESTS, 'other_system.py')
SMALL = '--flagfile=' + os.path.join(TESTS, 'small.flags')


def run(folder, *args):
    """Runs Python with a folder as the working folder; returns (exit code, stdout, stderr)."""
    done = subprocess.run([sys.executable] + list(args), cwd=str(folder), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True,
                          env=dict(os.environ, PYTHONPATH=os.pathsep.join([ROOT, TESTS])))
    return done.returncode, done.stdout, done.stderr


def run_hidden(folder, program, *args):
    """Runs a program, which must succeed although much is hidden, and returns its stdout."""
    code, stdout, stderr = run(folder, HIDING, os.path.join(ROOT, program), *args)
    assert code == 0 and 'Traceback' not in stderr, stderr
    return stdout


def run_code(folder, code):
    return run(folder, '-c', 'import other_system\nother_system.hide()\n' + code)


def train(folder, *flags):
    folder.mkdir(exist_ok=True)
    return ['tests/narrow_main.py', 'main', '--option=train', SMALL, '--save_interval=1', '--valid_num_steps=1'] + list(
        flags)


def test_every_option_and_program_works(tmp_path):
    main = ['tests/narrow_main.py', 'main', SMALL]
    assert 'problems 0' in run_hidden(tmp_path, *main + ['--option=check'])
    run_hidden(tmp_path, *train(tmp_path, '--num_steps=1', '--valid_interval=1'))
    # another loss adds a column to metrics.csv, so that its old rows must be kept
    stdout = run_hidden(tmp_path, *train(tmp_path, '--num_steps=3', '--valid_interval=1', '--loss=ce+dice',
                                         '--resume=must'))
    assert 'step 2 of 3 is next' in stdout and 'has new columns' in stdout
    written = (tmp_path / 'model' / 'metrics.csv').read_bytes()
    header, *rows = csv.reader(written.decode('utf-8').splitlines())
    assert [row[0] for row in rows] == ['0', '1', '2', '3'] and b'\r' not in written
    assert all(len(row) == len(header) and row[header.index('mean_iou')] for row in rows)
    assert (tmp_path / 'log.txt').read_bytes().count(b'\n') == 4
    assert 'finished training' in run_hidden(tmp_path, *train(tmp_path, '--num_steps=3', '--valid_interval=1',
                                                              '--loss=ce+dice'))
    assert 'mean IoU' in run_hidden(tmp_path, *main + ['--option=test', '--valid_num_steps=2', '--report'])
    crf = ['--crf'] if importlib.util.find_spec('pydensecrf') else []
    for _ in range(2):  # the second time, it replaces the masks
        run_hidden(tmp_path, *main + ['--option=predict', '--test_num_steps=2'] + crf)
    assert len(glob.glob(str(tmp_path / 'output' / 'prediction' / '*.png'))) == 2
    for _ in range(2):
        run_hidden(tmp_path, *main + ['--option=export'])
    assert (tmp_path / 'export' / 'saved_model.pb').exists() and not glob.glob(str(tmp_path / 'export.*'))
    assert '--num_classes:  6' in run_hidden(tmp_path, 'utils/checkpoint.py', 'model')
    run_hidden(tmp_path, 'plot_training_curve.py', '--output=curve.png')
    for program in ('main_msc.py', 'convert_voc.py', 'convert_cityscapes.py'):
        code, stdout, stderr = run(tmp_path, HIDING, os.path.join(ROOT, program), '--help')
        assert code < 2 and '--' in stdout and stderr == '', stderr


def test_the_weights_and_the_log_are_the_same(tmp_path):
    flags = ('--num_steps=2', '--valid_interval=2')
    run_hidden(tmp_path / 'hidden', *train(tmp_path / 'hidden', *flags))
    program, *args = train(tmp_path / 'plain', *flags)
    assert run(tmp_path / 'plain', os.path.join(ROOT, program), *args)[0] == 0
    for name in ('log.txt', 'model/model.ckpt-2.data-00000-of-00001', 'model/best.ckpt-2.index'):
        assert (tmp_path / 'hidden' / name).read_bytes() == (tmp_path / 'plain' / name).read_bytes(), name


@pytest.mark.parametrize('number', interrupts.STOPPING)
def test_a_signal_is_kept_and_the_second_ends_the_process(tmp_path, number):
    code, stdout, stderr = run_code(tmp_path, (
        'import hashlib, os, signal, threading\nfrom utils.system import interrupts\n'
        'with interrupts.deferred() as pending:\n'
        '    os.kill(os.getpid(), {0})\n'
        '    assert pending.number == {0}\n'
        'with interrupts.deferred():\n'
        '    for seconds in (0.2, 0.4):\n'
        '        threading.Timer(seconds, os.kill, (os.getpid(), {0})).start()\n'
        '    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 ** 31 - 1)\nprint("on")').format(int(number)))
    assert (code, stdout, stderr.count('stopping after this step')) == (128 + number, '', 2), stderr


def test_lines_have_their_bytes_and_files_are_synced(tmp_path):
    code, stdout, stderr = run(tmp_path, '-c', (
        'import os, other_system\n'
        'synced, fsync = [], os.fsync\n'
        'os.fsync = lambda file: synced.append(os.fstat(file).st_ino) or fsync(file)\n'
        'other_system.hide()\n'
        'from utils import write_to_log\nfrom utils.system import output_files\n'
        'starts = [write_to_log.write_line(*line) for line in [\n'
        '    (b"one\\n", "log"), (b"two\\n", "log"), (b"three\\n", "log", 4), (b"four\\n", "log")]]\n'
        'output_files.sync(["log"])\n'
        'assert synced == [os.stat("log").st_ino], synced\n'  # a folder cannot be opened
        'print(starts)'))
    assert code == 0, stderr
    assert stdout == '[0, 4, 4, 10]\n' and (tmp_path / 'log').read_bytes() == b'one\nthree\nfour\n'


def test_ctrl_c_ends_no_process_of_the_crf(tmp_path):
    """If Ctrl-C cannot be blocked, the process ignores it."""
    code, stdout, stderr = run_code(tmp_path, (
        'import multiprocessing, os, signal\nfrom utils.prediction import crf\n'
        'assert not hasattr(signal, "pthread_sigmask")\n'
        'with crf._without_ctrl_c():\n    pass\n'
        'ours, theirs = multiprocessing.Pipe()\nours.close()\n'
        'crf._work(theirs)\n'
        'os.kill(os.getpid(), signal.SIGINT)\nprint("on")'))
    assert (code, stdout) == (0, 'on\n'), stderr
