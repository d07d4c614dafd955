"""Draws what trained networks look at: effective receptive fields of checkpoints side by side, with their gridding.

    python benchmarks/receptive_field.py --modeldir=model_regular,model_GI,model_SSC --labels=regular,GI,SSC

A column of the figure is a checkpoint, built by the settings.json beside it, all on the same images. Its first row is
the field of the winning class's logit at the centre on the image. The others are the fields of the centre of each
dilated block's output (the sum of its channels, none of which is negative) on that block's input, at 1/8 of the
image's size, and the score of gridding at the block's rate (see `gridding`). A field is the mean
over the images, which are cropped or padded about their centres. What main_msc.py trained is looked at on one scale.
"""

import collections
import os
import sys

import numpy as np
from absl import flags

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from utils.system import command_line, output_files, runtime  # noqa: E402
from utils.system.errors import UserError, printable, quoted  # noqa: E402

FLAGS = flags.FLAGS
SAMPLE = os.path.join(command_line.REPO, 'dataset', 'sample')
NEAR = 0.0455  # of the greatest gradient: Luo et al. (2016), section 4, count what is within two deviations of a Gauss
FAINTEST = 1e-4  # of the greatest gradient, in the figure
PANEL, GAP = 3.0, 0.5  # inches

# A trained network: how it is called, the prefix of its checkpoint, the flags of its training and its compat.Input.
Trained = collections.namedtuple('Trained', 'label prefix flags input')


def find(modeldir, label, step):
    """The Trained of a modeldir; UserError if it holds no checkpoint or no settings that make a network."""
    from utils.net import blocks, compat, dilated
    from utils.weights import checkpoints, run_settings

    prefix = checkpoints.find_checkpoint(modeldir, step, 'step')
    settings = run_settings.read(modeldir)
    if not settings:
        raise UserError('%s has no %s, which says what network its checkpoints are of: train with this version of '
                        'main.py.' % (quoted(modeldir), run_settings.FILE))
    known = {'encoder_name': blocks.BLOCKS, 'dilated_type': dilated.DILATED_TYPES, 'compat': compat.COMPAT,
             'num_classes': range(2, 257)}
    wrong = [name for name in sorted(known) if settings['flags'].get(name) not in known[name]]
    if wrong:
        raise UserError('%s is damaged (%s=%s): give a --modeldir that main.py trained.' % (
            quoted(os.path.join(modeldir, run_settings.FILE)), wrong[0], quoted(settings['flags'].get(wrong[0]))))
    return Trained(label, prefix, settings['flags'], settings['input'])


def build(tf, trained, picture, size):
    """The fields of a network.

    Args:
      trained: a Trained.
      picture: uint8 RGB tensor [H, W, 3].
      size: sides in pixels of the centre that is cropped or padded.

    Returns:
      (the network, a list of (name, dilation rate or None, field [h, w] as a tensor)).
    """
    import network
    from utils.label_utils import preprocess
    from utils.prediction import receptive_field

    class Watched(network.DilatedResNet):
        """Keeps each block's (Block, input, output), by its stage."""

        def _bottleneck(self, inputs, block, stage, unit):
            outputs = super(Watched, self)._bottleneck(inputs, block, stage, unit)
            first = inputs if unit == 1 else ends[stage][1]
            ends[stage] = (block, first, outputs)
            return outputs

    ends, settings = collections.OrderedDict(), trained.flags
    image = tf.image.resize_image_with_crop_or_pad(preprocess(picture, trained.input), size, size)[tf.newaxis]
    net = Watched(image, settings['num_classes'], False, settings['encoder_name'],
                  dilated_type=settings['dilated_type'], compat=settings['compat'])
    winner = tf.reduce_max(receptive_field.centre(net.outputs))
    fields = [('image', None, receptive_field.field(winner, image))]
    for stage, (block, first, last) in ends.items():
        if block.rate > 1:
            target = tf.reduce_sum(receptive_field.centre(last))
            fields.append(('block%d, rate %d' % (stage - 1, block.rate), block.rate,
                           receptive_field.field(target, first)))
    return net, fields


def measure(tf, trained, images, size):
    """The mean fields of a Trained over the images of paths, a list of (name, rate or None, float64 [h, w])."""
    from tqdm import tqdm

    from utils.data import image_files
    from utils.system import memory
    from utils.weights import checkpoints

    with tf.Graph().as_default():
        picture = tf.placeholder(tf.uint8, [None, None, 3])
        net, fields = build(tf, trained, picture, size)
        names, rates, tensors = zip(*fields)
        sums = [0.0] * len(tensors)
        with tf.Session(config=runtime.session_config()) as sess, memory.enough_for('--size'):
            checkpoints.restore_checkpoint(sess, net.variables, trained.prefix)
            for path in tqdm(images, desc=printable(trained.label), unit='image'):
                values = sess.run(tensors, {picture: image_files.load_image(path)})
                sums = [total + value for total, value in zip(sums, values)]
    means = [np.asarray(total, np.float64) / len(images) for total in sums]
    if not all(np.isfinite(mean).all() and mean.any() for mean in means):
        raise UserError('%s: the gradient at the centre is zero or not finite, so that there is no field to draw: give '
                        'checkpoints of a training that learnt something.' % quoted(trained.prefix))
    return list(zip(names, rates, means))


def described(name, rate, values):
    """What the figure and the terminal say of a field."""
    from utils.prediction import receptive_field

    text = '%s: extent %.0f' % (name, receptive_field.extent(values))
    return text if rate is None else text + ', gridding %.3f' % receptive_field.gridding(values, rate)


def main():
    tf = runtime.prepare()
    from utils.data import data_lists
    from utils.prediction import receptive_field

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
        fields = measure(tf, trained, source.images, FLAGS.size)
        columns.append((trained.label, [(described(*one), one[2]) for one in fields]))
        print('%s (%s, %s)' % (printable(trained.label), trained.flags['dilated_type'], trained.prefix))
        print('\n'.join('  ' + title for title, _ in columns[-1][1]))
    output_files.save_figure(receptive_field.draw(columns), FLAGS.output)
    print('receptive fields over %d images of %s in %s' % (len(source.images), quoted(own), FLAGS.output))


if __name__ == '__main__':
    flags.DEFINE_list('modeldir', ['model'], 'folders of checkpoints, with commas between them')
    flags.DEFINE_list('labels', None, 'their names in the figure, with commas between them; by default the folders')
    command_line.DEFINE_step('step', None, "checkpoint, or 'best'; by default the newest of each folder")
    command_line.DEFINE_list('data_list', '', "list of images; by default the embedded sample's validation list")
    command_line.DEFINE_path('data_dir', '', "folder that the list's paths are relative to")
    command_line.DEFINE_whole('num_images', 16, 'images of the list to average over', 1)
    command_line.DEFINE_whole('size', 321, 'sides in pixels of the centre of each image that is looked at', 33, 4097)
    command_line.DEFINE_path('output', 'receptive_field.png', 'figure to write; its suffix chooses the format',
                             output=True)
    sys.exit(command_line.run(main))
