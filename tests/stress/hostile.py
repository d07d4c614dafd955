"""Damaged files and wrong flags, read by their own reader and by the whole program."""

import os
import resource
import shutil
import string

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags as absl_flags

import main
from tests import stress
from tests.stress import damages, pictures, program, values, world
from utils.data import augment, data_check, data_lists, image_files, palette
from utils.image_reader import ImageReader
from utils.net.compat import COMPAT
from utils.system import command_line
from utils.system.errors import UserError
from utils.training import losses
from utils.weights import pretrained, weight_files

SECONDS, MEMORY = 120.0, 3 << 30
CPU_SECONDS = 30
OPTIONS = ('check', 'train', 'test', 'predict')
CLASSES = palette.load_classes(world.NUM_CLASSES)


def prepare(folder):
    world.make(folder)


def run(case):
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    program.make_narrow()
    kind = KINDS[case.number % len(KINDS)]
    print('kind: %s' % kind.__name__)
    return kind(case)


def as_reader(read, names):
    """Calls read() and returns RIGHT, or REFUSED after a UserError that contains one of `names`."""
    try:
        read()
    except UserError as error:
        print('refused: %s' % error)
        program.check_sentence(str(error), names)
        return stress.REFUSED
    return stress.RIGHT


def as_program(case, option, names, *more):
    """Runs main.py with an option and returns program.verdict; checks that a successful run left its output."""
    where = case.shared if option in ('test', 'predict', 'export') else case.folder
    args = ['--modeldir=' + os.path.join(where, 'model'), '--export_dir=' + os.path.join(case.folder, 'export')]
    args = [arg for arg in args + list(more) if reads(option, arg)]
    ended = program.run(case.folder, ['--option=' + option] + world.flags(case.folder) + args)
    kind = program.verdict(ended, names)
    if kind == stress.RIGHT:
        expected = {'train': ('model/model.ckpt-1.index', 'log.txt'), 'test': ('out/metrics.json',), 'check': (),
                    'predict': ('out/prediction',), 'export': ('export/saved_model.pb',)}[option]
        given = ' '.join(more)
        for path in expected:
            if not any('--' + flag in given for flag in ('modeldir', 'out_dir', 'logfile', 'export_dir')):
                assert os.path.exists(os.path.join(case.folder, path)), 'no %s' % path
    return kind


def reads(option, argument):
    """Returns whether an option reads the flag of an argument; other flags would be an error."""
    name = command_line.flag_name(argument)
    records = command_line.RECORDS
    return option in (records[name] if name in records else records[name[2:]]).options  # name[2:] for --nooverlay


def some(rng, items):
    return items[rng.randint(len(items))]


def option_of(rng):
    """Returns a random option, or most of the time '', which means the reader alone."""
    return some(rng, OPTIONS) if rng.randint(4) == 0 else ''


def checked(rng):
    return some(rng, ('--check_labels', '--nocheck_labels'))


# lists ---------------------------------------------------------------------------------------------------------------

def a_list(case):
    """Damages the list that all three flags name."""
    rng, data = case.rng, world.copy(case.shared, case.folder)
    path = os.path.join(data, 'list.txt')
    if rng.randint(12) == 0:
        damages.not_a_file(rng, path)
    elif rng.randint(3) == 0:
        damages.spoil_file(rng, path)
    else:
        damages.write(path, list_bytes(rng, data))
    names = ['list.txt', os.path.join(os.path.basename(data), '')] + os.listdir(data)  # or paths that a line makes up
    option = option_of(rng)
    if option:
        return as_program(case, option, names, checked(rng))

    def read():
        source = data_lists.read_labeled_image_list(data, path)
        assert len(source.images) == len(source.labels) == len(source.lines) > 0
        data_lists.output_names(source.images)
        data_lists.check_files_exist(source, need_labels=True)
        data_check.raise_on_problems(data_check.check_pairs(source.images, source.labels, CLASSES, 1), 'list.txt')

    return as_reader(read, names)


def list_bytes(rng, data):
    """Returns lines of names, some of them with quotes, tabs, comments and words that do not belong in a list."""
    words = list(world.NAMES + values.LIST_WORDS) + [world.label_of(name) for name in world.NAMES] + [
        os.path.join(data, 'a.png')]
    os.mkfifo(os.path.join(data, 'pipe'))
    os.mkdir(os.path.join(data, 'folder'))
    lines = ['%s %s' % (name, world.label_of(name)) for name in world.NAMES]
    for _ in range(rng.randint(1, 6)):
        line = some(rng, (' ', '\t', '  ', ' \t', '')).join(some(rng, words) for _ in range(rng.randint(0, 4)))
        lines.insert(rng.randint(len(lines) + 1), line)
    text = some(rng, ('\n', '\r\n', '\r', '\n\n')).join(lines)
    return text.encode(some(rng, ('utf-8', 'utf-8', 'utf-8', 'utf-16', 'utf-8-sig', 'utf-32')))


# images and labels ---------------------------------------------------------------------------------------------------

def an_image(case):
    """Damages one image of the list."""
    rng, data = case.rng, world.copy(case.shared, case.folder)
    name = 'hostile' + some(rng, pictures.SUFFIXES)
    path, size, pixels = os.path.join(data, name), None, None
    if rng.randint(25) == 0:
        damages.not_a_file(rng, path)
    else:
        content, size, pixels = pictures.some_bytes(rng)
        damages.write(path, content)
    write_label(os.path.join(data, 'hostile_label.png'), rng, size or (33, 40))
    place = option_of(rng) or some(rng, ('reader', '', ''))
    return met(case, place, name, lambda: check_image(path, size, pixels))


def check_image(path, size, pixels):
    """Reads an image and compares it with what is known about it."""
    image = image_files.load_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, image.shape
    assert size is None or image.shape[:2] == size, '%s instead of %s' % (image.shape, size)
    height, width = image_files.image_size(path)  # Pillow turns a TIFF only when it decodes it
    assert image.shape[:2] in ((height, width), (width, height)), '%s instead of %s' % (image.shape, (height, width))
    if pixels is not None and pixels.ndim == 3:
        np.testing.assert_array_equal(image, pixels)


def a_label(case):
    """Damages one label of the list."""
    rng, data = case.rng, world.copy(case.shared, case.folder)
    name = 'hostile_label' + some(rng, pictures.SUFFIXES)
    path, size, pixels = os.path.join(data, name), None, None
    if rng.randint(25) == 0:
        damages.not_a_file(rng, path)
    else:
        content, size, pixels = pictures.some_bytes(rng, some(rng, (world.NUM_CLASSES - 1, 255)))
        damages.write(path, content)
    pictures.Image.fromarray(rng.randint(0, 256, (size or (33, 40)) + (3,)).astype(np.uint8)).save(
        os.path.join(data, 'hostile.png'))

    def read():
        label = image_files.load_label(path, CLASSES)
        assert label.ndim == 2 and label.dtype.kind in 'iu', (label.shape, label.dtype)
        assert size is None or label.shape == size
        if pixels is not None and pixels.ndim == 2 and not name.endswith('.jpg'):
            np.testing.assert_array_equal(label, pixels)

    place = some(rng, ('check', 'train', 'test', 'reader', 'reader', '', '', '', ''))
    return met(case, place, 'hostile.png', read, name)


def met(case, place, image, read, label='hostile_label.png'):
    """Tries a damaged pair, beside a good one, in main.py (place: an option), in 'reader', or in read() (place: '')."""
    data, rng, names = os.path.join(case.folder, 'data'), case.rng, ['hostile']
    with open(os.path.join(data, 'list.txt'), 'w') as file:
        file.write('%s %s\n%s %s\n' % (image, label, world.NAMES[0], world.label_of(world.NAMES[0])))
    print('met in %s' % (place or 'its reader'))
    if place in OPTIONS:
        named = some(rng, ([], ['--image=' + os.path.join(data, image)], ['--image_dir=' + data]))
        named = named if place == 'predict' and command_line.is_picture(image) else []
        kind = as_program(case, place, names, checked(rng), some(rng, ('--nooverlay', '--overlay')), *named)
        if kind == stress.RIGHT and place == 'predict':
            mask = pictures.Image.open(os.path.join(case.folder, 'out', 'prediction', 'hostile_mask.png'))
            assert mask.size[::-1] == image_files.load_image(os.path.join(data, image)).shape[:2]
        return kind
    if place == 'reader':
        paths = [[os.path.join(data, name) for name in column] for column in (
            (image, world.NAMES[0]), (label, world.label_of(world.NAMES[0])))]
        return as_reader(lambda: in_threads(rng, *paths), names)
    return as_reader(read, names)


def in_threads(rng, images, labels):
    """Reads in the threads of a session: shuffled and augmented, or each file once, as predict does."""
    reader = ImageReader(images, labels, CLASSES, COMPAT['original'].input, num_threads=2, seed=rng.randint(100))
    shuffles, faults = rng.randint(2), {}
    with tf.Graph().as_default():
        batch = reader.training_batch(2, augment.Augmentation((33, 33))) if shuffles else reader.single(faults)
        with tf.Session() as sess, reader.running(sess):
            for _ in range(3 if shuffles else len(images)):
                image, label = sess.run(batch)
                assert image.shape[:3] == label.shape[:3] and np.isfinite(image).all()
    if faults:
        raise UserError(faults[min(faults)])


def write_label(path, rng, size):
    pictures.Image.fromarray(rng.randint(0, world.NUM_CLASSES, size).astype(np.uint8)).save(path)


# small text files ----------------------------------------------------------------------------------------------------

def a_palette(case):
    """Damages the palette file."""
    rng, data = case.rng, world.copy(case.shared, case.folder)
    path = os.path.join(data, 'palette.txt')
    rows = [('class %d' % n, '%d %d %d' % tuple(rng.randint(0, 256, 3))) for n in range(rng.randint(0, 9))]
    spoil_text(rng, path, '\n'.join(' '.join(row) for row in rows), values.PALETTE_LINES)

    def read():
        read = palette.load_palette(path, world.NUM_CLASSES)
        assert read.colours.shape == (256, 3) and len(read.names) == world.NUM_CLASSES

    option = option_of(rng)
    return as_program(case, option, ['palette.txt'], '--palette=' + path, '--overlay') if option else as_reader(
        read, ['palette.txt'])


def the_class_weights(case):
    """Damages the file of --class_weights."""
    rng, data = case.rng, world.copy(case.shared, case.folder)
    path = os.path.join(data, 'weights.txt')
    spoil_text(rng, path, '\n'.join('%g' % number for number in rng.rand(rng.randint(1, 6))), values.NUMBER_LINES)

    def read():
        weights = losses.read_class_weights(path, world.NUM_CLASSES)
        assert weights.shape == (world.NUM_CLASSES,) and np.isfinite(weights).all()

    if rng.randint(6) == 0:
        return as_program(case, 'train', ['weights.txt', '--learning_rate'], '--class_weights=' + path)
    return as_reader(read, ['weights.txt'])


def spoil_text(rng, path, text, lines):
    """Writes a text with damaged bytes, with some odd lines added, or unchanged."""
    kind = rng.randint(6)
    if kind == 0:
        damages.not_a_file(rng, path)
        return
    for _ in range(rng.randint(0, 3)):
        text += '\n' + some(rng, lines)
    data = text.encode(some(rng, ('utf-8', 'utf-8', 'utf-8', 'utf-16')))
    damages.write(path, damages.spoil(rng, data) if kind == 1 else data)


def a_curve(case):
    """Damages a metrics.csv or a log.txt and reads it with plot_training_curve.py."""
    import plot_training_curve

    rng, path = case.rng, os.path.join(case.folder, 'curve.txt')
    shutil.copy(os.path.join(case.shared, *some(rng, (('model', 'metrics.csv'), ('log.txt',)))), path)
    spoil_or_replace(rng, path)

    def read():
        run = plot_training_curve.read_run(path)
        steps = run['step']
        assert len(steps) and (np.diff(steps) > 0).all() and np.isfinite(run['total']).any()

    return as_reader(read, ['curve.txt'])


# flags ---------------------------------------------------------------------------------------------------------------

def some_flags(rng):
    """Returns arguments with random values, valid or not."""
    own = sorted(flag.name for flag in absl_flags.FLAGS.flags_by_module_dict()['main'])
    args = []
    for _ in range(rng.randint(1, 5)):
        name, value = some(rng, own), some(rng, values.FLAG_VALUES)
        form = rng.randint(14)
        if form == 0:
            name = some(rng, ('no', 'x', '', '-', 'undefok')) + name
        elif form == 1:
            name = ''.join(some(rng, string.printable) for _ in range(rng.randint(1, 200)))
        elif form == 2:
            name = name[:rng.randint(1, len(name) + 1)]
        args.append('--%s=%s' % (name, value) if form != 3 else some(rng, ('--' + name, '-' + name, value, name)))
    return args


def flag_values(case):
    """Parses a random command line."""
    return parsed(case, some_flags(case.rng), ['--', 'argument'])


def a_flag_file(case):
    """Parses a random flag file."""
    rng, path = case.rng, os.path.join(case.folder, 'hostile.flags')
    lines = some_flags(rng) + ['# a comment', '', '--option=train'][:rng.randint(4)]
    if rng.randint(6) == 0:
        lines.append('--flagfile=' + some(rng, (path, case.folder, '', '/dev/zero', case.folder + '/gone', '\0')))
    text = '\n'.join(lines).encode('utf-8', 'surrogateescape')
    spoiled = rng.randint(3)
    damages.write(path, damages.spoil(rng, text) if spoiled == 0 else text)
    if rng.randint(15) == 0:
        damages.not_a_file(rng, path)
    return parsed(case, ['--flagfile=' + path], ['hostile.flags', '--'])


def parsed(case, args, names):
    """Parses arguments for a main() that does nothing, and returns program.verdict."""
    if any(arg.lstrip('-').partition('=')[0] in ('help', 'helpfull', 'helpshort', 'helpxml', 'h', '?') for arg in args):
        return stress.RIGHT
    return program.verdict(program.run(case.folder, args, lambda: None), names)


def extreme_flags(case):
    """Runs the program with flags at the bounds of their values."""
    rng = case.rng
    world.copy(case.shared, case.folder)
    option = some(rng, OPTIONS + ('export',))
    names = [name for name in sorted(values.EXTREMES) if reads(option, '--' + name)]
    names = rng.choice(names, rng.randint(1, 5), replace=False)
    args = ['--%s=%s' % (name, some(rng, values.EXTREMES[name])) for name in names]
    named = ['--' + name for name in names] + ['--', 'model', 'label', 'palette', 'list.txt']
    return as_program(case, option, named, *args)


# weights -------------------------------------------------------------------------------------------------------------

def a_caffe_model(case):
    return some_weights(case, world.CAFFE, 'deeplab')


def a_keras_file(case):
    return some_weights(case, world.KERAS, 'res50')


def some_weights(case, name, encoder_name):
    """Damages a weights file, and reads all of it or starts a training with it."""
    rng, path = case.rng, os.path.join(case.folder, name)
    shutil.copy(os.path.join(case.shared, name), path)
    spoil_or_replace(rng, path)
    if rng.randint(8) == 0:
        world.copy(case.shared, case.folder)
        return as_program(case, 'train', [name, '--learning_rate'], '--pretrain_file=' + path,
                          '--encoder_name=' + encoder_name)
    return as_reader(lambda: read_all(pretrained.open_pretrained(path, encoder_name)), [name])


def spoil_or_replace(rng, path):
    if rng.randint(20) == 0:
        damages.not_a_file(rng, path)
    else:
        damages.spoil_file(rng, path)


def read_all(weights):
    """Returns {name: array} of a WeightsFile."""
    values = {name: weights.read(name) for name in weights.shapes}
    assert all(values[name].shape == tuple(shape) for name, shape in weights.shapes.items())
    return values


def a_checkpoint(case):
    """Damages a file of modeldir; a checkpoint must then have the right values or be refused."""
    rng, model = case.rng, os.path.join(case.folder, 'model')
    shutil.copytree(os.path.join(case.shared, 'model'), model)
    name = some(rng, sorted(os.listdir(model)))
    print('spoiled: %s' % name)
    spoil_or_replace(rng, os.path.join(model, name))
    names = [name, 'model.ckpt-1', 'settings.json', model]
    if rng.randint(5) == 0:
        world.copy(case.shared, case.folder)
        option = some(rng, ('test', 'predict', 'export', 'train'))
        more = ['--num_steps=2', '--resume=must'] if option == 'train' else []
        return as_program(case, option, names + ['--num_steps'], '--modeldir=' + model, *more)

    def read():
        prefix = os.path.join(model, 'model.ckpt-1')
        found = read_all(weight_files.open_weights(prefix))
        wanted = read_all(weight_files.open_checkpoint(os.path.join(case.shared, 'model', 'model.ckpt-1')))
        assert sorted(found) == sorted(wanted), 'other variables'
        for one in wanted:
            np.testing.assert_array_equal(found[one], wanted[one], one)

    return as_reader(read, names)


# places to write to --------------------------------------------------------------------------------------------------

def an_output(case):
    """Gives an output flag the name of something odd."""
    rng, folder = case.rng, os.path.join(case.folder, 'odd')
    world.copy(case.shared, case.folder)
    os.makedirs(os.path.join(folder, 'full', 'x'))
    damages.write(os.path.join(folder, 'file'), b'')
    os.mkfifo(os.path.join(folder, 'pipe'))
    os.symlink('gone', os.path.join(folder, 'link'))
    os.symlink('loop', os.path.join(folder, 'loop'))
    option, flag = some(rng, (('train', 'modeldir'), ('train', 'logdir'), ('train', 'logfile'), ('test', 'out_dir'),
                              ('predict', 'out_dir'), ('export', 'export_dir')))
    name = some(rng, values.ODD_NAMES)
    print('a place of the kind %r' % name[:20])
    return as_program(case, option, ['--' + flag, 'odd', '...'], '--%s=%s' % (flag, os.path.join(folder, name)))


KINDS = (a_list, an_image, a_label, a_palette, flag_values, a_flag_file, a_caffe_model, a_keras_file, a_checkpoint,
         an_image, a_label, the_class_weights, a_list, an_image, a_flag_file, a_checkpoint, a_caffe_model, a_keras_file,
         an_output, extreme_flags, a_curve)
assert main  # importing it defines the flags
