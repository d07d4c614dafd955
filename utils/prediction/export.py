"""Exports the network of a checkpoint, from images to masks, as a SavedModel that contains the weights."""

import os

import numpy as np
import tensorflow.compat.v1 as tf

from utils.data.pixels import AS_STORED
from utils.label_utils import preprocess
from utils.prediction import engines
from utils.prediction.predictor import class_map, load_weights
from utils.system import output_files, runtime
from utils.system.errors import UserError, quoted, reason

SAVED_MODEL, CLASSES, FROZEN, ONNX, TFLITE = 'saved_model.pb', 'classes.json', 'frozen.pb', 'model.onnx', 'model.tflite'
# The files that must and that may be in an export's folder; `variables` is an empty folder of TensorFlow's.
LEAST = {SAVED_MODEL, CLASSES}
MOST = LEAST | {FROZEN, ONNX, TFLITE, 'variables', 'fingerprint.pb'}
ENCODED = 'encoded'  # the signature that takes files
VARIABLE_OPS = ('VarHandleOp', 'ReadVariableOp')


def check(conf):
    """Raises UserError if the flags ask for something that write() cannot do."""
    engines.check(conf)
    output_files.check_new_folder(conf.export_dir, 'export_dir', LEAST, MOST)


def write(conf, network, weights, net_input, classes, image_format=AS_STORED):
    """Writes export_dir, complete or not at all, in place of an earlier export.

    Args:
      conf: the flags as attributes.
      network, weights, net_input, classes: as in build(); weights must be the prefix of a checkpoint.
      image_format: the ImageFormat of the training's images.

    Raises:
      UserError: the checkpoint does not fit, something cannot be written or converted, or the outputs of a converted
        model differ.
    """
    value_range = image_format.value_range
    photos = engines.calibration_images(conf, image_format) if conf.tflite == 'int8' else []
    with output_files.new_folder(conf.export_dir, 'export_dir', LEAST, MOST) as folder:
        graph = build(network, weights, net_input, classes, value_range)
        pixels_only = frozen(graph) if conf.frozen or conf.onnx else None
        with_files = image_format == AS_STORED
        if with_files:
            add_encoded(graph)
        try:
            save(graph, folder)
        except tf.errors.OpError as error:
            raise UserError('cannot write to %s (%s): free space or give another folder with --export_dir.' % (
                quoted(conf.export_dir), reason(error)))
        if conf.frozen:
            with output_files.new_file(os.path.join(folder, FROZEN)) as path, open(path, 'wb') as file:
                file.write(pixels_only.SerializeToString())
        if conf.onnx:
            engines.save_onnx(graph, pixels_only, os.path.join(folder, ONNX), engines.noise(value_range))
        if conf.tflite:
            engines.save_tflite(graph, folder, os.path.join(folder, TFLITE), conf.tflite, photos,
                                photos[:engines.COMPARED] or engines.noise(value_range))
        output_files.save_json({'classes': class_table(classes), 'checkpoint': weights}, os.path.join(folder, CLASSES))
    print('exported to %s' % conf.export_dir)
    if value_range:
        print('its input `images` is float32 RGB, in which %g becomes 0 and %g becomes 255' % tuple(value_range))
    if not with_files:
        print('it has no signature `%s`, because --image_range, --image_bands or --apply_exif is set' % (
            ENCODED))


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


def frozen(graph):
    """Returns a graph as a GraphDef without default attributes, some of which older TensorFlow versions lack."""
    return tf.train.export_meta_graph(graph=graph, clear_devices=True, strip_default_attrs=True).graph_def


def add_encoded(graph):
    """Adds a second network to a graph that build() returned, which decodes files; it shares the weights.

    Its input is `encoded`, the bytes of N JPEGs or PNGs of one size, strings [N]; its output is `of_encoded/classes`.
    """
    ops = [op for op in graph.get_operations()
           if op.type not in ('Placeholder', 'Const') and op.name not in ('softmax', 'colours')]
    shared = {tensor.name: tensor for op in ops for tensor in op.inputs if tensor.op.type == 'Const'}
    others = tf.GraphDef(versions=graph.graph_def_versions)
    others.node.extend(op.node_def for op in ops)
    with graph.as_default():
        encoded = tf.placeholder(tf.string, [None], ENCODED)
        # The op of image_files.decode_jpeg, which decodes a PNG as well.
        images = tf.map_fn(lambda data: tf.image.decode_jpeg(data, channels=3), encoded, tf.uint8, name='decoded')
        tf.import_graph_def(others, input_map=dict(shared, **{'images:0': images}), name='of_encoded')


def save(graph, folder):
    """Writes a graph that build() returned as a SavedModel into an empty folder, with what add_encoded() added."""
    tensors = {op.name: op.outputs[0] for op in graph.get_operations() if op.outputs}
    signatures = {tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY:
                  tf.saved_model.predict_signature_def({'images': tensors['images']},
                                                       {name: tensors[name] for name in engines.OUTPUTS})}
    if ENCODED in tensors:
        signatures[ENCODED] = tf.saved_model.predict_signature_def(
            {ENCODED: tensors[ENCODED]}, {'classes': tensors['of_encoded/classes']})
    builder = tf.saved_model.Builder(folder)
    with tf.Session(graph=graph) as sess:
        builder.add_meta_graph_and_variables(
            sess, [tf.saved_model.tag_constants.SERVING], clear_devices=True, strip_default_attrs=True,
            signature_def_map=signatures)
    builder.save()


def class_table(classes):
    """Returns [{'name': text, 'colour': [r, g, b]}] in the order of the classes."""
    palette, number = classes.palette, classes.num_classes
    names = palette.names or ['class %d' % index for index in range(number)]
    return [{'name': name, 'colour': [int(value) for value in colour]}
            for name, colour in zip(names[:number], palette.colours)]
