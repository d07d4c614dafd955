"""Tests finding, restoring and describing checkpoints, and starting from pre-trained ones."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import network
from utils import checkpoint
from utils.net.blocks import BLOCKS, ENCODERS
from utils.net.compat import COMPAT, Input
from utils.net.decoders import ASPP
from utils.system.command_line import run
from utils.system.errors import UserError, quoted
from utils.weights import checkpoints, pretrained, weight_files, weight_names

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def small(narrow):
    """Fewer units and a 16th of the channels: 145 variables for the encoders deeplab and res101, 100 for res50."""
    narrow({'deeplab': (1, 2, 3, 2), 'res152': (1, 3, 3, 2), 'res101': (1, 2, 3, 2), 'res50': (1, 1, 2, 1)})


def model_shapes(encoder_name, num_classes=3, fix_w=None):
    """{name: shape} of a network; fix_w is the shape of one for each 3x3 convolution of the last block."""
    shapes = dict(weight_names.encoder_shapes(encoder_name))
    for scope in ASPP.SCOPES[ENCODERS[encoder_name].family]:
        shapes[scope + '/weights'] = (3, 3, BLOCKS[encoder_name][3].depth, num_classes)
        shapes[scope + '/biases'] = (num_classes,)
    if fix_w:
        for unit in range(1, BLOCKS[encoder_name][3].units + 1):
            shapes[weight_names.conv_scopes(encoder_name, 5, unit, 2)[0] + '/fix_w'] = fix_w
    return shapes


def random_values(shapes, seed=0):
    rng = np.random.RandomState(seed)
    return {name: rng.randn(*shape).astype(np.float32) for name, shape in shapes.items()}


def make_variables(shapes, use_resource=False):
    """Returns variables with the initial value 7."""
    return [tf.get_variable(name, shape, initializer=tf.constant_initializer(7.0), use_resource=use_resource)
            for name, shape in shapes.items()]


def write_checkpoint(prefix, values, version=tf.train.SaverDef.V2):
    with tf.Graph().as_default(), tf.Session() as sess:
        variables = [tf.get_variable(name, initializer=tf.zeros_initializer(), shape=np.shape(value),
                                     use_resource=False, dtype=tf.as_dtype(np.asarray(value).dtype))
                     for name, value in values.items()]
        checkpoints.load_values(sess, variables, values)
        tf.train.Saver(variables, write_version=version).save(sess, str(prefix), write_state=False)
    return str(prefix)


def run_in_network(shapes, function, use_resource=False):
    """Calls function(sess, variables) on a fresh network; returns (its result or UserError, {name: value})."""
    with tf.Graph().as_default(), tf.Session() as sess:
        variables = make_variables(shapes, use_resource)
        sess.run(tf.global_variables_initializer())
        try:
            result = function(sess, variables)
        except UserError as error:
            result = error
        return result, dict(zip(shapes, sess.run(variables)))


def start_from(shapes, path, encoder_name, restore_decoder=False, use_resource=False):
    def restore(sess, variables):
        return pretrained.restore_pretrained(
            sess, variables, pretrained.open_pretrained(str(path), encoder_name), encoder_name, restore_decoder)
    return run_in_network(shapes, restore, use_resource)


def restored(shapes, prefix, use_resource=False):
    def restore(sess, variables):
        values = checkpoints.read_fitting(prefix, weight_names.variable_shapes(variables))
        checkpoints.load_values(sess, variables, values)
    return run_in_network(shapes, restore, use_resource)


def assert_names_equal(values, expected, names):
    for name in names:
        np.testing.assert_array_equal(values[name], expected[name], err_msg=name)


def assert_untouched(values):
    for name, value in values.items():
        assert (value == 7).all(), name


def assert_sentence(error, *words):
    """Checks that a message is one line, ends with a full stop and contains all words."""
    assert isinstance(error, UserError), error
    text = str(error)
    assert '\n' not in text and text.endswith('.')
    for word in words:
        assert word in text or quoted(word) in text, '%r lacks %r' % (text, word)


# Names.

@pytest.mark.parametrize('encoder_name', ['deeplab', 'res101', 'res50'])
def test_names_and_shapes_are_the_originals(encoder_name):
    path = os.path.join(ROOT, 'tests', 'golden', 'original_%s_variables.json' % encoder_name)
    with open(path) as file:
        golden = [(name, tuple(shape)) for name, shape, _ in json.load(file)]
    ours = model_shapes(encoder_name, num_classes=21)
    assert list(ours.items()) == golden
    encoder = [name for name, _ in golden if 'fc1_voc12' not in name and 'decoder/' not in name]
    assert list(weight_names.encoder_shapes(encoder_name)) == encoder
    assert [name for name, _ in golden if weight_names.in_encoder(name, encoder_name)] == encoder


def test_a_whole_encoder_fits_only_its_own_name():
    for encoder_name in ENCODERS:
        shapes = weight_names.encoder_shapes(encoder_name)
        assert [other for other in ENCODERS if weight_names.fits(shapes, other)] == [encoder_name]
        assert weight_names.encoder_of(shapes) == encoder_name
        name, shape = shapes.popitem()
        assert not weight_names.fits(shapes, encoder_name)
        shapes[name] = shape + (1,)
        assert not weight_names.fits(shapes, encoder_name)


# Finding.

def touch_checkpoints(folder, *names):
    for name in names:
        folder.join(name).write('x')


def test_steps_of_complete_checkpoints_only(tmpdir):
    touch_checkpoints(
        tmpdir, 'model.ckpt-5.index', 'model.ckpt-5.data-00000-of-00001',
        'model.ckpt-100.index', 'model.ckpt-100.data-00000-of-00002', 'model.ckpt-100.data-00001-of-00002',
        'model.ckpt-7.index', 'model.ckpt-8.data-00000-of-00001',
        'model.ckpt-9.index', 'model.ckpt-9.data-00000-of-00002',
        'other.ckpt-3.index', 'other.ckpt-3.data-00000-of-00001',
        'model.ckpt-11.index.tempstate1', 'model.ckpt-11.data-00000-of-00001.tempstate1')
    assert checkpoints.checkpoint_steps(str(tmpdir)) == [5, 100]
    assert checkpoints.checkpoint_steps(str(tmpdir.join('nowhere'))) == []
    assert checkpoints.find_checkpoint(str(tmpdir)) == str(tmpdir.join('model.ckpt-100'))
    assert checkpoints.find_checkpoint(str(tmpdir), 5) == str(tmpdir.join('model.ckpt-5'))


def test_newest_is_the_highest_step_whatever_tensorflows_record_says(tmpdir):
    touch_checkpoints(tmpdir, *['model.ckpt-%d.%s' % (step, part) for step in (1, 2, 3)
                                for part in ('index', 'data-00000-of-00001')])
    for record in (b'model_checkpoint_path: "model.ckpt-2"\n', b'no record at all', bytes(range(256)) * 9):
        tmpdir.join('checkpoint').write_binary(record)
        assert checkpoints.find_checkpoint(str(tmpdir)) == str(tmpdir.join('model.ckpt-3'))
    tmpdir.join('checkpoint').remove()
    os.mkfifo(str(tmpdir.join('checkpoint')))
    os.mkfifo(str(tmpdir.join('model.ckpt-4.index')))
    touch_checkpoints(tmpdir, 'model.ckpt-4.data-00000-of-00001')
    assert checkpoints.find_checkpoint(str(tmpdir)).endswith('model.ckpt-3')


def test_what_is_not_there_is_reported(tmpdir):
    with pytest.raises(UserError) as info:
        checkpoints.find_checkpoint(str(tmpdir.join('nowhere')))
    assert_sentence(info.value, 'nowhere', '--modeldir')
    with pytest.raises(UserError) as info:
        checkpoints.find_checkpoint(str(tmpdir))
    assert_sentence(info.value, str(tmpdir), '--modeldir')
    touch_checkpoints(tmpdir, 'model.ckpt-5.index', 'model.ckpt-5.data-00000-of-00001')
    with pytest.raises(UserError) as info:
        checkpoints.find_checkpoint(str(tmpdir), 20000, flag='test_step')
    assert_sentence(info.value, '--test_step', '20000', '5')


# Restoring a checkpoint.

@pytest.mark.parametrize('use_resource', [False, True])
def test_checkpoint_round_trip(small, tmpdir, use_resource):
    shapes = model_shapes('res50', fix_w=(16, 16))
    values = random_values(shapes)
    extras = {'global_step': np.int64(3), 'conv1/weights/Momentum': np.zeros(2, np.float32),
              next(iter(shapes)) + '/Momentum': np.zeros(2, np.float32)}
    prefix = write_checkpoint(tmpdir.join('model.ckpt-3'), dict(values, **extras))
    result, found = restored(shapes, prefix, use_resource)
    assert result is None
    assert_names_equal(found, values, shapes)


def test_misfitting_checkpoints_are_explained(small, tmpdir):
    prefix = write_checkpoint(tmpdir.join('model.ckpt-1'), random_values(model_shapes('res50', 3)))
    cases = [
        (model_shapes('deeplab'), ['153 of 153 variables are missing', 'conv1/weights', '--encoder_name=res50']),
        (model_shapes('res50', 5), ['8 of 108 have another shape', 'decoder/aspp/conv1/weights: 3x3x128x3 in the file',
                                    '3x3x128x5 in the network', '--num_classes=3']),
        (model_shapes('res50', fix_w=(16, 16)), ['1 of 109 variables are missing', '--dilated_type=regular']),
        (dict(model_shapes('res50'), **{'conv1/weights/Momentum': (2,)}),
         ['1 of 109 variables are missing', '--pretrain_file']),
    ]
    for shapes, words in cases:
        result, found = restored(shapes, prefix)
        assert_sentence(result, prefix, *words)
        assert_untouched(found)


def test_a_checkpoint_without_some_of_its_encoder(small, tmpdir):
    values = random_values(model_shapes('res50'))
    del values['resnet_v1_50/block4/unit_1/bottleneck_v1/conv3/weights']
    prefix = write_checkpoint(tmpdir.join('model.ckpt-1'), values)
    result, _ = restored(model_shapes('res50'), prefix)
    assert_sentence(result, '1 of 108 variables are missing', 'only a part of that encoder')


def test_fix_w_is_never_left_out_silently(small, tmpdir):
    for fix_w, dilated_type in (((16, 16), 'smooth_GI'), ((7, 7, 1, 1, 1), 'smooth_SSC')):
        prefix = write_checkpoint(tmpdir.join('model.ckpt-1'), random_values(model_shapes('res50', fix_w=fix_w)))
        result, found = restored(model_shapes('res50'), prefix)
        assert_sentence(result, '1 are extra', 'fix_w', '--dilated_type=' + dilated_type)
        assert_untouched(found)


def damage(prefix, how):
    data, index = prefix + '.data-00000-of-00001', prefix + '.index'
    if how == 'no data':
        os.remove(data)
    elif how in ('data', 'index'):
        with open(data if how == 'data' else index, 'r+b') as file:
            file.truncate(os.path.getsize(file.name) // 2)
    else:
        with open(data, 'r+b') as file:
            file.seek(os.path.getsize(data) // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0xFF]))


@pytest.mark.parametrize('how, why', [('data', 'Read less bytes than requested'), ('index', 'bad magic number'),
                                      ('no data', 'data-00000-of-00001'), ('one byte', 'Checksum does not match')])
def test_damaged_checkpoints_are_named(small, tmpdir, how, why):
    shapes = model_shapes('res50')
    prefix = write_checkpoint(tmpdir.join('model.ckpt-1'), random_values(shapes))
    damage(prefix, how)
    for result, _ in (restored(shapes, prefix), start_from(shapes, prefix, 'res50', restore_decoder=True)):
        assert_sentence(result, prefix, 'damaged or incomplete', why)
        assert len(str(result)) <= 400 and str(result).isprintable()


# Starting from pre-trained weights.

@pytest.mark.parametrize('use_resource', [False, True])
@pytest.mark.parametrize('encoder_name', list(ENCODERS))
def test_pretrained_takes_the_encoder_only(small, tmpdir, encoder_name, use_resource):
    shapes = model_shapes(encoder_name)
    values = random_values(shapes)
    prefix = write_checkpoint(tmpdir.join('model.ckpt-20'), values)
    phrase, found = start_from(shapes, prefix, encoder_name, use_resource=use_resource)
    encoder = weight_names.encoder_shapes(encoder_name)
    assert_names_equal(found, values, encoder)
    assert_untouched({name: found[name] for name in shapes if name not in encoder})
    assert phrase == ('restored %d encoder variables from %s (a TensorFlow checkpoint); '
                      '8 decoder variables keep their initial values' % (len(encoder), prefix))
    assert pretrained.open_pretrained(prefix, encoder_name).compat is None


def test_restore_decoder(small, tmpdir):
    shapes = model_shapes('deeplab', 3)
    values = random_values(shapes)
    prefix = write_checkpoint(tmpdir.join('model.ckpt-20'), values)
    phrase, found = start_from(shapes, prefix, 'deeplab', restore_decoder=True)
    assert_names_equal(found, values, shapes)
    assert '145 encoder and 8 decoder variables' in phrase and 'initial' not in phrase

    phrase, found = start_from(model_shapes('deeplab', 5), prefix, 'deeplab', restore_decoder=True)
    assert_names_equal(found, values, weight_names.encoder_shapes('deeplab'))
    assert (found['fc1_voc12_c0/weights'] == 7).all()
    assert '8 decoder variables keep' in phrase and 'a decoder of 3 classes' in phrase


def test_fix_w_of_pretrained_weights(small, tmpdir):
    regular, smooth = model_shapes('res50'), model_shapes('res50', fix_w=(16, 16))
    names = [name for name in smooth if name.endswith('fix_w')]
    plain = write_checkpoint(tmpdir.join('plain'), random_values(regular))
    phrase, found = start_from(smooth, plain, 'res50')
    assert '1 fix_w and 8 decoder variables keep their initial values' in phrase
    assert_untouched({name: found[name] for name in names})

    values = random_values(smooth)
    prefix = write_checkpoint(tmpdir.join('smooth'), values)
    phrase, found = start_from(smooth, prefix, 'res50')
    assert_names_equal(found, values, names)
    assert 'restored 100 encoder and 1 fix_w variables' in phrase
    phrase, _ = start_from(regular, prefix, 'res50')
    assert 'fix_w, of --dilated_type=smooth_GI, are left out' in phrase
    phrase, found = start_from(model_shapes('res50', fix_w=(7, 7, 1, 1, 1)), prefix, 'res50')
    assert_untouched({name: found[name] for name in names})
    assert '1 fix_w and 8 decoder variables keep' in phrase


@pytest.mark.parametrize('version', [tf.train.SaverDef.V1, tf.train.SaverDef.V2])
def test_slims_published_checkpoints(small, tmpdir, version):
    """They have a classifier, mean_rgb and global_step, and are one file of TensorFlow's first format."""
    values = random_values(weight_names.encoder_shapes('res101'))
    extras = {'resnet_v1_101/logits/weights': np.zeros((1, 1, 128, 10), np.float32),
              'resnet_v1_101/logits/biases': np.zeros(10, np.float32),
              'mean_rgb': np.zeros(3, np.float32), 'global_step': np.int64(0)}
    path = write_checkpoint(tmpdir.join('resnet_v1_101.ckpt'), dict(values, **extras), version)
    assert os.path.exists(path) == (version == tf.train.SaverDef.V1)
    phrase, found = start_from(model_shapes('res101'), path, 'res101')
    assert phrase.startswith('restored 145 encoder variables from ' + path)
    assert_names_equal(found, values, values)
    assert pretrained.open_pretrained(path, 'res101').compat == 'slim'
    result, found = start_from(model_shapes('res50'), path, 'res50')
    assert_sentence(result, path, '100 of 100 variables are missing', '140 are extra', '--encoder_name=res101')
    assert_untouched(found)


def test_ways_to_name_a_checkpoint(small, tmpdir, monkeypatch):
    shapes = model_shapes('res50')
    values = random_values(shapes)
    prefix = write_checkpoint(tmpdir.join('model.ckpt-20'), values)
    monkeypatch.setenv('HOME', str(tmpdir))
    for path in (prefix, prefix + '.index', prefix + '.meta', prefix + '.data-00000-of-00001', str(tmpdir),
                 '~/model.ckpt-20'):
        phrase, found = start_from(shapes, path, 'res50')
        assert prefix in phrase
        assert_names_equal(found, values, weight_names.encoder_shapes('res50'))
    shutil.move(prefix + '.index', prefix + '.hidden')
    result, _ = start_from(shapes, tmpdir, 'res50')
    assert_sentence(result, str(tmpdir), 'no complete checkpoint', 'caffemodel')


def test_a_mismatch_restores_nothing(small, tmpdir):
    shapes = model_shapes('deeplab')
    values = random_values(shapes)
    del values['res4b2_branch2c/weights']
    values['bn5b_branch2c/gamma'] = np.zeros(3, np.float32)
    values['res4b3_branch2a/weights'] = np.zeros(3, np.float32)
    prefix = write_checkpoint(tmpdir.join('model.ckpt-20'), values)
    result, found = start_from(shapes, prefix, 'deeplab')
    assert_sentence(result, prefix, '1 of 145 variables are missing (res4b2_branch2c/weights)',
                    'bn5b_branch2c/gamma: 3 in the file, 128 in the network',
                    '1 are extra (res4b3_branch2a/weights)', 'only a part of that encoder')
    assert_untouched(found)


def test_values_that_are_not_finite(small, tmpdir):
    shapes = model_shapes('res50')
    values = random_values(shapes)
    values['resnet_v1_50/conv1/weights'][0, 0, 0, 0] = np.nan
    prefix = write_checkpoint(tmpdir.join('model.ckpt-20'), values)
    result, found = start_from(shapes, prefix, 'res50')
    assert_sentence(result, prefix, 'not finite', 'resnet_v1_50/conv1/weights')
    assert_untouched(found)


@pytest.mark.parametrize('content', [b'', b'x', b'no weights\n', b'<html><body>404</body></html>\n' * 99, b'\0' * 99],
                         ids=['empty', 'one byte', 'text', 'html', 'zeros'])
def test_files_of_no_known_kind(tmpdir, content):
    path = tmpdir.join('weights.caffemodel')
    path.write_binary(content)
    with pytest.raises(UserError) as info:
        pretrained.open_pretrained(str(path), 'res50')
    assert_sentence(info.value, str(path), 'known kind', 'TensorFlow checkpoint', 'caffemodel', '.h5')


def test_missing_file(tmpdir):
    with pytest.raises(UserError) as info:
        pretrained.open_pretrained(str(tmpdir.join('x.ckpt')), 'res50')
    assert_sentence(info.value, 'x.ckpt', 'no such weights file')


def test_a_checkpoint_of_text(small, tmpdir):
    """A variable of the right name and shape that holds no numbers."""
    values = random_values(model_shapes('res50'))
    values['resnet_v1_50/conv1/BatchNorm/gamma'] = np.array([b'x'] * 4, object)
    prefix = write_checkpoint(tmpdir.join('model.ckpt-1'), values)
    result, found = start_from(model_shapes('res50'), prefix, 'res50')
    assert_sentence(result, 'damaged or incomplete', 'gamma holds no numbers')
    assert_untouched(found)
    result, _ = restored(model_shapes('res50'), prefix)
    assert_sentence(result, 'damaged or incomplete')


# The mode and input for which weights were made.

def test_slims_weights_keep_their_mode_and_input(small, tmpdir):
    values = random_values(weight_names.encoder_shapes('res50'))
    extras = {'resnet_v1_50/logits/biases': np.zeros(10, np.float32)}
    slims = weight_files.open_weights(write_checkpoint(tmpdir.join('slim.ckpt'), dict(values, **extras)))
    assert slims.compat == 'slim' and slims.input == COMPAT['slim'].input
    assert '--compat:       slim, --channel_order=rgb --img_mean=123.68,116.78,103.94' in checkpoint.describe(slims)
    first, second = str(tmpdir.join('first')), str(tmpdir.join('second'))
    checkpoint.save_weights(slims, first)
    checkpoint.save_weights(weight_files.open_weights(first), second)
    saved = weight_files.open_weights(second)
    assert (saved.compat, saved.input) == (slims.compat, slims.input)
    assert set(saved.shapes) == set(values)
    assert checkpoint.describe(saved).split('\n')[1:] == [
        line for line in checkpoint.describe(slims).split('\n')[1:] if 'logits' not in line]
    for result, found in (restored(values_shapes(values), second), start_from(model_shapes('res50'), second, 'res50')):
        assert not isinstance(result, UserError)
        assert_names_equal(found, values, values)


def values_shapes(values):
    return {name: value.shape for name, value in values.items()}


def test_weights_of_unknown_mode_and_input(small, tmpdir):
    values = random_values(model_shapes('res50'))
    weights = weight_files.open_weights(write_checkpoint(tmpdir.join('model.ckpt-1'), values))
    assert weights.compat is None and weights.input is None
    assert '--compat:       as it was trained\n' in checkpoint.describe(weights)
    checkpoint.save_weights(weights, str(tmpdir.join('copy')))
    saved = weight_files.open_checkpoint(str(tmpdir.join('copy')))
    assert saved.compat is None and saved.input is None and set(saved.shapes) == set(values)


@pytest.mark.parametrize('compat, network_input', [
    (None, None), ('caffe', None), (None, Input('bgr', (103.939, 116.779, 123.68))), ('slim', COMPAT['slim'].input)])
def test_entry_round_trip(compat, network_input):
    assert weight_files.decode_origin(weight_files.encode_origin(compat, network_input)) == (compat, network_input)


@pytest.mark.parametrize('entry', [
    b'', b'\xff\0', b'[]', b'3', b'{}', b'["compat", "channel_order", "img_mean"]', b'[' * 100000,
    b'{"compat": "torch", "channel_order": null, "img_mean": null}',
    b'{"compat": ["caffe"], "channel_order": null, "img_mean": null}',
    b'{"compat": "caffe", "channel_order": "bgr", "img_mean": null}',
    b'{"compat": "caffe", "channel_order": "bgr", "img_mean": "123"}',
    b'{"compat": "caffe", "channel_order": "bgr", "img_mean": [1, 2, NaN]}',
    b'{"compat": "caffe", "channel_order": "bgr", "img_mean": [1, 2, 1%s]}' % (b'0' * 400),
    b'{"compat": "caffe", "channel_order": "cmyk", "img_mean": [1, 2, 3]}', np.float32(1)])
def test_damaged_entry(tmpdir, entry):
    prefix = write_checkpoint(tmpdir.join('x'), {weight_files.MADE_FOR: entry})
    with pytest.raises(UserError) as info:
        weight_files.open_weights(prefix)
    assert_sentence(info.value, prefix, 'damaged or incomplete')


# The command line.

@pytest.fixture
def command(capsys, monkeypatch):
    """Returns a function that runs python -m utils.checkpoint and returns (exit code, stdout, stderr)."""
    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['utils.checkpoint'] + list(args))
        try:
            code = run(checkpoint.main, sys.argv[:1])
        except SystemExit as error:  # of argparse
            code = error.code
        return (code,) + tuple(capsys.readouterr())
    return call


def test_description(small, tmpdir):
    values = random_values(model_shapes('deeplab', 3, fix_w=(16, 16)))
    values['conv1/weights/Momentum'] = values['conv1/weights']
    values['global_step'] = np.int64(1)
    prefix = write_checkpoint(tmpdir.join('model.ckpt-20'), values)
    lines = checkpoint.describe(weight_files.open_weights(prefix)).split('\n')
    assert lines[0] == prefix + ': a TensorFlow checkpoint, 157 variables'
    head = dict(line.split(':', 1) for line in lines[1:5])
    assert [head[flag].strip() for flag in ('--encoder_name', '--num_classes', '--dilated_type')] == [
        'deeplab', '3', 'smooth_GI']
    rows = [line.split() for line in lines[6:-1]]
    assert rows[:2] == [['conv1/weights', '7x7x3x4'], ['bn_conv1/{gamma,beta,moving_mean,moving_variance}', '4']]
    assert ['global_step', 'scalar'] in rows and ['fc1_voc12_c3/biases', '3'] in rows
    assert ['res5a_branch2b/fix_w', '16x16'] in rows
    assert lines[-1] == 'and 1 slots of an optimizer'


def test_description_of_other_files(small, tmpdir):
    """Names that no network has are shown in printable form, ordered by their numbers."""
    values = {'tower%d/w' % i: np.float32(i) for i in (10, 9, 1)}
    shown = checkpoint.describe(weight_files.open_weights(write_checkpoint(tmpdir.join('x'), values)))
    assert '--encoder_name: none (the file fits no encoder_name (deeplab, res152, res101, res50))' in shown
    assert shown.endswith('tower1/w   scalar\ntower9/w   scalar\ntower10/w  scalar')
    longest = 'resnet_v1_50/block4/unit_3/bottleneck_v1/shortcut/BatchNorm/moving_variance'
    assert longest in '\n'.join(checkpoint.table({longest: (2048,)}))
    odd = weight_files.WeightsFile('x', 'a thing', None, None, {'a\x1b[2J\u00b2' + '9' * 5000: (1,)}, None)
    shown = checkpoint.describe(odd)
    assert all(line.isprintable() and len(line) < 100 for line in shown.split('\n'))


def test_places_that_cannot_be_saved_to(small, tmpdir):
    weights = weight_files.open_weights(write_checkpoint(tmpdir.join('model.ckpt-1'),
                                                         random_values(model_shapes('res50'))))
    tmpdir.join('file').write('')
    for place, words in ((tmpdir.join('new', ''), 'is a folder'), (tmpdir, 'exists already'),
                         (tmpdir.join('model.ckpt-1'), 'exists already'),
                         (tmpdir.join('file', 'x'), 'cannot be written'), ('/dev/full/x', 'cannot be written')):
        before = sorted(os.listdir(str(tmpdir)))
        with pytest.raises(UserError) as info:
            checkpoint.save_weights(weights, str(place) + ('/' if words == 'is a folder' else ''))
        assert_sentence(info.value, words, '--save')
        assert sorted(os.listdir(str(tmpdir))) == before


def test_a_full_disk_leaves_nothing(small, tmpdir, monkeypatch):
    def fail(values, origin, prefix):
        with open(prefix + '.data-00000-of-00001', 'w') as file:
            file.write('half')
        raise tf.errors.ResourceExhaustedError(None, None, prefix + '; No space left on device')

    weights = weight_files.open_weights(write_checkpoint(tmpdir.join('model.ckpt-1'),
                                                         random_values(model_shapes('res50'))))
    monkeypatch.setattr(checkpoint, 'write_values', fail)
    with pytest.raises(UserError) as info:
        checkpoint.save_weights(weights, str(tmpdir.join('new', 'x')))
    assert_sentence(info.value, 'cannot be written', 'No space left on device')
    assert os.listdir(str(tmpdir.join('new'))) == []


def test_command_line(command, tmpdir):
    values = random_values(model_shapes('res50'))
    values['global_step'] = np.int64(4)
    prefix, copy = write_checkpoint(tmpdir.join('model.ckpt-4'), values), str(tmpdir.join('new', 'model.ckpt-0'))
    code, out, err = command(str(tmpdir), '--save', copy)
    assert code == 0, err
    assert out.startswith(prefix + ': a TensorFlow checkpoint, 274 variables\n--encoder_name: res50\n')
    assert out.endswith('saved as %s\n' % copy)
    reader = tf.train.NewCheckpointReader(copy)
    del values['global_step']
    assert set(reader.get_variable_to_shape_map()) == set(values)
    for name in values:
        np.testing.assert_array_equal(reader.get_tensor(name), values[name])
    assert sorted(os.listdir(os.path.dirname(copy))) == ['model.ckpt-0.data-00000-of-00001', 'model.ckpt-0.index']

    code, _, err = command(prefix, '--save', copy)
    assert code == 1 and 'error: %s exists already' % copy in err and 'Traceback' not in err
    code, _, err = command(prefix, '--save', copy + 'x', '--encoder_name', 'res101')
    assert code == 1 and 'the file fits --encoder_name=res50' in err and 'Traceback' not in err
    assert len(os.listdir(os.path.dirname(copy))) == 2


def test_command_line_mistakes(command, tmpdir):
    code, _, err = command(str(tmpdir.join('nothing.ckpt')))
    assert code == 1 and 'error: ' in err and 'nothing.ckpt: no such weights file' in err and 'Traceback' not in err
    code, _, err = command(str(tmpdir), '--sav', 'x')
    assert code == 2 and 'unrecognized arguments: --sav' in err


def test_command_line_as_a_process(tmpdir):
    process = subprocess.Popen([sys.executable, '-m', 'utils.checkpoint', str(tmpdir.join('nothing.ckpt'))], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    out, err = process.communicate()
    assert process.returncode == 1 and out == ''
    assert err.startswith('error: ') and err.count('\n') == 1, err  # without TensorFlow's own lines


def test_a_line_on_the_input():
    keras = weight_files.IMAGENET_INPUT
    assert pretrained.describe_input(keras, keras) == (
        'input: --channel_order=bgr --img_mean=103.939,116.779,123.68, which these weights were made for')
    assert pretrained.describe_input(keras, keras._replace(img_mean=(1.0, 2.0, 3.5))) == (
        'note: these weights were made for --channel_order=bgr --img_mean=103.939,116.779,123.68, '
        'but this run has --channel_order=bgr --img_mean=1,2,3.5')


# Weights that the network does not have, and further encoders and decoders.

POOLING = {'slim': 'decoder/aspp/image_pooling/', 'caffe': 'fc1_voc12_pool/'}


def pooling_shapes(encoder_name, num_classes=3):
    scope = POOLING[ENCODERS[encoder_name].family]
    return dict(model_shapes(encoder_name, num_classes), **{
        scope + 'weights': (1, 1, BLOCKS[encoder_name][3].depth, num_classes), scope + 'biases': (num_classes,)})


@pytest.mark.parametrize('encoder_name', list(ENCODERS))
@pytest.mark.parametrize('decoder', ['aspp', 'aspp_pooling'])
def test_a_network_has_the_variables_of_its_names(small, encoder_name, decoder):
    wanted = (pooling_shapes if decoder == 'aspp_pooling' else model_shapes)(encoder_name, 5)
    with tf.Graph().as_default():
        net = network.build(encoder_name, tf.zeros([1, 33, 33, 3]), num_classes=5, phase=True, decoder=decoder)
        assert list(weight_names.variable_shapes(net.variables).items()) == list(wanted.items())
        assert list(weight_names.variable_shapes(net.encoder_variables)) == list(
            weight_names.encoder_shapes(encoder_name))
        assert weight_names.variable_shapes(net.decoder_variables) == weight_names.decoder_shapes(
            encoder_name, decoder, 5)
    assert weight_names.decoder_of(wanted) == (decoder, 5)


@pytest.mark.parametrize('encoder_name', ['res50', 'deeplab'])
def test_decoders_are_never_mixed_silently(small, tmpdir, encoder_name):
    plain, pooling = model_shapes(encoder_name), pooling_shapes(encoder_name)
    prefix = write_checkpoint(tmpdir.join('model.ckpt-1'), random_values(pooling))
    result, found = restored(plain, prefix)
    assert_sentence(result, '2 are extra (%sbiases and 1 more)' % POOLING[ENCODERS[encoder_name].family],
                    '--encoder_name=%s --num_classes=3 --decoder=aspp_pooling' % encoder_name)
    assert len(str(result).replace(str(tmpdir), '')) < 300
    assert_untouched(found)
    assert '--decoder:      aspp_pooling' in checkpoint.describe(weight_files.open_weights(prefix))
    phrase, found = start_from(plain, prefix, encoder_name, restore_decoder=True)
    assert 'it holds further weights, which are left out (%s' % POOLING[ENCODERS[encoder_name].family] in phrase
    phrase, found = start_from(plain, prefix, encoder_name)
    assert phrase.endswith('8 decoder variables keep their initial values')
    prefix = write_checkpoint(tmpdir.join('model.ckpt-2'), random_values(plain))
    result, found = restored(pooling, prefix)
    assert_sentence(result, '2 of %d variables are missing' % len(pooling), '--decoder=aspp')
    phrase, found = start_from(pooling, prefix, encoder_name, restore_decoder=True)
    assert 'and 8 decoder variables from' in phrase and '; 2 decoder variables keep their initial values' in phrase


def test_unknown_variables_of_a_checkpoint(small, tmpdir, capsys):
    shapes = model_shapes('res50')
    values = random_values(shapes)
    first = next(iter(shapes))
    state = {'global_step': np.int64(3), 'beta1_power': np.float32(0.9), 'cond/beta2_power': np.float32(0.9),
             first + '/Adam': values[first], first + '/Adam_1': values[first], 'adam/iterations': np.int64(2),
             first + '/m': values[first], 'resnet_v1_50/logits/biases': np.zeros(3, np.float32)}
    prefix = write_checkpoint(tmpdir.join('model.ckpt-1'), dict(values, **state))
    result, found = restored(shapes, prefix)
    assert result is None and capsys.readouterr().out == ''
    assert_names_equal(found, values, shapes)
    prefix = write_checkpoint(tmpdir.join('model.ckpt-2'), dict(values, Variable_1=np.float32(1), **state))
    result, found = restored(shapes, prefix)
    assert result is None
    assert capsys.readouterr().out == (
        'note: %s holds variables of an unknown kind, which are not used (Variable_1)\n' % quoted(prefix))
    prefix = write_checkpoint(tmpdir.join('model.ckpt-3'), dict(values, **{'head/weights': np.ones(3, np.float32)}))
    result, found = restored(shapes, prefix)
    assert_sentence(result, '1 are extra (head/weights)', 'no --decoder has its head/weights')
    assert_untouched(found)
    assert 'left out (head/weights)' in start_from(shapes, prefix, 'res50')[0]


def test_slims_resnet_152_is_not_mistaken_for_another(narrow, tmpdir):
    deep = weight_names.encoder_shapes('res152')
    assert 'resnet_v1_152/block3/unit_36/bottleneck_v1/conv3/BatchNorm/gamma' in deep and len(deep) == 775
    assert 'resnet_v1_152/block2/unit_8/bottleneck_v1/conv1/weights' in deep
    assert not any('block3/unit_37' in name or 'block2/unit_9' in name for name in deep)
    for own, other in (('res152', 'res101'), ('res101', 'res152')):
        shapes = dict(weight_names.encoder_shapes(own), **{
            'resnet_v1_%s/logits/biases' % own[3:]: (10,), 'mean_rgb': (3,)})
        prefix = write_checkpoint(tmpdir.join(own + '.ckpt'), random_values(shapes))
        with pytest.raises(UserError) as info:
            pretrained.open_pretrained(prefix, other)
        assert_sentence(info.value, '--encoder_name=%s: ' % other, 'the file fits --encoder_name=%s.' % own)
        assert pretrained.open_pretrained(prefix, own).compat == 'slim'
        assert '--encoder_name: %s\n' % own in checkpoint.describe(weight_files.open_weights(prefix))


def test_shapes_of_resnet_152():
    """Slim's file has 60.2 million weights with the classifier of 2048 x 1000 + 1000, as published."""
    count = sum(int(np.prod(shape)) for name, shape in weight_names.encoder_shapes('res152').items()
                if not name.rpartition('/')[2].startswith('moving'))
    assert count + 2048 * 1000 + 1000 == 60192808
