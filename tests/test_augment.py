"""Random changes of crops: geometry, values, and that they depend only on the seed and the sample."""

import collections
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from absl import flags
from absl.testing import flagsaver
from test_image_reader import make_reader, write_pair, write_pictures

import main  # noqa: F401  defines the flags
from utils.data import augment
from utils.data.augment import AUGMENTATIONS, Augmentation, Fill, augmentation_from_flags
from utils.data.palette import LUMA
from utils.system import command_line
from utils.system.errors import UserError

FILL = Fill(np.array([10, 20.25, 30], np.float32), 255)
ALL = {'random_colour': [0.4, 0.3, 0.6], 'random_flip_vertical': True, 'random_rotation': 30.0}

Fixed = collections.namedtuple('Fixed', 'uniform random_sample')


def fixed(value):
    """Returns a random generator that always draws this number (or array)."""
    return Fixed(lambda low, high, size=None: np.array(value), lambda: value)


def change(changes, seed=3, k=0, size=(20, 30), fill=FILL):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, size + (3,)).astype(np.uint8)
    label = random.randint(0, 21, size + (1,)).astype(np.int32)
    return (image, label) + augment.change(image, label, changes, seed, k, fill)


# geometry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(21, 21), (20, 31), (31, 20)])
@pytest.mark.parametrize('degrees', [-180, -71.5, -10, 0, 45, 90, 133])
def test_rotation_moves_a_mark_of_image_and_label_to_the_same_place(size, degrees):
    """The mark turns counter-clockwise by the angle around the middle of the crop; nothing else is marked."""
    image, label = np.zeros(size + (3,), np.float32), np.full(size + (1,), 3, np.int32)
    image[7:10, 11:14], label[7:10, 11:14] = 200, 9
    turned, classes = augment.rotate(image, label, fixed(degrees), 180, Fill(np.zeros(3, np.float32), 3))
    assert turned.shape == size + (3,) and classes.shape == size + (1,) and classes.dtype == np.int32
    angle, centre = np.deg2rad(degrees), (np.array(size) - 1) / 2.0
    row, column = np.array([8, 12]) - centre
    wanted = centre + [row * np.cos(angle) - column * np.sin(angle), row * np.sin(angle) + column * np.cos(angle)]
    marks = turned[:, :, 0] / turned[:, :, 0].sum(), (classes[:, :, 0] == 9) / np.sum(classes == 9)
    for mark, tolerance in zip(marks, (0.1, 0.5)):
        found = [(mark.sum(axis=1 - axis) * np.arange(size[axis])).sum() for axis in (0, 1)]
        np.testing.assert_allclose(found, wanted, atol=tolerance)
    assert set(np.unique(classes)) == {3, 9}


@pytest.mark.parametrize('ignore_label', [255, 0, -1, 70000, 2 ** 31 - 1, -2 ** 31 + 1])
def test_what_a_rotation_uncovers_is_the_mean_and_ignored(ignore_label):
    values = np.array([2 ** 31 - 2, -2 ** 31 + 2, 256, 5], np.int32)
    image = np.full((40, 60, 3), [1, 2, 3], np.float32)
    label = np.random.RandomState(0).choice(values, (40, 60, 1)).astype(np.int32)
    turned, classes = augment.rotate(image, label, fixed(30.0), 30, Fill(FILL.colour, ignore_label))
    outside = (classes == ignore_label)[:, :, 0]
    assert 0.15 < outside.mean() < 0.35 and outside[[0, 0, -1, -1], [0, -1, 0, -1]].all()
    np.testing.assert_array_equal(turned[outside], np.tile(FILL.colour, (outside.sum(), 1)))
    np.testing.assert_array_equal(turned[~outside], np.tile(np.float32([1, 2, 3]), ((~outside).sum(), 1)))
    assert set(classes[~outside].ravel()) == set(values)


def test_a_rotation_interpolates_the_image_and_not_the_label():
    image, label = np.zeros((20, 20, 3), np.float32), np.zeros((20, 20, 1), np.int32)
    image[:, 10:], label[:, 10:] = 100, 20
    turned, classes = augment.rotate(image, label, fixed(20.0), 20, Fill(np.zeros(3, np.float32), 0))
    assert len(np.unique(turned)) > 10 and set(np.unique(classes)) == {0, 20}


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 1), (2, 2)])
def test_tiny_crops(size):
    for k in range(20):
        _, _, image, label = change(ALL, k=k, size=size)
        assert image.shape == size + (3,) and label.shape == size + (1,) and np.isfinite(image).all()


def test_vertical_flips_happen_half_of_the_time():
    flips = 0
    for k in range(400):
        before, label_before, image, label = change({'random_flip_vertical': True}, k=k)
        step = -1 if (image != before).any() else 1
        np.testing.assert_array_equal(image, before[::step])
        np.testing.assert_array_equal(label, label_before[::step])
        flips += step < 0
    assert 160 < flips < 240


def test_angles_are_uniform_in_both_directions(monkeypatch):
    angles, rotated = [], augment.Image.Image.rotate
    monkeypatch.setattr(augment.Image.Image, 'rotate', lambda image, angle, *args, **settings: angles.append(
        angle) or rotated(image, angle, *args, **settings))
    for k in range(300):
        change({'random_rotation': 15.0}, k=k, size=(3, 3))
    assert len(angles) == 1200 and len(set(angles)) == 300  # the channels and the label share one
    counts = np.histogram(angles[::4], 6, (-15, 15))[0]
    assert counts.sum() == 300 and counts.min() > 25


# colour --------------------------------------------------------------------------------------------------------------


def test_colours_change_one_by_one():
    random = np.random.RandomState(0)
    image, label = random.uniform(90, 130, (8, 9, 3)).astype(np.float32), np.zeros((8, 9, 1), np.int32)
    grey = (image * LUMA).sum(axis=2, keepdims=True)

    def found(*draws):
        return augment.jitter_colour(image, label, fixed(draws), [0.2, 0.4, 1.0], FILL)[0]

    np.testing.assert_array_equal(found(0, 0, 0), image)
    np.testing.assert_allclose(found(1, 0, 0), image * 1.2, rtol=1e-5)
    np.testing.assert_allclose(found(-0.5, 0, 0), image * 0.9, rtol=1e-5)
    np.testing.assert_allclose(found(0, 0.5, 0), grey.mean() + (image - grey.mean()) * 1.2, rtol=1e-5)
    np.testing.assert_allclose(found(0, 0, -1), np.tile(grey, 3), rtol=1e-5)
    np.testing.assert_allclose(found(0, 0, 1), grey + (image - grey) * 2, rtol=1e-5)


def test_colours_stay_in_range_and_labels_as_they_are():
    factors = []
    for k in range(200):
        before, label_before, image, label = change({'random_colour': [1.0, 1.0, 1.0]}, k=k, size=(5, 5))
        assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 255
        np.testing.assert_array_equal(label, label_before)
        _, _, image, _ = change({'random_colour': [0.25, 0, 0]}, k=k, size=(5, 5))
        dark = (before > 0) & (before < 200)
        factors.append((image[dark] / before[dark]).mean())
    assert 0.75 <= min(factors) < 0.78 and 1.22 < max(factors) <= 1.2501
    before, _, image, _ = change({'random_colour': [0.0, 0.0, 0.0]})
    np.testing.assert_array_equal(image, before)


# streams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', sorted(AUGMENTATIONS))
def test_each_depends_on_seed_and_sample_alone(name):
    changes = {name: ALL[name]}
    wanted = [change(changes, k=k)[2] for k in range(8)]
    for k in reversed(range(8)):
        np.testing.assert_array_equal(change(changes, k=k)[2], wanted[k])
    assert any((change(changes, seed=4, k=k)[2] != wanted[k]).any() for k in range(8))
    assert any((wanted[k] != wanted[0]).any() for k in range(8))


def test_none_shifts_the_draws_of_another(monkeypatch):
    drawn = collections.defaultdict(list)

    def recording(name):
        return lambda image, label, random, setting, fill: drawn[name].append(random.random_sample()) or (image, label)

    for name in AUGMENTATIONS:
        monkeypatch.setitem(AUGMENTATIONS, name, recording(name))
    for changes in [ALL] + [{name: ALL[name]} for name in ALL]:
        change(changes, k=5)
    numbers = [drawn[name] for name in AUGMENTATIONS]
    assert all(one == other for one, other in numbers)
    first = np.random.RandomState([augment.CHANGES, 3, 5]).random_sample()  # the scale's random number
    assert len({one for one, _ in numbers} | {first}) == 4


def test_a_function_may_overwrite_its_arguments(monkeypatch):
    def cut_out(image, label, random, setting, fill):
        image[:2], label[:2] = fill.colour, fill.label
        return image.astype(np.float64), label.astype(np.int64)

    monkeypatch.setitem(AUGMENTATIONS, 'random_colour', cut_out)
    before, label_before, image, label = change({'random_colour': 1})
    assert (image[:2] == FILL.colour).all() and (label[:2] == 255).all()
    assert (image[2:] == before[2:]).all() and (label[2:] == label_before[2:]).all()
    assert (label_before[:2] != 255).all() and (image.dtype, label.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize('fault, told', [
    (lambda image, label: 1 // 0, 'division'),
    (lambda image, label: (image[:5], label), r'random_rotation returned an image of shape \(5, 36, 3\)'),
    (lambda image, label: (image, label[:, :, 0]), r'a label of shape \(24, 36\) for a crop of 24x36'),
])
def test_a_mistake_in_a_function_is_raised_as_it_is(tmp_path, monkeypatch, fault, told):
    files = [[path] for path in write_pair(tmp_path, 'image', 60, 60, 20)]
    monkeypatch.setitem(AUGMENTATIONS, 'random_rotation', lambda image, label, *others: fault(image, label))
    with pytest.raises((ZeroDivisionError, ValueError), match=told):
        batches(files, {'random_rotation': 1}, random_scale=False)


# in the reader -------------------------------------------------------------------------------------------------------


def batches(files, changes, num_threads=1, start=0, number=6, size=(24, 36), random_scale=True, **settings):
    """Returns batches of two images from a reader that starts at sample `start`."""
    reader = make_reader(*files, num_threads=num_threads, seed=3, **settings)
    with tf.Graph().as_default(), tf.Session() as sess:
        tensors = reader.training_batch(2, Augmentation(size, random_scale, changes=changes))
        with reader.running(sess, start):
            return [sess.run(tensors) for _ in range(number)]


def test_changed_samples_depend_on_the_seed_alone(tmp_path):
    """The files are JPEGs, PNGs and an image without a label; some images are smaller than the crop, some larger."""
    images, labels = write_pictures(tmp_path, 5)
    files = images, labels[:2] + [''] + labels[3:]
    wanted, plain = batches(files, ALL), batches(files, {})
    for num_threads, start in ((3, 0), (4, 6)):
        for one, other in zip(batches(files, ALL, num_threads, start, 6 - start // 2), wanted[start // 2:]):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])
    assert all(np.isfinite(one[0]).all() and (one[0] != other[0]).any() for one, other in zip(wanted, plain))


def test_a_changed_batch_is_the_change_of_the_plain_one(tmp_path):
    """The changes are applied to the crop before the mean is subtracted and before it is padded."""
    pairs = [write_pair(tmp_path, 'image%d' % i, 14, 18, 5 + i) for i in range(4)]
    files = [list(paths) for paths in zip(*pairs)]
    fill = Fill(np.array([30, 20, 10], np.float32), -7)
    settings = {'size': (17, 40), 'ignore_label': -7}
    changed, plain = [np.concatenate(part) for part in zip(*batches(files, ALL, **settings))], [
        np.concatenate(part) for part in zip(*batches(files, {}, **settings))]
    inside = plain[1] != -7
    for k in range(12):
        height, width = inside[k].any(axis=(1, 2)).sum(), inside[k].any(axis=(0, 2)).sum()
        rgb = plain[0][k, :height, :width, ::-1] + fill.colour
        image, label = augment.change(rgb, plain[1][k, :height, :width], ALL, 3, k, fill)
        np.testing.assert_allclose(changed[0][k, :height, :width], (image - fill.colour)[..., ::-1], atol=1e-3)
        np.testing.assert_array_equal(changed[1][k, :height, :width], label)
        changed[0][k, :height, :width], changed[1][k, :height, :width] = 0, -7
    assert (changed[0] == 0).all() and (changed[1] == -7).all()


@pytest.mark.parametrize('order', ['bgr', 'rgb'])
def test_the_network_sees_0_where_a_rotation_uncovers(tmp_path, order):
    files = [[path] for path in write_pair(tmp_path, 'image', 60, 60, 20)]
    mean = (104.00698793, 116.66876762, 122.67891434)
    for images, labels in batches(files, {'random_rotation': 45.0}, mean=mean, order=order):
        outside = (labels == 255)[..., 0]
        assert (images[outside] == 0).all() and (images[~outside] != 0).all()


def test_samples_without_changes_are_those_of_the_version_before_them(tmp_path):
    """Uses PNGs without scaling, because JPEG decoders and rounding may differ between versions."""
    images, labels = write_pictures(tmp_path, 5)
    files = images[::2], labels[::2]
    reader = make_reader(*files, num_threads=2, seed=3)
    with tf.Graph().as_default(), tf.Session() as sess:
        tensors = reader.training_batch(2, Augmentation((24, 36), random_scale=False))
        with reader.running(sess):
            content = b''.join(array.tobytes() for _ in range(6) for array in sess.run(tensors))
    assert zlib.crc32(content) == 935219452


# flags ---------------------------------------------------------------------------------------------------------------


def test_flags_choose(settings):
    assert augmentation_from_flags(settings(), None) == Augmentation((321, 321))
    chosen = augmentation_from_flags(settings(random_rotation=5.0, random_colour=[0, 0, 1], random_mirror=False,
                                              random_scale_range=[2.0, 0.5]), (0.5, 1.0))
    assert chosen == Augmentation((321, 321), random_mirror=False, scale_range=(0.5, 2.0), changes={
        'random_rotation': 5.0, 'random_colour': [0, 0, 1]})
    assert augmentation_from_flags(settings(), (0.5, 1.0)).scales == (0.5, 1.0)


@pytest.mark.parametrize('argument, told', [
    ('--random_rotation=-1', '180'), ('--random_rotation=181', '180'), ('--random_rotation=nan', 'finite'),
    ('--random_rotation=left', 'not a number'), ('--random_flip_vertical=2', 'boolean'),
    ('--random_colour=0.1,0.1', '3 numbers from 0 to 1'), ('--random_colour=0.1,0.1,1.1', '3 numbers from 0 to 1'),
    ('--random_colour=0.1,0.1,nan', '3 numbers from 0 to 1'), ('--random_colour=-0.1,0,0', '3 numbers from 0 to 1'),
    ('--random_colour=', '3 numbers from 0 to 1'), ('--random_colour=a,b,c', 'such as 0.2,0.2,0.2'),
])
def test_bad_values_are_refused_in_one_sentence(argument, told):
    with flagsaver.flagsaver(), pytest.raises(UserError, match=told) as error:
        command_line.parse_flags(['main.py', argument])
    assert argument.partition('=')[0] in str(error.value) and len(str(error.value)) <= 300


def test_values_are_read():
    with flagsaver.flagsaver():
        command_line.parse_flags(['main.py', '--random_rotation=180', '--random_colour=0,0.5,1',
                                  '--random_flip_vertical'])
        values = [flags.FLAGS[name].value for name in AUGMENTATIONS]
    assert values == [[0, 0.5, 1], True, 180]
