"""A small data set, a trained narrow network and weights files, which hostile cases start from."""

import os
import shutil
import sys

import numpy as np
import py
from PIL import Image

from tests.stress import program

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # pytest does this by itself
NUM_CLASSES = 4
NAMES = ('a.png', 'b.jpg', 'c.png', 'd.jpg')
CAFFE, KERAS = 'deeplab.caffemodel', 'res50.h5'
SAFE = ('--batch_size=1', '--input_height=33', '--input_width=33', '--num_steps=1', '--num_threads=2',
        '--encoder_name=res50', '--num_classes=%d' % NUM_CLASSES, '--learning_rate=1e-4')


def make(folder):
    """Writes data, model, CAFFE and KERAS to a folder."""
    make_data(folder)
    program.make_narrow()
    write_caffe(os.path.join(folder, CAFFE))
    write_keras(os.path.join(folder, KERAS))
    model = os.path.join(folder, 'model')
    ended = program.run(folder, ['--option=train', '--save_interval=1', '--modeldir=' + model] + flags(folder))
    assert ended.code == 0


def make_data(folder):
    """Writes images, labels, a list, a palette and class weights to the subfolder `data`."""
    rng = np.random.RandomState(0)
    data = os.path.join(folder, 'data')
    os.mkdir(data)
    for number, name in enumerate(NAMES):
        size = 33 + 4 * number, 40 - 3 * number
        Image.fromarray(rng.randint(0, 256, size + (3,)).astype(np.uint8)).save(os.path.join(data, name))
        Image.fromarray(rng.randint(0, NUM_CLASSES, size).astype(np.uint8)).save(os.path.join(data, label_of(name)))
    write_list(data, NAMES)
    with open(os.path.join(data, 'palette.txt'), 'w') as file:
        file.writelines('class %d %d %d %d\n' % (n, 40 * n + 1, n, 200 - n) for n in range(NUM_CLASSES))
    with open(os.path.join(data, 'weights.txt'), 'w') as file:
        file.write('1\n0.5\n2\n1\n')


def write_caffe(path):
    """Writes a Caffe model with the layers of a narrow deeplab encoder."""
    import test_caffe_weights

    from utils.net.blocks import BLOCKS, convolutions
    from utils.weights import weight_names

    rng, layers = np.random.RandomState(0), []
    for stage, unit, index, (height, width, inputs, outputs) in convolutions(BLOCKS['deeplab']):
        conv, norm = weight_names.conv_scopes('deeplab', stage, unit, index)
        layers += [(conv, 'Convolution', [rng.randn(outputs, inputs, height, width)]),
                   (norm, 'BatchNorm', [rng.randn(outputs), rng.rand(outputs), [2.0]]),
                   (norm.replace('bn', 'scale', 1), 'Scale', [rng.randn(outputs), rng.randn(outputs)])]
    test_caffe_weights.write_layers(py.path.local(path), layers)


def write_keras(path):
    """Writes a narrow ResNet-50 in Keras' format."""
    import test_keras_weights

    test_keras_weights.write_legacy(path, (1, 1, 1, 1))


def label_of(name):
    return name[0] + '_label.png'


def write_list(data, names):
    with open(os.path.join(data, 'list.txt'), 'w') as file:
        file.writelines('%s %s\n' % (name, label_of(name)) for name in names)


def copy(shared, folder):
    """Copies the data for a case; returns the path of the copy."""
    data = os.path.join(folder, 'data')
    shutil.copytree(os.path.join(shared, 'data'), data)
    return data


def flags(folder):
    """Returns the flags of a short run with outputs in `folder`, in a flag file so that every option takes them."""
    data = os.path.join(folder, 'data')
    lists = ['--%s=%s' % (flag, os.path.join(data, 'list.txt')) for flag in (
        'data_list', 'valid_data_list', 'test_data_list')]
    outputs = ['--%s=%s' % (flag, os.path.join(folder, name)) for flag, name in (
        ('logdir', 'log'), ('logfile', 'log.txt'), ('out_dir', 'out'))]
    return [flag_file(os.path.join(folder, 'world.flags'), list(SAFE) + ['--data_dir=' + data] + lists + outputs)]


def flag_file(path, flags):
    """Writes flags to a file; returns the --flagfile argument that names it."""
    with open(path, 'w') as file:
        file.write('\n'.join(flags) + '\n')
    return '--flagfile=' + path
