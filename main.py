"""Trains, tests, predicts or exports DeepLab v2 on one scale: python main.py --option=train|test|predict|export|check.

Every setting is a flag; --flagfile=FILE reads them from a file, a flag a line. A command line that names no data (no
list, --data_dir, --palette, --num_classes or --flagfile) takes the embedded sample's settings, dataset/sample.flags.
"""

import os
import sys

from absl import flags

from utils.data.palette import IGNORE_LABEL
from utils.net import compat
from utils.net.blocks import ENCODERS
from utils.system import command_line, interrupts, runtime
from utils.system.command_line import (
    DEFINE_list,
    DEFINE_number,
    DEFINE_pair,
    DEFINE_path,
    DEFINE_paths,
    DEFINE_scales,
    DEFINE_size,
    DEFINE_step,
    DEFINE_whole,
)
from utils.system.errors import UserError

FLAGS = flags.FLAGS
SAMPLE_FLAGS = os.path.join('dataset', 'sample.flags')
IMAGE_FLAGS = ('image', 'image_dir')
DATA_FLAGS = {'data_list', 'valid_data_list', 'test_data_list', 'data_dir', 'palette', 'num_classes', 'flagfile'}
MOST_THREADS = 256
MOST_TOWERS = 64
MOST_SIDE = 65535  # of a JPEG

flags.DEFINE_enum('option', 'train', ['train', 'test', 'predict', 'export', 'check'],
                  'what to do; check reads every file of the three lists and reports')

# training
DEFINE_whole('num_steps', 20000, 'iterations to train', lower_bound=1)
DEFINE_whole('save_interval', 1000, 'iterations between checkpoints', lower_bound=1)
DEFINE_whole('max_to_keep', 5, 'newest checkpoints to keep; 0 keeps all')
flags.DEFINE_enum('resume', 'auto', ['auto', 'never', 'must'], 'whether to go on from the newest checkpoint of '
                  '--modeldir: if the settings are the same, never, or whatever they were')
DEFINE_whole('random_seed', 1234, 'seed of initial weights, order and augmentation; 0 to 2^31 - 1')
DEFINE_number('weight_decay', 0.0005, 'factor of the L2 loss of the weights')
DEFINE_number('learning_rate', 2.5e-4, 'initial learning rate')
DEFINE_pair('decoder_rate', [10.0, 20.0], "rates of the decoder's weights and biases, times that of the encoder")
flags.DEFINE_boolean('freeze_encoder', False, 'train the decoder alone')
flags.DEFINE_enum('loss', 'ce', ['ce', 'ohem'], 'cross-entropy of all pixels, or of the hardest ones')
DEFINE_number('ohem_fraction', 0.25, 'the share of the pixels that are the hardest, for --loss=ohem', 0.0001, 1)
DEFINE_path('class_weights', '', "how much each class counts in the loss: 'balanced' or a file of a number a class")
DEFINE_number('power', 0.9, 'of the poly learning rate')
DEFINE_number('momentum', 0.9, 'of SGD', upper_bound=1)
DEFINE_whole('grad_update_every', 1, 'iterations whose gradients are averaged for one update', lower_bound=1)
flags.DEFINE_enum('encoder_name', 'deeplab', list(ENCODERS),
                  'ResNet-101 under Caffe names, or ResNet-152, -101 or -50 under slim names')
flags.DEFINE_enum('decoder', 'aspp', ['aspp', 'aspp_pooling'],
                  'atrous spatial pyramid pooling, or with a branch that pools the whole image')
flags.DEFINE_enum('dilated_type', 'regular', ['regular', 'decompose', 'smooth_GI', 'smooth_SSC'],
                  'dilated convolution of the last two blocks')
flags.DEFINE_enum('compat', 'original', sorted(compat.COMPAT), 'whose numerics: padding, epsilon, resizing, mean')
DEFINE_path('pretrain_file', '', 'weights to start from; random weights if empty')
flags.DEFINE_boolean('restore_decoder', False, "take the decoder too from --pretrain_file, where its shapes fit")
flags.DEFINE_boolean('train_bn', None, 'train batch norm; by default only without --pretrain_file')
DEFINE_number('bn_decay', 0.9, 'of the moving averages of a trained batch norm', upper_bound=1)
DEFINE_list('data_list', './dataset/train.txt', 'training list: an image and its label a line; what a flag file of '
            "this repo's dataset/ names is found there if it is not in the working folder")

# validation
DEFINE_whole('valid_interval', 0, 'iterations between validations while training; 0 for none')
DEFINE_step('valid_step', None, "checkpoint to test, or 'best' by --valid_interval's scores; by default the newest")
DEFINE_whole('valid_num_steps', None, 'images to test; by default the whole list', lower_bound=1)
DEFINE_list('valid_data_list', './dataset/val.txt', 'validation list')
flags.DEFINE_boolean('report', False, 'let test write report.html too: scores, worst and best images on one page')

# prediction
DEFINE_path('out_dir', 'output', 'folder of predictions and metrics', output=True)
DEFINE_step('test_step', None, "checkpoint to predict with, or 'best'; by default the newest")
DEFINE_whole('test_num_steps', None, 'images to predict; by default the whole list', lower_bound=1)
DEFINE_list('test_data_list', './dataset/val.txt', 'prediction list; labels are not read')
DEFINE_paths('image', 'an image to predict, in place of a list; give the flag again for each further one')
DEFINE_path('image_dir', '', 'folder whose images are predicted, with all folders below it, in place of a list')
flags.DEFINE_boolean('skip_existing', False, 'do not predict images whose outputs are all in --out_dir')
flags.DEFINE_boolean('visual', True, 'write coloured masks too')
flags.DEFINE_boolean('overlay', False, 'write the images tinted and outlined by class too, with a legend')
flags.DEFINE_enum('id_format', 'trainIds', ['trainIds', 'labelIds'],
                  "values and names of the masks: class indices, or Cityscapes' label ids for its benchmark")

# scores of test and predict
DEFINE_size('window', None, 'height and width of the overlapping windows that images are scored in, to bound the '
            'memory; by default whole images, where the memory allows', least=17, most=MOST_SIDE)
DEFINE_number('overlap', 0.33, 'the fraction of a window that neighbours share at least', 0, 0.9)
DEFINE_scales('eval_scales', [1.0], 'scales of an image whose scores are merged')
flags.DEFINE_boolean('eval_flip', False, 'merge the scores of the mirrored image too')
flags.DEFINE_enum('eval_merge', 'mean', ['mean', 'max'], 'how scores are merged: the mean of the probabilities or the '
                  'maximum of the logits')
flags.DEFINE_boolean('save_probabilities', False, "write every image's probabilities too, before --crf")
flags.DEFINE_boolean('save_logits', False, "write every image's logits too")
flags.DEFINE_boolean('crf', False, 'refine the class maps of test and predict by a dense CRF; needs pydensecrf2')
DEFINE_whole('crf_iterations', 10, 'of mean-field inference', 1, 1000)
DEFINE_number('crf_gaussian_sxy', 1.0, "deviation in pixels of the CRF's smoothing", 0.1, 10 ** 5)
DEFINE_number('crf_gaussian_weight', 3.0, "weight of the CRF's smoothing", 0, 10 ** 5)
DEFINE_number('crf_bilateral_sxy', 67.0, 'deviation in pixels of the CRF between pixels of like colour', 0.1, 10 ** 5)
DEFINE_number('crf_bilateral_srgb', 3.0, 'what is like colour to the CRF: a deviation in grey levels', 0.2, 10 ** 5)
DEFINE_number('crf_bilateral_weight', 4.0, 'weight of the CRF between pixels of like colour', 0, 10 ** 5)

# export
DEFINE_path('export_dir', 'export', 'new folder of the exported model', output=True)
flags.DEFINE_boolean('frozen', False, 'write one frozen GraphDef too, frozen.pb')
flags.DEFINE_boolean('tflite', False, 'write a TensorFlow Lite model too, model.tflite')

# data
DEFINE_path('data_dir', '', 'folder that the paths of the lists are relative to')
DEFINE_whole('batch_size', 10, 'images of one iteration', lower_bound=1, upper_bound=10 ** 6)
DEFINE_whole('input_height', 321, 'height of the training crops', lower_bound=17, upper_bound=MOST_SIDE)
DEFINE_whole('input_width', 321, 'width of the training crops', lower_bound=17, upper_bound=MOST_SIDE)
DEFINE_whole('num_classes', 21, 'classes', lower_bound=2, upper_bound=256)
DEFINE_whole('ignore_label', IGNORE_LABEL, 'label value of pixels that do not count', -command_line.MOST_WHOLE)
flags.DEFINE_boolean('random_scale', True, 'scale training images at random')
DEFINE_pair('random_scale_range', None, 'random scales are uniform in it, such as 0.5,1.5; by default as --compat says')
flags.DEFINE_boolean('random_mirror', True, 'mirror training images at random')
flags.DEFINE_enum('channel_order', None, ['bgr', 'rgb'], "of the network's input; by default that of --compat")
flags.DEFINE_list('img_mean', None, 'three numbers in the channel order, subtracted; by default those of --compat')
DEFINE_path('palette', '', "class colours and names: voc, cityscapes or a file of `name r g b` lines; also "
                    'reads colour-coded labels')
flags.DEFINE_boolean('check_labels', True, 'read all images and labels first, of lists of up to 2,000')
DEFINE_whole('num_threads', min(runtime.usable_cores(), MOST_THREADS),
             'threads that read images; by default the cores that the process may use', 1, MOST_THREADS)

# speed
flags.DEFINE_boolean('xla', False, 'let XLA compile clusters of ops')
flags.DEFINE_boolean('mixed_precision', False, 'float16 on GPUs, bfloat16 on processors that have it, where '
                     'TensorFlow deems it safe')
flags.DEFINE_boolean('deterministic', False, 'on GPUs, ops that give the same bits on every run; on the CPU all do')

# devices
DEFINE_whole('num_gpus', 1, 'GPUs that share a batch, or the images to test or predict, on each machine; logical '
             'devices of the processor where TensorFlow sees no GPU', 1, MOST_TOWERS)

flags.DEFINE_list('cluster', None, 'host:port of each machine that trains, tests or predicts, the same list on all; '
                  'that of TF_CONFIG in the environment by default')
DEFINE_whole('task_index', None, 'which machine of --cluster this is, from 0, which reads, saves and logs')
flags.DEFINE_enum('variables_on', 'spread', ['spread', 'chief'], 'where the variables of several machines lie: spread '
                  'over them by size, or all on task 0')

# log
DEFINE_path('modeldir', 'model', 'folder of the checkpoints', output=True)
DEFINE_path('logfile', 'log.txt', 'file of steps and losses', output=True)
DEFINE_path('logdir', 'log', "TensorBoard's folder", output=True)


def sample_args(args, flag_files=(SAMPLE_FLAGS,)):
    """The arguments to put before the user's: those files of the sample, unless the user's name any data.

    An image to predict is no such data: what was trained on the sample can predict it.

    Raises:
      UserError: the user's name images in two ways, or for another option than predict.
    """
    named = set(map(command_line.flag_name, args))
    check_images(['test_data_list'] if 'test_data_list' in named else [])
    if DATA_FLAGS & named:
        return []
    print('no data named: using the embedded sample (%s)' % ', '.join(flag_files))
    return ['--flagfile=' + os.path.join(command_line.REPO, path) for path in flag_files]


def check_images(lists):
    """UserError if --image or --image_dir goes with the other, with flags in `lists` or with another option."""
    images = [name for name in IMAGE_FLAGS if getattr(FLAGS, name)]
    if images and len(images + lists) > 1:
        raise UserError('%s exclude each other: drop all but one.' % ' and '.join(
            '--' + name for name in images + lists))
    if images and FLAGS.option != 'predict':
        raise UserError('--%s is for --option=predict, not --option=%s.' % (images[0], FLAGS.option))


def prepare():
    """runtime.prepare for what the flags ask for."""
    # With bfloat16, constants, which do the same, were slower than variables.
    frozen_weights = FLAGS.option in ('test', 'predict') and not FLAGS.mixed_precision
    runtime.prepare(FLAGS.xla, FLAGS.deterministic, frozen_weights)


def run_option(model_class):
    """Runs the method of the Model that --option names."""
    from utils.system import cluster  # once the environment is set
    machines = cluster.from_flags(FLAGS)
    print(runtime.devices())
    machines.start(runtime.session_config(FLAGS.xla, FLAGS.num_gpus))
    if machines.index:
        machines.serve()
    else:
        getattr(model_class(FLAGS, machines), FLAGS.option)()


def main():
    with interrupts.at_once():
        prepare()
        from model import Model  # once the environment is set
    run_option(Model)


if __name__ == '__main__':
    sys.exit(command_line.run(main, default_args=sample_args))
