"""utils/data/pixels.py and --image_range, --image_bands and --apply_exif: pixels are correct to the last bit."""

import json
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image, ImageOps
from test_image_files import picture, png, refused, save, saved
from test_main import flag_file, in_the_repo, run, small  # noqa: F401  fixtures
from test_main import refused as told

from utils.data import data_check, image_files
from utils.data.image_files import load_image
from utils.data.pixels import ImageFormat, Refused, lost_levels, to_8_bits
from utils.prediction import export
from utils.system.command_line import RECORDS
from utils.system.errors import UserError
from utils.weights import run_settings

ORIENTATIONS = range(1, 9)


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(image_files, '_unsaid', {kind: [kind] for kind in ('levels', 'pages', 'orientation')})


def random(shape, dtype, seed=0):
    """Returns random numbers from the whole range of a type, with its minimum and maximum among them."""
    rng = np.random.RandomState(seed)
    if np.dtype(dtype).kind == 'f':
        return rng.normal(0, 1000, shape).astype(dtype)
    most, least = np.iinfo(dtype).max, np.iinfo(dtype).min
    values = rng.uniform(least, most, shape).astype(dtype)
    values.flat[:2] = least, most
    return values


def linear(values, low, high):
    """Computes --image_range with Python's own numbers, one at a time."""
    return np.array([min(255, max(0, round((float(value) - low) * (255 / (high - low))))) for value in values.ravel()],
                    np.uint8).reshape(values.shape)


def words(values):
    """Returns the rows of 16-bit values as a PNG stores them."""
    return [row.astype('>u2').tobytes() for row in values]


# values


@pytest.mark.parametrize('dtype', ['u1', 'u2', '>u2', 'i1', 'i2', 'u4', 'i4', 'i8', 'f4', 'f8'])
@pytest.mark.parametrize('bounds', [(0, 255), (0, 4095), (-300, 300.5), (0.25, 0.75), (1e9, 2e9)])
def test_a_range_is_linear_rounded_and_clipped(dtype, bounds):
    values = random((7, 9, 3), dtype)
    found = to_8_bits(values, bounds)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, linear(values, *bounds))


def test_the_bounds_are_0_and_255_and_halves_go_to_the_even_number():
    values = np.array([-1, 0, 1, 2, 3, 509, 510, 511], np.int16)
    assert to_8_bits(values, (0, 510)).tolist() == [0, 0, 0, 1, 2, 254, 255, 255]
    assert to_8_bits(values.astype(np.float32), (0, 510)).tolist() == [0, 0, 0, 1, 2, 254, 255, 255]


def test_values_that_are_no_numbers_are_told_apart_without_warnings(recwarn):
    values = np.array([[np.nan, np.inf, -np.inf, 1e38, 0.5]], np.float32)
    found = to_8_bits(values, (0.0, 1.0))
    assert found.tolist() == [[0, 255, 0, 255, 128]]
    assert 'most of its pixels lie outside --image_range=0,1' in lost_levels(values, found, (0.0, 1.0))
    assert to_8_bits(np.array([-1e308, 1e308]), (0.0, 1e-9)).tolist() == [0, 255]
    assert to_8_bits(np.array([0, 1], np.uint8), (0.0, 1e-320)).tolist() == [0, 255]
    assert not recwarn.list


def test_without_a_range_8_bits_stay_and_16_lose_the_lower_8():
    for dtype in ('u1', 'u2', '>u2'):
        values = random((5, 6), dtype)
        found = to_8_bits(values)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, values if dtype == 'u1' else values // 256)
    assert to_8_bits(np.array([0, 255, 256, 65535], np.int32)).tolist() == [0, 0, 1, 255]
    assert to_8_bits(np.array([False, True])).tolist() == [0, 255]


@pytest.mark.parametrize('values', [np.float32([0.5]), np.int32([65536]), np.int8([-1]), np.uint32([2 ** 32 - 1])])
def test_other_values_are_refused_without_a_range(values):
    with pytest.raises(Refused, match='--image_range=LOW,HIGH'):
        to_8_bits(values)


# 16 bits and floating point


@pytest.mark.parametrize('colour_type, channels', [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_pngs_of_16_bits_are_exact(tmp_path, colour_type, channels):
    values = random((9, 7, channels), 'u2')
    path = save(tmp_path, png(words(values), 16, colour_type), 'a.png')
    wanted = values[:, :, :3] if channels > 2 else np.repeat(values[:, :, :1], 3, axis=2)
    for low, high in ((0, 65535), (1000, 5095), (300, 301)):
        found = load_image(path, ImageFormat((low, high)))
        np.testing.assert_array_equal(found, linear(wanted, low, high))
    np.testing.assert_array_equal(load_image(path), wanted >> 8)
    for bounds in (None, (0, 65535)):
        np.testing.assert_array_equal(load_image(path, ImageFormat(bounds, (channels,))), to_8_bits(
            np.repeat(values[:, :, -1:], 3, axis=2), bounds))
        refused(load_image, path, '--image_bands names %d' % (channels + 1),
                image_format=ImageFormat(bounds, (channels + 1,)))


@pytest.mark.parametrize('byteorder', ['<', '>'])
@pytest.mark.parametrize('compression', [None, 'lzw', 'zlib'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_tiffs_of_16_bits_are_exact(tmp_path, byteorder, compression, channels):
    tifffile = pytest.importorskip('tifffile')
    if compression:
        pytest.importorskip('imagecodecs')
    values, path = random((9, 7, channels), 'u2'), str(tmp_path / 'a.tif')
    try:
        tifffile.imwrite(path, values if channels > 1 else values[:, :, 0], byteorder=byteorder,
                         compression=compression, photometric='rgb' if channels > 2 else 'minisblack')
    except RuntimeError as error:  # TensorFlow 1's imagecodecs reads LZW but cannot write it
        assert 'NOTIMPLEMENTED' in str(error)
        pytest.skip('imagecodecs writes no LZW here')
    wanted = np.repeat(values, 3, axis=2) if channels == 1 else values[:, :, :3]
    found = load_image(path, ImageFormat((1000, 50000)))
    np.testing.assert_array_equal(found, linear(wanted, 1000, 50000))
    np.testing.assert_array_equal(load_image(path), wanted >> 8)
    bands = (1,) if channels == 1 else (channels, 1, 2)
    np.testing.assert_array_equal(load_image(path, ImageFormat((1000, 50000), bands)), linear(
        np.repeat(values, 3, axis=2) if channels == 1 else values[:, :, [band - 1 for band in bands]], 1000, 50000))


@pytest.mark.parametrize('colour_type, channels', [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_that_all_become_black_are_warned_of(tmp_path, colour_type, channels):
    path = save(tmp_path, png(words(random((9, 7, channels), 'u2') >> 8), 16, colour_type), 'a.png')
    image = image_files.read_image(path)
    assert not image.pixels.any() and 'become 0 of 0..255' in image.remarks['levels']
    white = save(tmp_path, png(words(np.full((9, 7, channels), 65535, 'u2')), 16, colour_type), 'b.png')
    assert not image_files.read_image(white).remarks


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('compression', [None, 'zlib'])
def test_planes_of_16_bits_are_right_without_bands_too(tmp_path, channels, compression):
    """Pillow would take the bytes of uncompressed planes for pixels."""
    tifffile = pytest.importorskip('tifffile')
    values, path = random((channels, 9, 7), 'u2'), str(tmp_path / 'a.tif')
    tifffile.imwrite(path, values, photometric='rgb', planarconfig='separate', compression=compression)
    wanted = np.moveaxis(values[:3], 0, 2)
    np.testing.assert_array_equal(load_image(path), wanted >> 8)
    np.testing.assert_array_equal(load_image(path, ImageFormat((10, 40000))), linear(wanted, 10, 40000))


def test_a_big_endian_bigtiff_is_not_called_damaged(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    values, path = random((9, 7, 3), 'u1'), str(tmp_path / 'a.tif')
    tifffile.imwrite(path, values, photometric='rgb', byteorder='>', bigtiff=True)
    refused(load_image, path, 'BigTIFF', '--image_bands=1,2,3')
    np.testing.assert_array_equal(load_image(path, ImageFormat(None, (1, 2, 3))), values)


def test_floating_point_needs_a_range(tmp_path):
    values = random((9, 7), 'f4')
    path = saved(tmp_path, Image.fromarray(values), 'a.tif')
    refused(load_image, path, 'floating-point', '--image_range=LOW,HIGH')
    np.testing.assert_array_equal(load_image(path, ImageFormat((-500.0, 1500.0)))[:, :, 1], linear(values, -500, 1500))


@pytest.mark.parametrize('name', ['a.png', 'a.bmp', 'a.jpg'])
def test_a_range_maps_8_bits_too(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(picture(9, 17)), name)
    np.testing.assert_array_equal(load_image(path, ImageFormat((50, 150))), linear(load_image(path), 50, 150))
    assert image_files.read_jpeg(path, ImageFormat((50, 150))) is None


# bands and pages


@pytest.mark.parametrize('dtype', ['u1', 'u2', 'i2', 'f4'])
@pytest.mark.parametrize('layout', ['contig', 'separate', 'pages', 'tiles'])
@pytest.mark.parametrize('bigtiff', [False, True])
def test_bands_of_tiffs(tmp_path, dtype, layout, bigtiff):
    tifffile = pytest.importorskip('tifffile')
    values, path = random((40, 33, 6), dtype), str(tmp_path / 'a.tif')
    options = {'contig': {'planarconfig': 'contig'}, 'separate': {'planarconfig': 'separate'}, 'pages': {},
               'tiles': {'planarconfig': 'separate', 'tile': (16, 32)}}[layout]
    stored = values if layout == 'contig' else np.ascontiguousarray(np.moveaxis(values, 2, 0))
    tifffile.imwrite(path, stored, photometric='minisblack', bigtiff=bigtiff, metadata=None, **options)
    bounds = (-1000, 3000)
    for bands in ((4, 3, 2), (6, 6, 1)):
        np.testing.assert_array_equal(load_image(path, ImageFormat(bounds, bands)),
                                      linear(values[:, :, [band - 1 for band in bands]], *bounds))
    np.testing.assert_array_equal(load_image(path, ImageFormat(bounds, (5,))),
                                  linear(np.repeat(values[:, :, 4:5], 3, axis=2), *bounds))
    refused(load_image, path, 'it has 6 bands, but --image_bands names 7', image_format=ImageFormat(bounds, (7, 1, 2)))


def test_bands_of_other_formats(tmp_path):
    pixels = picture(9, 17)
    four = np.dstack([pixels, pixels[:, :, :1] // 2])
    swapped = ImageFormat(None, (3, 2, 1))
    for name, stored in (('a.png', pixels), ('b.png', four), ('c.bmp', pixels), ('d.jpg', pixels)):
        path = saved(tmp_path, Image.fromarray(stored), name)
        np.testing.assert_array_equal(load_image(path, swapped), load_image(path)[:, :, ::-1])
        assert image_files.read_jpeg(path, swapped) is None
    np.testing.assert_array_equal(load_image(str(tmp_path / 'b.png'), ImageFormat(None, (4, 1, 2))),
                                  four[:, :, [3, 0, 1]])
    refused(load_image, str(tmp_path / 'a.png'), 'it has 3 bands, but --image_bands names 4',
            image_format=ImageFormat(None, (4, 1, 2)))
    grey = saved(tmp_path, Image.fromarray(pixels[:, :, 0]), 'grey.png')
    refused(load_image, grey, 'it has 1 band, but --image_bands names 2', image_format=ImageFormat(None, (2,)))


def test_pages_are_mentioned_once(tmp_path, capsys):
    tifffile = pytest.importorskip('tifffile')
    values, path = random((2, 9, 7, 3), 'u1'), str(tmp_path / 'a.tif')
    tifffile.imwrite(path, values, photometric='rgb')
    for _ in range(2):
        np.testing.assert_array_equal(load_image(path), values[0])
    warning, = capsys.readouterr().err.splitlines()
    assert 'has 2 pages or frames, of which only the first is used; to read bands' in warning
    np.testing.assert_array_equal(load_image(path, ImageFormat(None, (6, 5, 4))), values[1, :, :, ::-1])


# orientation


def turned_file(folder, name, number, size=(9, 17)):
    """Saves a picture with an EXIF orientation."""
    exif = Image.Exif()
    exif[274] = number
    return saved(folder, Image.fromarray(picture(*size)), name, exif=exif)


@pytest.mark.parametrize('number', ORIENTATIONS)
@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.tif'])
def test_orientations_are_pillows(tmp_path, name, number):
    path = turned_file(tmp_path, name, number)
    if name == 'a.jpg':  # TensorFlow decodes it
        stored = Image.fromarray(load_image(path))
        stored.getexif()[274] = number
    else:
        stored = Image.fromarray(picture(9, 17))
        stored.getexif()[274] = number
    wanted = np.asarray(ImageOps.exif_transpose(stored))
    turns = ImageFormat(apply_exif=True)
    np.testing.assert_array_equal(load_image(path, turns), wanted)
    image = image_files.read_image(path, turns)
    assert image.orientation == 1 and not image.remarks
    if name == 'a.tif':  # Pillow always turns it
        np.testing.assert_array_equal(load_image(path), wanted)
    else:
        assert image_files.read_image(path).orientation == number
        assert image_files.image_size(path) == (9, 17)
    read = image_files.read_jpeg(path, turns)
    assert (read is not None) == (name == 'a.jpg' and number == 1)
    assert read is None or read[1] == (9, 17)


@pytest.mark.parametrize('number', ORIENTATIONS)
def test_bands_of_a_tiff_are_turned_as_pillow_turns_them(tmp_path, number):
    pytest.importorskip('tifffile')
    path = saved(tmp_path, Image.fromarray(picture(9, 17)), 'a.tif', tiffinfo={274: number})
    np.testing.assert_array_equal(load_image(path, ImageFormat(None, (1, 2, 3))), load_image(path))


# the command line


@pytest.mark.parametrize('flag, sentence', [
    ('--image_range=255,0', 'give two numbers, the lower one first'),
    ('--image_range=7,7', 'give two numbers, the lower one first'),
    ('--image_range=nan,1', 'give two numbers, the lower one first'),
    ('--image_range=0,inf', 'give two numbers, the lower one first'),
    ('--image_range=4095', 'give two numbers, the lower one first'),
    ('--image_range=0,1,2', 'give two numbers, the lower one first'),
    ('--image_range=a,b', 'give two numbers, the lower one first'),
    ('--image_bands=0,1,2', 'give one or three band numbers, starting from 1'),
    ('--image_bands=1,2', 'give one or three band numbers, starting from 1'),
    ('--image_bands=1.5', 'give one or three band numbers, starting from 1'),
])
def test_wrong_values_are_refused(flag, sentence):
    error = told('--option=check', flag)
    assert flag.partition('=')[0][2:] in error and sentence in error


def make_data(folder, values, name='%d.png', number=3):
    """Writes 16-bit grey images, their labels and a list; returns the flags of a short run with them."""
    draw, lines = np.random.RandomState(0), []
    for index in range(number):
        pair = name % index, 'label%d.png' % index
        save(folder, png(words(values[index]), 16, 0), pair[0])
        saved(folder, Image.fromarray(draw.randint(0, 3, values[index].shape).astype(np.uint8)), pair[1])
        lines.append(' '.join(pair) + '\n')
    (folder / 'list.txt').write_text(''.join(lines))
    return flags_for(folder)


def flags_for(folder, *more):
    """Writes a flag file of a short run with a folder's list and outputs; returns the flag that names it."""
    places = ['--%s=%s' % (flag, folder / flag) for flag in ('modeldir', 'logdir', 'logfile', 'out_dir', 'export_dir')]
    lists = ['--%s=%s' % (flag, folder / 'list.txt') for flag in ('data_list', 'valid_data_list', 'test_data_list')]
    return flag_file(folder / 'all.flags', places + lists + list(more) + [
        '--data_dir=%s' % folder, '--num_classes=3', '--encoder_name=res50', '--batch_size=1', '--input_height=33',
        '--input_width=33', '--num_threads=1', '--check_labels=false', '--valid_interval=0', '--num_steps=2',
        '--save_interval=2', '--learning_rate=1e-2'])


def done(*args):
    """Runs main.py, which must succeed, and returns what it printed."""
    code, stdout, stderr = run(*args)
    assert code == 0, stderr
    return stdout, stderr


def mask(folder, name):
    with Image.open(str(folder / 'out_dir' / 'prediction' / (name + '_mask.png'))) as image:
        return np.asarray(image)


def test_the_range_of_a_training_is_kept_and_exported(tmp_path, small):  # noqa: F811
    draw = np.random.RandomState(1)
    values = [1000 + 4 * picture(40, 33 + index)[:, :, 0].astype(np.uint16) + draw.randint(0, 4) for index in range(3)]
    flags = make_data(tmp_path, values)
    stdout, _ = done(flags, '--option=check')
    assert '--image_range=' in stdout
    _, stderr = done(flags, '--option=train', '--image_range=1000,2023')
    assert 'warning' not in stderr
    settings = json.loads((tmp_path / 'modeldir' / 'settings.json').read_text())
    assert settings['flags']['image_range'] == [1000, 2023]
    done(flags, '--option=test')
    tested = json.loads((tmp_path / 'out_dir' / 'metrics.json').read_text())
    assert tested['flags']['image_range'] == [1000, 2023]
    done(flags, '--option=predict')
    done(flags, '--option=export')
    with tf.Graph().as_default(), tf.Session() as sess:
        signature = tf.saved_model.loader.load(sess, ['serve'], str(tmp_path / 'export_dir')).signature_def[
            tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY]
        assert signature.inputs['images'].dtype == tf.float32.as_datatype_enum
        names = {key: info.name for key, info in signature.outputs.items()}
        for index, pixels in enumerate(values):
            images = np.repeat(pixels[np.newaxis, :, :, np.newaxis], 3, axis=3).astype(np.float32)
            found = sess.run(names, {signature.inputs['images'].name: images})
            np.testing.assert_array_equal(found['classes'][0], mask(tmp_path, str(index)))
            assert found['softmax'][0].std(axis=(0, 1)).min() > 0
    before = [mask(tmp_path, str(index)) for index in range(3)]
    assert any(len(np.unique(one)) > 1 for one in before)
    # The same pictures with 8 bits give the same masks.
    other = tmp_path / 'eight'
    other.mkdir()
    for index, pixels in enumerate(values):
        saved(other, Image.fromarray(linear(pixels, 1000, 2023)), '%d.png' % index)
    done(flags, '--option=predict', '--image_dir=%s' % other, '--image_range=0,255', '--out_dir=%s' % (
        tmp_path / 'second' / 'out_dir'))
    for index in range(3):
        np.testing.assert_array_equal(mask(tmp_path / 'second', str(index)), before[index])


def test_the_exported_conversion_is_the_readers():
    values = np.arange(0, 65536, 7).astype(np.uint16)
    for bounds in ((0, 255), (0, 4095), (1000, 50000), (-5, 70000.5)):
        with tf.Graph().as_default(), tf.Session() as sess:
            found = sess.run(export.to_8_bits(tf.constant(values.astype(np.float32)), *bounds))
        assert (found != to_8_bits(values, bounds)).mean() < 1e-3  # float32 may round a half differently


def test_swapped_sizes_name_apply_exif(tmp_path, small):  # noqa: F811
    turned_file(tmp_path, '0.jpg', 6, (40, 33))
    label = np.random.RandomState(0).randint(0, 3, [33, 40]).astype(np.uint8)
    saved(tmp_path, Image.fromarray(label), 'label0.png')
    (tmp_path / 'list.txt').write_text('0.jpg label0.png\n')
    flags = flags_for(tmp_path)
    stdout = run(flags, '--option=check')[1]
    assert 'they must have the same size; the image has an EXIF orientation that turns it: give --apply_exif' in stdout
    assert '--apply_exif' in told(flags, '--option=train')
    done(flags, '--option=check', '--apply_exif')
    done(flags, '--option=train', '--apply_exif')
    done(flags, '--option=test')  # the training's values are used
    done(flags, '--option=predict')
    assert mask(tmp_path, '0').shape == (33, 40)


def test_predict_says_once_that_photos_are_turned(tmp_path, small):  # noqa: F811
    for index in range(3):
        turned_file(tmp_path, '%d.jpg' % index, 3, (40, 33))
        saved(tmp_path, Image.fromarray(np.random.RandomState(0).randint(0, 3, [40, 33]).astype(np.uint8)),
              'label%d.png' % index)
    (tmp_path / 'list.txt').write_text(''.join('%d.jpg label%d.png\n' % (index, index) for index in range(3)))
    flags = flags_for(tmp_path)
    assert 'images with an EXIF orientation that is not applied: 3' in done(flags, '--option=check')[0]
    done(flags, '--option=train')
    _, stderr = done(flags, '--option=predict')
    assert stderr.count('its EXIF orientation, 3, is not applied; give --apply_exif to apply it') == 1
    _, stderr = done(flags, '--option=predict', '--apply_exif')
    assert 'orientation' not in stderr


# what a breaker found


def test_layouts_that_pillow_misreads_are_refused_or_mended(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    values = random((9, 17), np.int8)
    tifffile.imwrite(str(tmp_path / 'a.tif'), values)
    refused(load_image, str(tmp_path / 'a.tif'), 'signed', '--image_bands=1')
    found = load_image(str(tmp_path / 'a.tif'), ImageFormat((-128, 127), (1,)))
    np.testing.assert_array_equal(found[:, :, 0], values.astype(int) + 128)
    tifffile.imwrite(str(tmp_path / 'white.tif'), random((9, 17), np.uint8), photometric='miniswhite')
    np.testing.assert_array_equal(load_image(str(tmp_path / 'white.tif')), load_image(
        str(tmp_path / 'white.tif'), ImageFormat(bands=(1,))))


def test_ranges_and_bands_that_do_not_fit_a_format_are_refused(tmp_path):
    path = save(tmp_path, b'P2 3 1 12000 0 5 12000', 'a.pgm')
    refused(lambda path: load_image(path, ImageFormat((0, 12000))), path, '--image_range', 'save it as PNG')
    path = saved(tmp_path, Image.fromarray(picture(9, 17)).convert('P'), 'p.png')
    refused(lambda path: load_image(path, ImageFormat(bands=(1,))), path, 'palette', '--image_bands')


def test_damaged_avif_and_heic_are_called_damaged(tmp_path):
    for suffix, brand in (('.avif', b'avif'), ('.heic', b'heic')):
        if image_files.has_decoder(suffix):
            refused(load_image, save(tmp_path, b'\0\0\0\x1cftyp' + brand + b'\0' * 30, 'a' + suffix), 'damaged')


@pytest.mark.parametrize('name, value', [('image_range', ['a', 'b']), ('image_range', [9, 1]), ('image_range', 'abc'),
                                         ('image_bands', [0]), ('image_bands', [1, 2]), ('apply_exif', 'no'),
                                         ('label_map', 5), ('compat', ''), ('num_classes', 0)])
def test_values_edited_in_settings_json_are_checked(name, value):
    conf = types.SimpleNamespace(**dict.fromkeys(RECORDS))
    with pytest.raises(UserError, match='settings.json: %s=.* is not a valid value of --%s' % (name, name)):
        run_settings.with_trained(conf, 'model', {name: value}, 'test')


def test_percentiles_see_all_channels_and_columns(tmp_path):
    values = np.zeros([40, 60, 3], np.uint16)
    values[:, :, 1], values[:, 30:, 2] = 10000, 20000
    found = data_check._sample(values, 40 * 60)
    assert np.percentile(found, [0.5, 99.5]).tolist() == [0, 20000] and len(found) == 2400
    assert abs((found == 10000).mean() - 1 / 3) < 0.05
