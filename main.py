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
    NETWORK,
    NOTHING,
    RESULT,
    DEFINE_choice,
    DEFINE_fractions,
    DEFINE_list,
    DEFINE_number,
    DEFINE_pair,
    DEFINE_path,
    DEFINE_paths,
    DEFINE_scales,
    DEFINE_size,
    DEFINE_step,
    DEFINE_switch,
    DEFINE_whole,
    DEFINE_words,
    topic,
)
from utils.system.errors import UserError

FLAGS = flags.FLAGS
SAMPLE_FLAGS = os.path.join('dataset', 'sample.flags')
IMAGE_FLAGS = ('image', 'image_dir')
DATA_FLAGS = {'data_list', 'valid_data_list', 'test_data_list', 'data_dir', 'palette', 'num_classes', 'flagfile'}
MOST_THREADS = 256
MOST_TOWERS = 64
MOST_SIDE = 65535  # of a JPEG

# A flag is declared once, here: what it is, which values of --option it has an effect for, and what it decides. From
# that follow what a resume compares, what predict requires, what a command line may give and docs/flags.md, which
# `python tools/make_flags_page.py > docs/flags.md` makes anew.
ALL = ('train', 'test', 'predict', 'export', 'check')
TRAIN, TEST, PREDICT, EXPORT = ('train',), ('test',), ('predict',), ('export',)
SCORES = TEST + PREDICT  # what is scored
RUNS = TRAIN + SCORES  # what a session computes
NETWORKS = RUNS + EXPORT  # what has a network
LABELS = TRAIN + TEST  # what reads labels

topic('What to do')
DEFINE_choice('option', 'train', ALL, 'what to do; check reads every file of the three lists and reports',
              options=ALL, decides=NOTHING)

topic('Network')
DEFINE_choice('encoder_name', 'deeplab', list(ENCODERS), 'ResNet-101 under Caffe names, or ResNet-152, -101 or -50 '
              'under slim names', options=NETWORKS, decides=NETWORK)
DEFINE_choice('decoder', 'aspp', ['aspp', 'aspp_pooling'], 'atrous spatial pyramid pooling, alone or with a branch '
              'that pools the whole image', options=NETWORKS, decides=NETWORK)
DEFINE_whole('num_classes', 21, 'classes', lower_bound=2, upper_bound=256, options=ALL, decides=NETWORK)
DEFINE_choice('dilated_type', 'regular', ['regular', 'decompose', 'smooth_GI', 'smooth_SSC'],
              'dilated convolution of the last two blocks', options=NETWORKS, decides=NETWORK,
              same_network=('regular', 'decompose'))
DEFINE_choice('compat', 'original', sorted(compat.COMPAT), 'whose numerics: padding, epsilon, resizing, mean',
              options=NETWORKS, decides=RESULT)
DEFINE_choice('channel_order', None, ['bgr', 'rgb'], "order of the network's input; by default that of --pretrain_file "
              'or of the training, otherwise that of --compat', options=NETWORKS, decides=RESULT)
DEFINE_words('img_mean', 'three numbers in the channel order, subtracted from the input; by default like '
             '--channel_order', options=NETWORKS, decides=RESULT)

topic('Data')
DEFINE_path('data_dir', '', 'folder that the paths of the lists are relative to', options=RUNS + ('check',),
            decides=RESULT)
DEFINE_list('data_list', './dataset/train.txt', 'training list: an image and its label a line; what a flag file of '
            "this repo's dataset/ names is found there if it is not in the working folder", content_counts=True,
            options=('train', 'check'), decides=RESULT)
DEFINE_list('valid_data_list', './dataset/val.txt', 'validation list', options=LABELS + ('check',), decides=NOTHING,
            counterpart='test_data_list')
DEFINE_list('test_data_list', './dataset/val.txt', 'prediction list; labels are not read', options=('predict', 'check'),
            decides=NOTHING, counterpart='valid_data_list')
DEFINE_whole('ignore_label', IGNORE_LABEL, 'label value of pixels that do not count', -command_line.MOST_WHOLE,
             options=ALL, decides=RESULT)
DEFINE_path('palette', '', "class colours and names: voc, cityscapes or a file of `name r g b` lines, VOC's by "
            'default; also reads colour-coded labels', content_counts=True, options=ALL, decides=RESULT)
DEFINE_switch('check_labels', True, 'read all images and labels first, of lists of up to 2,000', options=LABELS,
              decides=NOTHING)
DEFINE_whole('num_threads', min(runtime.usable_cores(), MOST_THREADS), 'threads that read images, fewer where large '
             'images would fill the memory; by default the cores that the process may use', 1, MOST_THREADS,
             options=RUNS + ('check',), decides=NOTHING)

topic('Training')
DEFINE_whole('num_steps', 20000, 'iterations to train; one more is run, at rate 0', lower_bound=1, options=TRAIN,
             decides=RESULT)
DEFINE_whole('batch_size', 10, 'images of one iteration', lower_bound=1, upper_bound=10 ** 6, options=TRAIN,
             decides=RESULT)
DEFINE_whole('grad_update_every', 1, 'iterations whose gradients are averaged for one update', lower_bound=1,
             options=TRAIN, decides=RESULT)
DEFINE_whole('random_seed', 1234, 'seed of initial weights, order and augmentation; 0 to 2^31 - 1', options=TRAIN,
             decides=RESULT)
DEFINE_choice('resume', 'auto', ['auto', 'never', 'must'], 'whether to resume from the newest checkpoint of '
              '--modeldir: auto, if the settings are the same; never; must, whatever they were', options=TRAIN,
              decides=NOTHING)
DEFINE_whole('save_interval', 1000, 'iterations between checkpoints and pictures', lower_bound=1, options=TRAIN,
             decides=NOTHING)
DEFINE_whole('max_to_keep', 5, 'newest checkpoints to keep; 0 keeps all', options=TRAIN, decides=NOTHING)
DEFINE_path('pretrain_file', '', 'weights to start from, random weights if empty: a checkpoint, a caffemodel, a Keras '
            'h5 or the word imagenet', options=TRAIN, decides=RESULT, counterpart='modeldir')
DEFINE_switch('restore_decoder', False, 'take the decoder too from --pretrain_file, where its shapes fit',
              options=TRAIN, decides=RESULT, needs='pretrain_file')
DEFINE_switch('freeze_encoder', False, 'train the decoder alone', options=TRAIN, decides=RESULT)
DEFINE_switch('train_bn', None, 'train batch norm; by default only without --pretrain_file', options=TRAIN,
              decides=RESULT)
DEFINE_number('bn_decay', 0.9, 'decay of the moving averages of a trained batch norm', upper_bound=1, options=TRAIN,
              decides=RESULT)

topic('Loss')
DEFINE_choice('loss', 'ce', ['ce', 'ohem', 'dice', 'ce+dice'], 'cross-entropy of all pixels or of the hardest ones, '
              "1 - the mean Dice coefficient of the classes, or the sum of 'ce' and 'dice'", options=TRAIN,
              decides=RESULT)
DEFINE_number('ohem_fraction', 0.25, 'the share of the pixels that are the hardest, for --loss=ohem', 0.0001, 1,
              options=TRAIN, decides=RESULT, needs='loss=ohem')
DEFINE_path('class_weights', '', "weights of the classes in the loss: 'balanced' (median frequency) or a file with a "
            'number for each class', content_counts=True, options=TRAIN, decides=RESULT)
DEFINE_number('weight_decay', 0.0005, 'factor of the L2 loss of the weights', options=TRAIN, decides=RESULT)

topic('Optimizer')
DEFINE_number('learning_rate', 2.5e-4, "initial learning rate of the encoder; the decoder's is --decoder_rate times "
              'that', options=TRAIN, decides=RESULT)
DEFINE_pair('decoder_rate', [10.0, 20.0], "rates of the decoder's weights and biases, times that of the encoder",
            options=TRAIN, decides=RESULT)
DEFINE_choice('schedule', 'poly', ['poly', 'cosine', 'step'], 'how the learning rate falls', options=TRAIN,
              decides=RESULT)
DEFINE_number('power', 0.9, 'exponent of the poly schedule: learning_rate * (1 - step / num_steps) ^ power',
              options=TRAIN, decides=RESULT, needs='schedule=poly')
DEFINE_whole('step_size', 2000, 'updates after which the step schedule multiplies the rate by --step_factor',
             lower_bound=1, options=TRAIN, decides=RESULT, needs='schedule=step')
DEFINE_number('step_factor', 0.1, 'see --step_size', upper_bound=1, options=TRAIN, decides=RESULT,
              needs='schedule=step')
DEFINE_whole('warmup_steps', 0, 'first updates, over which the learning rate rises linearly', options=TRAIN,
             decides=RESULT)
DEFINE_choice('optimizer', 'momentum', ['momentum', 'adamw'], 'SGD with momentum, or Adam with decoupled weight decay',
              options=TRAIN, decides=RESULT)
DEFINE_number('momentum', 0.9, "momentum of SGD; the decay of AdamW's first moment", upper_bound=1, options=TRAIN,
              decides=RESULT)

topic('Augmentation')
DEFINE_whole('input_height', 321, 'height of the training crops', lower_bound=17, upper_bound=MOST_SIDE, options=TRAIN,
             decides=RESULT)
DEFINE_whole('input_width', 321, 'width of the training crops', lower_bound=17, upper_bound=MOST_SIDE, options=TRAIN,
             decides=RESULT)
DEFINE_switch('random_scale', True, 'scale training images at random', options=TRAIN, decides=RESULT)
DEFINE_pair('random_scale_range', None, 'random scales are uniform in it, such as 0.5,1.5; by default as --compat says',
            options=TRAIN, decides=RESULT, needs='random_scale')
DEFINE_switch('random_mirror', True, 'mirror training images at random', options=TRAIN, decides=RESULT)
DEFINE_switch('random_flip_vertical', False, 'swap top and bottom of training images at random', options=TRAIN,
              decides=RESULT)
DEFINE_number('random_rotation', 0.0, 'rotate training images by up to this many degrees in either direction', 0, 180,
              options=TRAIN, decides=RESULT)
DEFINE_fractions('random_colour', None, 'change brightness, contrast and saturation of training images by up to these '
                 'fractions, such as 0.2,0.2,0.2; by default not at all', count=3, options=TRAIN, decides=RESULT)

topic('Validation and test')
DEFINE_whole('valid_interval', 0, 'iterations between validations while training; 0 for none', options=TRAIN,
             decides=NOTHING)
DEFINE_step('valid_step', None, "checkpoint to test, or 'best' by --valid_interval's scores; by default the newest",
            options=TEST, decides=NOTHING, counterpart='test_step')
DEFINE_whole('valid_num_steps', None, 'images to test; by default the whole list', lower_bound=1, options=LABELS,
             decides=NOTHING, counterpart='test_num_steps')
DEFINE_switch('report', False, 'let test write report.html too: scores, worst and best images on one page',
              options=TEST, decides=NOTHING)

topic('Prediction')
DEFINE_path('out_dir', 'output', 'folder of predictions and metrics', output=True, options=SCORES, decides=NOTHING)
DEFINE_step('test_step', None, "checkpoint to predict with or to export, or 'best'; by default the newest",
            options=PREDICT + EXPORT, decides=NOTHING, counterpart='valid_step')
DEFINE_whole('test_num_steps', None, 'images to predict; by default the whole list', lower_bound=1, options=PREDICT,
             decides=NOTHING, counterpart='valid_num_steps')
DEFINE_paths('image', 'an image to predict, in place of a list, by default none; give the flag again for each further '
             'one', options=PREDICT, decides=NOTHING)
DEFINE_path('image_dir', '', 'folder whose images are predicted, with all folders below it, in place of a list',
            options=PREDICT, decides=NOTHING)
DEFINE_switch('skip_existing', False, 'do not predict images whose outputs are all in --out_dir', options=PREDICT,
              decides=NOTHING)
DEFINE_switch('visual', True, 'write coloured masks too', options=PREDICT, decides=NOTHING)
DEFINE_switch('overlay', False, 'write the images tinted and outlined by class too, with a legend', options=PREDICT,
              decides=NOTHING)
DEFINE_choice('id_format', 'trainIds', ['trainIds', 'labelIds'], "values and names of the masks: class indices, or "
              "Cityscapes' label ids for its benchmark", options=PREDICT, decides=NOTHING)
DEFINE_switch('save_probabilities', False, "write every image's probabilities too, before --crf", options=PREDICT,
              decides=NOTHING)
DEFINE_switch('save_logits', False, "write every image's logits too", options=PREDICT, decides=NOTHING)

topic('Scores of test and predict')
DEFINE_size('window', None, 'height and width of the overlapping windows that images are scored in, in validations '
            'too, to bound the memory; by default whole images, where the memory allows', least=17, most=MOST_SIDE,
            options=RUNS, decides=NOTHING)
DEFINE_number('overlap', 0.33, 'the fraction of a window that neighbours share at least', 0, 0.9, options=RUNS,
              decides=NOTHING)
DEFINE_scales('eval_scales', [1.0], 'scales of an image whose scores are merged', options=SCORES, decides=NOTHING)
DEFINE_switch('eval_flip', False, 'merge the scores of the mirrored image too', options=SCORES, decides=NOTHING)
DEFINE_choice('eval_merge', 'mean', ['mean', 'max'], 'how scores are merged: the mean of the probabilities or the '
              'maximum of the logits', options=SCORES, decides=NOTHING)
DEFINE_switch('crf', False, 'refine the class maps of test and predict by a dense CRF; needs pydensecrf2',
              options=SCORES, decides=NOTHING)
DEFINE_whole('crf_iterations', 10, 'iterations of mean-field inference', 1, 1000, options=SCORES, decides=NOTHING,
             needs='crf')
DEFINE_number('crf_gaussian_sxy', 1.0, "deviation in pixels of the CRF's smoothing", 0.1, 10 ** 5, options=SCORES,
              decides=NOTHING, needs='crf')
DEFINE_number('crf_gaussian_weight', 3.0, "weight of the CRF's smoothing", 0, 10 ** 5, options=SCORES, decides=NOTHING,
              needs='crf')
DEFINE_number('crf_bilateral_sxy', 67.0, 'deviation in pixels of the CRF between pixels of like colour', 0.1, 10 ** 5,
              options=SCORES, decides=NOTHING, needs='crf')
DEFINE_number('crf_bilateral_srgb', 3.0, 'what is like colour to the CRF: a deviation in grey levels', 0.2, 10 ** 5,
              options=SCORES, decides=NOTHING, needs='crf')
DEFINE_number('crf_bilateral_weight', 4.0, 'weight of the CRF between pixels of like colour', 0, 10 ** 5,
              options=SCORES, decides=NOTHING, needs='crf')

topic('Export')
DEFINE_path('export_dir', 'export', 'new folder of the exported model', output=True, options=EXPORT, decides=NOTHING)
DEFINE_switch('frozen', False, 'write one frozen GraphDef too, frozen.pb', options=EXPORT, decides=NOTHING)
DEFINE_switch('tflite', False, 'write a TensorFlow Lite model too, model.tflite (TensorFlow 2)', options=EXPORT,
              decides=NOTHING)

topic('Speed')
DEFINE_switch('xla', False, 'let XLA compile clusters of ops', options=RUNS, decides=NOTHING)
DEFINE_switch('mixed_precision', False, 'float16 on GPUs, bfloat16 on processors that have it (AMX, AVX512-BF16; '
              'TensorFlow 2), where TensorFlow deems it safe', options=RUNS, decides=RESULT)
DEFINE_switch('deterministic', False, 'on GPUs, ops that give the same bits on every run; on the CPU all do',
              options=RUNS, decides=NOTHING)

topic('Devices')
DEFINE_whole('num_gpus', 1, 'GPUs that share a batch, or the images to test or predict, on each machine; logical '
             'devices of the processor where TensorFlow sees no GPU', 1, MOST_TOWERS, options=RUNS, decides=NOTHING)
DEFINE_words('cluster', 'host:port of each machine that trains, tests or predicts, the same list on all; by default '
             'that of TF_CONFIG in the environment', options=ALL, decides=NOTHING)  # export and check refuse it
DEFINE_whole('task_index', None, 'which machine of --cluster this is, from 0, which reads, saves and logs; by default '
             'that of TF_CONFIG', options=ALL, decides=NOTHING)
DEFINE_choice('variables_on', 'spread', ['spread', 'chief'], 'where the variables of several machines lie: spread '
              'over them by size, or all on task 0', options=TRAIN, decides=NOTHING)

topic('Checkpoints and logs')
DEFINE_path('modeldir', 'model', 'folder of the checkpoints', output=True, options=NETWORKS, decides=NOTHING)
DEFINE_path('logfile', 'log.txt', 'file of steps and losses', output=True, options=TRAIN, decides=NOTHING)
DEFINE_path('logdir', 'log', "TensorBoard's folder", output=True, options=TRAIN, decides=NOTHING)


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
    """runtime.import_tensorflow for what the flags ask for."""
    # With bfloat16, constants, which do the same, were slower than variables.
    frozen_weights = FLAGS.option in ('test', 'predict') and not FLAGS.mixed_precision
    runtime.import_tensorflow(FLAGS.xla, FLAGS.deterministic, frozen_weights)


def run_option(model_class):
    """Runs the method of the Model that --option names."""
    from utils.distributed import cluster  # once the environment is set
    machines = cluster.from_flags(FLAGS)
    print(runtime.describe_devices())
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
