"""utils/image_files.py: images as TensorFlow decodes them, labels of every kind, and broken files."""

import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

from utils.data.image_files import load_image, load_label
from utils.data.palette import Palette, load_palette, voc_colours
from utils.system.errors import UserError

SIZES = [(1, 1), (9, 17), (40, 33), (64, 48)]


def picture(height, width):
    """Smooth and noisy at once, uint8 [height, width, 3]."""
    ys, xs = np.mgrid[:height, :width]
    noise = np.random.RandomState(height).randint(0, 60, [height, width, 3])
    return (np.stack([ys * 3 % 200, xs * 5 % 190, (xs + ys) % 180], axis=2) + noise).astype(np.uint8)


def png(rows, depth, colour_type, chunks=()):
    """The bytes of a PNG from its unfiltered rows of bytes; width from the row's bits."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    width = len(rows[0]) * 8 // (depth * channels)

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data) & 0xffffffff)

    header = struct.pack('>IIBBBBB', width, len(rows), depth, colour_type, 0, 0, 0)
    return b''.join([b'\x89PNG\r\n\x1a\n', chunk(b'IHDR', header)] + [chunk(*pair) for pair in chunks] +
                    [chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in rows))), chunk(b'IEND', b'')])


def save(folder, data, name):
    path = str(folder / name)
    with open(path, 'wb') as file:
        file.write(data)
    return path


def saved(folder, image, name, **options):
    path = str(folder / name)
    image.save(path, **options)
    return path


def decoded(data, decode, **options):
    with tf.Graph().as_default(), tf.Session() as sess:
        return sess.run(decode(tf.constant(data), channels=3, **options))


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def refused(load, path, *words):
    """The sentence that load(path) is refused with, which names the file and says the words."""
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert path in message
    assert '\n' not in message
    for word in words:
        assert word in message
    return message


# images


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('options', [
    {}, {'quality': 95, 'subsampling': 0}, {'subsampling': 1}, {'progressive': True}, {'quality': 30},
])
def test_jpeg_is_tensorflows_accurate_decoding(tmp_path, mode, options):
    for i, size in enumerate(SIZES):
        path = saved(tmp_path, Image.fromarray(picture(*size)).convert(mode), '%d.jpg' % i, **options)
        image = load_image(path)
        assert (image.dtype, image.shape) == (np.uint8, size + (3,))
        np.testing.assert_array_equal(image, decoded(read(path), tf.image.decode_jpeg, dct_method='INTEGER_ACCURATE'))
        fast = decoded(read(path), tf.image.decode_jpeg).astype(int)  # TensorFlow's default
        assert np.abs(image - fast).mean() < 4


def test_exif_rotation_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = saved(tmp_path, Image.fromarray(picture(8, 24)), 'a.jpg', exif=exif.tobytes())
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    assert load_image(path).shape == (8, 24, 3)


ROWS = [bytes(range(24)), bytes(range(200, 224))]
PLTE = (b'PLTE', bytes(bytearray(i * 5 % 256 for i in range(768))))


@pytest.mark.filterwarnings('error::UserWarning')
@pytest.mark.parametrize('depth, colour_type, chunks', [
    (1, 0, []), (2, 0, []), (4, 0, []), (8, 0, []), (16, 0, []),
    (8, 2, []), (16, 2, []), (4, 3, [(b'PLTE', PLTE[1][:48])]), (8, 3, [PLTE]), (8, 3, [PLTE, (b'tRNS', bytes(9))]),
    (8, 4, []), (16, 4, []), (8, 6, []), (16, 6, []),
])
def test_png_is_tensorflows_decoding(tmp_path, depth, colour_type, chunks):
    data = png(ROWS, depth, colour_type, chunks)
    image = load_image(save(tmp_path, data, 'a.png'))
    assert (image.dtype, image.ndim) == (np.uint8, 3)
    np.testing.assert_array_equal(image, decoded(data, tf.image.decode_png))


@pytest.mark.parametrize('name, options', [('a.bmp', {}), ('a.webp', {'lossless': True}), ('a.tif', {}), ('a.ppm', {})])
def test_lossless_formats(tmp_path, name, options):
    pixels = picture(13, 21)
    np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(pixels), name, **options)), pixels)


def test_alpha_is_dropped_not_blended(tmp_path):
    pixels = np.dstack([picture(5, 6), np.zeros([5, 6], np.uint8)])
    np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(pixels), 'a.png')), pixels[:, :, :3])


def test_name_does_not_matter(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture(5, 6)).save(buffer, 'PNG')
    np.testing.assert_array_equal(load_image(save(tmp_path, buffer.getvalue(), 'a.jpg')), picture(5, 6))


def test_floating_point_image_is_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.ones([4, 4], np.float32)), 'a.tif')
    refused(load_image, path, 'floating-point', '8-bit')


@pytest.mark.parametrize('load', [load_image, load_label])
def test_files_that_are_no_images(tmp_path, load):
    refused(load, str(tmp_path / 'absent.png'), 'no such file', '--data_dir')
    refused(load, save(tmp_path, b'', 'empty.png'), 'empty')
    refused(load, save(tmp_path, b'GIF is not this\n' * 9, 'text.png'), 'not an image')
    refused(load, str(tmp_path), 'directory')


@pytest.mark.parametrize('load', [load_image, load_label])
@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.bmp', 'a.webp'])
def test_truncated_files(tmp_path, load, name):
    data = read(saved(tmp_path, Image.fromarray(picture(64, 64)), name))
    for part in (3, 4):
        refused(load, save(tmp_path, data[:len(data) * part // 5], 'cut' + name))


def test_damaged_png(tmp_path):
    data = bytearray(read(saved(tmp_path, Image.fromarray(picture(64, 64)), 'a.png')))
    data[len(data) // 2] ^= 0xff
    refused(load_image, save(tmp_path, bytes(data), 'b.png'), 'damaged')


# labels


def test_grey_labels(tmp_path):
    label = np.array([[0, 1, 20], [255, 254, 7]], np.uint8)
    loaded = load_label(saved(tmp_path, Image.fromarray(label), 'a.png'))
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, label)


@pytest.mark.parametrize('palette', [None, 'voc'])
def test_palette_labels_are_indices_never_colours(tmp_path, palette):
    label = np.array([[0, 15, 255], [3, 3, 1]], np.uint8)
    image = Image.fromarray(label).convert('L')
    image.putpalette([(i * 7 + 3) % 256 for i in range(768)])  # not VOC's colours
    assert image.mode == 'P'
    loaded = load_label(saved(tmp_path, image, 'a.png'), palette and load_palette(palette, 21))
    np.testing.assert_array_equal(loaded, label)


@pytest.mark.parametrize('depth, colour_type', [(1, 0), (2, 0), (4, 0), (8, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_labels_of_few_bits_are_not_stretched(tmp_path, depth, colour_type):
    values = np.arange(24) % min(1 << depth, 24)
    bits = ((values[:, None] >> np.arange(depth)[::-1]) & 1).astype(np.uint8)  # [24, depth]
    chunks = [(b'PLTE', PLTE[1][:3 << depth])] if colour_type == 3 else []
    data = png([np.packbits(bits.ravel()).tobytes()], depth, colour_type, chunks)
    loaded = load_label(save(tmp_path, data, 'a.png'))
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, [values])


def test_16_bit_labels(tmp_path):
    label = np.array([[0, 20, 300], [65535, 256, 1]], np.uint16)
    loaded = load_label(save(tmp_path, png([row.astype('>u2').tobytes() for row in label], 16, 0), 'a.png'))
    assert loaded.dtype.kind in 'ui'
    np.testing.assert_array_equal(loaded, label)


def test_colour_labels_are_refused_without_palette(tmp_path):
    path = saved(tmp_path, Image.fromarray(voc_colours()[np.array([[0, 1], [2, 3]])]), 'a.png')
    refused(load_label, path, 'colour-coded', '--palette=voc|cityscapes|FILE', 'convert_voc.py')


@pytest.mark.parametrize('alpha', [False, True])
def test_voc_colours_become_classes(tmp_path, alpha):
    label = np.array([[0, 1, 20], [255, 15, 255]], np.uint8)
    pixels = voc_colours()[label]
    if alpha:
        pixels = np.dstack([pixels, np.full(label.shape, 255, np.uint8)])
    loaded = load_label(saved(tmp_path, Image.fromarray(pixels), 'a.png'), load_palette('voc', 21))
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, label)


def test_all_256_voc_colours(tmp_path):
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = saved(tmp_path, Image.fromarray(voc_colours()[label]), 'a.png')
    np.testing.assert_array_equal(load_label(path, load_palette('voc', 256)), label)


def test_cityscapes_colours_become_train_ids(tmp_path):
    # road, bicycle, sky, unlabeled, dynamic, trailer, VOC's void
    pixels = np.array([[(128, 64, 128), (119, 11, 32), (70, 130, 180), (0, 0, 0), (111, 74, 0), (0, 0, 110),
                        (224, 224, 192)]], np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels), 'a.png')
    np.testing.assert_array_equal(load_label(path, load_palette('cityscapes', 19)), [[0, 18, 10] + [255] * 4])


def test_black_is_void_only_where_it_is_no_class(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[(0, 0, 0), (9, 8, 7)]], np.uint8)), 'a.png')
    colours = np.full([256, 3], 255, np.uint8)
    colours[:2] = (9, 8, 7), (0, 0, 0)
    np.testing.assert_array_equal(load_label(path, Palette(colours, ['a', 'b'])), [[1, 0]])
    np.testing.assert_array_equal(load_label(path, Palette(colours, ['a'])), [[255, 0]])


def test_unknown_colours_are_refused(tmp_path):
    pixels = np.zeros([3, 4, 3], np.uint8)
    pixels[1, 2] = 1, 2, 3
    path = saved(tmp_path, Image.fromarray(pixels), 'a.png')
    refused(lambda p: load_label(p, load_palette('voc', 21)), path, '1 2 3', '1 of its colours', '--palette')
    # white fills the unused entries of a palette and is still no class
    path = saved(tmp_path, Image.fromarray(np.full([3, 4, 3], 255, np.uint8)), 'b.png')
    refused(lambda p: load_label(p, load_palette('cityscapes', 19)), path, '255 255 255')
    # a VOC colour beyond the 21 classes
    path = saved(tmp_path, Image.fromarray(voc_colours()[np.array([[0, 21]])]), 'c.png')
    refused(lambda p: load_label(p, load_palette('voc', 21)), path, '21 classes')


def test_jpeg_labels_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.zeros([8, 8], np.uint8)), 'a.jpg')
    refused(load_label, path, 'lossy', 'PNG')


def test_other_modes_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.zeros([8, 8], np.uint8)).convert('LA'), 'a.png')
    refused(load_label, path, 'LA', 'grey PNG')


def test_threads_agree(tmp_path):
    label = np.random.RandomState(0).randint(0, 21, [50, 60]).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(voc_colours()[label]), 'a.png')
    palette, results = load_palette('voc', 21), []
    threads = [threading.Thread(target=lambda: results.extend(load_label(path, palette) for _ in range(5)))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        np.testing.assert_array_equal(result, label)


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, Image.fromarray(picture(3, 4)), 'a.png')
    assert load_image('a.png').shape == (3, 4, 3)
    assert load_image(os.path.join('.', 'a.png')).shape == (3, 4, 3)
