"""Images and labels as people store them, in all depths, layouts and conventions, and what they become."""

import collections
import os

import numpy as np
from PIL import Image

from tests.stress import pictures
from utils.data import image_files
from utils.data.palette import load_classes
from utils.data.pixels import ImageFormat

try:
    import tifffile
except ImportError:
    tifffile = None

# {EXIF orientation: function that turns an array [h, w, C] upright}
UPRIGHT = {1: np.asarray, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.rot90(np.fliplr(a)),
           6: lambda a: np.rot90(a, 3), 7: lambda a: np.rot90(np.flipud(a)), 8: np.rot90}
DEPTHS = (('u1', 255), ('u2', 255), ('u2', 4095), ('u2', 65535), ('i4', 255), ('i4', 65535), ('i4', 1 << 20), ('f4', 1),
          ('f4', 10000))
RANGES = (None, (0.0, 255.0), (0.0, 4095.0), (0.0, 1.0), (-1000.0, 3000.0), (0.1, 0.1001), (1e5, 1e6))
BANDS = (None, None, (3, 2, 1), (4, 3, 2), (1,), (2,), (6, 1, 4))
FEW = 4096  # 16-bit values below it keep at most 16 levels

# path: of the file; values: as stored, [h, w, C]; orientation: 1 to 8; always_turned: whether it is turned even without
# --apply_exif; by_tifffile: whether Pillow may not read it, but --image_bands does; first: bands of the first page.
Stored = collections.namedtuple('Stored', 'path values orientation always_turned by_tifffile first')


def image(choose, rng, path, size):
    """Writes an image of a random kind and returns its Stored.

    Args:
      choose: a function that returns one of the items of a tuple.
      rng: the generator of the values.
      path: the path without a suffix.
      size: (h, w).
    """
    kind = choose((a_png, a_jpeg, a_pillow_tiff, a_tiff) if tifffile else (a_png, a_jpeg, a_pillow_tiff))
    if not tifffile:
        print('TIFFs of tifffile are left out, which is not installed')
    stored = kind(choose, rng, path, size)
    print('%s: %s %s up to %s, orientation %d' % (
        os.path.basename(stored.path), stored.values.dtype, stored.values.shape, stored.values.max(),
        stored.orientation))
    return stored


def values(choose, rng, shape, depths):
    dtype, most = choose(depths)
    if dtype == 'f4':
        return (most * rng.rand(*shape)).astype(dtype)
    return rng.randint(0, most + 1, shape).astype(dtype)


def a_png(choose, rng, path, size):
    channels, orientation = choose((1, 2, 3, 4)), choose(tuple(UPRIGHT))
    stored = values(choose, rng, size + (channels,), DEPTHS[:4])
    bits, colour = 8 * stored.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b''.join(b'\0' + row.astype('>u%d' % stored.itemsize).tobytes() for row in stored)
    exif = Image.Exif()
    exif[274] = orientation
    with open(path + '.png', 'wb') as file:
        file.write(pictures.png_head(size[1], size[0], bits, colour) + pictures.chunk(b'eXIf', exif.tobytes()[6:]) +
                   pictures.chunk(b'IDAT', pictures.zlib.compress(rows)) + pictures.chunk(b'IEND', b''))
    return Stored(path + '.png', stored, orientation, False, False, channels)


def a_jpeg(choose, rng, path, size):
    """Writes a JPEG; its Stored has the values that TensorFlow decodes."""
    exif = Image.Exif()
    exif[274] = choose(tuple(UPRIGHT))
    shape = size + choose(((), (3,)))
    path += '.jpg'
    Image.fromarray(rng.randint(0, 256, shape).astype(np.uint8)).save(path, exif=exif)
    with open(path, 'rb') as file:
        stored = image_files.decode_jpeg(file.read())
    return Stored(path, stored, exif[274], False, False, 3)


def a_pillow_tiff(choose, rng, path, size):
    """Writes a TIFF with Pillow: grey of any depth, or 8-bit colours, with libtiff's compressions."""
    stored = values(choose, rng, size, DEPTHS) if choose((True, True, False)) else values(
        choose, rng, size + (3,), DEPTHS[:1])
    compression, orientation = choose((None, 'tiff_lzw', 'tiff_adobe_deflate', 'packbits')), choose(tuple(UPRIGHT))
    Image.fromarray(stored).save(path + '.tif', compression=compression, tiffinfo={274: orientation})
    stored = stored.reshape(size + (-1,))
    return Stored(path + '.tif', stored, orientation, True, False, stored.shape[2])


def a_tiff(choose, rng, path, size):
    """Writes a TIFF with any number of bands in one or more pages; a fourth band may be premultiplied alpha."""
    channels, layout = choose((1, 2, 3, 4, 6)), choose(('contig', 'separate', 'pages'))
    stored = values(choose, rng, size + (channels,), DEPTHS)
    options = {'photometric': 'minisblack', 'byteorder': choose(('<', '>')), 'bigtiff': choose((False, True)),
               'metadata': None}
    if layout != 'pages':
        options['planarconfig'] = layout
        if channels in (3, 4):
            options['photometric'] = 'rgb'
        if channels == 4:
            options['extrasamples'] = [choose(('assocalpha', 'unassalpha', 'unspecified'))]
    written = stored if layout == 'contig' else np.ascontiguousarray(np.moveaxis(stored, 2, 0))
    if channels == 1:
        written = stored[:, :, 0]
        options.pop('planarconfig', None)
    tifffile.imwrite(path + '.tif', written, **options)
    print('%s %s' % (layout, options))
    return Stored(path + '.tif', stored, 1, True, True, 1 if layout == 'pages' else channels)


def wanted(stored, image_format):
    """Returns what a Stored image becomes: uint8 [h, w, 3], or the words of the error if it must be refused."""
    pixels, bands = stored.values, image_format.bands
    if bands and max(bands) > pixels.shape[2]:
        return 'but --image_bands names %d' % max(bands)
    if bands:
        pixels = pixels[:, :, [band - 1 for band in bands]]
    else:
        pixels = pixels[:, :, :3 if stored.first > 2 else 1]
    if image_format.value_range:
        low, high = image_format.value_range
        scaled = (pixels.astype(np.float64) - low) * (255 / (high - low))
        pixels = np.round(np.minimum(np.maximum(scaled, 0), 255)).astype(np.uint8)
    elif pixels.dtype.kind == 'f' or pixels.max() > 65535:
        return '--image_range=LOW,HIGH'
    elif pixels.dtype != np.uint8:
        pixels = (pixels // 256).astype(np.uint8)
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    if image_format.apply_exif or stored.always_turned:
        pixels = UPRIGHT[stored.orientation](pixels)
    return pixels


def must_warn(stored, image_format):
    """Returns whether so few levels are left that a run must warn."""
    if image_format.value_range or stored.values.dtype == np.uint8:
        return False
    return stored.values.min() < stored.values.max() < FEW


def may_be_refused(stored, image_format):
    """Returns whether Pillow may not be able to read the file; with --image_bands, it must be read."""
    return stored.by_tifffile and not image_format.bands


def image_format(choose):
    return ImageFormat(choose(RANGES), choose(BANDS) if tifffile else None, choose((False, True)))


# labels --------------------------------------------------------------------------------------------------------------

MAP_LINES = '0 ignore\n1-3 0\n4 1  # one\n5-250: 2\n251-254, ignore\n'
FILE_MAP = [255, 0, 0, 0, 1] + [2] * 246 + [255] * 5
WORDS = ('', 'binary', 'reduce_zero', 'cityscapes', 'file')
CITYSCAPES = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
              27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # from the data set's own table
MOST_CITYSCAPES = 33
CLASSES = 20


def label_values(choose, rng, size):
    """Returns a random label, integer [h, w], as people store them: classes, masks of 0 and 255, ids, any value."""
    kind = choose(('classes', 'classes', 'mask', 'ones', 'ids', 'bytes'))
    most = {'classes': 4, 'ids': MOST_CITYSCAPES, 'bytes': 255}.get(kind, 1)
    label = rng.randint(0, most + 1, size)
    if kind == 'classes':
        label[0, :2] = 255
    return 255 * label if kind == 'mask' else label


def a_label(choose, rng, path, size):
    """Writes a label file of a random kind; returns (path, the stored values, whether it may also be refused)."""
    label = label_values(choose, rng, size)
    kind = choose(('L', 'P', '1', 'equal', 'alpha', 'wide', 'tiff', 'i4', 'LA'))
    path += '.tif' if kind in ('tiff', 'i4') else '.png'
    eight = label.astype(np.uint8)
    grey = Image.fromarray(eight)
    if kind == 'P':
        grey.putpalette(rng.bytes(768))
    elif kind == '1':
        label = (label > 0).astype(int)
        grey = Image.fromarray((255 * label).astype(np.uint8)).convert('1')
    elif kind == 'equal':
        grey = Image.merge('RGB', [grey] * 3)
    elif kind == 'alpha':
        grey = Image.merge('RGBA', [grey] * 3 + [Image.fromarray(rng.randint(0, 256, size).astype(np.uint8))])
    elif kind in ('wide', 'i4'):
        grey = Image.fromarray(label.astype({'wide': np.uint16, 'i4': np.int32}[kind]))
    elif kind == 'LA':
        grey = Image.merge('LA', [grey, grey])
    grey.save(path)
    print('%s of %s: values %s' % (os.path.basename(path), kind, np.unique(label).tolist()[:40]))
    return path, label, kind == 'LA'


def classes(word, folder):
    """Returns a Classes of CLASSES classes with a label map."""
    if word == 'file':
        word = os.path.join(folder, 'map.txt')
        with open(word, 'w') as file:
            file.write(MAP_LINES)
    return load_classes(CLASSES, 255, '', word)


def mapped(label, word):
    """Returns a label after a map, value by value."""
    to = {'': lambda v: v, 'binary': lambda v: int(v != 0), 'reduce_zero': lambda v: 255 if v in (0, 255) else v - 1,
          'cityscapes': lambda v: CITYSCAPES.get(v, 255 if v <= MOST_CITYSCAPES or v == 255 else v),
          'file': FILE_MAP.__getitem__}[word]
    return np.array([to(int(value)) for value in label.ravel()]).reshape(label.shape)
