"""Draws what trained networks look at: effective receptive fields of checkpoints side by side, with their gridding.

    python benchmarks/receptive_field.py --modeldir=model_regular,model_GI,model_SSC --labels=regular,GI,SSC

A column of the figure is a checkpoint, built by the settings.json beside it, all on the same images. Its first row is
the field of the winning class's logit at the centre on the image. The others are the fields of the centre of each
dilated block's output (the sum of its channels, none of which is negative) on that block's input, at 1/8 of the
image's size, and the score of gridding at the block's rate (see `gridding`). A field is the mean
over the images, which are cropped or padded about their centres. What main_msc.py trained is looked at on one scale.
"""

import os
import sys
import typing

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from utils.system import command_line, output_files, runtime  # noqa: E402
from utils.system.errors import UserError, printable, quoted  # noqa: E402

tf = runtime.import_tensorflow()  # before others import TensorFlow, whose own lines it keeps off the screen

import network  # noqa: E402
from utils.data import data_lists, image_files  # noqa: E402
from utils.label_utils import preprocess  # noqa: E402
from utils.net import blocks, compat, decoders, dilated  # noqa: E402
from utils.system import memory  # noqa: E402
from utils.weights import checkpoints, run_settings  # noqa: E402

FLAGS = flags.FLAGS
SAMPLE = os.path.join(command_line.REPO, 'dataset', 'sample')
NEAR = 0.0455  # of the largest gradient: two standard deviations of a Gaussian (Luo et al. 2016, section 4)
FAINTEST = 1e-4  # of the greatest gradient, in the figure
PANEL, GAP = 3.0, 0.5  # inches


# ---- fields ----

def centre(maps):
    """The pixel in the middle of the first map: [N, h, w, C] -> [C]."""
    shape = tf.shape(maps)
    return maps[0, shape[1] // 2, shape[2] // 2]


def field(target, source):
    """Returns the receptive field of a scalar: how much it changes with each pixel of its source.

    Luo, Li, Urtasun and Zemel, Understanding the Effective Receptive Field (2016), take the gradient of a central
    unit, too; here its absolute values are summed over the channels, so that no sign hides another.

    Args:
      target: a scalar tensor.
      source: a tensor [1, h, w, C] that it is computed from.

    Returns:
      float32 [h, w], sum over c of |d target / d source[0, y, x, c]|.
    """
    return tf.reduce_sum(tf.abs(tf.gradients(target, source)[0][0]), axis=2)


def extent(values):
    """The side in pixels of a square as large as the area where a field [h, w] is above NEAR of its greatest value."""
    return float(np.sqrt(np.sum(values > NEAR * values.max())))


def gridding(values, rate):
    """How much a field is a grid of period `rate`, what dilated convolutions of that rate in a row make of it.

    Such convolutions reach every rate-th pixel of a row and column only. In the spectrum of the field,

        F(u, v) = sum over y, x of values[y, x] * exp(-2 pi i (u y + v x)),

    a grid has peaks at the frequencies (a / rate, b / rate), a smooth field has none there, and one that is all in few
    pixels is high at them but as high beside them. So the score is

        mean over (a, b) != (0, 0) of (|F| at (a / rate, b / rate) - mean of |F| at its eight neighbours) / F(0, 0),

    a and b from 0 to rate - 1, the neighbours half a period, 1 / (2 rate), away along one axis or both:
    1 for a wide grid, near 0 for a field that is smooth, too narrow to tell or a grid of twice the period, at most 1
    and hardly ever below 0. At multiples of 1 / (2 rate), F is the discrete transform of the field folded to
    2 rate x 2 rate pixels. The central pixel is left out: the shortcuts of a ResNet reach it whatever its convolutions
    do.

    Args:
      values: [h, w], not negative; the central pixel is [h // 2, w // 2].
      rate: 2 or more.

    Returns:
      a float; nan if the field is zero outside the centre.
    """
    around = np.array(values, np.float64)
    height, width = around.shape
    around[height // 2, width // 2] = 0
    if not around.sum() > 0:
        return float('nan')
    period = 2 * rate
    padded = np.pad(around, [(0, -height % period), (0, -width % period)], 'constant')
    folded = padded.reshape(len(padded) // period, period, -1, period).sum(axis=(0, 2))  # [2 * rate, 2 * rate]
    spectrum = np.abs(np.fft.fft2(folded)) / around.sum()
    neighbours = sum(np.roll(spectrum, (rows, columns), (0, 1)) for rows in (-1, 0, 1) for columns in (-1, 0, 1)
                     if rows or columns) / 8
    peaks = (spectrum - neighbours)[::2, ::2].ravel()[1:]  # without (0, 0)
    return float(peaks.mean())


# ---- of trained networks ----

class Trained(typing.NamedTuple):
    """A trained network."""

    label: str           # its name in the figure
    prefix: str          # of its checkpoint
    flags: dict          # {name: value} of its training
    input: compat.Input  # of its training


def find(modeldir, label, step):
    """The Trained of a modeldir; UserError if it holds no checkpoint or no settings that make a network."""
    prefix = checkpoints.find_checkpoint(modeldir, step, 'step')
    settings = run_settings.read(modeldir)
    if not settings:
        raise UserError('%s has no %s, which says what network its checkpoints are of: train with this version of '
                        'main.py.' % (quoted(modeldir), run_settings.FILE))
    settings['flags'].setdefault('decoder', 'aspp')  # which older trainings had
    known = {'encoder_name': blocks.ENCODERS, 'decoder': decoders.DECODERS, 'dilated_type': dilated.DILATED_TYPES,
             'compat': compat.COMPAT, 'num_classes': range(2, 257)}
    wrong = [name for name in sorted(known) if settings['flags'].get(name) not in known[name]]
    if wrong:
        raise UserError('%s is damaged (%s=%s): give a --modeldir that main.py trained.' % (
            quoted(os.path.join(modeldir, run_settings.FILE)), wrong[0], quoted(settings['flags'].get(wrong[0]))))
    return Trained(label, prefix, settings['flags'], settings['input'])


def build(trained, picture, size):
    """Builds a network and its fields.

    Args:
      trained: a Trained.
      picture: uint8 RGB tensor [H, W, 3].
      size: sides in pixels of the centre that is cropped or padded.

    Returns:
      (the network, a list of (name, dilation rate or None, field [h, w] as a tensor)).
    """
    settings = trained.flags
    image = tf.image.resize_image_with_crop_or_pad(preprocess(picture, trained.input), size, size)[tf.newaxis]
    net = network.build(settings['encoder_name'], image, num_classes=settings['num_classes'], phase=False,
                        decoder=settings['decoder'], dilated_type=settings['dilated_type'], compat=settings['compat'])
    winner = tf.reduce_max(centre(net.outputs))
    fields = [('image', None, field(winner, image))]
    for number, block in enumerate(net.encoder.blocks, 1):
        if block.rate > 1 and block.units:
            target = tf.reduce_sum(centre(net.maps[number]))
            fields.append(('block%d, rate %d' % (number, block.rate), block.rate, field(target, net.maps[number - 1])))
    return net, fields


def measure(trained, images, size):
    """The mean fields of a Trained over the images of paths, a list of (name, rate or None, float64 [h, w])."""
    with tf.Graph().as_default():
        picture = tf.placeholder(tf.uint8, [None, None, 3])
        net, fields = build(trained, picture, size)
        names, rates, tensors = zip(*fields)
        sums = [0.0] * len(tensors)
        with tf.Session(config=runtime.session_config()) as sess, memory.report_exhaustion('--size'):
            checkpoints.load_values(sess, net.variables, checkpoints.read_fitting(trained.prefix, net.shapes))
            for path in tqdm(images, desc=printable(trained.label), unit='image'):
                values = sess.run(tensors, {picture: image_files.load_image(path)})
                sums = [total + value for total, value in zip(sums, values)]
    means = [np.asarray(total, np.float64) / len(images) for total in sums]
    if not all(np.isfinite(mean).all() and mean.any() for mean in means):
        raise UserError('%s: the gradient at the centre is zero or not finite, so that there is no field to draw: give '
                        'checkpoints of a training that learnt something.' % quoted(trained.prefix))
    return list(zip(names, rates, means))


def draw(columns):
    """A matplotlib Figure of fields: a column for each network, a row for each kind of field.

    Args:
      columns: a list of (title, list of (title, field [h, w])), the fields in the same order in each.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows = max(len(fields) for _, fields in columns)
    width, height = (PANEL + GAP) * len(columns) + 1.1, (PANEL + GAP) * rows + 0.4
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(rows, len(columns), squeeze=False, gridspec_kw={
        'left': GAP / width, 'right': 1 - 1.1 / width, 'bottom': 0.3 / height, 'top': 1 - (GAP + 0.1) / height,
        'wspace': GAP / PANEL, 'hspace': GAP / PANEL})
    for number, (name, fields) in enumerate(columns):
        for row, (title, values) in enumerate(fields):
            axes, (tall, wide) = panels[row, number], values.shape
            image = axes.imshow(np.maximum(values / (values.max() or 1), FAINTEST), cmap='magma',
                                norm=LogNorm(FAINTEST, 1), extent=(-wide / 2, wide / 2, tall / 2, -tall / 2))
            axes.set_title(('' if row else plain(name) + '\n') + title, fontsize='small')
            axes.tick_params(labelsize='x-small')
    bar = figure.add_axes([1 - 0.9 / width, 0.2, 0.13 / width, 0.6])
    figure.colorbar(image, cax=bar, label='mean absolute gradient / its greatest')
    return figure


def plain(name, longest=40):
    """A name of at most `longest` characters as matplotlib shows it, no formula."""
    return (name if len(name) <= longest else '...' + name[3 - longest:]).replace('$', r'\$')


def described(name, rate, values):
    """What the figure and the terminal say of a field."""
    text = '%s: extent %.0f' % (name, extent(values))
    return text if rate is None else text + ', gridding %.3f' % gridding(values, rate)


def main():
    folders = FLAGS.modeldir or ['model']
    labels = folders if FLAGS.labels is None else FLAGS.labels
    if len(labels) != len(folders):
        raise UserError('the number of --labels is %d, of folders in --modeldir %d: give a name for each folder.' % (
            len(labels), len(folders)))
    output_files.check_figure(FLAGS.output, 'output')
    all_trained = [find(os.path.expanduser(modeldir), label, FLAGS.step)
                   for modeldir, label in zip(folders, labels)]
    own = FLAGS.data_list or os.path.join(SAMPLE, 'val.txt')
    source = data_lists.read_labeled_image_list(FLAGS.data_dir if FLAGS.data_list else SAMPLE, own)
    source = data_lists.first_lines(source._replace(labels=[''] * len(source.images)), FLAGS.num_images)
    data_lists.check_files_exist(source, need_labels=False)
    columns = []
    for trained in all_trained:
        fields = measure(trained, source.images, FLAGS.size)
        columns.append((trained.label, [(described(*one), one[2]) for one in fields]))
        print('%s (%s, %s)' % (printable(trained.label), trained.flags['dilated_type'], trained.prefix))
        print('\n'.join('  ' + title for title, _ in columns[-1][1]))
    output_files.save_figure(draw(columns), FLAGS.output)
    print('receptive fields over %d images of %s in %s' % (len(source.images), quoted(own), FLAGS.output))


if __name__ == '__main__':
    flags.DEFINE_list('modeldir', ['model'], 'folders of checkpoints, with commas between them')
    flags.DEFINE_list('labels', None, 'their names in the figure, with commas between them; by default the folders')
    command_line.DEFINE_step('step', None, "checkpoint, or 'best'; by default the newest of each folder")
    command_line.DEFINE_list('data_list', '', "list of images; by default the bundled sample's validation list")
    command_line.DEFINE_path('data_dir', '', "folder that the list's paths are relative to")
    command_line.DEFINE_whole('num_images', 16, 'images of the list to average over', 1)
    command_line.DEFINE_whole('size', 321, 'sides in pixels of the centre of each image that is looked at', 33, 4097)
    command_line.DEFINE_path('output', 'receptive_field.png', 'figure to write; its suffix chooses the format',
                             output=True)
    sys.exit(command_line.run(main))
