"""Trains, tests or predicts with DeepLab v2 on one scale: python main.py --option=train|test|predict|check.

Every setting is a flag; --flagfile=FILE reads them from a file. Without --data_dir and --flagfile the embedded
sample's settings, dataset/sample.flags, are used.
"""

import os
import sys

from absl import flags

from utils.net import compat
from utils.system import command_line, runtime

FLAGS = flags.FLAGS
SAMPLE_FLAGS = os.path.join('dataset', 'sample.flags')

flags.DEFINE_enum('option', 'train', ['train', 'test', 'predict', 'check'],
                  'what to do; check reads every file of the three lists and reports')

# training
flags.DEFINE_integer('num_steps', 20000, 'iterations to train', lower_bound=1)
flags.DEFINE_integer('save_interval', 1000, 'iterations between checkpoints', lower_bound=1)
flags.DEFINE_integer('max_to_keep', 5, 'newest checkpoints to keep; 0 keeps all', lower_bound=0)
flags.DEFINE_integer('random_seed', 1234, 'seed of initial weights, order and augmentation')
flags.DEFINE_float('weight_decay', 0.0005, 'factor of the L2 loss of the weights', lower_bound=0)
flags.DEFINE_float('learning_rate', 2.5e-4, 'initial learning rate', lower_bound=0)
flags.DEFINE_float('power', 0.9, 'of the poly learning rate', lower_bound=0)
flags.DEFINE_float('momentum', 0.9, 'of SGD', lower_bound=0, upper_bound=1)
flags.DEFINE_integer('grad_update_every', 1, 'iterations whose gradients are averaged for one update', lower_bound=1)
flags.DEFINE_enum('encoder_name', 'deeplab', ['deeplab', 'res101', 'res50'],
                  'ResNet-101 under Caffe names, or ResNet-101 or -50 under slim names')
flags.DEFINE_enum('dilated_type', 'regular', ['regular', 'decompose', 'smooth_GI', 'smooth_SSC'],
                  'dilated convolution of the last two blocks')
flags.DEFINE_enum('compat', 'original', sorted(compat.COMPAT), 'whose numerics: padding, epsilon, resizing, mean')
flags.DEFINE_string('pretrain_file', '', 'weights to start from; random weights if empty')
flags.DEFINE_boolean('restore_decoder', False, "take the decoder too from --pretrain_file, where its shapes fit")
flags.DEFINE_boolean('train_bn', None, 'train batch norm; by default only without --pretrain_file')
flags.DEFINE_float('bn_decay', 0.9, 'of the moving averages of a trained batch norm', lower_bound=0, upper_bound=1)
flags.DEFINE_string('data_list', './dataset/train.txt', 'training list: an image and its label a line')

# validation
flags.DEFINE_integer('valid_step', None, 'checkpoint to test; by default the newest', lower_bound=0)
flags.DEFINE_integer('valid_num_steps', None, 'images to test; by default the whole list', lower_bound=1)
flags.DEFINE_string('valid_data_list', './dataset/val.txt', 'validation list')

# prediction
flags.DEFINE_string('out_dir', 'output', 'folder of predictions and metrics')
flags.DEFINE_integer('test_step', None, 'checkpoint to predict with; by default the newest', lower_bound=0)
flags.DEFINE_integer('test_num_steps', None, 'images to predict; by default the whole list', lower_bound=1)
flags.DEFINE_string('test_data_list', './dataset/val.txt', 'prediction list; labels are not read')
flags.DEFINE_boolean('visual', True, 'write coloured masks too')
flags.DEFINE_boolean('overlay', False, 'write the images under their coloured masks too, with a legend')
flags.DEFINE_enum('id_format', 'trainIds', ['trainIds', 'labelIds'],
                  "values and names of the masks: class indices, or Cityscapes' label ids for its benchmark")

# data
flags.DEFINE_string('data_dir', '', 'folder that the paths of the lists are relative to')
flags.DEFINE_integer('batch_size', 10, 'images of one iteration', lower_bound=1)
flags.DEFINE_integer('input_height', 321, 'height of the training crops', lower_bound=17)
flags.DEFINE_integer('input_width', 321, 'width of the training crops', lower_bound=17)
flags.DEFINE_integer('num_classes', 21, 'classes', lower_bound=2, upper_bound=256)
flags.DEFINE_integer('ignore_label', 255, 'label value of pixels that do not count')
flags.DEFINE_boolean('random_scale', True, 'scale training images at random')
flags.DEFINE_boolean('random_mirror', True, 'mirror training images at random')
flags.DEFINE_enum('channel_order', None, ['bgr', 'rgb'], "of the network's input; by default that of --compat")
flags.DEFINE_list('img_mean', None, 'three numbers in the channel order, subtracted; by default those of --compat')
flags.DEFINE_string('palette', '', "class colours and names: voc, cityscapes or a file of `name r g b` lines; also "
                    'reads colour-coded labels')
flags.DEFINE_boolean('check_labels', True, 'read all images and labels first, of lists of up to 2,000')
flags.DEFINE_integer('num_threads', os.cpu_count() or 1, 'threads that read images', lower_bound=1)

# speed
flags.DEFINE_boolean('xla', False, 'let XLA compile clusters of ops')
flags.DEFINE_boolean('mixed_precision', False, 'float16 where TensorFlow deems it safe; on GPUs')

# log
flags.DEFINE_string('modeldir', 'model', 'folder of the checkpoints')
flags.DEFINE_string('logfile', 'log.txt', 'file of steps and losses')
flags.DEFINE_string('logdir', 'log', "TensorBoard's folder")


def sample_args(args):
    """The arguments to put before the user's: the sample's settings, unless other data is named."""
    if any(arg.lstrip('-').split('=')[0] in ('data_dir', 'flagfile') for arg in args if arg.startswith('-')):
        return []
    print('no --data_dir or --flagfile: using the embedded sample (%s)' % SAMPLE_FLAGS)
    return ['--flagfile=' + SAMPLE_FLAGS]


def main():
    runtime.prepare(FLAGS.xla)
    from model import Model  # once the environment is set
    getattr(Model(FLAGS), FLAGS.option)()


if __name__ == '__main__':
    sys.exit(command_line.run(main, default_args=sample_args))
