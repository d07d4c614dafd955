"""plot_training_curve.py, through its command line."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def plot(folder, *arguments):
    """Runs the script in the folder: its exit code, stdout and stderr."""
    script = os.path.join(ROOT, 'plot_training_curve.py')
    process = subprocess.Popen([sys.executable, script] + list(arguments), cwd=str(folder),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    out, err = process.communicate()
    return process.returncode, out, err


def write_log(folder, lines, name='log.txt'):
    (folder / name).write_text(''.join(line + '\n' for line in lines))


def assert_fails(result, *words):
    code, out, err = result
    assert code == 1
    assert 'Traceback' not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith('error: ')
    for word in words:
        assert word in last


def test_defaults(tmp_path):
    write_log(tmp_path, ['%d, %.4f' % (step, 2 / (1 + step)) for step in range(120)])
    code, out, err = plot(tmp_path)
    assert code == 0, err
    assert '120 losses, steps 0 to 119' in out.splitlines()[-1]
    assert 'training_curve.png' in out.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['log.txt', 'training_curve.png']
    pixels = np.asarray(Image.open(str(tmp_path / 'training_curve.png')).convert('RGB'))
    assert pixels.std() > 5


@pytest.mark.parametrize('name, start', [('c.svg', b'<?xml'), ('c.PDF', b'%PDF'), ('c.jpg', b'\xff\xd8')])
def test_suffix_picks_the_format(tmp_path, name, start):
    write_log(tmp_path, ['0, 3.5', '', '10, nan', '20, 1e-3'], 'other.log')
    code, _, err = plot(tmp_path, '--logfile=other.log', '--output=' + name, '--smooth=50')
    assert code == 0, err
    assert (tmp_path / name).read_bytes().startswith(start)


def test_resumed_run_replaces_what_it_repeats(tmp_path):
    write_log(tmp_path, ['0, 3', '1, 2', '2, 9', '1, 2', '2, 1', '3, 1'])
    code, out, err = plot(tmp_path)
    assert code == 0, err
    assert '4 losses, steps 0 to 3' in out


def test_smoothing_changes_the_drawing(tmp_path):
    write_log(tmp_path, ['%d, %d' % (step, step % 7) for step in range(100)])
    for window in '1', '9':
        assert plot(tmp_path, '--smooth=' + window, '--output=%s.png' % window)[0] == 0
    first, second = (Image.open(str(tmp_path / name)).tobytes() for name in ('1.png', '9.png'))
    assert first != second


def test_moving_average():
    from plot_training_curve import moving_average
    np.testing.assert_allclose(moving_average(np.array([1., 2, 3, 10]), 3), [1.5, 2, 5, 6.5])
    np.testing.assert_allclose(moving_average(np.array([1., np.nan, 3]), 3), [1, 2, 3])
    np.testing.assert_allclose(moving_average(np.array([1., np.nan]), 1), [1, np.nan])
    np.testing.assert_allclose(moving_average(np.array([4., 6]), 9), [4, 5])


@pytest.mark.parametrize('bad', ['step, loss', '7', '7, ', '7, 1.0, 2', '1.5, 2', '7; 2', '\x00\x01'])
def test_bad_line_is_named_by_its_number(tmp_path, bad):
    write_log(tmp_path, ['0, 3', bad, '20, 2'])
    assert_fails(plot(tmp_path), 'log.txt', 'line 2')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['log.txt']


def test_binary_log(tmp_path):
    (tmp_path / 'log.txt').write_bytes(bytes(bytearray(range(256))))
    assert_fails(plot(tmp_path), 'log.txt', 'line 1')


def test_missing_empty_and_diverged_logs(tmp_path):
    assert_fails(plot(tmp_path), 'log.txt', '--logfile')
    write_log(tmp_path, ['', ''])
    assert_fails(plot(tmp_path), 'log.txt', 'empty')
    write_log(tmp_path, ['0, nan', '1, inf'])
    assert_fails(plot(tmp_path), 'log.txt', 'finite')
    assert_fails(plot(tmp_path, '--logfile=.'), '.')


def test_bad_output(tmp_path):
    write_log(tmp_path, ['0, 3', '1, 2'])
    assert_fails(plot(tmp_path, '--output=curve.xyz'), 'curve.xyz', '.png')
    assert_fails(plot(tmp_path, '--output=curve'), 'curve', '.png')
    assert_fails(plot(tmp_path, '--output=log.txt/curve.png'), 'log.txt', '--output')
    os.symlink('elsewhere.png', str(tmp_path / 'link.png'))
    assert_fails(plot(tmp_path, '--output=link.png'), 'link.png is a symbolic link', '--output')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['link.png', 'log.txt']


def test_output_in_a_new_folder(tmp_path):
    write_log(tmp_path, ['0, 3', '1, 2'])
    code, _, err = plot(tmp_path, '--output=new/curve.png')
    assert code == 0 and (tmp_path / 'new' / 'curve.png').exists(), err


def test_log_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(str(tmp_path / 'pipe'))
    assert_fails(plot(tmp_path, '--logfile=pipe'), 'pipe', 'not a file')


@pytest.mark.parametrize('argument', ['--smooth=0', '--smooth=x', '--smoth=3', 'word'])
def test_bad_flag(tmp_path, argument):
    write_log(tmp_path, ['0, 3', '1, 2'])
    assert_fails(plot(tmp_path, argument), argument.strip('-').split('=')[0])
