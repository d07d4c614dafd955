"""The reader: crops and padding, each image exactly once, and the reports of faults."""

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

from utils import image_reader
from utils.data import augment, palette
from utils.data.augment import Augmentation
from utils.image_reader import ImageReader
from utils.net.compat import Input
from utils.system.errors import UserError

MEAN = (10.0, 20.0, 30.0)


def make_reader(images, labels, mean=MEAN, order='bgr', ignore_label=255, **settings):
    return ImageReader(images, labels, palette.load_classes(21, ignore_label), Input(order, mean), **settings)


def write_pair(folder, name, height, width, value):
    """Saves an image of one colour and a label of one class; returns their paths."""
    image, label = os.path.join(str(folder), name + '.png'), os.path.join(str(folder), name + '_label.png')
    Image.fromarray(np.full((height, width, 3), (value, 2 * value, 3 * value), np.uint8)).save(image)
    Image.fromarray(np.full((height, width), value, np.uint8)).save(label)
    return image, label


def run(sess, reader, tensors, times):
    with reader.running(sess):
        return [sess.run(tensors) for _ in range(times)]


@pytest.mark.parametrize('num_threads', [1, 4])
def test_single_reads_every_image_once_in_order(tmp_path, num_threads):
    pairs = [write_pair(tmp_path, 'image%d' % i, 5 + i, 9 - i, i) for i in range(7)]
    reader = make_reader([p[0] for p in pairs], [p[1] for p in pairs], num_threads=num_threads)
    with tf.Graph().as_default(), tf.Session() as sess:
        tensors = reader.single()
        with reader.running(sess):
            results = [sess.run(tensors) for _ in range(7)]
            with pytest.raises(tf.errors.OutOfRangeError):
                sess.run(tensors)
    for i, (image, label) in enumerate(results):
        assert image.shape == (1, 5 + i, 9 - i, 3) and label.shape == (1, 5 + i, 9 - i, 1)
        np.testing.assert_array_equal(image[0, 0, 0], [3 * i - 10, 2 * i - 20, i - 30])  # BGR minus the mean
        assert (label == i).all()


def test_rgb_order(tmp_path):
    image, label = write_pair(tmp_path, 'image', 5, 5, 7)
    reader = make_reader([image], [label], order='rgb')
    with tf.Graph().as_default(), tf.Session() as sess:
        (pixels, _), = run(sess, reader, reader.single(), 1)
    np.testing.assert_array_equal(pixels[0, 0, 0], [7 - 10, 14 - 20, 21 - 30])


def test_small_image_is_padded_at_the_bottom_and_the_right(tmp_path):
    image, label = write_pair(tmp_path, 'image', 6, 4, 9)
    reader = make_reader([image], [label], ignore_label=77)
    with tf.Graph().as_default(), tf.Session() as sess:
        (pixels, classes), = run(sess, reader, reader.training_batch(2, Augmentation((8, 8), False, False)), 1)
    assert pixels.shape == (2, 8, 8, 3) and classes.shape == (2, 8, 8, 1)
    assert (classes[:, :6, :4] == 9).all() and (pixels[:, :6, :4] == [17, -2, -21]).all()
    classes[:, :6, :4], pixels[:, :6, :4] = 77, 0
    assert (classes == 77).all() and (pixels == 0).all()


def write_pictures(folder, number):
    """Saves JPEGs and PNGs of random pixels in different sizes, and labels."""
    random = np.random.RandomState(0)
    images, labels = [], []
    for i in range(number):
        shape = tuple(random.randint(15, 40, 2))
        images.append(str(folder / ('image%d.%s' % (i, 'jpg' if i % 2 else 'png'))))
        labels.append(str(folder / ('label%d.png' % i)))
        Image.fromarray(random.randint(0, 256, shape + (3,)).astype(np.uint8)).save(images[-1])
        Image.fromarray(random.randint(0, 21, shape).astype(np.uint8)).save(labels[-1])
    return images, labels


def batches(files, num_threads, seed, start, number):
    """Returns batches of two images from a reader that starts at sample `start`."""
    reader = make_reader(*files, num_threads=num_threads, seed=seed)
    with tf.Graph().as_default(), tf.Session() as sess:
        tensors = reader.training_batch(2, Augmentation((17, 21)))
        with reader.running(sess, start):
            return [sess.run(tensors) for _ in range(number)]


def test_samples_depend_on_the_seed_alone(tmp_path):
    """The number of threads and the starting point do not matter, over three epochs of five images."""
    files = write_pictures(tmp_path, 5)
    wanted = batches(files, 1, seed=3, start=0, number=8)
    for num_threads, start in ((3, 0), (4, 6), (8, 0)):
        found = batches(files, num_threads, seed=3, start=start, number=8 - start // 2)
        for one, other in zip(found, wanted[start // 2:]):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])
    assert any((one[1] != other[1]).any() for one, other in zip(batches(files, 3, 4, 0, 8), wanted))


def test_every_epoch_holds_every_image_once_in_another_order():
    orders = [augment.shuffled(7, epoch, 50) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any()
    assert (orders[0] == augment.shuffled(7, 0, 50)).all() and (orders[0] != augment.shuffled(8, 0, 50)).any()


def test_threads_and_queues_are_bounded_by_bytes(tmp_path, monkeypatch):
    """With 192 cores, there are as many threads as fit into memory for images of this size, but at least one."""
    image, label = write_pair(tmp_path, 'image', 100, 200, 1)
    assert make_reader([image], [label], num_threads=192).num_threads == 192
    monkeypatch.setattr(image_reader, 'MOST_BYTES', 7 * image_reader.BYTES_IN_WORK * 100 * 200)
    assert make_reader([image] * 40, [label] * 40, num_threads=192).num_threads == 7
    monkeypatch.setattr(image_reader, 'MOST_BYTES', 1000)
    reader = make_reader([image], [label], num_threads=192)
    with tf.Graph().as_default(), tf.Session() as sess:
        pixels, _ = run(sess, reader, reader.training_batch(4, Augmentation((50, 50))), 1)[0]
    assert reader.num_threads == 1 and pixels.shape == (4, 50, 50, 3)


def naive_crop(image, label, scaled, offset, mirror, input_size):
    """Scales and mirrors whole image and label by TensorFlow's legacy rules, then slices them."""
    image = tf.image.resize_bilinear(tf.cast(image, tf.float32)[tf.newaxis], scaled)[0]
    label = tf.image.resize_nearest_neighbor(label[tf.newaxis], scaled)[0]
    if mirror:
        image, label = tf.reverse(image, [1]), tf.reverse(label, [1])
    return [t[offset[0]:offset[0] + input_size[0], offset[1]:offset[1] + input_size[1]] for t in (image, label)]


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize('size, scaled, offset', [
    ((50, 70), (50, 70), (3, 5)), ((50, 70), (75, 105), (54, 74)), ((50, 70), (31, 43), (10, 12)),
    ((50, 70), (15, 20), (0, 0)), ((33, 40), (47, 58), (0, 0)), ((9, 9), (4, 4), (0, 0)), ((5, 1), (7, 1), (0, 0)),
])
def test_a_crop_is_that_of_the_scaled_whole(size, scaled, offset, mirror):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, size + (3,)).astype(np.uint8)
    label = random.randint(0, 256, size + (1,)).astype(np.int32)
    with tf.Graph().as_default(), tf.Session() as sess:
        fast = augment.crop_pair(tf.constant(image), tf.constant(label), augment.Placement(
            tf.constant(scaled), tf.constant(offset), tf.constant(mirror)), (21, 31))
        found, wanted = sess.run([fast, naive_crop(image, label, scaled, offset, mirror, (21, 31))])
        exact = augment.crop_pair(tf.constant(image), tf.constant(label), augment.Placement(
            tf.constant(size), tf.constant((0, 0)), tf.constant(mirror)), (21, 31), smooth=False)
        whole = sess.run([exact, naive_crop(image, label, size, (0, 0), mirror, (21, 31))])
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_allclose(found[0], wanted[0], atol=0.01)
    for one, other in zip(*whole):
        np.testing.assert_array_equal(one, other)


def test_offsets_reach_both_ends_and_mirrors_happen(tmp_path):
    columns = np.tile(np.arange(12, dtype=np.uint8), (20, 1))
    path = str(tmp_path / 'image.png')
    Image.fromarray(np.repeat(columns[:, :, None], 3, axis=2)).save(path)
    reader = make_reader([path], [''], (0, 0, 0), seed=1)
    with tf.Graph().as_default(), tf.Session() as sess:
        tensors = reader.training_batch(8, Augmentation((18, 9), False, True))
        images = np.concatenate([pixels for pixels, _ in run(sess, reader, tensors, 12)])
    assert set(images[:, 0, 1, 0] - images[:, 0, 0, 0]) == {1, -1}
    assert set(images.min(axis=(1, 2, 3))) == {0, 1, 2, 3}


@pytest.mark.parametrize('scales', [None, (0.5, 1.5)])
def test_scale_is_one_factor_for_both_sides(scales):
    drawn = [augment.draw(Augmentation((60, 250), scales=scales), 1, k, (100, 200)) for k in range(60)]
    sizes = {int(placement.scaled[0]) for placement in drawn}
    for (height, width), offset, _ in drawn:
        assert abs(2 * height - width) <= 1
        assert 0 <= offset[0] <= max(height - 60, 0) and 0 <= offset[1] <= max(width - 250, 0)
    assert {placement.mirror for placement in drawn} == {True, False}
    wider = [augment.draw(Augmentation((60, 250), scale_range=(2, 3)), 1, k, (100, 200)).scaled[0] for k in range(60)]
    assert 200 <= min(wider) < 220 and 280 < max(wider) <= 300
    if scales:
        assert sizes == {50, 150}
    else:
        assert len(sizes) > 20 and 50 <= min(sizes) < 60 and 140 < max(sizes) < 150


def test_jpeg_is_decoded_as_the_originals(tmp_path):
    random = np.random.RandomState(0)
    path, grey = str(tmp_path / 'image.jpg'), str(tmp_path / 'grey.jpg')
    picture = Image.fromarray(random.randint(0, 256, (5, 7, 3)).astype(np.uint8)).resize((41, 30), Image.BILINEAR)
    picture.save(path, quality=80)
    picture.convert('L').save(grey)
    reader = make_reader([path, grey], ['', ''], (0, 0, 0), 'rgb')
    with tf.Graph().as_default(), tf.Session() as sess:
        wanted = [sess.run(tf.image.decode_jpeg(tf.read_file(name), channels=3)) for name in (path, grey)]
        for (image, label), pixels in zip(run(sess, reader, reader.single(), 2), wanted):
            np.testing.assert_array_equal(image[0], pixels)
            assert (label == 255).all() and label.shape == (1, 30, 41, 1)


@pytest.mark.parametrize('fault, named', [
    ('truncated', 'image1.png'), ('truncated jpeg', 'image1.jpg'), ('size', 'same size'),
    ('values', 'has the value 200'),
])
def test_a_bad_file_is_reported_by_name(tmp_path, fault, named):
    pairs = [write_pair(tmp_path, 'image%d' % i, 20, 20, i) for i in range(3)]
    if fault == 'truncated':
        with open(pairs[1][0], 'r+b') as file:
            file.truncate(60)
    elif fault == 'truncated jpeg':
        pixels = np.random.RandomState(0).randint(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(os.path.join(str(tmp_path), 'image1.jpg'))
        pairs[1] = os.path.join(str(tmp_path), 'image1.jpg'), pairs[1][1]
        with open(pairs[1][0], 'r+b') as file:
            file.truncate(os.path.getsize(pairs[1][0]) // 2)
    elif fault == 'size':
        write_pair(tmp_path, 'other', 20, 21, 1)
        os.replace(os.path.join(str(tmp_path), 'other_label.png'), pairs[1][1])
    else:
        Image.fromarray(np.full((20, 20), 200, np.uint8)).save(pairs[1][1])
    reader = make_reader([p[0] for p in pairs], [p[1] for p in pairs], num_threads=2)
    with tf.Graph().as_default(), tf.Session() as sess, pytest.raises(UserError, match=named) as error:
        run(sess, reader, reader.single(), 3)
    assert 'image1' in str(error.value)
