"""Runs every command of README, CONTRIBUTING and docs/ unchanged in a copy of the repo; see doc_python.py.

A page's blocks run in order with bash, in one folder. Comments in the page's source, which readers do not see, state
the needs of the next block:

    <!-- test: stand-in: photo, camvid -->            files or weights to create first, see STAND_INS
    <!-- test: skip: REASON -->                       the block is not run
    <!-- test: skip WORD: REASON -->                  its commands with this word are not run
    <!-- test: skip WORD if CONDITION: REASON -->     the same, but only if a condition of CONDITIONS holds
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import h5py
import numpy as np
import pytest
import recipe
import tensorflow.compat.v1 as tf
from doc_python import IMAGENET, LOG
from machine import free_ports
from narrow_main import UNITS
from PIL import Image
from test_convert_annotations import SQUARE, coco, labelme, shape
from test_convert_cityscapes import add, add_image
from test_convert_voc import make_sbd, make_voc
from test_keras_weights import write_legacy
from test_readme import PAGES, ROOT, prose, read  # all pages except changing_it.md, see test_changing_it.py
from test_torch_weights import network_arrays, state_dict
from torch_files import zip_bytes

PRODUCT = ['main.py', 'main_msc.py', 'model.py', 'model_msc.py', 'network.py', 'plot_training_curve.py',
           'convert_voc.py', 'convert_cityscapes.py', 'convert_annotations.py']
FENCE = re.compile(r'(?ms)^( *)```(\w*)\n(.*?)^ *```$')
MARK = re.compile(r'<!-- test: (.*?) -->')
SKIP = re.compile(r'skip(?: (?P<word>\S+?))?(?: if (?P<condition>[\w ]+))?: (?P<reason>.+)')
CONDITIONS = {
    'TensorFlow 1': tf.__version__.startswith('1.'),
    'pydensecrf is missing': importlib.util.find_spec('pydensecrf') is None,
    'tf2onnx is missing': importlib.util.find_spec('tf2onnx') is None,
}
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')
TIMEOUT = 300  # seconds per block


class Block:
    """A block of commands or Python, with its page, its line and the contents of its marks."""

    def __init__(self, page, line, language, text, marks):
        self.name, self.language, self.text = '%s:%d' % (page, line), language, text
        self.stand_ins, self.skips = [], []  # names; (word or None, reason) of the conditions that hold
        for mark in marks:
            if mark.startswith('stand-in: '):
                self.stand_ins += mark[len('stand-in: '):].split(', ')
                continue
            skip = SKIP.fullmatch(mark)
            assert skip, '%s: <!-- test: %s --> is no mark' % (self.name, mark)
            word, condition, reason = skip.groups()
            assert word is None or word in text, '%s: no command has the word %s' % (self.name, word)
            if condition is None or CONDITIONS[condition]:
                self.skips.append((word, reason))


def blocks(page):
    """Returns the Blocks of a page's source."""
    text, found, end = read(page), [], 0
    for fence in FENCE.finditer(text):
        marks = MARK.findall(text[end:fence.start()])
        end = fence.end()
        assert fence.group(2) in ('bash', 'python', 'mermaid', ''), '%s: a block of %s' % (page, fence.group(2))
        if fence.group(2) in ('bash', 'python'):
            found.append(Block(page, text[:fence.start()].count('\n') + 1, fence.group(2),
                               textwrap.dedent(fence.group(3)), marks))
        else:
            assert not marks, '%s: marks before a block that is not run: %s' % (page, marks)
    assert not MARK.findall(text[end:]), '%s: marks after the last block' % page
    return found


# ---- stand-ins ----

def photo(folder, *names):
    for name in names or ['photo.jpg']:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.open(os.path.join(SAMPLE, 'JPEGImages', 'still_life_000.jpg')).save(str(folder / name))


def camvid(folder):
    """Creates images, labels, lists and camvid.flags, as in own_data.md."""
    shutil.copytree(SAMPLE, str(folder / 'camvid'))
    for path in (folder / 'camvid' / 'SegmentationClassAug').iterdir():
        label = np.asarray(Image.open(str(path)))
        Image.fromarray(np.where(label == 255, 11, label)).save(str(path))  # camvid.flags has --ignore_label=11
    for name in ('train.txt', 'val.txt'):
        lines = (folder / 'camvid' / name).read_text().splitlines(True)
        (folder / 'camvid' / name).write_text(''.join(lines[:4]))
    text = read('docs/own_data.md')
    (folder / 'camvid.flags').write_text(re.search(r'(?s)```\n(--data_dir=camvid\n.*?)```', text).group(1))


def annotations(folder):
    photo(folder, 'photos/a.jpg', 'photos/b.jpg', 'images/a.jpg')
    for name in 'ab':
        (folder / 'photos' / (name + '.json')).write_text(json.dumps(labelme(
            name + '.jpg', shape('tree', SQUARE), imageHeight=112, imageWidth=160)))
    (folder / 'instances.json').write_text(json.dumps(coco(
        {'category_id': 9, 'segmentation': [sum(SQUARE, [])], 'iscrowd': 0, 'area': 400},
        images=[{'id': 1, 'file_name': 'a.jpg', 'height': 112, 'width': 160}])))


def cityscapes(folder):
    root = folder / 'cityscapes'
    add(root, 'gtFine', 'train', 'aachen_000000_000019', 'aachen_000001_000019')
    add(root, 'gtFine', 'val', 'bochum_000000_000019')
    add_image(root, 'test', 'berlin_000000_000019')


def drsleep(folder, name='deeplab_resnet_init.ckpt'):
    """Creates a checkpoint in one file, as early versions of TensorFlow wrote them."""
    arrays = {key: recipe.value(key, array.shape) for key, array in network_arrays(num_classes=21)[1].items()}
    with tf.Graph().as_default(), tf.Session() as sess:
        variables = [tf.get_variable(key, initializer=array, use_resource=False) for key, array in arrays.items()]
        sess.run(tf.global_variables_initializer())
        tf.train.Saver(variables, write_version=tf.train.SaverDef.V1).save(sess, str(folder / name), write_state=False)


def kazuto1011(folder):
    arrays = {key: recipe.torch_value(key, array.shape) for key, array in network_arrays(num_classes=21)[0].items()}
    (folder / 'deeplabv2_resnet101_msc-vocaug-20000.pth').write_bytes(zip_bytes(state_dict(arrays, 'base.')))


def imagenet(folder):
    layers = write_legacy(folder / IMAGENET, UNITS)
    with h5py.File(str(folder / IMAGENET), 'r+') as file:  # values with which training works
        for (layer, leaf), array in layers.items():
            file['%s/%s/%s:0' % (layer, layer, leaf)][...] = recipe.value(
                layer + '/' + {'kernel': 'weights'}.get(leaf, leaf), array.shape)


# Functions that are called with the folder, or commands. Networks are narrow, images small, and lists short.
STAND_INS = {
    'photo': photo,
    'photos': lambda folder: photo(folder, 'a.jpg', 'b.png', 'photos/c.jpg'),
    'camvid': camvid,
    'IMAGES and LABELS': lambda folder: [shutil.copytree(os.path.join(SAMPLE, source), str(folder / name)) for
                                         source, name in (('JPEGImages', 'IMAGES'),
                                                          ('SegmentationClassAug', 'LABELS'))],
    'annotations': annotations,
    'VOC': lambda folder: [make_voc(folder), make_sbd(folder)],
    'VOC lists': 'python convert_voc.py --voc_dir=VOCdevkit/VOC2012',
    'Cityscapes': cityscapes,
    'imagenet': imagenet,
    'deeplab_resnet_init.ckpt': drsleep,
    'deeplab_resnet.ckpt': lambda folder: drsleep(folder, 'deeplab_resnet.ckpt'),
    'kazuto1011': kazuto1011,
    'model': 'python main.py --option=train',
    'model_cityscapes': 'python convert_cityscapes.py --cityscapes_dir=cityscapes; python main.py --option=train '
                        '--flagfile=dataset/cityscapes.flags --data_dir=cityscapes',
    'host0 and host1': None,  # see run_block: addresses of this machine, and the lines run at the same time
}


# Files that the commands of a page write with both versions of TensorFlow.
OUTPUTS = {
    'README.md': 'model/model.ckpt-2.index log.txt log/events* output/prediction/*_mask.png export/saved_model.pb '
                 'output/visual_prediction/* output/overlay_prediction/photo* training_curve.png dataset/val.txt '
                 'model_camvid/model.ckpt-2.index model_voc/model.ckpt-2.index model_cityscapes/model.ckpt-2.index',
    'docs/own_data.md': 'train.txt val.txt* labels/a.png labels/classes.txt dataset/trainval.txt dataset/test.txt '
                        'dataset/cityscapes/val_fine.txt output_cityscapes/prediction/*',
    'docs/training.md': 'model/best.ckpt-*.index model/metrics.csv output/metrics.json output/confusion_matrix.png '
                        'output/report.html training_curve.png model_msc/model.ckpt-2.index',
    'docs/weights.md': 'drsleep/model.ckpt-0.index',
    'docs/inference.md': 'output/prediction/a_mask.png output/prediction/c_mask.png output/probabilities/*.npz',
    'docs/export.md': 'export/classes.json export/saved_model.pb',
    'docs/distributed.md': 'model_gpus/model.ckpt-2.index model_hosts/model.ckpt-2.index',
    'docs/performance.md': 'model_smooth_SSC/model.ckpt-2.index receptive_field.png',
}

# {command in the text: the test or program that runs it}
IN_THE_TEXT = {
    'python benchmarks/run.py': 'with --only, here and in test_benchmarks.py',
    'python benchmarks/op_times.py --bfloat16': 'test_benchmarks.py',
    'python tools/make_flags_page.py > docs/flags.md': 'test_readme.py',
    'python -m tests.stress': '.ci/run',
    'python -m utils.checkpoint FILE': 'with names of files, here',
}


# ---- running ----

@pytest.fixture(scope='module')
def served():
    """Starts a process that has imported TensorFlow, and yields the path of its socket."""
    folder = tempfile.mkdtemp()  # the path of a socket must be short
    path = os.path.join(folder, 'socket')
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='-1', TF_CPP_MIN_LOG_LEVEL='3', TF_ENABLE_ONEDNN_OPTS='1')
    process = subprocess.Popen([sys.executable, os.path.join(ROOT, 'tests', 'doc_python.py'), 'serve', path],
                               env=environment, start_new_session=True)
    try:
        while not os.path.exists(path):
            assert process.poll() is None
            time.sleep(0.1)
        yield path
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # also ends commands that hang
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture
def folder(tmp_path, served, narrow):
    """Makes a copy of the repo, with a folder bin/ whose python and pip call doc_python.py."""
    narrow({'deeplab': UNITS, 'res50': UNITS})
    for name in PRODUCT:
        shutil.copy(os.path.join(ROOT, name), str(tmp_path))
    for name in ('utils', 'dataset', 'docs', 'tools', 'benchmarks'):
        shutil.copytree(os.path.join(ROOT, name), str(tmp_path / name), ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / 'bin').mkdir()
    add_program(tmp_path, served, 'python')
    add_program(tmp_path, served, 'pip')
    return tmp_path


def add_program(folder, served, name):
    path = folder / 'bin' / name
    path.write_text('#!/bin/sh\nexec "%s" -I -S "%s" run "%s" %s "$@"\n' % (
        sys.executable, os.path.join(ROOT, 'tests', 'doc_python.py'), served, name))
    path.chmod(0o755)


def bash(folder, script, skipped_words=()):
    """Starts a bash script in a folder and returns its Popen."""
    environment = dict(os.environ, PATH=os.pathsep.join([str(folder / 'bin'), os.environ['PATH']]),
                       TEST_FOLDER=str(folder), TEST_SKIP=json.dumps(skipped_words), CUDA_VISIBLE_DEVICES='-1',
                       KERAS_HOME=str(folder / 'keras'), DEEPLAB_WEIGHTS=str(folder))
    return subprocess.Popen(['bash', '-euo', 'pipefail', '-c', script], cwd=str(folder), env=environment,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            universal_newlines=True)


def run_block(folder, served, block):
    """Creates the stand-ins of a block, runs it and returns the lines of the log."""
    for name in block.stand_ins:
        make = STAND_INS[name]
        if isinstance(make, str):
            expect_success(bash(folder, make), block.name + ', stand-in ' + name)
        elif make:
            make(folder)
    (folder / LOG).write_text('')
    words = [word for word, _ in block.skips]
    for word in words:
        if not word.startswith('-'):
            add_program(folder, served, word)
    scripts = [block.text]
    if 'host0 and host1' in block.stand_ins:
        text = block.text
        for number, port in enumerate(free_ports(2)):
            text = text.replace('host%d:2222' % number, '127.0.0.1:%d' % port)
        scripts = text.splitlines()
    if block.language == 'python':
        (folder / 'block.py').write_text(block.text)
        scripts = ['python block.py']
    for process in [bash(folder, script, words) for script in scripts]:
        expect_success(process, block.name)
    return (folder / LOG).read_text().splitlines()


def expect_success(process, name):
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and 'Traceback' not in output, '%s:\n%s' % (name, output)
    return output


@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page)])
def test_commands_run_as_they_stand(page, folder, served):
    for block in blocks(page):
        if None in dict(block.skips):
            continue
        ran = run_block(folder, served, block)
        assert ran and all(re.match('(0|skipped) ', line) for line in ran), (block.name, ran)
        if block.language == 'bash':  # && hides a failure, and || a command
            assert len(ran) >= len(re.findall(r'(?m)(?:^|&& )\s*(?:python|pip) ', block.text)), (block.name, ran)
    for pattern in OUTPUTS.get(page, '').split():
        assert list(folder.glob(pattern)), pattern


@pytest.mark.parametrize('reason', ['%s: %s: %s' % (block.name, word or 'all', reason) for page in PAGES
                                    for block in blocks(page) for word, reason in block.skips])
def test_what_is_not_run(reason):
    pytest.skip(reason)


@pytest.mark.parametrize('page', PAGES)
def test_commands_in_the_text_are_run_too(page):
    in_blocks = {re.sub(r'\s+#.*', '', line) for one in PAGES for block in blocks(one)
                 for line in block.text.replace('\\\n', ' ').splitlines()}
    for command in re.findall(r'`(python [^`]*)`', prose(page)):
        assert ' '.join(command.split()) in in_blocks | set(IN_THE_TEXT), command
