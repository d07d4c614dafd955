"""Exports the network of a checkpoint, from images to masks, as a SavedModel that contains the weights."""

import os
import subprocess
import sys

import numpy as np
import tensorflow.compat.v1 as tf

from utils.label_utils import preprocess
from utils.prediction.predictor import class_map, load_weights
from utils.system import output_files, runtime
from utils.system.errors import UserError, quoted, reason

SAVED_MODEL, CLASSES, FROZEN, TFLITE = 'saved_model.pb', 'classes.json', 'frozen.pb', 'model.tflite'
# The files that must and that may be in an export's folder; `variables` is an empty folder of TensorFlow's.
LEAST, MOST = {SAVED_MODEL, CLASSES}, {SAVED_MODEL, CLASSES, FROZEN, TFLITE, 'variables', 'fingerprint.pb'}
VARIABLE_OPS = ('VarHandleOp', 'ReadVariableOp')

CONVERSION = '''
import sys
import tensorflow as tf
converted = tf.lite.TFLiteConverter.from_saved_model(sys.argv[1]).convert()
with open(sys.argv[2], 'wb') as file:
    file.write(converted)
'''


def check(conf):
    """Raises UserError if the flags ask for something that write() cannot do."""
    if conf.tflite and tf.__version__.startswith('1.'):
        raise UserError('--tflite needs TensorFlow 2, whose converter knows the ops of this network: '
                        'export there, or leave --tflite out.')
    output_files.check_new_folder(conf.export_dir, 'export_dir', LEAST, MOST)


def write(conf, network, weights, net_input, classes, value_range=None):
    """Writes export_dir, complete or not at all, in place of an earlier export.

    Args:
      conf: the flags as attributes.
      network, weights, net_input, classes, value_range: as in build(); weights must be the prefix of a checkpoint.

    Raises:
      UserError: the checkpoint does not fit, or something cannot be written or converted.
    """
    with output_files.new_folder(conf.export_dir, 'export_dir', LEAST, MOST) as folder:
        graph = build(network, weights, net_input, classes, value_range)
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
        output_files.save_json({'classes': class_table(classes), 'checkpoint': weights}, os.path.join(folder, CLASSES))
    print('export in %s' % conf.export_dir)
    if value_range:
        print('its input `images` is float32 RGB, in which %g becomes 0 and %g becomes 255' % tuple(value_range))


def build(network, weights, net_input, classes, value_range=None):
    """Builds the exported graph, which has no variables.

    Args:
      network: a function from images float32 [N, H, W, 3] to (network with batch_norm 'folded', logits
        [N, H, W, num_classes]), such as Model.scores.
      weights: the prefix of a checkpoint, or {name: array}.
      net_input: the compat.Input of the network.
      classes: a Classes.
      value_range: None, or the values that become 0 and 255 (--image_range): `images` then holds such values.

    Returns:
      a tf.Graph from `images`, RGB [N, H, W, 3], uint8 or with a value_range float32, to the outputs `classes` uint8
      [N, H, W], `softmax` float32 [N, H, W, num_classes] and `colours` uint8 [N, H, W, 3], RGB.
    """
    with tf.Graph().as_default():
        images = tf.placeholder(tf.float32 if value_range else tf.uint8, [None, None, None, 3], 'images')
        net, scores = network(preprocess(to_8_bits(images, *value_range) if value_range else images, net_input))
        indices = class_map(scores)  # [N, H, W]
        colours = classes.palette.colours[:classes.num_classes]
        fetches = [tf.cast(indices, tf.uint8, 'classes'), tf.nn.softmax(scores, name='softmax'),
                   tf.gather(np.array(colours), indices, name='colours')]
        with tf.Session(config=runtime.session_config()) as sess:
            load_weights(sess, net, weights)
            return constant_graph(sess, fetches)


def to_8_bits(images, low, high):
    """Returns float32 images of any shape, mapped to whole numbers of 0..255 as pixels.to_8_bits maps them."""
    return tf.round(tf.clip_by_value((images - low) * (255.0 / (high - low)), 0.0, 255.0))


def constant_graph(sess, fetches):
    """Copies the ops that some tensors depend on into a new graph, with constants in place of variables.

    TensorFlow's own convert_variables_to_constants puts all weights into one message and parses it again, which takes
    three more copies of the weights. Here, weights are copied one at a time.

    Args:
      sess: a session whose resource variables have their final values.
      fetches: tensors of its graph.

    Returns:
      a tf.Graph whose ops have the same names.
    """
    needed = tf.graph_util.extract_sub_graph(sess.graph.as_graph_def(), [fetch.op.name for fetch in fetches])
    others = tf.GraphDef(versions=needed.versions, library=needed.library)
    others.node.extend(node for node in needed.node if node.op not in VARIABLE_OPS)
    for node in others.node:
        node.attr.pop('_class', None)  # the variable that the op is colocated with
    with tf.Graph().as_default() as graph:
        constants, values = {}, {}  # {name of a variable: constant}; {name of a read of it: constant}
        for node in needed.node:
            if node.op == 'ReadVariableOp':
                name = node.input[0]
                if name not in constants:
                    constants[name] = tf.constant(sess.run(node.name + ':0'), name=name)
                values[node.name + ':0'] = constants[name]
        tf.import_graph_def(others, input_map=values, name='')
    return graph


def save(graph, folder):
    """Writes a graph that build() returned as a SavedModel into an empty folder."""
    named = {name: graph.get_tensor_by_name(name + ':0') for name in ('images', 'classes', 'softmax', 'colours')}
    signature = tf.saved_model.predict_signature_def({'images': named.pop('images')}, named)
    builder = tf.saved_model.Builder(folder)
    with tf.Session(graph=graph) as sess:
        builder.add_meta_graph_and_variables(
            sess, [tf.saved_model.tag_constants.SERVING], clear_devices=True, strip_default_attrs=True,
            signature_def_map={tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY: signature})
    builder.save()


def save_tflite(folder):
    """Converts the SavedModel in a folder to a TensorFlow Lite model in the same folder, float32 with built-in ops.

    The converter runs in a process of its own, because it keeps the signature only in eager mode.

    Raises:
      UserError: the converter failed.
    """
    print('converting for TensorFlow Lite')
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='-1', TF_CPP_MIN_LOG_LEVEL='3')
    with output_files.new_file(os.path.join(folder, TFLITE)) as path:
        done = subprocess.run([sys.executable, '-c', CONVERSION, folder, path], env=environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding='utf-8', errors='replace')
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if 'Error: ' in line] or ['it failed']
            raise UserError('TensorFlow Lite cannot convert this network (%s): leave --tflite out.' % reason(lines[-1]))


def class_table(classes):
    """Returns [{'name': text, 'colour': [r, g, b]}] in the order of the classes."""
    palette, number = classes.palette, classes.num_classes
    names = palette.names or ['class %d' % index for index in range(number)]
    return [{'name': name, 'colour': [int(value) for value in colour]}
            for name, colour in zip(names[:number], palette.colours)]
