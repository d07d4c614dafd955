"""Values of flags and names of files: invalid ones, extreme ones that keep a run short, odd names."""

from utils.net.compat import COMPAT

FLAG_VALUES = (
    '', ' ', '0', '1', '-1', '2', '17', '16', '33', '256', '257', '65535', '65536', str(2 ** 31 - 1), str(2 ** 31),
    str(-2 ** 31), str(2 ** 63), str(10 ** 40), '1e3', '1.5', 'nan', 'inf', '-inf', '1e400', '1e-400', '0x10', '1_0',
    '\u0663', '1,2', '1,2,3', ',', '0.5,0.5', '-1,1', 'true', 'TRUE', 'no', 'best', 'None', 'voc', '/', '.', '..', '~',
    '~nobody', '/proc/self/mem', 'x' * 300, 'x' * 10 ** 5, '9' * 5000, '\x1b[31m', 'a\nb', '\udc80', '\u202e', "'", '"',
    '%s', '%d%n', '{}', '$HOME', '`id`', '--option=train', '=', '==', '\U0001f600')

# {flag: values at and near its bounds with which a run is still short}
EXTREMES = {
    'input_height': ('17', '18', '33', '65'),
    'input_width': ('17', '64'),
    'num_classes': ('2', '3', '5', '256'),
    'ignore_label': ('0', '3', '-1', '255', '2147483647', '-2147483647'),
    'weight_decay': ('0', '1e-30', '1e30', '3.3e38'),
    'learning_rate': ('0', '1e-30', '1e30', '3.3e38'),
    'decoder_rate': ('1e-30,1e30', '1,1'),
    'power': ('0', '1e5', '3e38'),
    'momentum': ('0', '1'),
    'bn_decay': ('0', '1'),
    'grad_update_every': ('1', '3'),
    'batch_size': ('1', '3'),
    'num_threads': ('1', '7', '256'),
    'random_scale_range': ('1e-30,1e-20', '0.01,8', '1,1', '1e30,1e38', '500,501'),
    'loss': ('ce', 'ohem'),
    'ohem_fraction': ('0.0001', '1'),
    'freeze_encoder': ('true',),
    'train_bn': ('true', 'false'),
    'random_scale': ('false',),
    'random_mirror': ('false',),
    'random_flip_vertical': ('true',),
    'random_rotation': ('180', '1e-30'),
    'random_colour': ('1,1,1', '0,0,0', '0,1e-30,1'),
    'channel_order': ('rgb', 'bgr'),
    'class_weights': ('balanced',),
    'img_mean': ('', '0,0,0', '1e38,-1e38,0', 'nan,0,0', '1,2', 'a,b,c', '1e400,0,0'),
    'window': ('17,17', '33,17', '65535,65535'),
    'overlap': ('0', '0.9'),
    'eval_scales': ('1e-30', '8', '0.5,0.5', '0.01,1'),
    'eval_flip': ('true',),
    'eval_merge': ('max', 'mean'),
    'save_probabilities': ('true',),
    'save_logits': ('true',),
    'overlay': ('true',),
    'report': ('true',),
    'id_format': ('labelIds', 'indexed', 'voc'),
    'unknown_below': ('0', '0.5', '1'),
    'patience': ('0', '1'),
    'valid_num_steps': ('1', '2147483647'),
    'test_num_steps': ('1', '99'),
    'valid_interval': ('0', '1'),
    'save_interval': ('1', '2147483647'),
    'max_to_keep': ('0', '1', '2147483647'),
    'random_seed': ('0', '2147483647'),
    'dilated_type': ('smooth_GI', 'smooth_SSC', 'decompose'),
    'num_gpus': ('1', '3', '64'),
    'compat': tuple(sorted(COMPAT)),
    'encoder_name': ('deeplab', 'res101'),
    'skip_existing': ('true',),
    'check_labels': ('false', 'true'),
    'test_step': ('0', '1', 'best', '7'),
    'valid_step': ('best', '0'),
    'palette': ('voc', 'cityscapes'),
    'resume': ('must', 'never', 'auto'),
    'task_index': ('0', '5'),
    'cluster': ('a', 'localhost:1', ',', 'localhost:0,localhost:1'),
    'frozen': ('true',),
}

# The code that uses the last few names creates these files.
ODD_NAMES = (
    'new/\n', 'a\x1b[31m', '\udc80', '\U0001f600/x', 'x' * 255, 'x' * 256, 'y/' * 2500, ' ', "'", '%s', '-x', '#', '.',
    'a:b', 'link', 'loop', 'pipe', 'file', 'file/below', 'full')

# Words in a list that are not names of ordinary files.
LIST_WORDS = (
    'list.txt', '.', '..', '/', '/dev/zero', '/dev/stdin', '/proc/self/mem', 'gone.png', 'x' * 300, 'x/' * 3000, '"',
    "'", '#', '"a.png"', "'a.png'", '"a.png', '\t', '\0', '\x1b[0m', '\u202e', '\ud7ff', 'a.png\r', '\ufeff', '\x85',
    '\u2028', '~', '*', '%s', '../data/a.png', './a.png', 'pipe', 'folder')

PALETTE_LINES = (
    'x 1 2 256', 'x 1 2', '1 2 3', 'a b c', '', '# x', 'x -1 2 3', 'x 0001 2 3', '\x1b 1 2 3', 'x \u0663 1 2',
    'y' * 10 ** 5 + ' 1 2 3', 'x\u2028y 9 9 9', '\x00 4 4 4')

NUMBER_LINES = ('1e400', 'nan', '-1', '0', '1e-300', '1e38', 'x', '1,2', '1_0', '\u0663')
