"""Converts an exported network for ONNX Runtime and TensorFlow Lite, and compares the results with it."""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from utils.data import data_lists, image_files
from utils.system import output_files, runtime
from utils.system.errors import UserError, quoted, reason

OUTPUTS = ('classes', 'softmax', 'colours')  # the exported tensors, besides the input `images`
OPSET = 17  # of ONNX: the newest one tested with tf2onnx
CALIBRATED, SIDE = 32, 513  # most images for the calibration of int8, and the side of their crops
COMPARED = 3  # number of these images that are compared
# How much the probabilities of a kind of TensorFlow Lite model may differ; None if only most classes must agree.
TOLERANCE = {'float32': 1e-4, 'float16': 0.05, 'int8': None}
LEAST_AGREEMENT = 0.5  # the fraction of the pixels in which int8 must have the class of the exported network

# Converts the SavedModel argv[1] to the file argv[2] of the kind argv[3]. Calibrates with the .npy files in the JSON
# list argv[4], printing a line for each; then runs the result on the .npy files in the JSON list argv[5] and writes
# the outputs of each to a .npz file beside it.
CONVERSION = '''
import json, sys
import numpy as np
import tensorflow as tf
folder, path, kind = sys.argv[1:4]
calibration, compared = map(json.loads, sys.argv[4:])

def representative():
    for name in calibration:
        print(name, flush=True)
        yield 'serving_default', {'images': np.load(name)}

converter = tf.lite.TFLiteConverter.from_saved_model(folder, ['serving_default'])
if kind != 'float32':
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
if kind == 'float16':
    converter.target_spec.supported_types = [tf.float16]
if kind == 'int8':
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if np.load(calibration[0]).dtype == np.uint8:
        converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.uint8
with open(path, 'wb') as file:
    file.write(converter.convert())
run = tf.lite.Interpreter(path).get_signature_runner()
for name in compared:
    np.savez(name + '.npz', **run(images=np.load(name)))
'''


def check(conf):
    """Raises UserError if --onnx or --tflite asks for a conversion that cannot be done here."""
    for flag in ('onnx', 'tflite'):
        if getattr(conf, flag) and tf.__version__.startswith('1.'):
            raise UserError('--%s needs TensorFlow 2, whose converter supports the ops of this network: use it, or '
                            'leave --%s out.' % (flag, flag))
    if conf.onnx:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import tf2onnx  # noqa: F401
        except Exception as error:  # versions that do not fit together raise errors of many types
            raise UserError('--onnx needs tf2onnx, onnx and onnxruntime (%s): pip install -r requirements-onnx.txt, '
                            'on Python 3.10 or newer.' % reason(error)[:100])


def calibration_images(conf, image_format):
    """Reads images of --data_list, spread evenly over the list, as inputs of the exported network.

    Args:
      conf: the flags as attributes.
      image_format: an ImageFormat.

    Returns:
      a list of up to CALIBRATED arrays [1, h, w, 3], cropped to their middle; float32 values of the files if the format
      has a range of values, otherwise uint8.

    Raises:
      UserError: the list or an image cannot be read.
    """
    source = data_lists.read_labeled_image_list(conf.data_dir, conf.data_list)
    chosen = np.unique(np.linspace(0, len(source.images) - 1, CALIBRATED).astype(int))
    images = []
    for path in tqdm([source.images[index] for index in chosen], desc='read', unit='image', leave=False):
        if image_format.value_range:
            image = np.float32(image_files.stored_values(path, image_format))
            image = np.broadcast_to(image.reshape(image.shape[:2] + (-1,)), image.shape[:2] + (3,))
        else:
            image = image_files.load_image(path, image_format)
        top, left = (max(0, side - SIDE) // 2 for side in image.shape[:2])
        images.append(image[None, top:top + SIDE, left:left + SIDE].copy())
    print('int8: calibration with %d of the %d images of --data_list=%s' % (
        len(images), len(source.images), quoted(conf.data_list)))
    return images


def noise(value_range=None):
    """Returns two batches of random images of different sizes, for a network exported with this value_range."""
    rng = np.random.RandomState(0)
    batches = [rng.randint(0, 256, size + (3,)).astype(np.uint8) for size in ((2, 97, 129), (1, 66, 50))]
    if value_range:
        low, high = value_range
        batches = [(low + (high - low) * (batch / 255.0)).astype(np.float32) for batch in batches]
    return batches


def save_onnx(graph, graph_def, path, batches):
    """Writes an exported graph as an ONNX model with any batch size, height and width.

    Args:
      graph: the tf.Graph.
      graph_def: the same graph as a GraphDef, from `images` on.
      path: the file.
      batches: images to compare with, as in `compare`.

    Raises:
      UserError: tf2onnx cannot convert the graph, or the outputs of ONNX Runtime differ.
    """
    import onnx
    import onnxruntime
    import tf2onnx

    print('converting for ONNX')
    try:
        with runtime.held_stderr() as held:
            model, _ = tf2onnx.convert.from_graph_def(
                graph_def, 'deeplab', ['images:0'], [name + ':0' for name in OUTPUTS], OPSET,
                tensors_to_rename={name + ':0': name for name in ('images',) + OUTPUTS})
            for node in model.graph.node:
                pad_explicitly(node)
            for tensor in list(model.graph.input) + list(model.graph.output):
                for dim, name in zip(tensor.type.tensor_type.shape.dim, 'NHW'):
                    dim.dim_param = name
            with output_files.new_file(path) as temporary:
                onnx.save(model, temporary)
            session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
            outputs = [dict(zip(OUTPUTS, session.run(OUTPUTS, {'images': batch}))) for batch in batches]
            held.drop = True
    except UserError:
        raise
    except Exception as error:  # tf2onnx and ONNX Runtime raise errors of many types
        raise UserError('ONNX: this network cannot be converted (%s): leave --onnx out.' % reason(error)[:150])
    compare('onnx', graph, batches, outputs, TOLERANCE['float32'])


def pad_explicitly(node):
    """Replaces the SAME padding of a dilated ONNX convolution by numbers, as ONNX Runtime supports only these there."""
    import onnx

    values = {field.name: onnx.helper.get_attribute_value(field) for field in node.attribute}
    if node.op_type == 'Conv' and values.get('auto_pad') == b'SAME_UPPER' and max(values.get('dilations', [1])) > 1:
        pads = [rate * (side - 1) // 2 for rate, side in zip(values['dilations'], values['kernel_shape'])]
        kept = [field for field in node.attribute if field.name != 'auto_pad']
        del node.attribute[:]
        node.attribute.extend(kept + [onnx.helper.make_attribute('pads', pads + pads)])


def save_tflite(graph, folder, path, kind, calibration, batches):
    """Converts a SavedModel to a TensorFlow Lite model with built-in ops.

    The converter runs in a process of its own, because it keeps the signature only in eager mode.

    Args:
      graph: the tf.Graph that was saved.
      folder: of the SavedModel.
      path: the file to write.
      kind: 'float32'; 'float16', which halves the weights' size; or 'int8', which computes with whole numbers.
      calibration: a list of images [1, h, w, 3] that show int8 the range of each tensor; [] for the other kinds.
      batches: images to compare with, as in `compare`.

    Raises:
      UserError: the converter failed, or the outputs of its model differ.
    """
    print('converting for TensorFlow Lite')
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='-1', TF_CPP_MIN_LOG_LEVEL='3')
    with output_files.new_file(path) as temporary, tempfile.TemporaryDirectory(dir=folder) as inputs:
        names = []
        for name, images in (('calibration', calibration), ('compared', batches)):
            names.append([os.path.join(inputs, '%s%d.npy' % (name, index)) for index in range(len(images))])
            for file, image in zip(names[-1], images):
                np.save(file, image)
        errors = run_with_progress([sys.executable, '-c', CONVERSION, folder, temporary, kind] + [
            json.dumps(files) for files in names], environment, len(calibration))
        if errors is not None:
            lines = [line for line in errors.splitlines() if 'Error: ' in line] or ['it failed']
            raise UserError('TensorFlow Lite cannot convert this network (%s): leave --tflite out.' % reason(
                lines[-1])[:150])
        outputs = []
        for file in names[1]:
            with np.load(file + '.npz') as found:
                outputs.append(dict(found))
    compare('tflite', graph, batches, outputs, TOLERANCE[kind])


def run_with_progress(command, environment, total):
    """Runs a program that prints a line for each of `total` steps; returns its stderr if it failed, otherwise None."""
    with tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace') as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors)
        try:
            with tqdm(total=total, desc='calibrate', unit='image', disable=not total) as bar:
                for _ in process.stdout:
                    bar.update()
            failed = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        return errors.read() if failed else None


def compare(flag, graph, batches, outputs, tolerance):
    """Compares the outputs of a converted model with those of the exported graph, and prints the result.

    Args:
      flag: the flag that asked for the conversion.
      graph: a graph of export.build().
      batches: a list of images [N, H, W, 3] to run the graph on.
      outputs: the converted model's {name: array} for each.
      tolerance: as in TOLERANCE. A class may differ where the two highest probabilities differ by at most twice the
        tolerance.

    Raises:
      UserError: the outputs differ.
    """
    same, wrong, pixels, largest = 0, 0, 0, 0.0
    config = runtime.session_config()
    config.device_count['GPU'] = 0  # whose convolutions may compute in TF32, less exactly than the tolerance
    with tf.Session(graph=graph, config=config) as sess:
        for images, output in zip(batches, outputs):
            expected = sess.run({name: name + ':0' for name in OUTPUTS}, {'images:0': images})
            if any(output[name].shape != expected[name].shape for name in OUTPUTS):
                raise UserError('--%s: outputs of the converted model have other shapes: leave this flag out.' % flag)
            agrees = output['classes'] == expected['classes']
            first, second = np.sort(expected['softmax'], axis=3)[..., :-3:-1].transpose(3, 0, 1, 2)
            same, pixels = same + agrees.sum(), pixels + agrees.size
            softmax = output['softmax'] / (np.float32(256) if output['softmax'].dtype == np.uint8 else 1)
            largest = np.maximum(largest, np.abs(softmax - expected['softmax']).max())  # NaN stays
            wrong += (agrees & (output['colours'] != expected['colours']).any(axis=3)).sum()
            wrong += (~agrees & (first - second > 2 * tolerance)).sum() if tolerance else 0
    print('--%s: the classes equal those of the SavedModel in %.2f %% of %d pixels, and the probabilities differ '
          'by up to %.2g' % (flag, 100.0 * same / pixels, pixels, largest))
    if wrong or tolerance and not largest <= tolerance or same < LEAST_AGREEMENT * pixels:
        raise UserError('--%s: the converted model differs in classes (%d of %d pixels), colours or probabilities '
                        '(by up to %.2g): leave this flag out.' % (flag, pixels - same, pixels, largest))
