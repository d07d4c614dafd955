"""Exported models: loaded by plain TensorFlow in a fresh process they give predict's masks; whole or absent."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from narrow_main import UNITS
from PIL import Image

from model import Model
from model_msc import Model_msc
from utils.data import image_files
from utils.prediction import export
from utils.system import output_files
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')
NEWER = not tf.__version__.startswith('1.')
STEPS = 2

# Each defines run(images), the outputs {name: array} of the exported model in the folder argv[1].
LOADERS = {
    'eager': '''
import tensorflow.compat.v2 as tf
tf.enable_v2_behavior()
model = tf.saved_model.load(sys.argv[1])
run = lambda images: {key: value.numpy() for key, value in model.signatures['serving_default'](
    images=tf.constant(images)).items()}''',
    'session': '''
import tensorflow.compat.v1 as tf
sess = tf.Session(graph=tf.Graph())
signature = tf.saved_model.loader.load(sess, ['serve'], sys.argv[1]).signature_def['serving_default']
names = {key: info.name for key, info in signature.outputs.items()}
run = lambda images: sess.run(names, {signature.inputs['images'].name: images})''',
    'frozen': '''
import tensorflow.compat.v1 as tf
graph_def = tf.GraphDef()
with open(sys.argv[1] + '/frozen.pb', 'rb') as file:
    graph_def.ParseFromString(file.read())
sess = tf.Session(graph=tf.Graph())
with sess.graph.as_default():
    tf.import_graph_def(graph_def, name='')
run = lambda images: sess.run({key: key + ':0' for key in ('classes', 'softmax', 'colours')}, {'images:0': images})''',
    'tflite': '''
import tensorflow as tf
model = tf.lite.Interpreter(sys.argv[1] + '/model.tflite')
def run(images):
    return model.get_signature_runner()(images=images)'''}
# Keeps the outputs for the files argv[2:] of images, each beside its file.
KEEPING = '''
for path in sys.argv[2:]:
    np.savez(path + '.npz', **run(np.load(path)))'''


@pytest.fixture
def trained(tmp_path, settings, narrow):
    """A function from changed flags to the flags after a short training with them of a narrow ResNet-50."""
    narrow({'res50': UNITS})

    def make(model_class=Model, **changed):
        values = {flag: os.path.join(SAMPLE, listed) for flag, listed in (
            ('data_list', 'train.txt'), ('test_data_list', 'val.txt'))}
        values.update({flag: str(tmp_path / flag) for flag in ('modeldir', 'logdir', 'logfile', 'out_dir',
                                                               'export_dir')})
        values.update(data_dir=SAMPLE, num_classes=6, encoder_name='res50', input_height=33, input_width=33,
                      palette=os.path.join(SAMPLE, 'classes.txt'), batch_size=2, num_steps=STEPS, save_interval=1,
                      check_labels=False, learning_rate=1e-3, test_num_steps=3, num_threads=1)
        values.update(changed)
        conf = settings(**values)
        model_class(conf).train()
        return conf

    return make


def photos():
    """Paths of the first images of the sample's validation list."""
    with open(os.path.join(SAMPLE, 'val.txt')) as file:
        return [os.path.join(SAMPLE, line.split()[0].lstrip('/')) for line in file][:3]


def fresh(code, *args, **settings):
    """Runs Python code in a fresh process that does not find this repo; returns what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-c', code] + list(args), env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(loader, conf, images, folder):
    """An exported model's outputs, {name: array} each, for some images uint8 [N, H, W, 3]."""
    paths = [str(folder / ('%d.npy' % index)) for index in range(len(images))]
    for path, image in zip(paths, images):
        np.save(path, image)
    fresh('import sys, numpy as np' + LOADERS[loader] + KEEPING, conf.export_dir, *paths, cwd=str(folder))
    outputs = []
    for path in paths:
        with np.load(path + '.npz') as found:
            outputs.append(dict(found))
    return outputs


def predicted(conf, kind='prediction', suffix='_mask.png'):
    """predict's masks of `photos`, in their order."""
    return [np.asarray(Image.open(os.path.join(
        conf.out_dir, kind, os.path.splitext(os.path.basename(path))[0] + suffix))) for path in photos()]


def decoded():
    """`photos` as predict reads them, each uint8 [1, H, W, 3]."""
    return [image_files.load_image(path)[np.newaxis] for path in photos()]


@pytest.mark.parametrize('model_class, flags, loaders', [
    (Model, {}, ['eager', 'session', 'frozen']),
    (Model, {'compat': 'caffe', 'dilated_type': 'smooth_GI'}, ['eager']),
    (Model, {'channel_order': 'rgb', 'img_mean': ['1', '2', '3.5'], 'dilated_type': 'smooth_SSC'}, ['eager']),
    (Model_msc, {'dilated_type': 'decompose'}, ['session']),
    (Model_msc, {'decoder': 'aspp_pooling'}, ['eager']),
], ids=['plain', 'caffe', 'rgb', 'msc', 'image pooling'])
def test_a_fresh_process_gets_the_masks_of_predict(trained, tmp_path, model_class, flags, loaders):
    conf = trained(model_class, frozen=True, **flags)
    model_class(conf).predict()
    model_class(conf).export()
    masks, colours = predicted(conf), predicted(conf, 'visual_prediction', '_mask_visual.png')
    assert len({mask.tobytes() for mask in masks}) == 3 and any(len(np.unique(mask)) > 1 for mask in masks)
    for loader in loaders:
        for outputs, mask, colour in zip(loaded(loader, conf, decoded(), tmp_path), masks, colours):
            assert {name: value.dtype for name, value in outputs.items()} == {
                'classes': np.uint8, 'softmax': np.float32, 'colours': np.uint8}
            np.testing.assert_array_equal(outputs['classes'][0], mask)
            np.testing.assert_array_equal(outputs['colours'][0], colour)
            np.testing.assert_allclose(outputs['softmax'].sum(3), 1, rtol=1e-5)
            np.testing.assert_array_equal(outputs['softmax'].argmax(3), outputs['classes'])


def test_images_of_any_number_and_size(trained, tmp_path):
    conf = trained(compat='caffe')
    Model(conf).export()
    images = np.random.RandomState(0).randint(0, 256, [2, 50, 41, 3]).astype(np.uint8)
    both, first, second = loaded('session', conf, [images, images[:1], images[1:]], tmp_path)
    assert both['classes'].shape == (2, 50, 41) and both['softmax'].shape == (2, 50, 41, 6)
    for index, one in enumerate([first, second]):
        np.testing.assert_allclose(one['softmax'][0], both['softmax'][index], atol=1e-5)


@pytest.mark.skipif(not NEWER, reason="--tflite needs TensorFlow 2's converter")
@pytest.mark.parametrize('flags', [{}, {'compat': 'caffe', 'dilated_type': 'smooth_SSC', 'decoder': 'aspp_pooling'}])
def test_tensorflow_lite_gets_the_masks_of_predict(trained, tmp_path, flags):
    conf = trained(tflite='float32', **flags)
    Model(conf).predict()
    Model(conf).export()
    for outputs, mask in zip(loaded('tflite', conf, decoded(), tmp_path), predicted(conf)):
        np.testing.assert_array_equal(outputs['classes'][0], mask)


@pytest.mark.skipif(NEWER, reason='TensorFlow 2 has the converter')
def test_tensorflow_lite_is_refused_before_the_work(trained):
    conf = trained(tflite='float32')
    with pytest.raises(UserError, match='--tflite needs TensorFlow 2'):
        Model(conf).export()
    assert not os.path.exists(conf.export_dir)


def test_the_client_in_docs(trained, tmp_path):
    with open(os.path.join(ROOT, 'docs', 'export.md'), encoding='utf-8') as file:
        section = file.read().split('## Use it in Python\n')[1].split('\n## ')[0]
    client = re.search(r'```python\n(.*?)```', section, re.S).group(1)
    assert len([line for line in client.splitlines() if line.strip()]) <= 12
    conf = trained(test_num_steps=1, export_dir=str(tmp_path / 'export'))
    Model(conf).predict()
    Model(conf).export()
    with open(photos()[0], 'rb') as file:
        (tmp_path / 'photo.jpg').write_bytes(file.read())
    if not NEWER:  # where TensorFlow 2's interface has another name
        client = client.replace('import tensorflow as tf', 'import tensorflow.compat.v2 as tf\ntf.enable_v2_behavior()')
    mask = np.asarray(Image.open(os.path.join(conf.out_dir, 'visual_prediction', os.path.splitext(
        os.path.basename(photos()[0]))[0] + '_mask_visual.png')))
    printed = fresh(client, cwd=str(tmp_path))
    np.testing.assert_array_equal(np.asarray(Image.open(str(tmp_path / 'mask.png'))), mask)
    with open(os.path.join(conf.export_dir, 'classes.json')) as file:
        classes = json.load(file)['classes']
    colours = [tuple(one['colour']) for one in classes]
    seen = {classes[colours.index(colour)]['name'] for colour in map(tuple, mask.reshape(-1, 3).tolist())}
    assert seen and all(name in printed for name in seen)


def test_classes_json_has_the_names_and_colours(trained):
    conf = trained()
    Model(conf).export()
    with open(os.path.join(conf.export_dir, 'classes.json')) as file:
        told = json.load(file)
    assert told['checkpoint'].endswith('model.ckpt-%d' % STEPS) and len(told['classes']) == 6
    with open(os.path.join(SAMPLE, 'classes.txt')) as file:
        lines = [line.split() for line in file if line.strip() and not line.startswith('#')][:6]
    assert [[one['name']] + ['%d' % value for value in one['colour']] for one in told['classes']] == lines


def test_an_export_replaces_an_earlier_one_and_nothing_else(trained, tmp_path, monkeypatch):
    conf = trained()
    os.makedirs(conf.export_dir)
    Model(conf).export()  # an empty folder is no obstacle
    first = read(conf)
    conf.test_step = 0
    Model(conf).export()
    assert read(conf) != first and 'model.ckpt-0' in json.dumps(json.loads(read(conf)['classes.json'].decode()))
    kept = read(conf)
    with monkeypatch.context() as patch:
        patch.setattr(output_files, 'save_json', broken)
        with pytest.raises(UserError, match='broken'):
            Model(conf).export()
    with monkeypatch.context() as patch:
        rename = os.rename
        patch.setattr(os, 'rename', lambda old, new: broken() if old.endswith('.tmp') else rename(old, new))
        with pytest.raises(UserError, match='--export_dir'):
            Model(conf).export()
    assert read(conf) == kept
    with open(os.path.join(conf.export_dir, 'notes.txt'), 'w') as file:
        file.write('mine')
    with pytest.raises(UserError, match='holds notes.txt.*another folder'):
        Model(conf).export()
    assert read(conf) == dict(kept, **{'notes.txt': b'mine'})
    assert [name for name in os.listdir(str(tmp_path)) if name.startswith('export_dir')] == ['export_dir']


def broken(*args):
    raise OSError(None, 'broken')


def read(conf):
    """{name: content} of the files in export_dir."""
    found = {}
    for name in os.listdir(conf.export_dir):
        path = os.path.join(conf.export_dir, name)
        if os.path.isfile(path):
            with open(path, 'rb') as file:
                found[name] = file.read()
    return found


def test_a_folder_that_is_not_ours_is_refused_before_the_work(trained, tmp_path):
    conf = trained()
    for name, make, match in [
            ('file', lambda path: open(path, 'w').close(), 'is a file'),
            ('link', lambda path: os.symlink(str(tmp_path), path), 'is a symbolic link'),
            ('other', lambda path: os.makedirs(os.path.join(path, 'variables')), 'holds no classes.json')]:
        conf.export_dir, conf.test_step = str(tmp_path / name), 77
        make(conf.export_dir)
        with pytest.raises(UserError, match=match):  # and not of the step
            Model(conf).export()
    conf.export_dir = str(tmp_path / 'new')
    with pytest.raises(UserError, match='no complete checkpoint of step 77: set --test_step'):
        Model(conf).export()
    conf.modeldir = str(tmp_path / 'none')
    with pytest.raises(UserError, match='train first'):
        Model(conf).export()
    assert not os.path.exists(conf.export_dir)


def test_a_full_disk_leaves_nothing(trained, tmp_path, full_disk):
    conf = trained()
    before = sorted(os.listdir(str(tmp_path)))
    with full_disk(20000), pytest.raises(UserError, match='--export_dir'):
        Model(conf).export()
    assert sorted(os.listdir(str(tmp_path))) == before


def test_constants_compute_what_the_variables_do():
    with tf.Graph().as_default(), tf.Session() as sess:
        x = tf.placeholder(tf.float32, [2], 'x')
        shared = tf.get_variable('shared', initializer=[2.0, 3.0], use_resource=True)
        unused = tf.get_variable('unused', initializer=[0.0], use_resource=True)
        y = tf.add(x * shared, shared.read_value(), 'y')
        sess.run([shared.initializer, unused.initializer])
        graph = export.constant_graph(sess, [y])
    assert {op.type for op in graph.get_operations()}.isdisjoint(export.VARIABLE_OPS)
    assert [op.name for op in graph.get_operations() if op.type == 'Const'] == ['shared']
    with tf.Session(graph=graph) as sess:
        np.testing.assert_array_equal(sess.run('y:0', {'x:0': [1, 10]}), [4, 33])


def test_names_of_classes_without_names(settings):
    assert export.class_table(Model(settings(num_classes=3)).classes)[2] == {'name': 'class 2', 'colour': [0, 128, 0]}
