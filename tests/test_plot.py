"""Runs plot_training_curve.py as a command."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from plot_training_curve import draw, moving_average, read_run
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def plot(folder, *arguments):
    """Runs the script in the folder; returns (exit code, stdout, stderr)."""
    script = os.path.join(ROOT, 'plot_training_curve.py')
    process = subprocess.Popen([sys.executable, script] + list(arguments), cwd=str(folder),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    out, err = process.communicate()
    return process.returncode, out, err


def write_log(folder, lines, name='log.txt'):
    (folder / name).write_text(''.join(line + '\n' for line in lines))


def write_metrics(path, steps, valid_every=0, iou=lambda step: step / 100, **columns):
    """Writes a metrics.csv as training does, with losses that fall from 3; the named columns have the given values."""
    path.parent.mkdir(exist_ok=True)
    with open(str(path), 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['step', 'cross_entropy', 'l2', 'total', 'learning_rate', 'images_per_second', 'mean_iou',
                       'pixel_accuracy', 'iou/road, wet', 'iou/1'])
        for step in steps:
            valid = [repr(iou(step)), '0.5', '0.25', 'nan'] if valid_every and step % valid_every == 0 else [''] * 4
            row = dict({'total': 3 / (1 + step), 'rate': 1e-3 * (1 - step / 100)}, **columns)
            rows.writerow([step, '2.5', '0.5', repr(row['total']), repr(row['rate']), '3.25'] + valid)


def panels_of(figure):
    """Returns the y labels of a figure's panels."""
    return [axes.get_ylabel() for axes in figure.axes]


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


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
    assert_fails(plot(tmp_path, '--logfile=pipe'), 'pipe', 'neither a file')


@pytest.mark.parametrize('argument', ['--smooth=0', '--smooth=x', '--smoth=3', 'word'])
def test_bad_flag(tmp_path, argument):
    write_log(tmp_path, ['0, 3', '1, 2'])
    assert_fails(plot(tmp_path, argument), argument.strip('-').split('=')[0])


def test_metrics_are_read_by_column(tmp_path):
    path = tmp_path / 'a.txt'  # the file is recognised by its header, not its name
    write_metrics(path, range(101), 50)
    run = read_run(str(path))
    assert list(run['step']) == list(range(101))
    np.testing.assert_allclose(run['total'], 3 / (1 + np.arange(101)))
    np.testing.assert_allclose(run['learning_rate'], 1e-3 * (1 - np.arange(101) / 100))
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(run['mean_iou'])), [0, 50, 100])
    np.testing.assert_array_equal(run['mean_iou'][[0, 50, 100]], [0, 0.5, 1])


def test_folder_stands_for_its_metrics(tmp_path):
    write_metrics(tmp_path / 'model' / 'metrics.csv', range(3))
    assert list(read_run(str(tmp_path / 'model'))['step']) == [0, 1, 2]
    with pytest.raises(UserError, match=r'nor a folder with a metrics\.csv'):
        read_run(str(tmp_path))
    with pytest.raises(UserError, match=r'nor a folder with a metrics\.csv'):
        read_run(str(tmp_path / 'a\0b'))


@pytest.mark.parametrize('torn', ['3', '3,2.5,0.5,1.', '3,2.5,0.5,1.0,0.1,3.25,,,,', '3,2.5,0.5,x,,"'])
def test_torn_last_line_of_metrics_is_left_out(tmp_path, torn):
    path = tmp_path / 'metrics.csv'
    write_metrics(path, range(3))
    with open(str(path), 'a') as file:
        file.write(torn)
    assert list(read_run(str(path))['step']) == [0, 1, 2]


def test_repeated_steps_of_metrics_are_replaced(tmp_path):
    path = tmp_path / 'metrics.csv'
    write_metrics(path, [0, 1, 2, 3, 2, 3, 4])
    assert list(read_run(str(path))['step']) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('lines, message', [
    (['step,cross_entropy', '0,1'], "line 1: no column 'total'"),
    (['total,cross_entropy', '0,1'], "line 1: no column 'step'"),
    (['step,total,mean_iou', '0,1,', 'x,1,'], "line 3: 'x' in the column 'step' is not a number"),
    (['step,total,mean_iou', ',1,'], "line 2: '' in the column 'step' is not a number"),
    (['step,total,mean_iou', '0,,'], "line 2: '' in the column 'total' is not a number"),
    (['step,total,iou/\x1bcar', '0,1,\x1b[2J'], r"line 2: '\x1b[2J' in the column 'iou/\x1bcar' is not a number"),
    (['step,total', '1.5,1'], 'line 2: 1.5 is not a valid step'),
    (['step,total', 'nan,1'], 'line 2: nan is not a valid step'),
    (['step,total', '1e300,1'], 'line 2: 1e+300 is not a valid step'),
    (['step,total', '-1,1'], 'line 2: -1.0 is not a valid step'),
    (['step,total', '0,1', '1,1,1'], 'line 3: the number of columns is 3, not 2'),
    (['step,total', '0,1', '', '1'], 'line 4: the number of columns is 1, not 2'),
    (['step,total', '0,"' + 200000 * '1' + '"'], 'line 2: field larger than field limit'),
    (['step,total'], 'is empty: wait until training has written a line'),
    (['step,total', '0,nan', '1,inf'], 'no finite loss'),
], ids=lambda value: value[:40] if isinstance(value, str) else '')
def test_bad_metrics(tmp_path, lines, message):
    write_log(tmp_path, lines, 'metrics.csv')
    with pytest.raises(UserError) as error:
        read_run(str(tmp_path / 'metrics.csv'))
    assert message in str(error.value) and 'metrics.csv' in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path)) and str(error.value).isprintable()


def test_metrics_whose_header_is_torn_are_empty(tmp_path):
    (tmp_path / 'metrics.csv').write_text('step,cross_entropy,l')
    with pytest.raises(UserError, match='is empty'):
        read_run(str(tmp_path))


def test_panels_are_those_with_data(tmp_path):
    write_log(tmp_path, ['0, 3', '1, 2'])
    write_metrics(tmp_path / 'plain.csv', range(60))
    write_metrics(tmp_path / 'valid.csv', range(60), 20)
    write_metrics(tmp_path / 'nan.csv', range(60), 20, iou=lambda step: float('nan'))
    log, plain, valid, nan = (read_run(str(tmp_path / name)) for name in ('log.txt', 'plain.csv', 'valid.csv',
                                                                          'nan.csv'))
    loss, rate, iou = 'loss', 'learning rate', 'mean IoU (%)'
    assert panels_of(draw([log], ['a'], None)) == [loss]
    assert panels_of(draw([plain], ['a'], None)) == [loss, rate]
    assert panels_of(draw([nan, log], ['a', 'b'], None)) == [loss, rate]
    figure = draw([log, valid, plain], ['a', 'b', 'c'], 5)
    assert panels_of(figure) == [loss, rate, iou]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    np.testing.assert_allclose(figure.axes[2].lines[0].get_ydata(), [0, 20, 40])
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), valid['learning_rate'])
    np.testing.assert_allclose(figure.axes[0].lines[2].get_ydata(), valid['total'])
    np.testing.assert_allclose(figure.axes[0].lines[3].get_ydata(), moving_average(valid['total'], 5))


def test_legend_names_every_run_and_its_best_score(tmp_path):
    write_metrics(tmp_path / 'metrics.csv', range(100), 20, iou=lambda step: 0.5 - abs(step - 40) / 100)
    write_log(tmp_path, ['0, 3', '1, 2'])
    best, log = read_run(str(tmp_path)), read_run(str(tmp_path / 'log.txt'))
    figure = draw([best, log, best], ['_first', 'a $x$ \x1b', 'again'], None)
    assert legend_of(figure) == [
        ' _first, loss: mean of 2, best mean IoU 50.00% at step 40',
        r' a \$x\$ \x1b', ' again, loss: mean of 2, best mean IoU 50.00% at step 40']
    star = figure.axes[2].lines[1]
    assert star.get_marker() == '*' and list(star.get_xdata()) == [40] and list(star.get_ydata()) == [50]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 3
    assert legend_of(draw([log], ['/home/' + 60 * 'W' + '/model'], None)) == [' ...' + 36 * 'W' + '/model']


def test_runs_beyond_ten_have_colours_of_their_own(tmp_path):
    write_log(tmp_path, ['0, 3', '1, 2'])
    run = read_run(str(tmp_path / 'log.txt'))
    figure = draw([run] * 15, [str(number) for number in range(15)], None)
    assert len({tuple(line.get_color()) for line in figure.axes[0].lines}) == 15


def test_several_runs(tmp_path):
    write_metrics(tmp_path / 'a' / 'metrics.csv', range(50), 10)
    write_log(tmp_path, ['0, 3', '10, 2'], 'b.txt')
    code, out, err = plot(tmp_path, '--logfile=a,b.txt,a', '--labels=first,second,third', '--output=c.png')
    assert code == 0, err
    first = 'curve of 50 losses, steps 0 to 49, best mean IoU 40.00% at step 40, from a saved in c.png'
    assert out.splitlines() == [first, 'curve of 2 losses, steps 0 to 10, from b.txt saved in c.png', first]
    assert Image.open(str(tmp_path / 'c.png')).size[0] > 1000
    assert_fails(plot(tmp_path, '--logfile=a,b.txt', '--labels=first'), 'there are 1 --labels but 2 logs')
    assert_fails(plot(tmp_path, '--logfile=a,missing'), "'missing' is neither a file", '--logfile')


def test_default_is_the_metrics_of_the_default_modeldir(tmp_path):
    write_log(tmp_path, ['0, 3', '1, 2'])
    write_metrics(tmp_path / 'model' / 'metrics.csv', range(7))
    code, out, err = plot(tmp_path)
    assert code == 0, err
    assert out == 'curve of 7 losses, steps 0 to 6, from model/metrics.csv saved in training_curve.png\n'


def test_extreme_numbers_are_drawn(tmp_path):
    write_log(tmp_path, ['0, 1e308', '1, -1e308', '2, 3e38', '3, -3e38', '999999999999999, inf'])
    write_log(tmp_path, ['step,total,learning_rate,mean_iou', '7,0,0.0,3e38', '8,-0.0,-1e308,-inf'], 'm.csv')
    write_log(tmp_path, ['5, 1e-320'], 'one.txt')
    for logs in 'log.txt', 'm.csv', 'one.txt', 'log.txt,m.csv,one.txt':
        code, _, err = plot(tmp_path, '--logfile=' + logs, '--smooth=2')
        assert (code, err) == (0, '')


def test_ticks_of_a_single_step_are_whole(tmp_path):
    write_log(tmp_path, ['3, 1.5'])
    ticks = draw([read_run(str(tmp_path / 'log.txt'))], ['a'], None).axes[0].get_xticks()
    assert 3 in ticks
    np.testing.assert_array_equal(ticks % 1, 0)
