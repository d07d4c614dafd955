"""Trains, tests, predicts or exports DeepLab v2 on one scale: python main.py --option=train|test|predict|export|check.

Every setting is a flag; --flagfile=FILE reads flags from a file, one per line. Without data flags (a list, --data_dir,
--palette, --num_classes or --flagfile), the bundled sample is used, with the settings in dataset/sample.flags.
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
    DEFINE_bands,
    DEFINE_choice,
    DEFINE_fractions,
    DEFINE_list,
    DEFINE_number,
    DEFINE_pair,
    DEFINE_path,
    DEFINE_paths,
    DEFINE_range,
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
MOST_SIDE = 65535  # pixels, the limit of a JPEG

# Each flag is declared once, here, with its meaning, the values of --option that use it, and the results that it
# affects. These records determine which settings are compared before a run is resumed, which must agree between
# training and prediction, which flags a command line may give, and the text of docs/flags.md, which `python
# tools/make_flags_page.py > docs/flags.md` regenerates.
ALL = ('train', 'test', 'predict', 'export', 'check')
TRAIN, TEST, PREDICT, EXPORT = ('train',), ('test',), ('predict',), ('export',)
SCORES = TEST + PREDICT  # the options that score images
RUNS = TRAIN + SCORES  # the options that compute in a session
NETWORKS = RUNS + EXPORT  # the options that build a network
LABELS = TRAIN + TEST  # the options that read labels

topic('What to do')
DEFINE_choice('option', 'train', ALL, 'what to do; check reads every file in the three lists and reports problems',
              options=ALL, decides=NOTHING)

topic('Network')
# Test, predict and export take these from --weights or from the training in --modeldir if they are not given.
DEFINE_choice('encoder_name', 'deeplab', list(ENCODERS), "ResNet-101 with Caffe's variable names, or ResNet-152, "
              "-101 or -50 with slim's", options=NETWORKS, decides=NETWORK)
DEFINE_choice('decoder', 'aspp', ['aspp', 'aspp_pooling'], 'atrous spatial pyramid pooling, alone or with a branch '
              'that pools the whole image', options=NETWORKS, decides=NETWORK)
DEFINE_whole('num_classes', 21, 'number of classes', lower_bound=2, upper_bound=256, options=ALL, decides=NETWORK)
DEFINE_choice('dilated_type', 'regular', ['regular', 'decompose', 'smooth_GI', 'smooth_SSC'],
              'kind of dilated convolution in the last two blocks', options=NETWORKS, decides=NETWORK,
              same_network=('regular', 'decompose'))
DEFINE_choice('compat', 'original', sorted(compat.COMPAT), 'implementation whose numerics are used: padding, epsilon, '
              'resizing, mean', options=NETWORKS, decides=RESULT, from_training=True)
DEFINE_choice('channel_order', None, ['bgr', 'rgb'], "channel order of the network's input; by default as in "
              '--pretrain_file or in the training, otherwise as in --compat', options=NETWORKS, decides=RESULT)
DEFINE_words('img_mean', "mean that is subtracted from the network's input, three numbers in its channel order; by "
             'default from the same source as --channel_order', options=NETWORKS, decides=RESULT)

topic('Data')
DEFINE_path('data_dir', '', 'folder to which the paths in the lists are relative', options=ALL, decides=RESULT)
DEFINE_list('data_list', './dataset/train.txt', 'training list, with an image and its label on each line; a path in '
            "a flag file of this repo's dataset/ is looked up in the repo if it does not exist in the working folder",
            content_counts=True, options=('train', 'check') + EXPORT, decides=RESULT)
DEFINE_list('valid_data_list', './dataset/val.txt', 'validation list', options=LABELS + ('check',), decides=NOTHING,
            counterpart='test_data_list')
DEFINE_list('test_data_list', './dataset/val.txt', 'prediction list; its labels are not read',
            options=('predict', 'check'), decides=NOTHING, counterpart='valid_data_list')
DEFINE_whole('ignore_label', IGNORE_LABEL, 'label value of pixels that are not counted', -command_line.MOST_WHOLE,
             options=ALL, decides=RESULT)
DEFINE_path('palette', '', 'class colours and names: voc, cityscapes, cocostuff or a file of `name r g b` lines, '
            "VOC's by default; colour-coded labels are read with it too", content_counts=True, options=ALL,
            decides=RESULT)
DEFINE_range('image_range', None, 'pixel values that become 0 and 255, such as 0,4095 for 12-bit images; values '
             'between them are mapped linearly and values outside are clipped; by default 8-bit images are unchanged '
             'and 16-bit images keep their upper 8 bits', options=ALL, decides=RESULT, from_training=True)
DEFINE_bands('image_bands', None, 'image bands to use as red, green and blue, such as 4,3,2, or one band for grey; '
             'bands are numbered from 1 across all pages of a TIFF; TIFFs need tifffile; by default the first bands',
             options=ALL, decides=RESULT, from_training=True)
DEFINE_switch('apply_exif', None, 'apply the EXIF orientation of images, but never of labels; off by default',
              options=ALL, decides=RESULT, from_training=True)
DEFINE_path('label_map', '', 'map from the values of index labels to classes: binary (all but 0 become 1), '
            'reduce_zero (0 is ignored, k becomes k - 1), cityscapes (label ids to train ids) or a file of lines `FROM '
            'TO` or `FROM-FROM TO`, where TO is a class or `ignore`; none for no map', content_counts=True,
            options=LABELS + ('check',), decides=RESULT, from_training=True)
DEFINE_switch('check_labels', True, 'before the work begins, check every image and label in lists of up to 2,000 '
              'images', options=LABELS, decides=NOTHING)
DEFINE_whole('num_threads', min(runtime.usable_cores(), MOST_THREADS), 'number of threads that read images, reduced '
             'where large images would fill the memory; by default the number of cores that the process may use',
             1, MOST_THREADS, options=RUNS + ('check',), decides=NOTHING)

topic('Training')
DEFINE_whole('num_steps', 20000, 'number of training iterations; one more is run, at learning rate 0',
             lower_bound=1, options=TRAIN, decides=RESULT)
DEFINE_whole('batch_size', 10, 'images per iteration', lower_bound=1, upper_bound=10 ** 6, options=TRAIN,
             decides=RESULT)
DEFINE_whole('grad_update_every', 1, 'number of iterations whose gradients are averaged for one update',
             lower_bound=1, options=TRAIN, decides=RESULT)
DEFINE_whole('random_seed', 1234, 'seed of the initial weights, the order of the images and the augmentation, '
             '0 to 2^31 - 1', options=TRAIN, decides=RESULT)
DEFINE_choice('resume', 'auto', ['auto', 'never', 'must'], 'whether to resume from the newest checkpoint in '
              '--modeldir: auto, only if its run had the same settings; must, whatever its settings; or never',
              options=TRAIN, decides=NOTHING)
DEFINE_whole('save_interval', 1000, 'iterations between checkpoints, and between pictures in --logdir',
             lower_bound=1, options=TRAIN, decides=NOTHING)
DEFINE_whole('max_to_keep', 5, 'number of newest checkpoints to keep; 0 keeps all', options=TRAIN,
             decides=NOTHING)
DEFINE_path('pretrain_file', '', 'weights to start from: a checkpoint, a caffemodel, a PyTorch pth, a Keras h5 or one '
            'of the words imagenet, voc12, cocostuff10k and cocostuff164k; if empty, the initial weights are random',
            options=TRAIN, decides=RESULT, counterpart='weights')
DEFINE_switch('restore_decoder', False, 'also restore the decoder from --pretrain_file, where its shapes fit',
              options=TRAIN, decides=RESULT, needs='pretrain_file')
DEFINE_switch('freeze_encoder', False, 'train only the decoder', options=TRAIN, decides=RESULT)
DEFINE_switch('train_bn', None, 'train batch norm; by default only without --pretrain_file', options=TRAIN,
              decides=RESULT)
DEFINE_number('bn_decay', 0.9, 'decay of the moving averages when batch norm is trained', upper_bound=1, options=TRAIN,
              decides=RESULT)

topic('Loss')
DEFINE_choice('loss', 'ce', ['ce', 'ohem', 'dice', 'ce+dice'], 'cross-entropy of all pixels or of the hardest ones, '
              "1 minus the mean Dice coefficient of the classes, or the sum of 'ce' and 'dice'", options=TRAIN,
              decides=RESULT)
DEFINE_number('ohem_fraction', 0.25, 'fraction of the pixels, the hardest ones, that --loss=ohem averages', 0.0001,
              1, options=TRAIN, decides=RESULT, needs='loss=ohem')
DEFINE_path('class_weights', '', "weights of the classes in the loss: 'balanced' (median frequency) or a file with "
            'one number per class', content_counts=True, options=TRAIN, decides=RESULT)
DEFINE_number('weight_decay', 0.0005, 'factor of the L2 loss on the weights', upper_bound=10 ** 6, options=TRAIN,
              decides=RESULT)

topic('Optimizer')
DEFINE_number('learning_rate', 2.5e-4, "initial learning rate of the encoder; the decoder's is this times "
              '--decoder_rate', options=TRAIN, decides=RESULT)
DEFINE_pair('decoder_rate', [10.0, 20.0], "learning rates of the decoder's weights and biases, as multiples of the "
            "encoder's", options=TRAIN, decides=RESULT)
DEFINE_choice('schedule', 'poly', ['poly', 'cosine', 'step'], 'how the learning rate decreases', options=TRAIN,
              decides=RESULT)
DEFINE_number('power', 0.9, 'exponent of the poly schedule: learning_rate * (1 - step / num_steps) ^ power',
              options=TRAIN, decides=RESULT, needs='schedule=poly')
DEFINE_whole('step_size', 2000, 'number of updates between the steps of the step schedule, which multiply the '
             'learning rate by --step_factor', lower_bound=1, options=TRAIN, decides=RESULT, needs='schedule=step')
DEFINE_number('step_factor', 0.1, 'factor of the step schedule, see --step_size', upper_bound=1, options=TRAIN,
              decides=RESULT, needs='schedule=step')
DEFINE_whole('warmup_steps', 0, 'number of updates at the start during which the learning rate rises linearly',
             options=TRAIN, decides=RESULT)
DEFINE_choice('optimizer', 'momentum', ['momentum', 'adamw'], 'SGD with momentum, or Adam with decoupled weight decay',
              options=TRAIN, decides=RESULT)
DEFINE_number('momentum', 0.9, "momentum of SGD, or decay rate of AdamW's first moment", upper_bound=1,
              options=TRAIN, decides=RESULT)

topic('Augmentation')
DEFINE_whole('input_height', 321, 'height of the training crops', lower_bound=17, upper_bound=MOST_SIDE,
             options=TRAIN + ('check',), decides=RESULT)
DEFINE_whole('input_width', 321, 'width of the training crops', lower_bound=17, upper_bound=MOST_SIDE,
             options=TRAIN + ('check',), decides=RESULT)
DEFINE_switch('random_scale', True, 'scale training images at random', options=TRAIN + ('check',), decides=RESULT)
DEFINE_pair('random_scale_range', None, 'range of the uniformly distributed random scales, such as 0.5,1.5; by '
            'default as in --compat', most=1000, options=TRAIN + ('check',), decides=RESULT, needs='random_scale')
DEFINE_switch('random_mirror', True, 'mirror training images at random', options=TRAIN, decides=RESULT)
DEFINE_switch('random_flip_vertical', False, 'flip training images upside down at random', options=TRAIN,
              decides=RESULT)
DEFINE_number('random_rotation', 0.0, 'rotate training images at random, by up to this many degrees in either '
              'direction', 0, 180, options=TRAIN, decides=RESULT)
DEFINE_fractions('random_colour', None, 'change the brightness, contrast and saturation of training images at random, '
                 'by up to these fractions, such as 0.2,0.2,0.2; by default not at all', count=3, options=TRAIN,
                 decides=RESULT)

topic('Weights for test, predict and export')
DEFINE_path('weights', '', 'weights to use instead of a checkpoint in --modeldir: a checkpoint or its folder, a '
            'caffemodel, a PyTorch pth or one of the words voc12, cocostuff10k and cocostuff164k; the flags of the '
            'network and its input are then taken from the file', options=SCORES + EXPORT, decides=NOTHING,
            counterpart='pretrain_file', excludes=('modeldir', 'valid_step', 'test_step'))

topic('Validation and test')
DEFINE_whole('valid_interval', 0, 'iterations between validations during training; 0 for none', options=TRAIN,
             decides=NOTHING)
DEFINE_whole('patience', 0, 'stop training when the best mean IoU is this many validations old; 0 for never',
             options=TRAIN, decides=NOTHING, needs='valid_interval')
DEFINE_step('valid_step', None, "step of the checkpoint to test, or 'best' for the highest mean IoU in the validations "
            'of training (--valid_interval); by default the newest', options=TEST, decides=NOTHING,
            counterpart='test_step')
DEFINE_whole('valid_num_steps', None, 'number of images to test; by default the whole list', lower_bound=1,
             options=LABELS, decides=NOTHING, counterpart='test_num_steps')
DEFINE_switch('report', False, 'also write report.html, a page with the scores and the worst and best images',
              options=TEST, decides=NOTHING)

topic('Prediction')
DEFINE_path('out_dir', 'output', 'folder for predictions and metrics', output=True, options=SCORES, decides=NOTHING)
DEFINE_step('test_step', None, "step of the checkpoint to predict with or to export, or 'best'; by default the "
            'newest', options=PREDICT + EXPORT, decides=NOTHING, counterpart='valid_step')
DEFINE_whole('test_num_steps', None, 'number of images to predict; by default the whole list', lower_bound=1,
             options=PREDICT, decides=NOTHING, counterpart='valid_num_steps')
DEFINE_paths('image', 'an image to predict instead of a list; repeat the flag for more images; by default none',
             options=PREDICT, decides=NOTHING)
DEFINE_path('image_dir', '', 'folder to predict instead of a list: all images in it and in the folders below it',
            options=PREDICT, decides=NOTHING)
DEFINE_switch('skip_existing', False, 'skip images that already have all their outputs in --out_dir', options=PREDICT,
              decides=NOTHING)
DEFINE_switch('visual', True, 'also write coloured masks', options=PREDICT, decides=NOTHING)
DEFINE_switch('overlay', False, 'also write the images tinted and outlined by class, with a legend', options=PREDICT,
              decides=NOTHING)
DEFINE_choice('id_format', 'trainIds', ['trainIds', 'indexed', 'voc', 'labelIds'], 'format of the masks: class indices '
              "in grey; class indices with the palette's colours; the latter with the file names that VOC's evaluation "
              "server expects; or Cityscapes' label ids, for its benchmark", options=PREDICT, decides=NOTHING)
DEFINE_number('unknown_below', 0.0, 'in the masks, give --ignore_label and its colour to pixels whose highest '
              'probability is below this', upper_bound=1, options=PREDICT, decides=NOTHING)
DEFINE_switch('save_probabilities', False, "also write each image's probabilities, before --crf",
              options=PREDICT, decides=NOTHING)
DEFINE_switch('save_logits', False, "also write each image's logits", options=PREDICT, decides=NOTHING)

topic('Scoring of images')
DEFINE_size('window', None, 'height and width of the overlapping windows in which images are scored to limit memory, '
            'also in validations; by default images are scored whole where memory allows', least=17,
            most=MOST_SIDE, options=RUNS, decides=NOTHING)
DEFINE_number('overlap', 0.33, 'minimum fraction of a window that neighbouring windows share', 0, 0.9, options=RUNS,
              decides=NOTHING)
DEFINE_scales('eval_scales', [1.0], 'scales at which each image is scored; the scores are merged', options=SCORES,
              decides=NOTHING)
DEFINE_switch('eval_flip', False, 'also merge the scores of the mirrored image', options=SCORES, decides=NOTHING)
DEFINE_choice('eval_merge', 'mean', ['mean', 'max'], 'how scores are merged: the mean of the probabilities or the '
              'maximum of the logits', options=SCORES, decides=NOTHING)
DEFINE_switch('crf', False, 'refine the class maps of test and predict with a dense CRF; needs pydensecrf2',
              options=SCORES, decides=NOTHING)
DEFINE_whole('crf_iterations', 10, "iterations of the CRF's mean-field inference", 1, 1000, options=SCORES,
             decides=NOTHING, needs='crf')
DEFINE_number('crf_gaussian_sxy', 1.0, "standard deviation of the CRF's smoothness kernel, in pixels", 0.1, 10 ** 5,
              options=SCORES, decides=NOTHING, needs='crf')
DEFINE_number('crf_gaussian_weight', 3.0, "weight of the CRF's smoothness kernel", 0, 10 ** 5, options=SCORES,
              decides=NOTHING, needs='crf')
DEFINE_number('crf_bilateral_sxy', 67.0, "standard deviation of the position in the CRF's appearance kernel, in pixels",
              0.1, 10 ** 5, options=SCORES, decides=NOTHING, needs='crf')
DEFINE_number('crf_bilateral_srgb', 3.0, "standard deviation of the colour in the CRF's appearance kernel, in levels "
              'from 0 to 255', 0.2, 10 ** 5, options=SCORES, decides=NOTHING, needs='crf')
DEFINE_number('crf_bilateral_weight', 4.0, "weight of the CRF's appearance kernel, which joins nearby pixels of "
              'similar colour', 0, 10 ** 5, options=SCORES, decides=NOTHING, needs='crf')

topic('Export')
DEFINE_path('export_dir', 'export', 'new folder for the exported model', output=True, options=EXPORT, decides=NOTHING)
DEFINE_switch('frozen', False, 'also write a frozen GraphDef, frozen.pb', options=EXPORT, decides=NOTHING)
DEFINE_switch('onnx', False, 'also write an ONNX model, model.onnx (TensorFlow 2; needs requirements-onnx.txt)',
              options=EXPORT, decides=NOTHING)
DEFINE_choice('tflite', None, ['float32', 'float16', 'int8'], 'also write a TensorFlow Lite model, model.tflite '
              '(TensorFlow 2), with numbers of this kind; --tflite alone means float32; int8 is calibrated with images '
              'of --data_list; by default none', alone='float32', options=EXPORT, decides=NOTHING)

topic('Speed')
DEFINE_switch('xla', False, 'compile clusters of ops with XLA', options=RUNS, decides=NOTHING)
DEFINE_switch('mixed_precision', False, 'compute in 16 bits where TensorFlow considers it safe: float16 on GPUs, '
              'bfloat16 on processors that have it (AMX or AVX512-BF16; TensorFlow 2)', options=RUNS, decides=RESULT)
DEFINE_switch('deterministic', False, 'on GPUs, use only deterministic ops; on the CPU, all ops are deterministic',
              options=RUNS, decides=NOTHING)

topic('Devices')
DEFINE_whole('num_gpus', 1, 'number of GPUs on each machine that share a batch, or the images to test or predict; '
             'if TensorFlow sees no GPU, this many logical CPU devices are used', 1, MOST_TOWERS, options=RUNS,
             decides=NOTHING)
DEFINE_words('cluster', 'host:port of each machine that trains, tests or predicts, the same list on all of them; by '
             'default the list in the environment variable TF_CONFIG', options=ALL,
             decides=NOTHING)  # export and check refuse it
DEFINE_whole('task_index', None, 'index of this machine in --cluster; machine 0 reads, saves and logs; by default '
             'the index in TF_CONFIG', options=ALL, decides=NOTHING)
DEFINE_choice('variables_on', 'spread', ['spread', 'chief'], 'where several machines keep the variables: '
              'spread over the machines by size, or all on task 0', options=TRAIN, decides=NOTHING)

topic('Checkpoints and logs')
DEFINE_path('modeldir', 'model', 'folder for the checkpoints', output=True, options=NETWORKS, decides=NOTHING)
DEFINE_path('logfile', 'log.txt', 'file for the steps and losses', output=True, options=TRAIN, decides=NOTHING)
DEFINE_path('logdir', 'log', 'folder for TensorBoard', output=True, options=TRAIN, decides=NOTHING)


def sample_args(args, flag_files=(SAMPLE_FLAGS,)):
    """Returns the arguments to put before the user's: the sample's flag files, or none if the user gives data flags.

    --image and --image_dir are not data flags, because a network that was trained on the sample can predict any image.
    With --weights, they do not need the sample's settings either.

    Args:
      args: the user's arguments, without the program's name.
      flag_files: paths of the sample's flag files, relative to the repo.

    Raises:
      UserError: the user's arguments give images in two ways, or for an option other than predict.
    """
    named = set(map(command_line.flag_name, args))
    check_images(['test_data_list'] if 'test_data_list' in named else [])
    reads_list = FLAGS.option != 'export' and not any(getattr(FLAGS, name) for name in IMAGE_FLAGS)
    if DATA_FLAGS & named or FLAGS.weights and not reads_list:
        return []
    print('no data flags given: using the bundled sample (%s)' % ', '.join(flag_files))
    return ['--flagfile=' + os.path.join(command_line.REPO, path) for path in flag_files]


def check_images(lists):
    """Raises UserError if --image or --image_dir is combined with the other, with `lists` or not with predict.

    Args:
      lists: names of the other given flags that choose images to predict.
    """
    images = [name for name in IMAGE_FLAGS if getattr(FLAGS, name)]
    if images and len(images + lists) > 1:
        raise UserError('%s exclude each other: drop all but one.' % ' and '.join(
            '--' + name for name in images + lists))
    if images and FLAGS.option != 'predict':
        raise UserError('--%s is for --option=predict, not --option=%s.' % (images[0], FLAGS.option))


def prepare():
    """Imports TensorFlow with the settings that the flags choose, see runtime.import_tensorflow."""
    # Frozen weights act like constants, which were measured to be slower than variables with bfloat16.
    frozen_weights = FLAGS.option in ('test', 'predict') and not FLAGS.mixed_precision
    runtime.import_tensorflow(FLAGS.xla, FLAGS.deterministic, frozen_weights)


def run_option(model_class):
    """Runs the method of model_class (Model or Model_msc) that --option names; tasks other than 0 serve task 0."""
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
