"""A model that leaves the repo: a checkpoint's network, from pictures to masks, as a SavedModel with weights inside."""

import collections
import os
import subprocess
import sys

import numpy as np
import tensorflow.compat.v1 as tf

from utils.label_utils import preprocess
from utils.prediction import frozen
from utils.prediction.scores import class_map
from utils.system import output_files, runtime
from utils.system.errors import UserError, quoted, reason

SAVED_MODEL, CLASSES, FROZEN, TFLITE = 'saved_model.pb', 'classes.json', 'frozen.pb', 'model.tflite'
# What an export's folder holds, at least and at most; `variables` is TensorFlow's, empty.
LEAST, MOST = {SAVED_MODEL, CLASSES}, {SAVED_MODEL, CLASSES, FROZEN, TFLITE, 'variables', 'fingerprint.pb'}

CONVERSION = '''
import sys
import tensorflow as tf
converted = tf.lite.TFLiteConverter.from_saved_model(sys.argv[1]).convert()
with open(sys.argv[2], 'wb') as file:
    file.write(converted)
'''

# What is exported. scores: a function from images float32 [N, H, W, 3] to (network with batch_norm 'folded', scores
# [N, H, W, num_classes]); restore: one from a session and the network's variables that gives these their values;
# input: a compat.Input; classes: a Classes.
Network = collections.namedtuple('Network', 'scores restore input classes')


def check(conf):
    """Raises UserError where `write` could not do what the flags ask for."""
    if conf.tflite and tf.__version__.startswith('1.'):
        raise UserError('--tflite needs TensorFlow 2, whose converter knows the ops of this network: '
                        'export there, or leave --tflite out.')
    output_files.check_new_folder(conf.export_dir, 'export_dir', LEAST, MOST)


def write(conf, network, prefix):
    """Writes export_dir, whole or not at all; an earlier export is replaced.

    Args:
      conf: the flags as attributes.
      network: a Network.
      prefix: of the checkpoint that it comes from.
    """
    with output_files.new_folder(conf.export_dir, 'export_dir', LEAST, MOST) as folder:
        graph = build(network)
        try:
            save(graph, folder)
        except tf.errors.OpError as error:
            raise UserError('cannot write to %s (%s): free space or give another folder with --export_dir.' % (
                quoted(conf.export_dir), reason(error)))
        if conf.frozen:
            with output_files.new_file(os.path.join(folder, FROZEN)) as path, open(path, 'wb') as file:
                file.write(graph.as_graph_def().SerializeToString())
        if conf.tflite:
            save_tflite(folder)
        output_files.save_json(dict(told(network), checkpoint=prefix), os.path.join(folder, CLASSES))
    print('export in %s' % conf.export_dir)


def build(network):
    """A graph without variables from `images` uint8 [N, H, W, 3], RGB, to these outputs, named so:

    classes uint8 [N, H, W]; softmax float32 [N, H, W, num_classes]; colours uint8 [N, H, W, 3], RGB.
    """
    with tf.Graph().as_default():
        images = tf.placeholder(tf.uint8, [None, None, None, 3], 'images')
        net, scores = network.scores(preprocess(images, network.input))
        indices = class_map(scores)  # [N, H, W]
        colours = network.classes.palette.colours[:network.classes.num_classes]
        fetches = [tf.cast(indices, tf.uint8, 'classes'), tf.nn.softmax(scores, name='softmax'),
                   tf.gather(np.array(colours), indices, name='colours')]
        fold = net.fold_ops()
        with tf.Session(config=runtime.session_config()) as sess:
            network.restore(sess, net.variables)
            sess.run(fold)
            return frozen.constant_graph(sess, fetches)


def save(graph, folder):
    """Writes the SavedModel of a graph that `build` made into an empty folder."""
    named = {name: graph.get_tensor_by_name(name + ':0') for name in ('images', 'classes', 'softmax', 'colours')}
    signature = tf.saved_model.predict_signature_def({'images': named.pop('images')}, named)
    builder = tf.saved_model.Builder(folder)
    with tf.Session(graph=graph) as sess:
        builder.add_meta_graph_and_variables(
            sess, [tf.saved_model.tag_constants.SERVING], clear_devices=True, strip_default_attrs=True,
            signature_def_map={tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY: signature})
    builder.save()


def save_tflite(folder):
    """Adds a TensorFlow Lite model, float32 and of built-in ops alone, of the SavedModel in a folder.

    In a process of its own, as the converter keeps the signature in eager mode only.
    """
    print('converting for TensorFlow Lite')
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='-1', TF_CPP_MIN_LOG_LEVEL='3')
    with output_files.new_file(os.path.join(folder, TFLITE)) as path:
        done = subprocess.run([sys.executable, '-c', CONVERSION, folder, path], env=environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding='utf-8', errors='replace')
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if 'Error: ' in line] or ['it failed']
            raise UserError('TensorFlow Lite does not take this network (%s): leave --tflite out.' % reason(lines[-1]))


def told(network):
    """What classes.json says of a Network: {'classes': [{'name', 'colour'}]}, by class index."""
    palette, number = network.classes.palette, network.classes.num_classes
    names = palette.names or ['class %d' % index for index in range(number)]
    return {'classes': [{'name': name, 'colour': [int(value) for value in colour]}
                        for name, colour in zip(names[:number], palette.colours)]}
