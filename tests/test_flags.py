"""The records of flags: what they must state, which options read them, and what changed values mean."""

import contextlib
import dataclasses
import io
import os
import re
import types

import pytest
import tensorflow.compat.v1 as tf
from absl import flags
from absl.testing import flagsaver
from narrow_main import UNITS

import main
from utils.net.blocks import BLOCKS, resnet_blocks
from utils.system import command_line
from utils.system.command_line import NETWORK, NOTHING, RECORDS, RESULT
from utils.system.errors import UserError
from utils.weights import run_settings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ALL = RECORDS['option'].options
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')
NEWER = not tf.__version__.startswith('1.')
# main.py and Model.__init__ read these for every option, although they matter to fewer.
READ_FOR_ALL = {'xla', 'deterministic', 'num_gpus', 'mixed_precision', 'compat', 'eval_scales', 'eval_flip',
                'eval_merge', 'train_bn', 'freeze_encoder', 'pretrain_file', 'variables_on', 'label_map',
                'image_range', 'image_bands', 'apply_exif'}
READ_FOR_NOTHING = READ_FOR_ALL | {'random_seed'}  # the reader of every list gets the seed


class Noted(object):
    """The flags as attributes; records the names of those that are read."""

    def __init__(self, values):
        self.__dict__['values'], self.__dict__['read'] = values, set()

    def __getattr__(self, name):
        if name not in self.values:
            raise AttributeError(name)
        self.read.add(name)
        return self.values[name]


@pytest.fixture(scope='module')
def read_by(tmp_path_factory):
    """Returns {option: (flags that it read, flags that need another value of another flag)}, from one run each."""
    folder, found = tmp_path_factory.mktemp('flags'), {}
    values = {flag.name: flag.default for flag in flags.FLAGS.flags_by_module_dict()['main']}
    values.update({'%sdata_list' % kind: os.path.join(SAMPLE, name) for kind, name in (
        ('', 'train.txt'), ('valid_', 'val.txt'), ('test_', 'val.txt'))})
    values.update({name: str(folder / name) for name in ('modeldir', 'logdir', 'logfile', 'out_dir', 'export_dir')})
    values.update(data_dir=SAMPLE, num_classes=6, encoder_name='res50', input_height=33, input_width=33, batch_size=2,
                  num_steps=1, learning_rate=1e-4, valid_interval=1, valid_num_steps=1, test_num_steps=1, loss='ohem',
                  random_scale_range=[0.5, 1.0], num_threads=2, report=True, tflite='int8' if NEWER else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, 'own_flags', list)  # otherwise metrics.json would list, and read, all of them
        compared = run_settings.settings_from_flags  # reads all flags that decide something
        patch.setattr(run_settings, 'settings_from_flags', lambda conf, *args, **others: compared(
            types.SimpleNamespace(**conf.values), *args, **others))
        patch.setitem(BLOCKS, 'res50', resnet_blocks(UNITS, depth=16))
        for option in ALL:
            noted = Noted(dict(values, option=option))
            patch.setattr(main, 'FLAGS', noted)
            main.main()
            idle = {name for name, record in RECORDS.items() if record.needs and not command_line.is_met(
                record.needs, types.SimpleNamespace(**values))}
            if option == 'export' and not NEWER:
                idle |= {'data_dir', 'data_list'}  # only --tflite=int8 reads them
            found[option] = noted.read, idle
    return found


@pytest.mark.parametrize('option', ALL)
def test_an_option_reads_the_flags_that_say_so_and_no_others(read_by, option):
    declared = {name for name, record in RECORDS.items() if option in record.options}
    read, idle = read_by[option]
    assert read - declared - READ_FOR_NOTHING == set()
    assert declared - read - idle == set()


@pytest.mark.parametrize('record', [{}, {'options': ('train',)}, {'decides': NOTHING},
                                    {'options': ('train',), 'decides': 'something'}])
def test_a_flag_that_does_not_say_what_it_does_fails(record):
    with pytest.raises(TypeError, match='new_flag.*options=.*decides='):
        command_line.DEFINE_whole('new_flag', 3, 'new', **record)
    flags.FLAGS.__delattr__('new_flag')


def test_a_program_without_topics_has_plain_flags(monkeypatch):
    monkeypatch.setattr(command_line, '_topics', [])
    command_line.DEFINE_whole('plain_flag', 3, 'plain')
    flags.FLAGS.__delattr__('plain_flag')
    assert 'plain_flag' not in RECORDS


# what a command line may give --------------------------------------------------------------------------------------

def ended(*args):
    """Runs a main.py that does nothing; returns (exit code, stderr)."""
    with flagsaver.flagsaver(), contextlib.redirect_stderr(io.StringIO()) as stderr:
        return command_line.run(lambda: None, ['main.py'] + list(args), main.sample_args), stderr.getvalue()


LEAVE = ', leave it out or put it into a flag file.\n'


@pytest.mark.parametrize('args, told', [
    (['--option=test', '--test_step=3'], '--option=test does not read --test_step: give --valid_step' + LEAVE),
    (['--option=export', '--valid_step', 'best'], 'does not read --valid_step: give --test_step' + LEAVE),
    (['--option=predict', '--valid_data_list=x'], 'does not read --valid_data_list: give --test_data_list' + LEAVE),
    (['--option=test', '--test_num_steps=1'], 'does not read --test_num_steps: give --valid_num_steps' + LEAVE),
    (['--option=predict', '--pretrain_file=x'], 'does not read --pretrain_file: give --weights' + LEAVE),
    (['--test_step=3'], '--option=train does not read --test_step: leave it out or put it into a flag file.\n'),
    (['--option=check', '--norandom_mirror'], '--option=check does not read --random_mirror: leave it out'),
    (['--option=test', '--test_step=3', '--power=1', '--test_num_steps=3'], '--option=test does not read --power, '
     '--test_step, --test_num_steps: give --valid_step and --valid_num_steps, leave them out or put them into a flag '
     'file.'),
    (['--ohem_fraction=0.5'], '--ohem_fraction needs --loss=ohem: also give that, or leave it out.\n'),
    (['--restore_decoder'], '--restore_decoder needs --pretrain_file: also give that, or leave it out.\n'),
    (['--option=test', '--crf_iterations=3', '--crf_gaussian_sxy=2'], '--crf_iterations needs --crf, '
     '--crf_gaussian_sxy needs --crf: also give that, or leave them out.'),
    (['--norandom_scale', '--random_scale_range=1,2'], '--random_scale_range needs --random_scale'),
    (['--option=export', '--image=x.jpg'], '--image is for --option=predict, not --option=export.'),
])
def test_a_flag_that_would_be_ignored_is_refused(args, told):
    code, stderr = ended(*args)
    assert code == 1 and told in stderr and stderr.startswith('error: ') and stderr.count('\n') == 1


@pytest.mark.parametrize('option', ALL)
def test_all_flags_at_once_are_refused_in_one_sentence(option):
    valid = {'decoder_rate': '1,1', 'random_scale_range': '1,1', 'window': '99,99', 'eval_scales': '1',
                 'random_colour': '0,0,0', 'image_range': '0,1', 'image_bands': '1'}
    words = {'a path': 'x', 'true, false': 'true', 'a step or best': 'best'}  # valid values for bounds that are words
    args = ['--%s=%s' % (name, valid.get(name) or words.get(record.bounds) or re.split('[ ,]', record.bounds)[0])
            for name, record in RECORDS.items() if name not in ('option', 'image', 'image_dir')]
    code, stderr = ended('--option=' + option, *args)
    assert code == 1 and 'more: ' in stderr and len(stderr) <= 300, stderr


@pytest.mark.parametrize('args', [
    ['--norestore_decoder'], ['--option=test', '--noreport', '--norestore_decoder', '--skip_existing=false'],
    ['--loss=ohem', '--ohem_fraction=0.5'], ['--option=predict', '--test_step=3', '--crf', '--crf_iterations=2']])
def test_a_flag_that_is_read_or_off_anyway_is_taken(args):
    assert ended(*args) == (0, '')


def test_flag_files_serve_all_options(tmp_path):
    path = tmp_path / 'all.flags'
    path.write_text('--test_step=3\n--power=1\n--ohem_fraction=0.5\n--option=test\n')
    assert ended('--flagfile=%s' % path) == (0, '')
    assert ended('--flagfile=%s' % path, '--valid_step=3') == (0, '')
    code, stderr = ended('--test_step=4', '--flagfile', str(path))
    assert code == 1 and '--option=test does not read --test_step:' in stderr
    path.write_text('--loss=ohem\n')
    assert ended('--ohem_fraction=0.5', '--flagfile=%s' % path) == (0, '')


# what has changed since a training -----------------------------------------------------------------------------------

def test_a_training_of_before_a_flag_had_what_its_record_says(monkeypatch):
    known = {'model': 'Model', 'num_steps': 20, 'decoder_rate': [10.0, 20.0]}
    now = {'model': 'Model', 'num_steps': 20, 'decoder_rate': (10.0, 20.0), 'towers': 1, 'loss': 'ce'}
    assert run_settings.changed_settings(known, now) == []
    assert run_settings.changed_settings(known, dict(now, loss='ohem', towers=2)) == [
        ('loss', 'ce', 'ohem'), ('towers', 1, 2)]
    monkeypatch.setitem(RECORDS, 'loss', dataclasses.replace(RECORDS['loss'], before='ohem'))
    assert run_settings.changed_settings(known, now) == [('loss', 'ohem', 'ce')]


def test_settings_of_the_commit_before_records_are_still_known(settings):
    """Names and defaults are those that commit e6b5847 wrote; its paths are as the user gave them."""
    known = {
        'batch_size': 10, 'bn_decay': 0.9, 'channel_order': None, 'class_weights': '', 'compat': 'original',
        'data_dir': '', 'data_list': 'none.txt', 'decoder_rate': [10.0, 20.0], 'dilated_type': 'regular',
        'encoder_name': 'deeplab', 'freeze_encoder': False, 'grad_update_every': 1, 'ignore_label': 255,
        'img_mean': None, 'input_height': 321, 'input_width': 321, 'learning_rate': 2.5e-4, 'loss': 'ce',
        'mixed_precision': False, 'model': 'Model', 'momentum': 0.9, 'num_classes': 21, 'num_steps': 20000,
        'ohem_fraction': 0.25, 'palette': '', 'power': 0.9, 'pretrain_file': '', 'random_mirror': True,
        'random_scale': True, 'random_scale_range': None, 'random_seed': 1234, 'restore_decoder': False, 'towers': 1,
        'train_bn': None, 'weight_decay': 0.0005}
    now = run_settings.settings_from_flags(settings(data_list='none.txt'), model='Model', towers=1)
    assert run_settings.changed_settings(known, now) == [] and set(known) <= set(now)
    for name in set(known) - {'model', 'towers'}:  # each of the others still counts
        assert [change.name for change in run_settings.changed_settings(dict(known, **{name: 'x'}), now)] == [name]


def test_what_another_version_has_is_a_change():
    known = {'num_steps': 20, 'sharpness': 3, 'save_interval': 5, 'towers': 1, 'model': 'Model'}
    assert run_settings.changed_settings(known, {'num_steps': 20}) == [('sharpness', 3, 'unknown')]


def test_settings_of_an_object_that_lacks_newer_flags():
    conf = types.SimpleNamespace(num_classes=5, img_mean=[])
    settings = run_settings.settings_from_flags(conf, model='Model', towers=2)
    assert (settings['num_classes'], settings['img_mean'], settings['loss']) == (5, None, 'ce')
    assert (settings['model'], settings['towers']) == ('Model', 2)
    assert set(settings) == {'model', 'towers'} | {
        name for name, record in RECORDS.items() if record.decides in (RESULT, NETWORK)}
    assert run_settings.network_settings(conf) == {
        'encoder_name': 'deeplab', 'decoder': 'aspp', 'num_classes': 5, 'dilated_type': 'regular'}


def test_the_content_of_a_file_counts(tmp_path, settings):
    (tmp_path / 'list.txt').write_text('a')
    conf = settings(data_list=str(tmp_path / 'list.txt'))
    before = run_settings.settings_from_flags(conf)
    (tmp_path / 'list.txt').write_text('b')
    change, = run_settings.changed_settings(before, run_settings.settings_from_flags(conf))
    assert change.name == 'data_list' and change.known != change.now


def test_settings_need_the_records(monkeypatch, settings):
    conf = settings()
    monkeypatch.setattr(run_settings, 'RECORDS', {})
    with pytest.raises(RuntimeError, match='import main'):
        run_settings.settings_from_flags(conf)


@pytest.mark.parametrize('trained, flag', [('smooth_GI', 'smooth_SSC'), ('regular', 'smooth_SSC')])
def test_the_network_must_be_that_of_the_training(settings, trained, flag, capsys):
    known = run_settings.settings_from_flags(settings(dilated_type=trained))
    with pytest.raises(UserError) as error:
        run_settings.check_trained('model', known, settings(dilated_type=flag))
    assert str(error.value) == ('model was trained with --dilated_type=%s, but this run has --dilated_type=%s: give '
                                'the flags of that training or leave them out.' % (trained, flag))
    run_settings.check_trained('model', known, settings(dilated_type=trained))
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('option', ['test', 'predict', 'export'])
def test_what_is_not_given_is_as_in_the_training(settings, option, capsys):
    network = {'encoder_name': 'res50', 'decoder': 'aspp_pooling', 'num_classes': 7, 'dilated_type': 'smooth_GI',
               'compat': 'slim'}
    known = run_settings.settings_from_flags(settings(**network))
    run_settings.check_trained('model', known, settings(), option)
    conf = run_settings.with_trained(settings(), 'model', known, option)
    assert {name: getattr(conf, name) for name in network} == network
    assert capsys.readouterr().out.count(', as in the training\n') == 5


def test_the_mode_of_the_training_is_not_overruled(settings):
    known = run_settings.settings_from_flags(settings(compat='caffe'))
    with pytest.raises(UserError, match='trained with --compat=caffe, but this run has --compat=slim: '):
        run_settings.check_trained('model', known, settings(compat='slim'))


def test_which_flags_are_given(tmp_path):
    """Flags on the command line or in a flag file count, even with their default value; the sample's do not."""
    (tmp_path / 'mine.flags').write_text('--compat=original\n')
    for args, given in ((['--dilated_type=regular'], {'dilated_type'}), ([], set()),
                        (['--flagfile=%s' % (tmp_path / 'mine.flags')], {'compat'}),
                        (['--encoder_name=res50', '--decoder=aspp'], {'encoder_name', 'decoder'})):
        with flagsaver.flagsaver():
            assert command_line.run(lambda: None, ['main.py'] + args, main.sample_args) == 0
            assert {name for name in RECORDS if command_line.is_given(flags.FLAGS, name)} == given


def test_regular_and_decompose_are_one_network(settings, capsys):
    run_settings.check_trained('model', {'dilated_type': 'decompose'}, settings())
    assert capsys.readouterr().out == ''


def test_a_damaged_name_of_a_network_is_no_traceback(settings):
    hostile = {'encoder_name': ['x' * 500], 'num_classes': {'a': 1}, 'dilated_type': 'y' * 500}
    with pytest.raises(UserError) as error:
        run_settings.check_trained('m' * 500, hostile, settings(
            encoder_name='res50', num_classes=6, dilated_type='smooth_SSC', decoder='aspp_pooling', compat='slim'))
    assert len(str(error.value)) <= 300
    for name, value in list(hostile.items()) + [('num_classes', 300), ('compat', None), ('compat', 'new')]:
        try:
            conf = run_settings.with_trained(settings(), 'm' * 500, {name: value}, 'test')
            assert getattr(conf, name) == settings().compat and value is None
        except UserError as error:
            assert len(str(error)) <= 300 and 'is not a valid value of --' + name in str(error)
