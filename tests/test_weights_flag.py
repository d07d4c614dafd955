"""Tests --weights of test, predict and export, and the flags that weights decide, through the command line."""

import json
import os

import numpy as np
import pytest
import test_caffe_weights
import torch_files
from narrow_main import UNITS
from PIL import Image
from test_main import refused, run, run_process
from test_predict_images import photo, written
from test_torch_weights import network_arrays, state_dict

from utils import checkpoint
from utils.data.palette import voc_colours
from utils.system.errors import UserError
from utils.weights import download, pretrained, run_settings, weight_files

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')
PREDICT = ['--option=predict', '--image=photo.jpg']


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch, narrow):
    """Works in an empty folder outside the repo, with small networks and an empty cache."""
    narrow(dict.fromkeys(('deeplab', 'res50', 'res101'), UNITS))
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    monkeypatch.setenv('KERAS_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv(download.ADDRESS, str(tmp_path / 'mirror'))
    return tmp_path / 'work'


@pytest.fixture
def published(tmp_path):
    """Writes stand-ins for the published weights; returns a function that writes another file and returns its path."""
    def write(num_classes, name='x.pth', write_bytes=torch_files.old_bytes, leave_out=(), **changed):
        arrays = network_arrays(num_classes=num_classes)[0]
        for key, array in arrays.items():
            if key.endswith('conv.weight') or key.startswith('aspp'):
                array -= 0.5
        arrays = {key: array for key, array in dict(arrays, **changed).items() if not key.startswith(leave_out or '-')}
        (tmp_path / 'mirror').mkdir(exist_ok=True)
        (tmp_path / 'mirror' / name).write_bytes(write_bytes(state_dict(arrays, 'base.')))
        return str(tmp_path / 'mirror' / name)

    for one in pretrained.PUBLISHED.values():
        write(one.num_classes, one.name)
    return write


def done(*args):
    """Runs main.py, which must succeed, and returns its stdout."""
    code, stdout, stderr = run(*args)
    assert code == 0, stderr
    return stdout


def mask(folder='output'):
    return np.array(Image.open(os.path.join(folder, 'prediction', 'photo_mask.png')))


@pytest.mark.parametrize('word', list(pretrained.PUBLISHED))
def test_a_photo_in_an_empty_folder(published, empty_folder, word):
    """The network, the mode and the palette come from the weights, not from the sample."""
    photo(empty_folder / 'photo.jpg')
    stdout = done('--weights=' + word, *PREDICT)
    assert '--compat=caffe, as in the training' in stdout and 'sample' not in stdout
    num_classes, first = (21, 0) if word == 'voc12' else (182, 1)  # entry of VOC's colours for class 0
    assert ('--num_classes=182' in stdout) == (num_classes == 182)
    assert len(np.unique(mask())) > 1
    visual = Image.open(os.path.join('output', 'visual_prediction', 'photo_mask_visual.png')).convert('RGB')
    np.testing.assert_array_equal(np.array(visual), voc_colours()[mask() + first])
    # the same as a checkpoint with all flags
    checkpoint.save_weights(weight_files.open_weights(pretrained.fetch_published(word)), 'model/model.ckpt-0')
    done('--num_classes=%d' % num_classes, '--compat=caffe', '--out_dir=other', *PREDICT)
    np.testing.assert_array_equal(mask('other'), mask())


def test_training_and_utils_checkpoint_take_the_words(published, empty_folder, capsys, monkeypatch):
    stdout = done('--option=train', '--pretrain_file=voc12', '--encoder_name=deeplab', '--num_steps=1',
                  '--batch_size=1', '--input_height=33', '--input_width=33', '--valid_interval=0',
                  '--check_labels=false')
    assert 'encoder variables from' in stdout and 'these weights were made for --compat=caffe' in stdout
    for word, told in (('cocostuff164k', '--num_classes:  182'), ('voc12', '--num_classes:  21')):
        monkeypatch.setattr('sys.argv', ['checkpoint', word])
        checkpoint.main()
        assert told in capsys.readouterr().out
    monkeypatch.setattr('sys.argv', ['checkpoint', 'imagenet'])
    with pytest.raises(UserError, match='choose one with --encoder_name'):
        checkpoint.main()


def test_the_file_is_fetched_once(published, empty_folder, tmp_path):
    photo(empty_folder / 'photo.jpg')
    done('--weights=voc12', *PREDICT)
    for path in (tmp_path / 'mirror').iterdir():
        path.unlink()
    done('--weights=voc12', '--out_dir=again', *PREDICT)
    assert 'could not be fetched' in refused('--weights=cocostuff10k', *PREDICT)
    assert not (tmp_path / 'home' / 'models' / pretrained.PUBLISHED['cocostuff10k'].name).exists()


def test_a_file_in_the_cache_that_is_something_else(published, empty_folder, tmp_path):
    photo(empty_folder / 'photo.jpg')
    done('--weights=voc12', *PREDICT)
    cached = tmp_path / 'home' / 'models' / pretrained.PUBLISHED['voc12'].name
    for content in (b'<html>', cached.read_bytes()[:-1], (
            tmp_path / 'mirror' / pretrained.PUBLISHED['cocostuff10k'].name).read_bytes()):
        cached.write_bytes(content)
        assert 'does not hold the weights voc12 or is damaged: remove it' in refused('--weights=voc12', *PREDICT)


def test_weights_of_another_number_of_classes_are_not_the_published_ones(published, empty_folder):
    published(20, pretrained.PUBLISHED['voc12'].name)
    assert 'this address has a different file' in refused('--weights=voc12', *PREDICT)


def test_a_word_is_not_a_folder_of_that_name(published, empty_folder):
    photo(empty_folder / 'photo.jpg')
    (empty_folder / 'voc12').mkdir()
    assert 'note: voc12 means the published weights; write ./voc12 for' in done('--weights=voc12', *PREDICT)
    assert 'voc12 holds no complete checkpoint' in refused('--weights=./voc12', *PREDICT)


def test_files_of_other_kinds(published, empty_folder, tmpdir, tmp_path):
    """Each file decides the network and the mode; a decoder of 7 classes has VOC's colours without names."""
    photo(empty_folder / 'photo.jpg')
    both = [published(7, name, write_bytes) for name, write_bytes in torch_files.FORMATS.items()]
    weights = weight_files.open_weights(both[0])
    checkpoint.save_weights(weights, 'saved/model.ckpt-3')
    found = []
    for path in both + ['saved', 'saved/model.ckpt-3', 'saved/model.ckpt-3.index']:
        stdout = done('--weights=' + path, '--num_classes=7', '--compat=caffe', *PREDICT)
        found.append(mask())
        np.testing.assert_array_equal(found[0], found[-1])
    assert '.index' not in stdout
    stdout = done('--weights=' + both[0], '--encoder_name=res101', '--num_gpus=2', '--out_dir=other', *PREDICT)
    np.testing.assert_array_equal(mask('other'), mask())
    layers = test_caffe_weights.network_layers(np.random.RandomState(0), UNITS)
    path = test_caffe_weights.write_layers(tmpdir.join('x.caffemodel'), layers)
    assert '--compat=caffe' in done('--weights=' + path, *PREDICT)
    assert written(empty_folder) == ['prediction/photo_mask.png', 'visual_prediction/photo_mask_visual.png']


@pytest.mark.parametrize('flags, told', [
    (['--num_classes=20'], 'was trained with --num_classes=7, but this run has --num_classes=20: '),
    (['--compat=original'], 'was trained with --compat=caffe, but this run has --compat=original: '),
    (['--encoder_name=res152'], 'was trained with --encoder_name=deeplab, but this run has --encoder_name=res152: '),
    (['--dilated_type=smooth_GI'],
     'was trained with --dilated_type=regular, but this run has --dilated_type=smooth_GI: '),
    (['--decoder=aspp_pooling'], 'was trained with --decoder=aspp, but this run has --decoder=aspp_pooling: '),
    (['--channel_order=rgb'], 'is for --channel_order=bgr --img_mean=104.008,116.669,122.675, but this run has rgb '
     '122.675,116.669,104.008: leave these flags out.'),
    (['--img_mean=1,2,3'], 'but this run has bgr 1,2,3: leave'),
    (['--modeldir=model'], '--weights and --modeldir exclude each other: drop one.'),
    (['--test_step=3'], '--weights and --test_step exclude each other: drop one.'),
    (['--flagfile=voc2012.flags', '--compat=slim'], 'with --num_classes=7 --compat=caffe, but this run has '
     '--num_classes=21 --compat=slim: '),
])
def test_flags_that_contradict_the_file(published, empty_folder, flags, told):
    photo(empty_folder / 'photo.jpg')
    (empty_folder / 'voc2012.flags').write_text('--flagfile=dataset/voc2012.flags\n--modeldir=elsewhere\n')
    message = refused('--weights=' + published(7), *(PREDICT + flags))
    assert told in message and len(message.replace(str(empty_folder.parent), '~')) <= 307
    assert written(empty_folder) == []


def test_flags_that_agree_with_the_file(published, empty_folder):
    photo(empty_folder / 'photo.jpg')
    done('--weights=' + published(7), '--num_classes=7', '--dilated_type=decompose', '--encoder_name=deeplab',
         '--channel_order=bgr', '--img_mean=104.008,116.669,122.675', *PREDICT)


@pytest.mark.parametrize('option', ['predict', 'test', 'export'])
def test_files_that_cannot_be_used(published, empty_folder, option, tmp_path):
    def message_for(path):
        message = refused('--weights=%s' % path, '--option=' + option)
        assert len(message.replace(str(tmp_path), '~')) <= 307
        return message

    assert 'has no decoder: train one with --pretrain_file' in message_for(published(7, leave_out='aspp'))
    assert 'cannot be used: the file has names of --encoder_name=deeplab, but only a part of' in message_for(
        published(7, leave_out='layer4'))
    assert 'no such weights file' in message_for('nowhere.pth')
    assert '--weights=imagenet: these weights have no decoder' in message_for('imagenet')
    assert 'has a decoder of 300 classes: give weights with 2 to 256' in message_for(published(300))
    (empty_folder / 'empty').mkdir()
    assert 'holds no complete checkpoint' in message_for('empty')
    (empty_folder / 'photo.pth').write_bytes(b'\x89PNG\r\n\x1a\n' * 9)
    assert 'is not a weights file' in message_for('photo.pth')


def test_values_that_are_not_finite(published, empty_folder):
    photo(empty_folder / 'photo.jpg')
    path = published(7, **{'aspp.c1.bias': np.full(7, np.nan, np.float32)})
    assert 'holds values that are not finite (fc1_voc12_c1/biases)' in refused('--weights=' + path, *PREDICT)
    variance = 'layer1.conv1.bn.running_var'
    path = published(7, **{variance: -network_arrays(num_classes=7)[0][variance]})  # its square root is NaN
    assert 'holds values that are not finite (' in refused('--weights=' + path, *PREDICT)


@pytest.fixture
def voc(tmp_path):
    """Creates two labelled images in VOC's form, and returns their flags."""
    folder = tmp_path / 'voc'
    for name in ('a', 'b'):
        photo(folder / (name + '.jpg'))
        Image.fromarray(np.random.RandomState(0).randint(0, 21, (30, 41)).astype(np.uint8)).save(
            str(folder / (name + '.png')))
    (folder / 'val.txt').write_text('/a.jpg /a.png\n/b.jpg /b.png\n')
    return ['--flagfile=dataset/voc2012.flags', '--data_dir=%s' % folder, '--valid_data_list=%s' % (folder / 'val.txt')]


def test_multi_scale_scores_of_published_weights(published, voc):
    code, stdout, stderr = run_process('tests/narrow_main.py', 'main_msc', '--option=test', '--weights=voc12', *voc)
    assert code == 0, stderr
    assert 'tvmonitor' in stdout and 'mean IoU' in stdout
    with open('output_voc/metrics.json') as file:
        scores = json.load(file)
    assert scores['checkpoint'].endswith('vocaug-20000.pth') and scores['training'] is None
    assert (scores['flags']['num_classes'], scores['flags']['compat'], scores['flags']['palette']) == (
        21, 'caffe', 'voc')
    assert '--num_classes=182, but this run has --num_classes=21' in refused(
        '--option=test', '--weights=cocostuff10k', *voc)


def test_the_samples_labels_are_not_scored_with_other_classes(published):
    told = "was trained with --num_classes=21, but the bundled sample has 6 classes: name the data"
    assert told in refused('--option=test', '--weights=voc12')


def test_export(published):
    assert 'sample' not in done('--option=export', '--weights=cocostuff10k')
    with open('export/classes.json') as file:
        classes = json.load(file)['classes']
    assert len(classes) == 182 and classes[11] == {'name': 'street sign', 'colour': voc_colours()[12].tolist()}


# a trained run --------------------------------------------------------------------------------------------------------

@pytest.fixture
def train():
    """Returns a function that trains one step on the sample with changed flags."""
    def run_with(*flags):
        done('--option=train', '--num_steps=1', '--batch_size=1', '--input_height=33', '--input_width=33',
             '--valid_interval=0', '--check_labels=false', *flags)
        return run_settings.read('model')['flags']

    return run_with


def test_a_run_is_tested_without_repeating_its_flags(train, empty_folder):
    trained = train('--encoder_name=res101', '--compat=slim', '--decoder=aspp_pooling', '--dilated_type=smooth_GI')
    photo(empty_folder / 'photo.jpg')
    for args in (['--option=test', '--valid_num_steps=1'], PREDICT, ['--option=export'],
                 ['--weights=model', '--option=test', '--valid_num_steps=1', '--out_dir=other'],
                 ['--weights=model/model.ckpt-1', '--out_dir=other'] + PREDICT):
        stdout = done(*args)
        for name in ('encoder_name', 'compat', 'decoder', 'dilated_type'):
            assert '--%s=%s, as in the training' % (name, trained[name]) in stdout
        assert 'was trained with' not in stdout
    np.testing.assert_array_equal(mask('other'), mask())
    scores = [json.loads((empty_folder / folder / 'metrics.json').read_text()) for folder in ('output', 'other')]
    assert scores[0]['confusion_matrix'] == scores[1]['confusion_matrix']
    assert scores[0]['training'] == scores[1]['training'] == trained
    for flags in (['--compat=caffe'], ['--encoder_name=res50'], ['--decoder=aspp'], ['--dilated_type=regular']):
        message = refused('--option=test', *flags)
        name = flags[0][2:].partition('=')[0]
        assert 'model was trained with --%s=%s, but this run has %s: ' % (name, trained[name], flags[0]) in message


def test_a_checkpoint_of_a_run_that_is_not_there(train, empty_folder):
    train()
    assert 'model/model.ckpt-7: no such weights file' in refused('--weights=model/model.ckpt-7', '--option=export')


def test_a_run_with_classes_of_its_own(train, empty_folder):
    """The given palette is used; without one, the training's, while its file is unchanged, and never the sample's."""
    lines = ['name%d %d 9 9' % (k, k) for k in range(9)]
    (empty_folder / 'classes.txt').write_text('\n'.join(lines))
    data = ['--palette=classes.txt', '--data_dir=' + SAMPLE, '--valid_data_list=%s/val.txt' % SAMPLE]
    train('--data_list=%s/train.txt' % SAMPLE, '--num_classes=9', '--encoder_name=res50', *data[:2])
    photo(empty_folder / 'photo.jpg')
    stdout = done(*PREDICT)
    assert '--num_classes=9, as in the training' in stdout and 'was trained with --palette=' not in stdout
    done('--option=export')
    assert 'name8' in (empty_folder / 'export' / 'classes.json').read_text()
    assert 'name8' in done('--option=test', '--valid_num_steps=1', *data)
    assert 'the bundled sample has 6 classes' in refused('--option=test')
    done('--weights=model', '--option=export')
    assert [one['name'] for one in json.loads((empty_folder / 'export' / 'classes.json').read_text())['classes']] == [
        'name%d' % k for k in range(9)]
    (empty_folder / 'classes.txt').write_text('\n'.join(lines[::-1]))
    assert 'was trained with --palette=' in done('--weights=model', '--option=export')


def test_without_settings_the_flags_decide(train, empty_folder):
    train('--compat=caffe')
    os.remove(os.path.join('model', 'settings.json'))
    assert 'as in the training' not in done('--option=test', '--valid_num_steps=1')
    told = 'note: --weights=model does not say for which --compat it was made; this run has --compat=original'
    test = ['--option=test', '--weights=model', '--valid_num_steps=1']
    assert told in done(*test) and 'note: --weights' not in done('--compat=caffe', *test)
