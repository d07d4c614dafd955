"""Names in any alphabet on a terminal, in a file or in a pipe whose encoding lacks their characters."""

import glob
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from utils.system import command_line
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NARROW = ('tests/narrow_main.py', 'main')
# Programs that print JSON in ASCII, or a page in UTF-8 whatever the terminal's encoding is.
PRINT_BYTES = [os.path.join('benchmarks', 'measure.py'), os.path.join('tools', 'make_flags_page.py')]
ASCII = {'PYTHONIOENCODING': 'ascii:strict'}
WESTERN = {'PYTHONIOENCODING': 'cp1252:strict'}
C_LOCALE = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}


def run(folder, environment, program, *args):
    """Runs a program in a folder; returns (exit code, stdout, stderr), decoded with the environment's encoding."""
    done = subprocess.run([sys.executable] + list(program) + list(args), cwd=str(folder), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=ROOT, **environment))
    stdout, stderr = (text.decode('ascii' if environment != WESTERN else 'cp1252') for text in (
        done.stdout, done.stderr))
    assert 'Traceback' not in stderr and 'UnicodeEncodeError' not in stderr, stderr
    return done.returncode, stdout, stderr


def make_data(folder):
    """Writes three pictures, labels, a list and a palette whose names most encodings cannot represent."""
    draw, lines = np.random.RandomState(0), []
    os.makedirs(str(folder / '数据ö'))
    for number in range(3):
        pair = ['数据ö/%s%d.png' % (name, number) for name in ('图像ü', '标签ß')]
        for path, shape, most in zip(pair, [(40, 40, 3), (40, 40)], [256, 3]):
            Image.fromarray(draw.randint(0, most, shape, dtype=np.uint8)).save(str(folder / path))
        lines.append(' '.join(pair) + '\n')
    (folder / '列表.txt').write_bytes(''.join(lines).encode('utf-8'))
    (folder / '颜色.txt').write_bytes('道路 255 0 0\nStraße 0 255 0\nдом 0 0 255\n'.encode('utf-8'))


FLAGS = ['--data_list=列表.txt', '--valid_data_list=列表.txt', '--test_data_list=列表.txt', '--palette=颜色.txt',
         '--num_classes=3', '--encoder_name=res50', '--batch_size=1', '--input_height=33', '--input_width=33',
         '--modeldir=模型ö', '--out_dir=输出ö', '--logdir=日志', '--logfile=ö.txt', '--export_dir=导出ö']


@pytest.mark.parametrize('environment', [ASCII, WESTERN], ids=['ascii', 'cp1252'])
def test_every_option_shows_names_that_the_encoding_lacks(tmp_path, environment):
    make_data(tmp_path)
    (tmp_path / '旗.flags').write_bytes('\n'.join(FLAGS).encode('utf-8'))

    def done(*args, **changed):
        program = changed.get('program', [os.path.join(ROOT, NARROW[0]), NARROW[1], '--flagfile=旗.flags'])
        code, stdout, stderr = run(tmp_path, environment, program, *args)
        assert code == 0, stderr
        return stdout, stderr

    stdout, _ = done('--option=check')
    assert '\\u9053\\u8def' in stdout  # 道路
    stdout, stderr = done('--option=train', '--num_steps=2', '--save_interval=2', '--valid_interval=1')
    assert 'step 1: mean IoU' in stdout and '\\u9053\\u8def' in stdout and '\\u6a21\\u578b' in stdout and '#' in stderr
    stdout, _ = done('--option=train', '--num_steps=2', '--save_interval=2', '--valid_interval=1')
    assert 'finished training' in stdout
    stdout, _ = done('--option=test', '--report')
    assert '\\u0434\\u043e\\u043c' in stdout  # дом
    with open(str(tmp_path / '输出ö' / 'metrics.json')) as file:
        assert json.load(file)['classes'] == ['道路', 'Straße', 'дом']
    if environment == WESTERN:
        return
    done('--option=predict', '--overlay')
    assert len(glob.glob(str(tmp_path / '输出ö' / '**' / '图像ü*.png'), recursive=True)) >= 6
    done('--option=export')
    stdout, _ = done('模型ö', program=['-m', 'utils.checkpoint'])
    assert '\\u6a21\\u578b' in stdout
    stdout, _ = done('--logfile=模型ö', '--output=曲线.png', program=[os.path.join(ROOT, 'plot_training_curve.py')])
    assert '\\u66f2\\u7ebf' in stdout and (tmp_path / '曲线.png').exists()
    code, _, stderr = run(tmp_path, environment, [os.path.join(ROOT, 'main.py')], '--option=test', '--modeldir=没有')
    assert code == 1 and '\\u6ca1\\u6709' in stderr


def test_a_locale_of_ascii_is_served_or_told(tmp_path):
    make_data(tmp_path)
    flags = ['--data_list=列表.txt', '--valid_data_list=列表.txt', '--palette=颜色.txt', '--num_classes=3',
             '--encoder_name=res50', '--batch_size=1', '--input_height=33', '--input_width=33']
    (tmp_path / 'all.flags').write_bytes('\n'.join(flags).encode('utf-8'))
    program = [os.path.join(ROOT, NARROW[0]), NARROW[1], '--flagfile=all.flags']
    for args in (['check', '--test_data_list=列表.txt'], ['train', '--num_steps=1', '--valid_interval=1'],
                 ['test', '--report'], ['predict', '--image_dir=数据ö']):
        code, stdout, stderr = run(tmp_path, C_LOCALE, program, '--option=' + args[0], *args[1:])
        assert code == 0, stderr
        assert args[0] == 'predict' or '\\u9053\\u8def' in stdout  # 道路
    assert (tmp_path / 'output' / 'metrics.json').exists()
    assert len(list((tmp_path / 'output').glob('**/图像ü*.png'))) >= 3
    (tmp_path / 'flags.txt').write_bytes('--option=train\n--modeldir=模型ö\n'.encode('utf-8'))
    for args in (['--option=train', '--modeldir=模型ö'], ['--flagfile=flags.txt'],  # TensorFlow wants UTF-8
                 ['--option=predict', '--test_data_list=没有.txt']):
        code, _, stderr = run(tmp_path, C_LOCALE, program, *args)
        assert code == 1 and 'PYTHONUTF8=1' in stderr and len(stderr) <= 400, stderr


def test_scores_are_written_before_they_are_printed(tmp_path, monkeypatch, settings):
    from utils.data.palette import load_classes
    from utils.prediction import metrics

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, 'Broken pipe')

    monkeypatch.setattr(sys, 'stdout', Closed())
    with pytest.raises(BrokenPipeError):
        metrics.write_scores(settings(out_dir=str(tmp_path)), np.eye(3, dtype=np.int64), 'x', load_classes(3, 255, ''))
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {'metrics.json', 'confusion_matrix.png'}


def test_streams_without_an_encoding_stay_as_they_are(monkeypatch, capsys):
    def main():
        print('模型 \udcff')
        raise UserError('名字.')

    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, 'stdout', stream)
        assert command_line.run(main, ['x']) == 1
        assert stream is None or stream.getvalue() == '模型 \udcff\n'
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding='utf-8'))
    assert command_line.run(main, ['x']) == 1
    sys.stdout.flush()
    assert raw.getvalue() == '模型 \\udcff\n'.encode('utf-8')


def test_every_program_runs_through_the_command_line():
    for path in glob.glob(os.path.join(ROOT, '**', '*.py'), recursive=True):
        name = os.path.relpath(path, ROOT)
        if name.startswith('tests') or name in PRINT_BYTES:
            continue
        with open(path, encoding='utf-8') as file:
            text = file.read()
        if "if __name__ == '__main__':" in text:
            assert 'sys.exit(command_line.run(main' in text or 'sys.exit(run(main' in text, name
