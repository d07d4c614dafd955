"""Flags, flag files, the paths in them, and error sentences, all in this process."""

import os
import re
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

import main
from utils.system import command_line
from utils.system.errors import UserError

FLAGS = flags.FLAGS


@pytest.fixture(autouse=True)
def saved_flags():
    with flagsaver.flagsaver():
        yield


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Changes to a working folder outside the repo, with the home folder below it."""
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    return tmp_path


def parse(*args):
    command_line.parse_flags(['main.py'] + list(args))


def refused(*args):
    with pytest.raises(UserError) as error:
        parse(*args)
    message = str(error.value)
    assert message.isprintable() and len(message) <= 300
    return message


PATHS = ['modeldir', 'logdir', 'logfile', 'out_dir', 'data_dir', 'data_list', 'valid_data_list', 'test_data_list',
         'palette', 'pretrain_file']


@pytest.mark.parametrize('name', PATHS)
def test_paths(elsewhere, name):
    parse('--%s=~/x' % name)
    assert FLAGS[name].value == str(elsewhere / 'home' / 'x')
    parse('--' + name, '~root/x')
    assert FLAGS[name].value == os.path.expanduser('~root') + '/x'
    assert name in refused('--%s=a\0b' % name)
    if FLAGS[name].default:
        assert refused('--%s=' % name) == 'flag --%s=: a path is needed.' % name
    else:
        parse('--%s=' % name)


@pytest.mark.parametrize('name', ['num_steps', 'max_to_keep', 'batch_size', 'input_height', 'input_width',
                                  'save_interval', 'random_seed', 'ignore_label', 'grad_update_every', 'valid_step',
                                  'valid_num_steps', 'test_step', 'test_num_steps', 'num_classes', 'num_threads'])
def test_integers_are_those_that_tensorflow_takes(name):
    for value in (2 ** 31, 2 ** 63, -2 ** 63, 10 ** 30):
        assert name in refused('--%s=%d' % (name, value))


@pytest.mark.parametrize('name', ['momentum', 'bn_decay', 'weight_decay', 'power', 'learning_rate'])
@pytest.mark.parametrize('value', ['nan', 'inf', '-inf', '1e39', '-1', 'fast'])
def test_numbers_are_finite(name, value):
    assert '--%s=%s' % (name, value) in refused('--%s=%s' % (name, value))


def test_limits():
    assert '256' in refused('--num_threads=100000')
    parse('--num_threads=256', '--random_seed=0', '--batch_size=1000000', '--ignore_label=-1')
    assert 1 <= FLAGS['num_threads'].default <= 256


def test_nearest_flag():
    assert refused('--optoin=test') == "unknown flag '--optoin': did you mean --option?"
    assert 'did you mean --novisual' in refused('--no_visual')
    assert 'did you mean --flagfile' in refused('--flag_file=x')
    assert refused('--zzz=1') == "unknown flag '--zzz': --help lists the flags."
    assert len(refused('--' + 'x' * 10 ** 6)) < 200


@pytest.mark.parametrize('args, told', [
    (['--option=tset'], '<train|test|predict|export|check>'),
    (['--encoder_name=vgg'], '<deeplab|res152|res101|res50>'),
    (['--dilated_type=dense'], '<regular|decompose|smooth_GI|smooth_SSC>'),
    (['--batch_size=0'], 'batch_size'),
    (['--batch_size=' + '9' * 5000], 'batch_size'),
    (['--compat=\x1b[31m' + 'x' * 10 ** 5], 'compat'),
    (['--option'], 'option'),
    (['--novisual=1'], 'novisual'),
    (['--flagfile'], 'flagfile'),
    (['--flagfile=no\0ne'], 'a path has no NUL character'),
    (['--flagfile='], 'a path is needed'),
    (['--flagfile=none.flags'], "flag file 'none.flags' cannot be read (No such file or directory)"),
    (['--flagfile=tests'], "flag file 'tests' cannot be read (not a regular file)"),
    (['--flagfile=dataset/prediction.png'], "flag file 'dataset/prediction.png' cannot be read"),
    (['test'], "unexpected argument 'test': write --option=test."),
    (['photo.JPG'], '--option=predict with --image= before each, or --image_dir=FOLDER'),
    (['--test_data_list=photo.jpg'], 'this is an image, not a list: predict images with --image'),
    (['--image='], 'a path is needed'),
    (['--export_dir=a\udc80'], 'TensorFlow writes to names in UTF-8 only'),  # found by the stress suite
    (['--image=a.jpg', '--image=no\0ne'], 'a path has no NUL character'),
    (['--data_list', 'label.PNG'], '--data_list=label.PNG: this is an image'),
    (['num_steps=3'], 'flags are written --name=value'),
    (['--overlap=0.91'], '--overlap=0.91'),
    (['--overlap=-0.1'], '--overlap=-0.1'),
    (['--overlap=nan'], '--overlap=nan'),
    (['--eval_merge=sum'], '<mean|max>'),
    (['--crf_iterations=0'], 'crf_iterations'),
    (['--crf_gaussian_sxy=0'], 'crf_gaussian_sxy'),
    (['--crf_bilateral_srgb=-3'], 'crf_bilateral_srgb'),
    (['--crf_bilateral_weight=nan'], 'crf_bilateral_weight'),
] + [(['--window=' + value], 'give a height and a width of 17 to 65535 pixels, such as 513,513') for value in (
    '16,513', '513,16', '513', '', '513,513,3', 'a,b', '65536,513', '513.5,513', '-513,513', '9' * 5000 + ',17')
] + [(['--eval_scales=' + value], 'give numbers above 0 and up to 8, at most 16, such as 0.75,1.0') for value in (
    '0', '1,0', '-1', '', '1,', 'nan', 'inf', '8.1', 'a', ','.join(['1'] * 17))])
def test_mistakes(args, told, monkeypatch):
    monkeypatch.chdir(command_line.REPO)
    assert told in refused(*args)


def test_a_mistake_in_a_flag_file_is_named_by_its_line(elsewhere):
    (elsewhere / 'my.flags').write_text('# mine\n\n--num_steps=7\n// more\n--num_stesp=8\n')
    message = refused('--flagfile=my.flags')
    assert message == "'my.flags', line 5: unknown flag '--num_stesp': did you mean --num_steps?"
    (elsewhere / 'outer.flags').write_text('--flagfile=inner.flags\n')
    (elsewhere / 'inner.flags').write_text('--momentum=nan\n')
    message = refused('--flagfile', 'outer.flags')
    assert message.startswith("'outer.flags', line 1: 'inner.flags', line 1: flag --momentum=nan")
    (elsewhere / 'inner.flags').write_text('--flagfile=outer.flags\n')
    assert 'names itself' in refused('--flagfile=outer.flags')
    os.mkfifo(str(elsewhere / 'pipe'))
    assert 'not a regular file' in refused('--flagfile=pipe')


def test_lines_of_a_flag_file_as_people_write_them(elsewhere):
    """Flag files may have a byte order mark, quotes, and spaces around or instead of the =."""
    (elsewhere / 'my.flags').write_bytes(
        b'\xef\xbb\xbf--num_steps=7\r\n--num_classes 2\r\n--batch_size = 3\r\n--visual false\r\n--palette\tvoc\r\n'
        b'--data_dir="my data"\r\n--out_dir \'my results\'\r\n"--modeldir=my model"\r\n--logfile=a "b" c.txt\r\n'
        b'--flagfile "more flags.txt"\r\n--image="a --visual.jpg"\r\n--power=\'2\'\r\n-save_interval 5\r\n')
    (elsewhere / 'more flags.txt').write_text('--data_list="a"b"\n--test_data_list=\'tis\n--valid_data_list=a b\n')
    parse('--flagfile=my.flags')
    assert (FLAGS.num_steps, FLAGS.num_classes, FLAGS.batch_size, FLAGS.visual) == (7, 2, 3, False)
    assert (FLAGS.data_dir, FLAGS.out_dir, FLAGS.modeldir) == ('my data', 'my results', 'my model')
    assert (FLAGS.palette, FLAGS.logfile, FLAGS.power, FLAGS.save_interval) == ('voc', 'a "b" c.txt', 2, 5)
    assert FLAGS.image == ['a --visual.jpg']
    assert (FLAGS.data_list, FLAGS.test_data_list, FLAGS.valid_data_list) == ('"a"b"', "'tis", 'a b')


@pytest.mark.parametrize('line, told', [
    (b'--num_stesp 8', "unknown flag '--num_stesp': did you mean --num_steps?"),
    (b'--num_steps', 'num_steps'),
    (b'num_steps 8', 'flags are written --name=value'),
    (b'--num_steps eight', 'it is not a whole number'),
    (b'--data_dir=a --num_classes=2', "'--num_classes=2' follows another flag: write each flag on a line of its own."),
    (b'--visual --num_classes 2', "'--num_classes' follows another flag"),
    ('--num_steps=3'.encode('utf-16'), 'not UTF-8 text); save it as UTF-8.'),
])
def test_lines_of_a_flag_file_that_are_refused(elsewhere, line, told):
    (elsewhere / 'my.flags').write_bytes(line)
    assert told in refused('--flagfile=my.flags')


def test_the_later_of_two_values_counts(elsewhere):
    (elsewhere / 'my.flags').write_text('--num_steps=7\n--novisual\n--flagfile=more.flags\n--data_dir=dataset/sample\n')
    (elsewhere / 'more.flags').write_text('--power=1\n')
    parse('--num_steps=3', '--flagfile', 'my.flags', '--option', 'test', '--power=2')
    assert (FLAGS.num_steps, FLAGS.visual, FLAGS.option, FLAGS.power) == (7, False, 'test', 2)
    assert FLAGS.data_dir == 'dataset/sample'  # paths in a user's flag file are relative to the working folder
    parse('--flagfile=my.flags', '--num_steps=3')
    assert FLAGS.num_steps == 3


def test_our_flag_files_and_what_they_read_are_found_from_anywhere(elsewhere):
    parse('--flagfile=dataset/sample.flags', '--out_dir=here')
    sample = os.path.join(command_line.REPO, 'dataset', 'sample')
    assert os.path.samefile(FLAGS.data_dir, sample)
    for value in (FLAGS.data_list, FLAGS.valid_data_list, FLAGS.test_data_list, FLAGS.palette):
        assert os.path.isfile(value) and os.path.dirname(os.path.realpath(value)) == sample
    assert FLAGS.out_dir == 'here' and FLAGS.modeldir == 'model'
    parse('--flagfile=%s/dataset/cityscapes.flags' % command_line.REPO)
    assert FLAGS.palette == 'cityscapes' and FLAGS.modeldir == 'model_cityscapes'
    assert FLAGS.data_list == './dataset/cityscapes/train_fine.txt'  # the file is neither here nor in the repo


def test_the_working_folder_comes_before_the_repo(elsewhere):
    (elsewhere / 'dataset').mkdir()
    (elsewhere / 'dataset' / 'sample.flags').write_text('--num_steps=9\n')
    parse('--flagfile=dataset/sample.flags')
    assert FLAGS.num_steps == 9 and not FLAGS.data_dir
    (elsewhere / 'dataset' / 'sample').mkdir()
    (elsewhere / 'dataset' / 'sample' / 'train.txt').write_text('')
    parse('--flagfile=%s/dataset/sample.flags' % command_line.REPO)
    assert FLAGS.data_list == './dataset/sample/train.txt' and FLAGS.valid_data_list.startswith(command_line.REPO)


@pytest.mark.parametrize('args', [
    ['--data_list=a'], ['--valid_data_list', 'a'], ['--test_data_list=a'], ['--data_dir=a'], ['-palette=voc'],
    ['--option', 'test', '--num_classes=3'], ['--flagfile=a'], ['--visual', '--data_dir', 'a']])
def test_a_command_line_that_names_data_takes_nothing_of_the_sample(args, capsys):
    assert main.sample_args(args) == [] and capsys.readouterr().out == ''


@pytest.mark.parametrize('args', [
    [], ['--option', 'test'], ['--novisual', '--option=predict', '--modeldir=data_dir'], ['--nocheck_labels']])
def test_the_sample_is_for_one_that_names_none(args, capsys, elsewhere):
    ran = []
    assert command_line.run(lambda: ran.append(FLAGS.num_classes), ['main.py'] + args, main.sample_args) == 0
    assert ran == [6] and os.path.isfile(FLAGS.data_list) and FLAGS.encoder_name == 'res50'
    assert capsys.readouterr().out == 'no data flags: using the bundled sample (dataset/sample.flags)\n'


def test_the_users_flags_count_after_the_samples():
    args = ['--learning_rate=0.5', '--encoder_name=res101', '--modeldir=mine']
    assert command_line.run(lambda: None, ['main.py'] + args, main.sample_args) == 0
    assert (FLAGS.learning_rate, FLAGS.encoder_name, FLAGS.modeldir) == (0.5, 'res101', 'mine')


def test_multi_scale_reads_the_samples_own_settings_of_it(capsys):
    files = ('dataset/sample.flags', 'dataset/sample_msc.flags')
    assert command_line.run(lambda: None, ['main_msc.py'], lambda args: main.sample_args(args, files)) == 0
    assert FLAGS.batch_size == 8 and FLAGS.input_height == 97 and FLAGS.num_classes == 6
    assert 'dataset/sample_msc.flags' in capsys.readouterr().out


def test_flags_of_a_mistake_are_reported_before_the_sample_is(capsys):
    assert command_line.run(lambda: None, ['main.py', '--optoin=test'], main.sample_args) == 1
    out, err = capsys.readouterr()
    assert out == '' and err == "error: unknown flag '--optoin': did you mean --option?\n"


def test_exit_codes(capsys):
    def fail(error):
        raise error

    assert command_line.run(lambda: fail(UserError('a sentence.')), ['main.py']) == 1
    assert command_line.run(lambda: fail(OSError(28, 'No space left on device', 'a\x1bb')), ['main.py']) == 1
    assert command_line.run(lambda: fail(KeyboardInterrupt()), ['main.py']) == 130
    assert capsys.readouterr().err == (
        'error: a sentence.\nerror: a\\x1bb: No space left on device.\n\ninterrupted\n')
    with pytest.raises(RuntimeError, match='a defect'):
        command_line.run(lambda: fail(RuntimeError('a defect')), ['main.py'])


def test_threads_that_the_system_does_not_start():
    """The process has no memory for the stacks; the error is recognised by Python's own message."""
    code = ('import resource, sys, threading\nfrom utils.system import command_line\n'
            'resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))\n'
            'threading.stack_size(1 << 36)\n'
            'sys.exit(command_line.run(threading.Thread(target=print, daemon=True).start, ["main.py"]))')
    process = subprocess.run([sys.executable, '-c', code], cwd=command_line.REPO, stderr=subprocess.PIPE,
                             universal_newlines=True)
    assert process.returncode == 1 and process.stderr == (
        'error: the system starts no more threads: lower --num_threads, or raise the limits of processes and of memory '
        '(ulimit -u, ulimit -v).\n')


@pytest.mark.parametrize('program, batch_size', [('main.py', 10), ('main_msc.py', 1)])
def test_help_shows_all_flags_and_the_flag_file(program, batch_size):
    out = subprocess.run([sys.executable, os.path.join(command_line.REPO, program), '--help'],
                         stdout=subprocess.PIPE, universal_newlines=True).stdout
    shown = set(re.findall(r'(?m)^  --(?:\[no\])?(\w+)', out))
    assert shown >= {flag.name for flag in FLAGS.flags_by_module_dict()['main']} | {'flagfile'}
    assert "--batch_size: images of one iteration\n    (default: '%d')" % batch_size in out
    assert 'no data flags' not in out
