"""Data and names as people have them, in complete runs: folders, encodings, depths of images, kinds of labels.

Each case trains, resumes, tests, predicts and exports with a few images, in one process with one environment;
properties.py checks the pixels and the classes themselves.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
from absl.testing import flagsaver
from PIL import Image

from tests import stress
from tests.stress import formats, program, runs, world
from utils.weights import checkpoints

SECONDS, MEMORY = 120.0, 4 << 30
SIZES = ((33, 40), (40, 33), (35, 35))
STEPS = 4
CLASS_NAMES = ('道路', 'Straße', 'дом \U0001f600', '\u200fשלום', 'plain')
PATTERNS = ('exp?', 'lr[3e-3]', 'a\\b', 'a*', '[!a]')
PIECES = ('{x}', 'two words', 'ü模型', '\U0001f600', "it's", '#1', '%s', '$HOME', '-x', '--y', '~', 'x=1', 'a,b', '"')
ENVIRONMENTS = ({'PYTHONIOENCODING': 'ascii:strict'}, {'PYTHONIOENCODING': 'cp1252:strict'},
                {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'})


def prepare(folder):
    """Runs everything in a folder with an ordinary name; the logs of all other runs must equal its log."""
    program.make_narrow()
    world.make_data(folder)
    work(folder, places(folder, os.path.join(folder, 'plain'), ()))


def run(case):
    program.make_narrow()
    kind = KINDS[case.number % len(KINDS)]
    print('kind: %s' % kind.__name__)
    return kind(case)


def chooser(rng):
    return lambda items: items[rng.randint(len(items))]


def ended(folder, *args):
    """Runs the program and returns its Ended; several such runs share this process."""
    with flagsaver.flagsaver():
        return program.run(folder, list(args))


def places(folder, place, more):
    """Writes a flag file for the data in one folder and outputs in another."""
    data = os.path.join(folder, 'data')
    lists = ['--%s=%s' % (flag, os.path.join(data, 'list.txt')) for flag in (
        'data_list', 'valid_data_list', 'test_data_list')]
    outputs = ['--%s=%s' % (flag, os.path.join(place, flag)) for flag in (
        'logdir', 'logfile', 'out_dir', 'export_dir', 'modeldir')]
    own = ['--data_dir=' + data, '--check_labels', '--max_to_keep=1', '--save_interval=1', '--valid_interval=2']
    return world.flag_file(os.path.join(folder, 'own.flags'), list(world.SAFE) + own + lists + outputs + list(more))


def work(folder, flags, options=('test', 'predict', 'export')):
    """Trains, resumes and runs the other options, which must all succeed; returns {option: program.Ended}."""
    runs = {}
    for name, args in [('check', ()), ('train', ('--num_steps=%d' % (STEPS // 2),)), (
            'train', ('--num_steps=%d' % STEPS, '--resume=must'))] + [(option, ()) for option in options]:
        runs[name] = ended(folder, flags, '--option=' + name, *args)
        assert not runs[name].code, '%s: %s' % (name, runs[name].told)
    return runs


def check_outputs(place, names):
    """Checks that a folder has everything that work() writes, complete."""
    assert checkpoints.checkpoint_steps(os.path.join(place, 'modeldir')) == [STEPS]
    with open(os.path.join(place, 'out_dir', 'metrics.json'), encoding='utf-8') as file:
        metrics = json.load(file)
    for name in names:
        assert os.path.exists(os.path.join(place, 'out_dir', 'prediction', os.path.splitext(name)[0] + '_mask.png'))
    assert os.path.exists(os.path.join(place, 'export_dir', 'saved_model.pb'))
    runs.assert_whole(place)
    return metrics


# names ---------------------------------------------------------------------------------------------------------------

def a_folder(case):
    """Writes outputs to a folder with an odd name, beside one that the name matches if it is taken as a pattern."""
    rng = case.rng
    pieces = [chooser(rng)(PATTERNS)] + [chooser(rng)(PIECES) for _ in range(rng.randint(3))]
    name = ''.join(rng.permutation(pieces))
    beside = re.sub(r'\[!.\]', 'b', re.sub(r'\[(\w)[^]]*\]', r'\1', name))
    beside = beside.replace('?', '1').replace('*', 'a').replace('\\', '')
    print('folder %s beside %s' % (ascii(name), ascii(beside)))
    world.copy(case.shared, case.folder)
    os.chdir(case.folder)  # so that a relative path may start with a dash
    plain = os.path.join(case.shared, 'plain')
    shutil.copytree(plain, beside)
    work(case.folder, places(case.folder, name, ()))
    check_outputs(name, world.NAMES)
    assert contents(os.path.join(name, 'logfile')) == contents(os.path.join(plain, 'logfile'))
    for path in (os.path.join(folder, file) for folder, _, files in os.walk(plain) for file in files):
        assert contents(path) == contents(os.path.join(beside, os.path.relpath(path, plain))), path
    return stress.RIGHT


def contents(path):
    with open(path, 'rb') as file:
        return file.read()


def an_encoding(case):
    """Uses names in any alphabet in a process whose standard output cannot encode them."""
    rng, data = case.rng, os.path.join(case.folder, 'data')
    world.copy(case.shared, case.folder)
    environment = chooser(rng)(ENVIRONMENTS)
    odd = rng.permutation(CLASS_NAMES)[:len(world.NAMES)]
    names = ['%s%s' % (name.replace(' ', '_'), os.path.splitext(old)[1]) for name, old in zip(odd, world.NAMES)]
    for new, old in zip(names, world.NAMES):
        os.rename(os.path.join(data, old), os.path.join(data, new))
    with open(os.path.join(data, 'list.txt'), 'w', encoding='utf-8') as file:
        file.writelines('%s %s\n' % pair for pair in zip(names, map(world.label_of, world.NAMES)))
    with open(os.path.join(data, 'palette.txt'), 'w', encoding='utf-8') as file:
        file.writelines('%s %d 0 0\n' % (name, number) for number, name in enumerate(odd))
    in_ascii = 'LC_ALL' in environment  # there, TensorFlow writes other names than Python reads
    place = os.path.join(case.folder, 'place' if in_ascii else chooser(rng)(('place', '模型ö', '\U0001f600')))
    flags = places(case.folder, place, ['--palette=' + os.path.join(data, 'palette.txt'), '--overlay', '--report'])
    done = subprocess.run([sys.executable, '-m', 'tests.stress.own_data', case.folder, flags], cwd=runs.ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ, **environment))
    print(environment, done.stdout.decode('utf-8', 'replace'))
    assert not done.returncode
    assert check_outputs(place, names)['classes'] == list(odd)
    return stress.RIGHT


# pixels --------------------------------------------------------------------------------------------------------------

def a_depth(case):
    """Uses images of one random kind and format, with labels drawn on the upright images."""
    rng = case.rng
    choose, data, names, refused, warned = chooser(rng), os.path.join(case.folder, 'data'), [], [], False
    os.mkdir(data)
    image_format, seed = formats.image_format(choose), rng.randint(1 << 30)  # so that all images are of one kind
    for number, size in enumerate(SIZES):
        stored = formats.image(
            chooser(np.random.RandomState(seed)), rng, os.path.join(data, '%d' % number), size)
        wanted = formats.wanted(stored, image_format)
        refused.append(isinstance(wanted, str) or formats.may_be_refused(stored, image_format))
        warned = warned or formats.must_warn(stored, image_format)
        shape = size if isinstance(wanted, str) else wanted.shape[:2]
        names.append(os.path.basename(stored.path))
        Image.fromarray(rng.randint(0, world.NUM_CLASSES, shape).astype(np.uint8)).save(
            os.path.join(data, '%d_label.png' % number))
    write_list(data, names, '.png')
    more = ['--image_range=%g,%g' % image_format.value_range] if image_format.value_range else []
    more += ['--image_bands=' + ','.join(map(str, image_format.bands))] if image_format.bands else []
    more += ['--apply_exif'] if image_format.apply_exif else []
    flags = places(case.folder, os.path.join(case.folder, 'place'), more)
    if any(refused):
        return all_refuse(case.folder, flags, names)
    done = work(case.folder, flags)
    check_outputs(os.path.join(case.folder, 'place'), names)
    assert not warned or all('--image_range' in done[option].stdout + done[option].stderr for option in (
        'check', 'train', 'predict'))
    return stress.RIGHT


def write_list(data, names, suffix):
    with open(os.path.join(data, 'list.txt'), 'w') as file:
        file.writelines('%s %d_label%s\n' % (name, number, suffix) for number, name in enumerate(names))


def all_refuse(folder, flags, names, may_work=True):
    """Returns REFUSED if check and training both fail and name a file, RIGHT if both work and `may_work` is true."""
    kinds = {program.verdict(ended(folder, flags, '--option=' + option, *more), names) for option, more in (
        ('check', ()), ('train', ('--num_steps=1',)))}
    assert len(kinds) == 1 and (may_work or kinds == {stress.REFUSED}), kinds
    return kinds.pop()


def a_label_map(case):
    """Uses labels of random kinds with one map, and compares metrics.json with the number of pixels of each class."""
    rng = case.rng
    choose, data, counts, refused = chooser(rng), os.path.join(case.folder, 'data'), 0, []
    os.mkdir(data)
    word, seed = choose(formats.WORDS), rng.randint(1 << 30)
    for number, size in enumerate(SIZES):
        path, label, is_no_label = formats.a_label(
            chooser(np.random.RandomState(seed)), rng, os.path.join(data, '%d_label' % number), size)
        wanted = formats.mapped(label, word)
        counted = wanted[wanted != 255]
        refused.append(is_no_label or (counted < 0).any() or (counted >= formats.CLASSES).any() or not counted.size)
        if not refused[-1]:
            counts = counts + np.bincount(counted, minlength=formats.CLASSES)
        Image.fromarray(rng.randint(0, 256, size + (3,)).astype(np.uint8)).save(os.path.join(data, '%d.png' % number))
    names = ['%d.png' % number for number in range(len(SIZES))]
    write_list(data, names, os.path.splitext(path)[1])
    formats.classes(word, case.folder)  # also writes the file of the map
    spec = os.path.join(case.folder, 'map.txt') if word == 'file' else word
    flags = places(case.folder, os.path.join(case.folder, 'place'), [
        '--num_classes=%d' % formats.CLASSES, '--label_map=' + spec])
    if any(refused):
        return all_refuse(case.folder, flags, ['_label', 'list.txt'], may_work=False)
    work(case.folder, flags)
    metrics = check_outputs(os.path.join(case.folder, 'place'), names)
    np.testing.assert_array_equal(np.sum(metrics['confusion_matrix'], axis=1), counts)
    return stress.RIGHT


KINDS = (a_folder, an_encoding, a_depth, a_label_map, a_depth, a_label_map)

if __name__ == '__main__':
    program.make_narrow()
    work(*sys.argv[1:])
