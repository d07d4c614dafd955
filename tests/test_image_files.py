"""utils/data/image_files.py: images decoded as by TensorFlow, all kinds of labels, and broken files."""

import io
import os
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

from utils.data import data_check, image_files
from utils.data.image_files import load_image
from utils.data.palette import Classes, Palette, load_classes, voc_colours
from utils.data.pixels import AS_STORED
from utils.system import memory
from utils.system.errors import UserError, quoted

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = [(1, 1), (9, 17), (40, 33), (64, 48)]


def picture(height, width):
    """Returns a picture that is both smooth and noisy, uint8 [height, width, 3]."""
    ys, xs = np.mgrid[:height, :width]
    noise = np.random.RandomState(height).randint(0, 60, [height, width, 3])
    return (np.stack([ys * 3 % 200, xs * 5 % 190, (xs + ys) % 180], axis=2) + noise).astype(np.uint8)


def png(rows, depth, colour_type, chunks=()):
    """Returns the bytes of a PNG made of unfiltered rows of bytes; its width follows from the length of a row."""
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


def load_label(path, num_classes=21, ignore_label=255, palette=''):
    return image_files.load_label(path, load_classes(num_classes, ignore_label, palette))


def refused(load, path, *words, **options):
    """Returns the error of load(path), which must name the file and contain the words."""
    with pytest.raises(UserError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert quoted(path) in message
    assert message.isprintable()
    assert len(message) <= 300
    for word in words:
        assert word in message
    return message


# images


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('options', [
    {}, {'quality': 95, 'subsampling': 0}, {'subsampling': 1}, {'progressive': True}, {'quality': 30},
])
def test_jpeg_is_tensorflows_decoding(tmp_path, mode, options):
    for i, size in enumerate(SIZES):
        path = saved(tmp_path, Image.fromarray(picture(*size)).convert(mode), '%d.jpg' % i, **options)
        image = load_image(path)
        assert (image.dtype, image.shape) == (np.uint8, size + (3,))
        np.testing.assert_array_equal(image, decoded(read(path), tf.image.decode_jpeg))


def test_jpeg_of_four_channels_is_tensorflows_accurate_decoding(tmp_path):
    for i, size in enumerate(SIZES):
        path = saved(tmp_path, Image.fromarray(picture(*size)).convert('CMYK'), '%d.jpg' % i)
        assert image_files.read_jpeg(path) is None
        np.testing.assert_array_equal(
            load_image(path), decoded(read(path), tf.image.decode_jpeg, dct_method='INTEGER_ACCURATE'))


def test_what_is_accepted_of_damaged_jpegs_is_what_the_reader_decodes(tmp_path):
    data = bytearray(read(saved(tmp_path, Image.fromarray(picture(48, 64)), 'a.jpg')))
    random, accepted = np.random.RandomState(0), 0
    with tf.Graph().as_default(), tf.Session() as sess:
        encoded = tf.placeholder(tf.string, [])
        pixels = tf.image.decode_jpeg(encoded, channels=3)
        for i in range(150):
            damaged = bytearray(data)
            damaged[random.randint(len(data))] ^= 1 << random.randint(8)
            path = save(tmp_path, bytes(damaged), '%d.jpg' % i)
            try:
                image = load_image(path)
            except UserError as error:
                assert quoted(path) in str(error)
                continue
            accepted += 1
            if image_files.read_jpeg(path):
                np.testing.assert_array_equal(image, sess.run(pixels, {encoded: bytes(damaged)}))
    assert 50 < accepted < 150


def test_a_jpeg_that_pillow_reads_and_tensorflow_does_not_is_refused(tmp_path):
    data = bytearray(read(saved(tmp_path, Image.fromarray(picture(48, 64)), 'a.jpg')))
    data[-1] ^= 2  # part of the end marker
    path = save(tmp_path, bytes(data), 'b.jpg')
    with Image.open(path) as image:
        image.load()
    refused(load_image, path, 'damaged or unreadable', 'Invalid JPEG data')


def test_decoding_does_not_fix_the_number_of_threads_of_later_sessions(tmp_path):
    """The first session of a process sets the number of threads, and it must be the network's."""
    path = saved(tmp_path, Image.fromarray(picture(9, 9)), 'a.jpg')
    script = """
import sys, threading
from utils.system import runtime
tf = runtime.import_tensorflow()
from utils.data import image_files
image_files.load_image(sys.argv[1])
running, most = [], []
def count(x):
    running.append(x)
    threading.Event().wait(0.3)
    most.append(len(running))
    running.remove(x)
    return x
config = tf.ConfigProto(inter_op_parallelism_threads=1)
with tf.Session(config=config) as sess:
    sess.run([tf.py_func(count, [i], tf.int32) for i in range(3)])
print(max(most))
"""
    out = subprocess.check_output([sys.executable, '-c', script, path], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert out.decode().split() == ['1']


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


def tagged(image, changes, **options):
    """Returns the bytes of a TIFF with changed tags, {number: value}, that have a single 16-bit value."""
    buffer = io.BytesIO()
    image.save(buffer, 'TIFF', **options)
    data = buffer.getvalue()
    for number, value in changes.items():
        start = data.index(struct.pack('<HHI', number, 3, 1)) + 8
        data = data[:start] + struct.pack('<H', value) + data[start + 2:]
    return data


def tiff_of_four_bands(pixels, alpha):
    """Returns the bytes of an uncompressed TIFF, [h, w, 4] of 8 or 16 bits, with the given alpha tag for band 4."""
    bits = pixels.dtype.itemsize * 8
    tags = [(256, pixels.shape[1]), (257, pixels.shape[0]), (258, None), (259, 1), (262, 2), (273, None), (277, 4),
            (278, pixels.shape[0]), (279, pixels.nbytes), (338, alpha)]
    end = 8 + 2 + 12 * len(tags) + 4
    entries = b''.join(
        struct.pack('<HHII', 258, 3, 4, end) if number == 258 else
        struct.pack('<HHII', number, 4 if number in (273, 279) else 3, 1, end + 8 if number == 273 else value)
        for number, value in tags)
    start = b'II*\0' + struct.pack('<IH', 8, len(tags)) + entries + struct.pack('<I', 0)
    return start + struct.pack('<4H', *[bits] * 4) + pixels.tobytes()


@pytest.mark.parametrize('compression', [None, 'tiff_lzw', 'tiff_adobe_deflate'])
def test_bands_with_associated_alpha_are_read_as_stored(tmp_path, compression):
    pixels = np.random.RandomState(0).randint(0, 256, [9, 11, 4]).astype(np.uint8)
    options = {'compression': compression} if compression else {}
    for alpha in (1, 2):
        path = save(tmp_path, tagged(Image.fromarray(pixels), {338: alpha}, **options), '%d.tif' % alpha)
        np.testing.assert_array_equal(load_image(path), pixels[:, :, :3])
        grey = Image.merge('LA', [Image.fromarray(pixels[:, :, band].copy()) for band in (0, 1)])
        for extra in (0, alpha):
            path = save(tmp_path, tagged(grey, {338: extra}, **options), 'grey%d.tif' % extra)
            np.testing.assert_array_equal(load_image(path), pixels[:, :, :1].repeat(3, axis=2))


@pytest.mark.parametrize('dtype, shift', [(np.uint8, 0), (np.uint16, 8)])
def test_bands_of_16_bits_with_associated_alpha_are_read_as_stored(tmp_path, dtype, shift):
    pixels = np.random.RandomState(0).randint(0, 256 << shift, [9, 11, 4]).astype(dtype)
    for alpha in (1, 2):
        path = save(tmp_path, tiff_of_four_bands(pixels, alpha), '%d.tif' % alpha)
        np.testing.assert_array_equal(load_image(path), pixels[:, :, :3] >> shift)


def test_a_colour_label_with_associated_alpha_is_read_as_stored(tmp_path):
    label = np.array([[0, 1, 20], [3, 15, 7]], np.uint8)
    pixels = np.dstack([voc_colours()[label], np.full(label.shape, 200, np.uint8)])
    path = save(tmp_path, tagged(Image.fromarray(pixels), {338: 1}), 'a.tif')
    np.testing.assert_array_equal(load_label(path, palette='voc'), label)


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
    refused(load, 'a\0b\x1b.png', 'this is not a valid file name')
    refused(load, str(tmp_path / ('long' * 100)), 'name too long')


@pytest.mark.parametrize('load', [load_image, load_label, image_files.read_jpeg])
def test_files_that_are_no_regular_files_are_refused_at_once(tmp_path, load):
    os.mkfifo(str(tmp_path / 'fifo.jpg'))
    refused(load, str(tmp_path / 'fifo.jpg'), 'FIFO')
    refused(load, '/dev/zero', 'not a regular file')
    with open(str(tmp_path / 'large.jpg'), 'wb') as file:
        file.truncate(1 << 40)
    refused(load, str(tmp_path / 'large.jpg'), '1099511627776 bytes')


def test_too_many_pixels(tmp_path):
    rows = png([b'\0'], 8, 0).replace(struct.pack('>II', 1, 1), struct.pack('>II', 60000, 60000))
    path = save(tmp_path, rows[:29] + struct.pack('>I', zlib.crc32(rows[12:29]) & 0xffffffff) + rows[33:], 'a.png')
    refused(load_image, path, '3600000000 pixels')
    refused(load_label, path, '3600000000 pixels')


def wide(folder, values, name):
    """Saves uint16 [h, w] or [h, w, 3] as PNG or TIFF, or int32 [h, w] as TIFF."""
    if values.ndim == 2 and not name.endswith('.png'):
        return saved(folder, Image.fromarray(values), name)
    if name.endswith('.png'):
        rows = [row.astype('>u2').tobytes() for row in values]
        return save(folder, png(rows, 16, 0 if values.ndim == 2 else 2), name)
    return save(folder, tiff_of_four_bands(np.dstack([values, values[:, :, :1]]), 0), name)


def pixels_and_warning(path, image_format=AS_STORED):
    """Returns the pixels of an image and the sentence about lost levels, or None."""
    image = image_files.read_image(path, image_format)
    return image.pixels, image.remarks.get('levels')


@pytest.fixture
def nothing_told(monkeypatch):
    monkeypatch.setattr(image_files, '_unsaid', {kind: [kind] for kind in ('levels', 'pages', 'orientation')})


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
@pytest.mark.parametrize('channels', [(), (3,)])
def test_16_bits_are_reduced_to_the_upper_8(tmp_path, capsys, nothing_told, name, channels):
    values = np.random.RandomState(0).randint(0, 65536, (9, 17) + channels).astype(np.uint16)
    pixels, warning = pixels_and_warning(wide(tmp_path, values, name))
    assert warning is None
    np.testing.assert_array_equal(pixels, np.repeat(values[:, :, None], 3, 2) >> 8 if not channels else values >> 8)
    load_image(str(tmp_path / name))
    assert not capsys.readouterr().err


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
@pytest.mark.parametrize('channels', [(), (3,)])
@pytest.mark.parametrize('most, shown', [(256, '0'), (4096, '0..15'), (3000, '0..11')])
def test_16_bits_with_few_levels_are_warned_of(tmp_path, capsys, nothing_told, name, channels, most, shown):
    values = np.random.RandomState(0).randint(0, most, (50, 60) + channels).astype(np.uint16)
    values[0, 0] = 65535  # one hot pixel
    path = wide(tmp_path, values, name)
    pixels, warning = pixels_and_warning(path)
    np.testing.assert_array_equal(pixels[:, :, 0], (values if not channels else values[:, :, 0]) >> 8)
    assert quoted(path) in warning and 'become %s of 0..255' % shown in warning and len(warning) <= 300
    load_image(path)
    load_image(path)
    assert capsys.readouterr().err.splitlines() == ['warning: ' + warning]


def test_32_bits_with_few_levels_are_warned_of(tmp_path):
    values = np.random.RandomState(0).randint(0, 256, (9, 17)).astype(np.int32)
    assert 'become 0 of 0..255' in pixels_and_warning(wide(tmp_path, values, 'a.tif'))[1]
    pixels, warning = pixels_and_warning(wide(tmp_path, values * 257, 'a.tif'))
    assert warning is None
    np.testing.assert_array_equal(pixels[:, :, 0], values)


def test_no_warning_of_few_levels_without_reduction(tmp_path):
    for name, values in (('a.png', np.full([9, 17], 300, np.uint16)), ('b.png', np.zeros([9, 17], np.uint8)),
                         ('c.png', np.uint16([[0, 65535]] * 9)), ('d.tif', np.zeros([9, 17, 3], np.uint8))):
        path = wide(tmp_path, values, name) if values.dtype == np.uint16 else saved(
            tmp_path, Image.fromarray(values), name)
        assert pixels_and_warning(path)[1] is None


@pytest.mark.parametrize('values', [[0, 65536], [-1, 300], [0, 2 ** 31 - 1], [-2 ** 31, 0]])
def test_values_that_would_wrap_around_are_refused(tmp_path, values):
    path = wide(tmp_path, np.array([values] * 5, np.int32), 'a.tif')
    refused(load_image, path, '%d..%d' % tuple(values), '0..65535', '8 bits')


def test_negative_values_of_16_bits_are_refused(tmp_path):
    values = np.array([[-3, 700]] * 5, np.int16)
    path = saved(tmp_path, Image.fromarray(values.view(np.uint16)), 'a.tif', tiffinfo={339: 2})  # signed
    refused(load_image, path, '-3..700', '0..65535')


def test_the_check_warns_of_few_levels_and_prints_nothing_else(tmp_path, capfd, nothing_told):
    values = np.random.RandomState(0).randint(0, 256, (9, 17)).astype(np.uint16)
    path = wide(tmp_path, values, 'a.png')
    label = saved(tmp_path, Image.fromarray(np.zeros([9, 17], np.uint8)), 'label.png')
    result = data_check.check_pairs([path, path], [label, ''], load_classes(21, 255, ''), lines=[1, 2])
    assert len(result.warnings) == 2 and not result.problems
    for line, warning in enumerate(result.warnings, 1):
        assert warning.startswith('line %d: ' % line) and '--image_range' in warning
    assert 'warning' not in capfd.readouterr().err


def test_large_pictures_are_read_if_the_memory_holds_them(tmp_path, monkeypatch):
    pixels = picture(9, 17)
    paths = [saved(tmp_path, Image.fromarray(pixels), name) for name in ('a.png', 'a.tif', 'a.jpg')]
    label = saved(tmp_path, Image.fromarray(pixels[:, :, 0].copy()), 'label.png')
    assert Image.MAX_IMAGE_PIXELS is None
    monkeypatch.setattr(image_files, 'LARGE', 100)
    monkeypatch.setattr(memory, 'free', lambda: 9 * 17 * image_files.BYTES_PER_PIXEL)
    np.testing.assert_array_equal(load_image(paths[0]), pixels)
    np.testing.assert_array_equal(load_label(label), pixels[:, :, 0])
    for path in paths:
        assert load_image(path).shape == (9, 17, 3)
    monkeypatch.setattr(memory, 'free', lambda: 9 * 17 * image_files.BYTES_PER_PIXEL - 1)
    for path in paths:
        refused(load_image, path, '153 pixels', 'memory', 'tiles')
        assert image_files.image_size(path) == (9, 17)
    refused(image_files.read_jpeg, paths[2], '153 pixels', 'memory', 'tiles')
    refused(load_label, label, '153 pixels', 'memory', 'tiles')


def test_large_files_are_read_if_the_memory_holds_them(tmp_path, monkeypatch):
    pixels = picture(9, 17)
    path = saved(tmp_path, Image.fromarray(pixels), 'a.bmp')
    monkeypatch.setattr(image_files.read_file, '__defaults__', (100,))
    monkeypatch.setattr(image_files, 'MAX_BYTES', 100)
    monkeypatch.setattr(memory, 'free', lambda: float('inf'))
    np.testing.assert_array_equal(load_image(path), pixels)
    monkeypatch.setattr(memory, 'free', lambda: 250)
    assert 'damaged' not in refused(load_image, path, 'more than the limit of 125', 'tiles')


def test_a_jpeg_too_large_for_tensorflow_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, 'free', lambda: float('inf'))
    data = read(saved(tmp_path, Image.fromarray(picture(9, 17)), 'a.jpg'))
    data = data.replace(struct.pack('>HH', 9, 17), struct.pack('>HH', 30000, 30000), 1)
    path = save(tmp_path, data, 'b.jpg')
    for load in (load_image, image_files.read_jpeg):
        assert 'damaged' not in refused(load, path, '900000000 pixels', 'TensorFlow', 'tiles')


def test_a_large_picture_that_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, 'LARGE', 100)
    data = read(saved(tmp_path, Image.fromarray(picture(64, 64)), 'a.png'))
    refused(load_image, save(tmp_path, data[:len(data) // 2], 'b.png'), 'damaged', '4096 pixels')


@pytest.mark.parametrize('load', [load_image, load_label])
def test_a_tiff_of_bands_that_are_no_colours(tmp_path, load):
    pixels = np.random.RandomState(0).randint(0, 256, [9, 11, 4]).astype(np.uint8)
    for bands, remedy in ((pixels, 'PHOTOMETRIC=RGB,'), (pixels.astype(np.uint16), '-ot Byte -scale')):
        grey, rgb = (struct.pack('<HHII', 262, 3, 1, photometric) for photometric in (1, 2))
        data = tiff_of_four_bands(bands, 0).replace(rgb, grey)
        message = refused(load, save(tmp_path, data, 'a.tif'), '4 bands of %d bits' % (bands.itemsize * 8), 'label',
                          'gdal_translate', remedy)
        assert 'get the file again' not in message


def test_grey_with_alpha_in_a_tiff(tmp_path):
    grey = Image.fromarray(picture(9, 11)[:, :, 0].copy())
    for alpha in (0, 1, 2):
        data = tagged(Image.merge('LA', [grey, grey.point(lambda value: value // 3)]), {338: alpha})
        path = save(tmp_path, data, '%d.tif' % alpha)
        np.testing.assert_array_equal(load_image(path), np.asarray(grey.convert('RGB')))
    refused(load_label, path, 'LA', 'grey PNG')


@pytest.mark.parametrize('load', [load_image, load_label])
@pytest.mark.parametrize('text, kind', [
    ('{"version": "5.0", "shapes": []}', 'JSON'), ('\ufeff{\n  "images": []}', 'JSON'), ('[{"id": 1}]', 'JSON'),
    ('{}', 'JSON'), ('<?xml version="1.0"?>\n<annotations/>', 'XML')])
def test_annotations_as_text_are_not_called_damaged(tmp_path, load, text, kind):
    path = save(tmp_path, text.encode('utf-8'), 'a.json')
    message = refused(load, path, kind, 'LabelMe', 'index', 'convert_annotations.py')
    assert 'get the file again' not in message


def test_of_an_animation_the_first_picture_is_read(tmp_path):
    frames = [Image.fromarray(np.full([4, 5], value, np.uint8)) for value in (3, 9)]
    path = saved(tmp_path, frames[0], 'a.gif', save_all=True, append_images=frames[1:])
    assert (load_image(path) == 3).all()


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


@pytest.mark.parametrize('palette', ['', 'voc'])
def test_palette_labels_are_indices_never_colours(tmp_path, palette):
    label = np.array([[0, 15, 255], [3, 3, 1]], np.uint8)
    image = Image.fromarray(label).convert('L')
    image.putpalette([(i * 7 + 3) % 256 for i in range(768)])  # not VOC's colours
    assert image.mode == 'P'
    loaded = load_label(saved(tmp_path, image, 'a.png'), palette=palette)
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


@pytest.mark.parametrize('depth', [2, 4])
def test_labels_of_few_bits_in_a_tiff_are_not_stretched(tmp_path, depth):
    values = np.arange(8) % (1 << depth)
    bits = ((values[:, None] >> np.arange(depth)[::-1]) & 1).astype(np.uint8)
    packed = np.packbits(bits.ravel())
    data = tagged(Image.fromarray(np.pad(packed, (0, 8 - len(packed)), 'constant')[None]), {258: depth})
    np.testing.assert_array_equal(load_label(save(tmp_path, data, 'a.tif')), [values])


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
    loaded = load_label(saved(tmp_path, Image.fromarray(pixels), 'a.png'), palette='voc')
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, label)


def test_all_256_voc_colours(tmp_path):
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = saved(tmp_path, Image.fromarray(voc_colours()[label]), 'a.png')
    np.testing.assert_array_equal(load_label(path, 256, palette='voc'), label)


def test_cityscapes_colours_become_train_ids(tmp_path):
    # road, bicycle, sky, unlabeled, dynamic, trailer, VOC's void
    pixels = np.array([[(128, 64, 128), (119, 11, 32), (70, 130, 180), (0, 0, 0), (111, 74, 0), (0, 0, 110),
                        (224, 224, 192)]], np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels), 'a.png')
    np.testing.assert_array_equal(load_label(path, 19, palette='cityscapes'), [[0, 18, 10] + [255] * 4])


def test_black_is_void_only_where_it_is_no_class(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[(0, 0, 0), (9, 8, 7)]], np.uint8)), 'a.png')
    colours = np.full([256, 3], 255, np.uint8)
    colours[:2] = (9, 8, 7), (0, 0, 0)
    for num_classes, black in ((2, 1), (1, 255)):
        classes = Classes(num_classes, 255, Palette(colours, None, named=True))
        np.testing.assert_array_equal(image_files.load_label(path, classes), [[black, 0]])


@pytest.mark.parametrize('ignore_label', [255, 11, 0, -1, 1000])
def test_void_and_unknown_colours_become_the_ignore_label(tmp_path, ignore_label):
    pixels = voc_colours()[np.array([[0, 1, 20, 255, 21]])]
    path = saved(tmp_path, Image.fromarray(pixels), 'a.png')
    label, unknown = image_files.read_label(path, load_classes(21, ignore_label, 'voc'))
    np.testing.assert_array_equal(label, [[0, 1, 20, ignore_label, ignore_label]])
    assert unknown == [(1, tuple(voc_colours()[21]))]


def test_unknown_colours_are_counted(tmp_path):
    pixels = np.zeros([3, 4, 3], np.uint8)
    pixels[1, 2], pixels[2, :3] = (1, 2, 3), 255  # white, which fills the unused entries of a palette, is not a class
    path = saved(tmp_path, Image.fromarray(pixels), 'a.png')
    for classes in (load_classes(21, 255, 'voc'), load_classes(19, 255, 'cityscapes')):
        label, unknown = image_files.read_label(path, classes)
        assert unknown == [(3, (255, 255, 255)), (1, (1, 2, 3))]
        assert (label == 255).sum() == (12 if classes.num_classes == 19 else 4)
    assert image_files.show_colours(unknown, 1) == '255 255 255, ...'


def test_a_label_in_none_of_the_palettes_colours_is_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.full([3, 4, 3], 9, np.uint8)), 'a.png')
    refused(load_label, path, '9 9 9', '--palette', palette='voc')


@pytest.mark.parametrize('alpha', [False, True])
def test_three_equal_channels_hold_indices(tmp_path, alpha):
    """cv2.imwrite saves np.dstack([label] * 3) in this way."""
    label = np.array([[0, 1, 20], [255, 7, 7]], np.uint8)
    path = saved(tmp_path, Image.fromarray(np.dstack([label] * (3 + alpha))), 'a.png')
    loaded = load_label(path)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, label)
    np.testing.assert_array_equal(load_label(path, 256, -1), label)
    refused(load_label, path, 'three channels are equal', '20 255 are neither 0..7 nor --ignore_label=0', 'save one '
            'channel', num_classes=8, ignore_label=0)
    for num_classes, palette in (21, 'voc'), (19, 'cityscapes'):  # these would ignore all objects
        refused(load_label, path, 'three channels are equal', 'save one channel', '7 7 7', 'leave out --palette',
                num_classes=num_classes, palette=palette)
    wide = [np.repeat(row, 3).astype('>u2').tobytes() for row in label]
    refused(load_label, save(tmp_path, png(wide, 16, 2), 'b.png'), '16 bits', 'save one channel')


def test_grey_colours_of_a_named_palette_are_colours(tmp_path):
    label = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    (tmp_path / 'classes.txt').write_text('ground 0 0 0\nroof 255 255 255\nroad 1 1 1\n')
    path = saved(tmp_path, Image.fromarray(np.dstack([np.array([0, 255, 1], np.uint8)[label]] * 3)), 'a.png')
    np.testing.assert_array_equal(load_label(path, 3, palette=str(tmp_path / 'classes.txt')), label)


def test_a_line_beyond_the_classes_names_the_void_colour(tmp_path):
    (tmp_path / 'classes.txt').write_text('sky 1 2 3\nroad 4 5 6\nvoid 7 7 7\n')
    path = saved(tmp_path, Image.fromarray(np.array([[(1, 2, 3), (4, 5, 6), (7, 7, 7)]], np.uint8)), 'a.png')
    classes = load_classes(2, 2, str(tmp_path / 'classes.txt'))
    label, unknown = image_files.read_label(path, classes)
    np.testing.assert_array_equal(label, [[0, 1, 2]])
    assert unknown == []


def test_jpeg_labels_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.zeros([8, 8], np.uint8)), 'a.jpg')
    refused(load_label, path, 'lossy', 'PNG')


def test_other_modes_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.zeros([8, 8], np.uint8)).convert('LA'), 'a.png')
    refused(load_label, path, 'LA', 'grey PNG')


def test_threads_agree(tmp_path):
    label = np.random.RandomState(0).randint(0, 21, [50, 60]).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(voc_colours()[label]), 'a.png')
    results = []
    threads = [threading.Thread(target=lambda: results.extend(load_label(path, palette='voc') for _ in range(5)))
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
