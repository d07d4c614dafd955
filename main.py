"""Trains, tests or predicts with DeepLab v2 on one scale: python main.py --option=train|test|predict|check.

Every setting is a flag; --flagfile=FILE reads them from a file, a flag a line. A command line that names no data (no
list, --data_dir, --palette, --num_classes or --flagfile) takes the embedded sample's settings, dataset/sample.flags.
"""

import os
import sys

from absl import flags

from utils.data.palette import IGNORE_LABEL
from utils.net import compat
from utils.system import command_line, runtime
from utils.system.command_line import (
    DEFINE_list,
    DEFINE_number,
    DEFINE_pair,
    DEFINE_path,
    DEFINE_scales,
    DEFINE_size,
    DEFINE_step,
    DEFINE_whole,
)

FLAGS = flags.FLAGS
SAMPLE_FLAGS = os.path.join('dataset', 'sample.flags')
DATA_FLAGS = {'data_list', 'valid_data_list', 'test_data_list', 'data_dir', 'palette', 'num_classes', 'flagfile'}
MOST_THREADS = 256
MOST_SIDE = 65535  # of a JPEG

flags.DEFINE_enum('option', 'train', ['train', 'test', 'predict', 'check'],
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
flags.DEFINE_enum('encoder_name', 'deeplab', ['deeplab', 'res101', 'res50'],
                  'ResNet-101 under Caffe names, or ResNet-101 or -50 under slim names')
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

# prediction
DEFINE_path('out_dir', 'output', 'folder of predictions and metrics', output=True)
DEFINE_step('test_step', None, "checkpoint to predict with, or 'best'; by default the newest")
DEFINE_whole('test_num_steps', None, 'images to predict; by default the whole list', lower_bound=1)
DEFINE_list('test_data_list', './dataset/val.txt', 'prediction list; labels are not read')
flags.DEFINE_boolean('visual', True, 'write coloured masks too')
flags.DEFINE_boolean('overlay', False, 'write the images under their coloured masks too, with a legend')
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

# log
DEFINE_path('modeldir', 'model', 'folder of the checkpoints', output=True)
DEFINE_path('logfile', 'log.txt', 'file of steps and losses', output=True)
DEFINE_path('logdir', 'log', "TensorBoard's folder", output=True)


def sample_args(args, flag_files=(SAMPLE_FLAGS,)):
    """The arguments to put before the user's: those files of the sample, unless the user's name any data."""
    if DATA_FLAGS.intersection(map(command_line.flag_name, args)):
        return []
    print('no data named: using the embedded sample (%s)' % ', '.join(flag_files))
    return ['--flagfile=' + os.path.join(command_line.REPO, path) for path in flag_files]


def run_option(model_class):
    """Runs the method of the Model that --option names."""
    print(runtime.devices())
    getattr(model_class(FLAGS), FLAGS.option)()


def main():
    runtime.prepare(FLAGS.xla)
    from model import Model  # once the environment is set
    run_option(Model)


if __name__ == '__main__':
    sys.exit(command_line.run(main, default_args=sample_args))
