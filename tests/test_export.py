"""Tests exported models: in a fresh process without this repo, they give predict's masks; they are whole or absent."""

import base64
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from absl import flags as absl_flags
from narrow_main import UNITS
from PIL import Image

from model import Model
from model_msc import Model_msc
from utils.data import image_files
from utils.prediction import engines, export
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
    return model.get_signature_runner()(images=images)''',
    'onnx': '''
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + '/model.onnx', providers=['CPUExecutionProvider'])
run = lambda images: dict(zip([o.name for o in session.get_outputs()], session.run(None, {'images': images})))'''}
LOADERS['eager encoded'] = LOADERS['eager'].replace('serving_default', 'encoded').replace('images=', 'encoded=')
LOADERS['session encoded'] = LOADERS['session'].replace('serving_default', 'encoded').replace("'images'", "'encoded'")
# Saves the outputs for each file of images in argv[2:] beside the file.
KEEPING = '''
for path in sys.argv[2:]:
    np.savez(path + '.npz', **run(np.load(path, allow_pickle=True)))'''


@pytest.fixture
def trained(tmp_path, settings, narrow):
    """Returns a function that trains a narrow ResNet-50 briefly with changed flags, and returns all flags."""
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
    """Returns the paths of the first images in the sample's validation list."""
    with open(os.path.join(SAMPLE, 'val.txt')) as file:
        return [os.path.join(SAMPLE, line.split()[0].lstrip('/')) for line in file][:3]


def fresh(code, *args, **settings):
    """Runs code in a fresh process that cannot import this repo, by default with this Python; returns its output."""
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    python = settings.pop('python', None) or sys.executable
    done = subprocess.run([python, '-c', code] + list(args), env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(loader, conf, images, folder, python=None):
    """Returns an exported model's outputs, a {name: array} for each batch, uint8 [N, H, W, 3] or files' bytes [N]."""
    paths = [str(folder / ('%d.npy' % index)) for index in range(len(images))]
    for path, image in zip(paths, images):
        np.save(path, image)
    fresh('import sys, numpy as np' + LOADERS[loader] + KEEPING, conf.export_dir, *paths, cwd=str(folder),
          python=python)
    outputs = []
    for path in paths:
        with np.load(path + '.npz') as found:
            outputs.append(dict(found))
    return outputs


def predicted(conf, kind='prediction', suffix='_mask.png'):
    """Returns the masks that predict writes for `photos`, in their order."""
    return [np.asarray(Image.open(os.path.join(
        conf.out_dir, kind, os.path.splitext(os.path.basename(path))[0] + suffix))) for path in photos()]


def decoded():
    """Returns `photos` as predict reads them, each uint8 [1, H, W, 3]."""
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


@pytest.mark.parametrize('model_class, flags', [
    (Model, {}), (Model, {'compat': 'caffe', 'dilated_type': 'smooth_GI', 'decoder': 'aspp_pooling'}),
    (Model, {'dilated_type': 'smooth_SSC', 'image_range': [0.0, 300.0]}), (Model_msc, {'dilated_type': 'decompose'}),
], ids=['plain', 'caffe', 'range', 'msc'])
def test_onnx_runtime_computes_the_same_at_three_sizes(trained, tmp_path, capsys, model_class, flags):
    onnx_is_installed()
    conf = trained(model_class, onnx=True, **flags)
    model_class(conf).export()
    rng = np.random.RandomState(0)
    images = [rng.randint(0, 256, size + (3,)).astype(np.float32 if 'image_range' in flags else np.uint8)
              for size in ((1, 97, 129), (2, 50, 41), (1, 33, 70))]
    for saved, converted in zip(*(loaded(loader, conf, images, tmp_path) for loader in ('session', 'onnx'))):
        assert {name: value.dtype for name, value in saved.items()} == {
            name: value.dtype for name, value in converted.items()}
        assert len(np.unique(saved['classes'])) > 1
        np.testing.assert_array_equal(converted['classes'], saved['classes'])
        np.testing.assert_array_equal(converted['colours'], saved['colours'])
        np.testing.assert_allclose(converted['softmax'], saved['softmax'], atol=1e-5)
    assert '--onnx: the classes equal those of the SavedModel in 100.00 %' in capsys.readouterr().out


def onnx_is_installed():
    """Skips the test unless tf2onnx and ONNX Runtime are installed."""
    for name in ('tf2onnx', 'onnx', 'onnxruntime'):
        pytest.importorskip(name, reason='%s is not installed: pip install -r requirements-onnx.txt' % name)


def test_a_model_that_onnx_runtime_refuses_is_not_kept(trained, tmp_path, monkeypatch):
    onnx_is_installed()
    conf = trained(onnx=True)
    monkeypatch.setattr(engines, 'pad_explicitly', lambda node: None)
    with pytest.raises(UserError, match='ONNX: this network cannot be converted .*Conv.*leave --onnx out'):
        Model(conf).export()
    assert not [name for name in os.listdir(str(tmp_path)) if name.startswith('export_dir')]


def test_onnx_with_packages_that_do_not_fit_together(trained, monkeypatch):
    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == 'onnx':
                raise AttributeError("module 'numpy' has no attribute 'cast'")

    for name in [name for name in sys.modules if name.split('.')[0] == 'onnx']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'meta_path', [Broken] + sys.meta_path)
    with pytest.raises(UserError, match="'cast'.*requirements-onnx" if NEWER else '--onnx needs TensorFlow 2'):
        Model(trained(onnx=True, test_step=77)).export()


def test_onnx_without_its_packages(trained, monkeypatch):
    conf = trained(onnx=True, test_step=77)
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(UserError, match='requirements-onnx.txt' if NEWER else '--onnx needs TensorFlow 2'):
        Model(conf).export()


@pytest.mark.parametrize('name, change, tolerance, match', [
    ('classes', lambda classes: classes, 1e-4, None),
    ('classes', lambda classes: classes - np.eye(3, 4, dtype=np.uint8), 1e-4, 'classes .3 of 12 pixels'),
    ('classes', lambda classes: classes - np.eye(3, 4, dtype=np.uint8), 0.4, None),  # so much may change a class
    ('classes', lambda classes: classes - np.eye(3, 4, dtype=np.uint8), None, None),
    ('classes', lambda classes: 1 - classes, None, 'classes .12 of 12 pixels'),
    ('softmax', lambda softmax: softmax + 0.01, 1e-4, 'probabilities .by up to 0.01'),
    ('softmax', lambda softmax: softmax * np.nan, 1e-4, 'probabilities .by up to nan'),
    ('colours', lambda colours: colours + np.eye(3, dtype=np.uint8)[0], None, '0 of 12 pixels., colours'),
    ('classes', lambda classes: classes[:, :1], 1e-4, 'other shapes'),
])
def test_a_converted_model_with_other_outputs_is_refused(name, change, tolerance, match):
    batch = np.ones([1, 3, 4, 3], np.uint8)
    with tf.Graph().as_default() as graph, tf.Session() as sess:
        images = tf.placeholder(tf.uint8, [None, None, None, 3], 'images')
        softmax = tf.add(tf.cast(images[..., :2], tf.float32) * 0, [0.2, 0.8], 'softmax')
        tf.cast(tf.argmax(softmax, axis=3), tf.uint8, 'classes')
        tf.identity(images, 'colours')
        output = sess.run({name: name + ':0' for name in engines.OUTPUTS}, {images: batch})
    output[name] = change(output[name])
    if match:
        with pytest.raises(UserError, match='--onnx: .*' + match):
            engines.compare('onnx', graph, [batch], [output], tolerance)
    else:
        engines.compare('onnx', graph, [batch], [output], tolerance)


@pytest.mark.skipif(not NEWER, reason="--tflite needs TensorFlow 2's converter")
@pytest.mark.parametrize('flags', [{}, {'compat': 'caffe', 'dilated_type': 'smooth_SSC', 'decoder': 'aspp_pooling'}])
def test_tensorflow_lite_gets_the_masks_of_predict(trained, tmp_path, flags):
    conf = trained(tflite='float32', **flags)
    Model(conf).predict()
    Model(conf).export()
    for outputs, mask in zip(loaded('tflite', conf, decoded(), tmp_path), predicted(conf)):
        np.testing.assert_array_equal(outputs['classes'][0], mask)


@pytest.mark.skipif(not NEWER, reason="--tflite needs TensorFlow 2's converter")
def test_tensorflow_lite_in_16_and_8_bits(trained, tmp_path, capfd):
    conf = trained(learning_rate=1e-2, num_steps=20)
    Model(conf).predict()
    sizes = []
    for kind, least, softmax in (('float16', 0.99, np.float32), ('int8', 0.8, np.uint8)):
        conf.tflite = kind
        Model(conf).export()
        sizes.append(os.path.getsize(os.path.join(conf.export_dir, 'model.tflite')))
        outputs = loaded('tflite', conf, decoded(), tmp_path)
        assert {name: value.dtype for name, value in outputs[0].items()} == {
            'classes': np.uint8, 'colours': np.uint8, 'softmax': softmax}
        for output, mask in zip(outputs, predicted(conf)):
            assert (output['classes'][0] == mask).mean() > least
            if kind == 'int8':
                assert abs(output['softmax'].sum(axis=3, dtype=int) - 256).max() <= 6
    assert sizes[1] < sizes[0]
    printed = capfd.readouterr()
    assert 'int8: calibration with 32 of the' in printed.out and 'calibrate: 100%' in printed.err
    assert set(os.listdir(conf.export_dir)) <= export.MOST  # no image is left
    assert not [name for name in os.listdir(str(tmp_path)) if name.endswith('.tmp')]


@pytest.mark.skipif(not NEWER, reason="--tflite needs TensorFlow 2's converter")
def test_int8_of_values_of_the_files(trained, tmp_path):
    conf = trained(tflite='int8', image_range=[0.0, 300.0])
    Model(conf).predict()
    Model(conf).export()
    images = [image.astype(np.float32) for image in decoded()]
    for output, mask in zip(loaded('tflite', conf, images, tmp_path), predicted(conf)):
        assert (output['classes'][0] == mask).mean() > 0.8


@pytest.mark.skipif(not NEWER, reason="--tflite needs TensorFlow 2's converter")
def test_images_for_int8_that_cannot_be_read(trained, tmp_path):
    conf = trained(tflite='int8')
    damaged = tmp_path / 'damaged.jpg'
    damaged.write_bytes(b'\xff\xd8nothing')
    (tmp_path / 'list.txt').write_text('%s %s\n' % (damaged, damaged))
    for data_list, match in (('none.txt', 'none.txt'), (str(tmp_path / 'list.txt'), 'damaged.jpg')):
        conf.data_list = data_list
        with pytest.raises(UserError, match=match):
            Model(conf).export()
        assert not os.path.exists(conf.export_dir)


@pytest.mark.skipif(NEWER, reason='TensorFlow 2 has the converter')
@pytest.mark.parametrize('flags', [{'tflite': 'float32'}, {'onnx': True}])
def test_conversions_are_refused_before_the_work(trained, flags):
    conf = trained(**flags)
    with pytest.raises(UserError, match='--%s needs TensorFlow 2' % list(flags)[0]):
        Model(conf).export()
    assert not os.path.exists(conf.export_dir)


@pytest.mark.parametrize('loader', ['eager', 'session'])
def test_files_give_the_masks_of_predict(trained, tmp_path, loader):
    conf = trained(export_dir=str(tmp_path / 'serving' / 'deeplab' / '1'))
    Model(conf).predict()
    Model(conf).export()
    files = []
    for path in photos():
        with open(path, 'rb') as file:
            files.append(np.array([file.read()], object))
    for index, image in enumerate(decoded()):  # as PNGs of several kinds
        Image.fromarray(image[0]).convert(('RGBA', 'L', 'P')[index]).save(str(tmp_path / ('%d.png' % index)))
        files.append(np.array([(tmp_path / ('%d.png' % index)).read_bytes()] * 2, object))
    pixels = decoded() + [image_files.load_image(str(tmp_path / ('%d.png' % index)))[None] for index in range(3)]
    by_file = loaded(loader + ' encoded', conf, files, tmp_path)
    by_pixels = loaded(loader, conf, pixels, tmp_path)
    for index, (one, other) in enumerate(zip(by_file, by_pixels)):
        assert list(one) == ['classes'] and len(one['classes']) == (1 if index < 3 else 2)
        for classes in one['classes']:
            np.testing.assert_array_equal(classes, other['classes'][0])
    for one, mask in zip(by_file, predicted(conf)):
        np.testing.assert_array_equal(one['classes'][0], mask)
    assert sorted(os.listdir(str(tmp_path / 'serving'))) == ['deeplab']
    assert os.listdir(str(tmp_path / 'serving' / 'deeplab')) == ['1']


def test_the_request_in_docs(trained, tmp_path):
    """Sends the request to a small server that answers like TensorFlow Serving's REST interface."""
    with open(os.path.join(ROOT, 'docs', 'export.md'), encoding='utf-8') as file:
        section = file.read().split('## TensorFlow Serving\n')[1].split('\n## ')[0]
    client = re.search(r'```python\n(.*?)```', section, re.S).group(1)
    conf = trained(test_num_steps=1, export_dir=str(tmp_path / 'serving' / 'deeplab' / '1'))
    Model(conf).predict()
    Model(conf).export()
    sess = tf.Session(graph=tf.Graph())
    signatures = tf.saved_model.loader.load(sess, ['serve'], conf.export_dir).signature_def

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers['Content-Length'])).decode())
            signature = signatures[request['signature_name']]
            (key, data), = signature.inputs.items()
            (name, classes), = signature.outputs.items()
            files = [base64.b64decode(instance['b64']) for instance in request['instances']]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({'predictions': sess.run(classes.name, {data.name: files}).tolist()}).encode())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(('localhost', 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    with open(photos()[0], 'rb') as file:
        (tmp_path / 'photo.jpg').write_bytes(file.read())
    assert 'localhost:8501/' in client
    printed = fresh(client.replace('localhost:8501/', 'localhost:%d/' % server.server_port) + 'print(json.dumps(mask))',
                    cwd=str(tmp_path))
    thread.join()
    server.server_close()
    name = os.path.splitext(os.path.basename(photos()[0]))[0] + '_mask.png'
    np.testing.assert_array_equal(
        json.loads(printed), np.asarray(Image.open(os.path.join(conf.out_dir, 'prediction', name))))


def test_no_signature_for_files_whose_values_change(trained, tmp_path, capsys):
    conf = trained(image_bands=[3, 2, 1])
    Model(conf).export()
    assert 'has no signature `encoded`' in capsys.readouterr().out
    with tf.Session(graph=tf.Graph()) as sess:
        assert list(tf.saved_model.loader.load(sess, ['serve'], conf.export_dir).signature_def) == ['serving_default']


@pytest.mark.skipif(not NEWER, reason='the older version itself')
@pytest.mark.parametrize('model_class, flags', [
    (Model, {}), (Model, {'compat': 'caffe', 'dilated_type': 'smooth_GI', 'decoder': 'aspp_pooling'}),
    (Model, {'dilated_type': 'smooth_SSC', 'image_range': [0.0, 300.0]}), (Model_msc, {'dilated_type': 'decompose'}),
], ids=['plain', 'caffe', 'range', 'msc'])
def test_an_older_version_runs_a_newer_export(trained, tmp_path, model_class, flags):
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    older = os.path.join(cache, 'deeplab-v2-ci', 'tensorflow1', 'bin', 'python')
    if not os.path.exists(older):
        pytest.skip('%s, with TensorFlow 1.15.5, is not there: .ci/run makes it' % older)
    conf = trained(model_class, frozen=True, **flags)
    model_class(conf).export()
    images = [image.astype(np.float32 if 'image_range' in flags else np.uint8) for image in decoded()[:2]]
    expected = loaded('session', conf, images, tmp_path)
    for loader in ('frozen', 'session'):
        for one, other in zip(expected, loaded(loader, conf, images, tmp_path, older)):
            np.testing.assert_array_equal(other['classes'], one['classes'])
            np.testing.assert_allclose(other['softmax'], one['softmax'], atol=1e-5)


def test_tflite_alone_means_float32(settings):
    flag = absl_flags.FLAGS['tflite']
    parser = flag.parser
    assert flag.boolean  # so that --tflite takes no value from the next word
    assert [parser.parse(word) for word in ('true', 'false', 'int8')] == ['float32', None, 'int8']
    with pytest.raises(ValueError, match='float16'):
        parser.parse('int4')


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
    with pytest.raises(UserError, match='contains notes.txt.*another folder'):
        Model(conf).export()
    assert read(conf) == dict(kept, **{'notes.txt': b'mine'})
    assert [name for name in os.listdir(str(tmp_path)) if name.startswith('export_dir')] == ['export_dir']


def broken(*args):
    raise OSError(None, 'broken')


def read(conf):
    """Returns {name: content} of the files in export_dir."""
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
            ('other', lambda path: os.makedirs(os.path.join(path, 'variables')), 'contains no classes.json')]:
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
