"""Tests reading PyTorch's .pth files, which are written here without PyTorch, including damaged and hostile ones."""

import json
import os
import pickle
import struct
import time
import zipfile

import damage
import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf
import torch_files
from narrow_main import UNITS
from test_main import SMALL, in_the_repo, places, run  # noqa: F401  fixtures
from torch_files import FORMATS, Called, Named, Storage, Tensor, tensor

import network
from utils import checkpoint
from utils.net.blocks import BLOCKS, convolutions
from utils.net.compat import COMPAT
from utils.system.errors import UserError, quoted
from utils.weights import pretrained, torch_pickle, torch_weights, weight_files, weight_names

GOLDEN = os.path.join(os.path.dirname(__file__), 'golden')
FIRST = 'layer1.conv1.conv.weight'


def network_arrays(encoder_name='deeplab', num_classes=3, seed=0):
    """Returns ({name in PyTorch: array}, {name of the encoder's variable: array}) of a whole network, random."""
    rng = np.random.RandomState(seed)
    theirs, ours = {}, {}

    def add(name, variable, shape, transposed=False):
        array = rng.rand(*shape).astype(np.float32)
        ours[variable] = array
        theirs[name] = np.einsum('yxio->oiyx', array) if transposed else array

    for stage, unit, index, shape in convolutions(BLOCKS[encoder_name]):
        conv, batch_norm = weight_names.conv_scopes(encoder_name, stage, unit, index)
        layer = 'layer1.conv1' if stage == 1 else 'layer%d.block%d.%s' % (
            stage, unit, ('shortcut', 'reduce', 'conv3x3', 'increase')[index])
        add(layer + '.conv.weight', conv + '/weights', shape, True)
        for leaf, name in (('weight', 'gamma'), ('bias', 'beta'), ('running_mean', 'moving_mean'),
                           ('running_var', 'moving_variance')):
            add('%s.bn.%s' % (layer, leaf), '%s/%s' % (batch_norm, name), shape[-1:])
        theirs[layer + '.bn.num_batches_tracked'] = np.array(7, np.int64)
    for i in range(4):
        scope = 'fc1_voc12_c%d' % i if encoder_name == 'deeplab' else 'decoder/aspp/conv%d' % (i + 1)
        add('aspp.c%d.weight' % i, scope + '/weights', (3, 3, BLOCKS[encoder_name][3].depth, num_classes), True)
        add('aspp.c%d.bias' % i, scope + '/biases', (num_classes,))
    return theirs, ours


def state_dict(arrays, prefix=''):
    return Called(Named('collections', 'OrderedDict'), state={'_metadata': {'': {'version': 1}}},
                  items=[(prefix + name, tensor(array)) for name, array in arrays.items()])


def write(path, content):
    path.write_binary(content)
    return str(path)


def assert_read(path, expected, encoder_name='deeplab'):
    weights = pretrained.open_pretrained(path, encoder_name)
    assert weights.kind == 'a PyTorch file' and weights.compat == 'caffe' and weights.input == COMPAT['caffe'].input
    assert {name: array.shape for name, array in expected.items()} == weights.shapes
    for name in expected:
        assert weights.read(name).dtype == np.float32
        np.testing.assert_array_equal(weights.read(name), expected[name], err_msg=name)


def content_of(path):
    """Returns the state dict of a small file, as arrays."""
    opened = torch_weights.read_file(str(path))
    with open(str(path), 'rb') as file:
        return {name: torch_weights.to_array(
            torch_weights.read_place(file, opened.places[one.storage.key]), one, opened.order)
            for name, one in torch_weights.state_dict_of(opened.content).items()
            if isinstance(one, torch_pickle.Tensor)}


def assert_sentence(path, *words):
    """Checks that opening or reading the file soon raises an error with a short message."""
    start = time.time()
    with pytest.raises(UserError) as info:
        weights = weight_files.open_weights(str(path), 'deeplab')
        for name in weights.shapes:
            weights.read(name)
    message = str(info.value)
    assert time.time() - start < 5
    assert message.isprintable() and len(message) <= 300 and message.endswith('.')
    for word in (quoted(path),) + words:
        assert word in message, message


@pytest.mark.parametrize('write_bytes', FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize('encoder_name', ['deeplab', 'res101'])
def test_a_whole_network(narrow, tmpdir, write_bytes, encoder_name):
    theirs, ours = network_arrays(encoder_name)
    path = write(tmpdir.join('x'), write_bytes(state_dict(theirs, 'base.')))
    assert_read(path, ours, encoder_name)
    weights = pretrained.open_pretrained(path, encoder_name)
    wanted = {name: array.shape for name, array in ours.items()}
    for restore_decoder, phrase in ((True, '520 encoder and 8 decoder variables from %s (a PyTorch file)' % path),
                                    (False, '520 encoder variables from %s (a PyTorch file); 8 decoder variables keep '
                                            'their initial values' % path)):
        assert pretrained.choose_pretrained(wanted, weights, encoder_name, restore_decoder)[1] == 'restored ' + phrase
    checkpoint.save_weights(weights, str(tmpdir.join('model.ckpt-0')), encoder_name)
    saved = weight_files.open_weights(str(tmpdir.join('model.ckpt-0')))
    assert saved.compat == 'caffe' and saved.input == weights.input and saved.shapes == weights.shapes


@pytest.mark.parametrize('prefix, wrap', [
    ('', lambda saved: {'epoch': 3, 'best': 0.5, 'state_dict': saved}),
    ('module.base.', lambda saved: {'model': saved, 'optimizer': {'state': {0: {'step': None}}}, 'iteration': 2 ** 40}),
    ('module.', lambda saved: {'model': {'state_dict': saved}}),
    ('base.', lambda saved: {'state_dict': {'model': saved}, 'size': Called(Named('torch', 'Size'), (2, 3))}),
], ids=['state_dict', 'model', 'state_dict in model', 'model in state_dict'])
def test_wrapped_and_prefixed(narrow, tmpdir, prefix, wrap):
    theirs, ours = network_arrays()
    assert_read(write(tmpdir.join('x'), torch_files.zip_bytes(wrap(state_dict(theirs, prefix)), 'a/b c/')), ours)


def test_python_2_wrote_a_list_of_items(tmpdir):
    array = np.float32([[1, 2], [3, 4]])
    items = [['a', tensor(array, function='_rebuild_tensor')], ['b', tensor(-array)]]
    content = Called(Named('collections', 'OrderedDict'), items, state={'_metadata': {}})
    data = torch_files.pickled(content, True)[0].replace(b'X\x01\0\0\0a', b'U\x01a')  # its str
    path = tmpdir.join('x')
    path.write_binary(torch_files.old_bytes(content, pickle_bytes=data))
    found = content_of(path)
    np.testing.assert_array_equal(found['a'], array)
    np.testing.assert_array_equal(found['b'], -array)


@pytest.mark.parametrize('order', [None, 'little', 'big'])
def test_types_of_elements(tmpdir, order):
    values = np.array([1.5, -2.25, 0, np.inf, 65504], np.float32)
    bfloat16 = Storage((values[:4].view(np.uint32) >> 16).astype(np.uint16), 'BFloat16Storage')
    content = {code: tensor(values.astype(code)) for code in ('f2', 'f4', 'f8')}
    content['parameter'] = Called(Named('torch._utils', '_rebuild_parameter'), tensor(values), True, None)
    content['bfloat16'] = Tensor(bfloat16, (2, 2), (1, 2))
    path = tmpdir.join('x')
    path.write_binary(torch_files.zip_bytes(content, order=order))
    found = content_of(path)
    for name in ('f2', 'f4', 'f8', 'parameter'):
        np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(found['bfloat16'], values[:4].reshape(2, 2).T)


@pytest.mark.parametrize('little', [True, False])
def test_the_older_format_is_little_endian_whatever_wrote_it(tmpdir, little):
    """PyTorch on a big-endian machine records its byte order, but swaps the bytes that it writes."""
    path = tmpdir.join('x')
    path.write_binary(torch_files.old_bytes({'a': tensor(np.float32([1, 2]))}, little=little))
    np.testing.assert_array_equal(content_of(path)['a'], [1, 2])


@pytest.mark.parametrize('write_bytes', FORMATS.values(), ids=list(FORMATS))
def test_strides_and_shared_storages(tmpdir, write_bytes):
    flat = np.arange(40, dtype=np.float32)
    shared = Storage(flat)
    path = tmpdir.join('x')
    path.write_binary(write_bytes({
        'all': Tensor(shared, (40,), (1,)), 'turned': Tensor(shared, (3, 2), (1, 3), 5),
        'each third': Tensor(shared, (13,), (3,), 1), 'last': Tensor(shared, (1, 1), (2 ** 62, 7), 39),
        'none': Tensor(shared, (0, 4), (4, 1), 40), 'scalar': Tensor(shared, (), (), 2),
    }))
    found = content_of(path)
    np.testing.assert_array_equal(found['all'], flat)
    np.testing.assert_array_equal(found['turned'], flat[5:11].reshape(2, 3).T)
    np.testing.assert_array_equal(found['each third'], flat[1::3])
    np.testing.assert_array_equal(found['last'], [[39]])
    assert found['none'].shape == (0, 4) and found['scalar'] == 2


def test_a_view_of_a_storage_in_the_older_format(tmpdir, monkeypatch):
    def persistent_id(self, obj):
        return original(self, obj)[:-1] + (('7', 2, 4),) if isinstance(obj, Storage) else None

    original = torch_files.Pickler.persistent_id
    monkeypatch.setattr(torch_files.Pickler, 'persistent_id', persistent_id)
    path = tmpdir.join('x')
    shared = Storage(np.arange(10, dtype=np.float32))
    path.write_binary(torch_files.old_bytes({'a': Tensor(shared, (3,), (1,), 1)}))
    np.testing.assert_array_equal(content_of(path)['a'], [3, 4, 5])
    path.write_binary(torch_files.old_bytes({FIRST: Tensor(shared, (4,), (1,), 1)}))
    assert_sentence(path, 'damaged', 'beyond its storage')


@pytest.mark.parametrize('write_bytes', FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize('shape, strides, offset', [
    ((2, 6), (6, 1), 0), ((11,), (1,), 0), ((10,), (1,), 1), ((2,), (9, 1), 0), ((2,), (-1,), 1), ((2,), (1,), -1),
    ((2 ** 40, 2 ** 40), (0, 0), 0), ((4, 4), (1, 1), 0), ((2.0,), (1,), 0), ((-2, -2), (1, 1), 0),
    ((1,) * 40, (0,) * 40, 0), ((2,), (2 ** 63,), 0)])
def test_a_tensor_outside_of_its_storage(tmpdir, write_bytes, shape, strides, offset):
    path = tmpdir.join('x')
    path.write_binary(write_bytes({FIRST: Tensor(Storage(np.arange(10, dtype=np.float32)), shape, strides, offset)}))
    assert_sentence(path, 'is damaged or incomplete')


@pytest.mark.parametrize('write_bytes', FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize('module, name', [
    ('posix', 'system'), ('builtins', 'eval'), ('__builtin__', 'getattr'), ('torch', 'load'), ('torch', 'nn'),
    ('torch.nn.modules.linear', 'Linear'), ('torch.storage', '_load_from_bytes'), ('collections', 'Counter'),
    ('torch._utils', '_rebuild_tensor_v3'), ('numpy.core.multiarray', 'scalar'), ('a\x1b' * 99, 'b')])
def test_other_names_are_refused(tmpdir, write_bytes, module, name):
    canary = tmpdir.join('canary')
    path = tmpdir.join('x.pth')
    path.write_binary(write_bytes({
        FIRST: tensor(np.ones((2, 3, 7, 7), np.float32)), 'x': Called(Named(module, name), 'touch %s' % canary)}))
    assert_sentence(path, quoted('%s.%s' % (module, name), 60), 'torch.save(model.state_dict()')
    assert not canary.exists()


def unicode(text):
    return b'X' + struct.pack('<I', len(text)) + text


WITH_LIST = b'\x80\x02](' + b'N' * 100000 + b'eq\x01'  # a list of many, in the memo as number 1
HOSTILE = {
    'nothing': b'', 'only a stop': b'\x80\x02.', 'no stop': b'\x80\x02}', 'two objects': b'\x80\x02}}.',
    'unknown opcode': b'\x80\x02\xff.', 'deep lists': b'\x80\x02' + b']' * 300000 + b'a' * 299999 + b'.',
    'deep tuples': b'\x80\x02)' + b'\x85' * 300000 + b'.',
    'deep key': b'\x80\x02})' + b'\x85' * 300000 + b'Ns.',
    'deep function': b'\x80\x02)' + b'\x85' * 300000 + b')R.',
    'deep type': b'\x80\x02(X\x07\0\0\0storage)' + b'\x85' * 300000 + b'X\1\0\0\0aNK\1tQ.',
    'many marks': b'\x80\x02' + b'(' * 2000000 + b'.', 'a huge text': b'\x80\x02X\xff\xff\xff\xff.',
    'a huge memo': b'\x80\x02Nr\xff\xff\xff\xff.', 'unknown memo': b'\x80\x02h\x05.',
    'a long number': b'\x80\x02\x8a\xff' + b'\x7f' * 255 + b'.', 'digits': b'\x80\x02L' + b'9' * 1000000 + b'L\n.',
    'the same hash': b'\x80\x02}(' + b''.join(
        b'\x8a\x0a' + (i * (2 ** 61 - 1)).to_bytes(10, 'little') + b'N' for i in range(50000)) + b'u.',
    'copies of a size': WITH_LIST + b'ctorch\nSize\nq\x02' + b'(' + b'h\x02h\x01\x85R' * 100000 + b't.',
    'copies of a dict': WITH_LIST + b'ccollections\nOrderedDict\nq\x02(' + b'h\x02h\x01\x85R' * 100000 + b't.',
    'copies of arguments': b'\x80\x02(' + b'N' * 100000 + b'tq\x01ccollections\nOrderedDict\nq\x02('
                           + b'h\x02h\x01R' * 100000 + b't.',
    'calling a dict': b'\x80\x02})R.', 'calling text': b'\x80\x02' + unicode(b'os.system') + unicode(b'ls') + b'\x85R.',
    'a name of two lines': b'\x80\x02cos', 'a state of nothing': b'\x80\x02Nb.', 'no end of marks': b'\x80\x02t.',
    'contains itself': b'\x80\x02}q\0' + unicode(b'state_dict') + b'h\0s.',
    'a list': b'\x80\x02].', 'broken text': b'\x80\x02X\x01\0\0\0\xff.', 'an instance': b'\x80\x02(ios\nsystem\n.',
    'an extension': b'\x80\x02\x82\x01.', 'a persistent name': b'\x80\x02Pmodule\n.',
    'a persistent list': b'\x80\x02]Q.', 'a persistent text': b'\x80\x02' + unicode(b'storag') + b'Q.',
}


@pytest.mark.parametrize('write_bytes', FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize('data', HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_pickles(tmpdir, write_bytes, data):
    path = tmpdir.join('x.pth')
    path.write_binary(write_bytes({}, pickle_bytes=data or b'\0'))
    assert_sentence(path)


def test_the_same_hash_of_small_numbers_is_no_attack(tmpdir):
    """Each number that is accepted as a key is its own hash."""
    for number in (0, 1, torch_pickle.LARGEST_KEY - 1):
        assert hash(number) == number


def test_sizes_are_checked_against_the_file(tmpdir):
    array = tensor(np.ones((2, 3, 7, 7), np.float32))
    content = torch_files.old_bytes({FIRST: array})
    path = tmpdir.join('x.pth')
    count = struct.pack('<q', 294)
    assert content.count(count) == 1
    for number in (293, 295, 2 ** 62, -1):
        path.write_binary(content.replace(count, struct.pack('<q', number)))
        assert_sentence(path, 'storage 0 does not have the size that its tensors need')
    assert content.count(b'M\x26\x01N') == 1  # the number of elements, before the view
    for data in (b'K\x01', b'J\xff\xff\xff\x7f', b'J\xff\xff\xff\xff', b'\x8a\x08' + b'\xff' * 7 + b'\x7f'):
        path.write_binary(content.replace(b'M\x26\x01N', data + b'N'))
        assert_sentence(path, 'damaged')
    for length in (len(content) - 1, len(content) - 294 * 4, len(content) - 294 * 4 - 5, 300, 60, 20, 9, 2):
        path.write_binary(content[:length])
        assert_sentence(path)
    other = Storage(np.arange(9, dtype=np.float32))
    content = torch_files.zip_bytes({FIRST: array, 'other': Tensor(other, (9,), (1,))})
    for length in (len(content) - 1, len(content) // 2, 300, 20, 3):
        path.write_binary(content[:length])
        assert_sentence(path)


def test_changed_elements_of_a_zip_are_noticed(tmpdir):
    content = torch_files.zip_bytes({FIRST: tensor(np.ones((2, 3, 7, 7), np.float32))})
    place = content.index(np.ones(9, np.float32).tobytes())
    path = tmpdir.join('x.pth')
    path.write_binary(content[:place + 400] + b'\x41' + content[place + 401:])
    assert_sentence(path, 'damaged', 'checksum')


def test_foreign_and_compressed_archives(tmpdir):
    path = tmpdir.join('x.pth')
    with zipfile.ZipFile(str(path), 'w') as archive:
        archive.writestr('word/document.xml', 'text')
    assert_sentence(path, 'a zip archive, but not one of PyTorch')
    bomb = {FIRST: tensor(np.zeros((64, 3, 299, 299), np.float32))}
    path.write_binary(torch_files.zip_bytes(bomb, compression=zipfile.ZIP_DEFLATED))
    assert os.path.getsize(str(path)) < 100000
    assert_sentence(path, 'is compressed', 'zip -0 -r')
    path.write_binary(pickle.dumps({'weights': b'bytes'}, 4))
    assert_sentence(path, "is a pickle, but not one of PyTorch's")
    for content in ({}, {'conv1.weight': tensor(np.ones(3, np.float32))}, [1, 2]):
        path.write_binary(torch_files.zip_bytes(content))
        assert_sentence(path, "without the layers of kazuto1011's DeepLab v2")


def test_wrong_networks(narrow, tmpdir):
    path = tmpdir.join('x.pth')
    theirs, _ = network_arrays()
    path.write_binary(torch_files.zip_bytes({FIRST: tensor(np.ones((2, 3, 7, 7), np.int64))}))
    assert_sentence(path, 'floating-point')
    ones = tensor(np.ones(4, np.float32))
    path.write_binary(torch_files.zip_bytes({FIRST: ones, 'base.' + FIRST: ones}))
    assert_sentence(path, 'more than one network')
    del theirs['layer3.block2.reduce.conv.weight']
    path.write_binary(torch_files.zip_bytes(state_dict(theirs)))
    with pytest.raises(UserError, match=r'1 of 520 variables are missing \(res3b1_branch2a/weights\)'):
        pretrained.open_pretrained(str(path), 'deeplab')
    path.write_binary(torch_files.old_bytes(state_dict(network_arrays('res50')[0])))
    with pytest.raises(UserError, match='the file fits --encoder_name=res50'):
        pretrained.open_pretrained(str(path), 'deeplab')
    pretrained.open_pretrained(str(path), 'res50')


@pytest.mark.parametrize('write_bytes', FORMATS.values(), ids=list(FORMATS))
def test_random_damage(narrow, tmpdir, write_bytes):
    """With bytes changed at random places, the file is read or reported in a printable message."""
    narrow({'res50': (1, 1, 1, 1)})
    path = tmpdir.join('x.pth')
    path.write_binary(write_bytes(state_dict(network_arrays('res50')[0])))
    assert damage.count_reported(path, seeds=60, stride=7, reach=8) > 5


@pytest.mark.parametrize('restore_decoder', [True, False])
def test_a_training_starts_from_it(narrow, tmp_path, restore_decoder):
    narrow({'deeplab': UNITS})
    theirs, ours = network_arrays(num_classes=6)
    (tmp_path / 'x.pth').write_bytes(torch_files.old_bytes(state_dict(theirs, 'base.')))
    code, stdout, stderr = run(*SMALL, *places(tmp_path), '--option=train', '--encoder_name=deeplab', '--compat=caffe',
                               '--num_steps=1', '--learning_rate=1e-20', '--pretrain_file=%s' % (tmp_path / 'x.pth'),
                               '--restore_decoder=%s' % str(restore_decoder).lower())
    assert code == 0, stderr
    assert 'input: --channel_order=bgr --img_mean=104.008,116.669,122.675, which these weights were made for' in stdout
    assert 'note' not in stdout and '(a PyTorch file)' in stdout
    new = tf.train.load_checkpoint(str(tmp_path / 'model' / 'model.ckpt-1'))
    name = 'res5a_branch2b/weights'
    np.testing.assert_allclose(new.get_tensor(name), ours[name], atol=1e-3)
    name = 'fc1_voc12_c2/weights'
    assert np.allclose(new.get_tensor(name), ours[name], atol=1e-3) == restore_decoder


def test_logits_of_kazuto1011s_model(tmpdir):
    """Our ResNet-101 with his state dict in the older format gives the arrays that his code computed in PyTorch."""
    with open(os.path.join(GOLDEN, 'kazuto_deeplab_names.json')) as file:
        shapes = json.load(file)
    path = write(tmpdir.join('deeplabv2_resnet101_msc.pth'), torch_files.old_bytes(
        state_dict({name: recipe.torch_value(name, shape) for name, shape in shapes.items()})))
    weights = pretrained.open_pretrained(path, 'deeplab')
    with tf.Graph().as_default(), tf.Session() as sess:
        net = network.Deeplab_v2(tf.constant(recipe.image(2, 65, 65, seed=3)), 21, False, compat='caffe')
        phrase = pretrained.restore_pretrained(sess, net.variables, weights, 'deeplab', restore_decoder=True)
        outputs, encoding = sess.run([net.outputs, net.encoding])
    tmpdir.remove()
    assert 'restored 520 encoder and 8 decoder variables' in phrase and 'keep' not in phrase
    reference = np.load(os.path.join(GOLDEN, 'kazuto_deeplab_2x65x65.npz'))
    assert recipe.relative_error(outputs, reference['logits']) <= 1e-5
    assert recipe.relative_error(encoding[..., ::16], reference['encoding']) <= 1e-5


@pytest.mark.parametrize('zipped', [True, False])
def test_files_that_pytorch_wrote(narrow, tmpdir, zipped):
    torch = pytest.importorskip('torch')
    theirs, ours = network_arrays()
    saved = {name: torch.from_numpy(np.array(array)) for name, array in theirs.items()}
    saved[FIRST] = saved[FIRST].contiguous(memory_format=torch.channels_last)
    flat = torch.cat([saved['aspp.c0.bias'], saved['aspp.c1.bias']])
    saved['aspp.c0.bias'], saved['aspp.c1.bias'] = flat[:3], torch.nn.Parameter(flat[3:])
    for name, kind in (('aspp.c2.bias', torch.bfloat16), ('aspp.c3.bias', torch.float16)):
        saved[name] = saved[name].to(kind)
        ours['fc1_voc12_c%s/biases' % name[6]] = saved[name].float().numpy()
    path = str(tmpdir.join('x.pth'))
    torch.save({'state_dict': saved, 'epoch': 1}, path, _use_new_zipfile_serialization=zipped)
    assert_read(path, ours)
