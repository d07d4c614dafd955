"""Converts the values stored in an image file to 8-bit RGB: bands, the range of the values, and EXIF orientation."""

import io
import logging
import re
import sys
from typing import NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image

from utils.system.errors import reason

FEW_LEVELS = 16  # if an image of more than 8 bits spans fewer of the levels 0..255 after conversion, a warning is given
TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
HAS_PALETTE = 'its pixels are palette indices, not bands; save it as RGB or leave out --image_bands'
ORIENTATION = 274  # the EXIF and TIFF tag

# {EXIF orientation: function that turns the stored array [h, w, ...] upright}
_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
SWAPPED_SIDES = (5, 6, 7, 8)  # the orientations that exchange height and width

_SIXTEEN_BITS = re.compile(r'(?!BGR)(\w+;16)([BLNRS]*)$')  # BGR;16 has 5 or 6 bits per colour

logging.getLogger('tifffile').setLevel(logging.CRITICAL)  # the warnings of tifffile do not name the file


class ImageFormat(NamedTuple):
    """How the values of image files are converted to 8-bit RGB."""
    value_range: Optional[Tuple[float, float]] = None  # values that become 0 and 255; None keeps the upper 8 bits
    bands: Optional[Tuple[int, ...]] = None  # 1-based numbers of the one or three bands to use; None for the first ones
    apply_exif: bool = False  # whether the EXIF orientation is applied


AS_STORED = ImageFormat()


class Refused(Exception):
    """Raised if a valid file is not supported; the message gives the reason and the remedy, but not the file."""


def format_from_flags(conf):
    """Returns the ImageFormat for the flags image_range, image_bands and apply_exif in `conf`."""
    value_range, bands = conf.image_range, conf.image_bands
    return ImageFormat(tuple(value_range) if value_range else None, tuple(bands) if bands else None,
                       bool(conf.apply_exif))


# ---- values ----

def to_8_bits(values, value_range=None):
    """Converts stored values to uint8.

    Args:
      values: array of numbers of any type and shape.
      value_range: (low, high): values from low to high are mapped linearly to 0..255 and rounded; values outside are
        clipped, and NaN becomes 0. If None, 8-bit values are unchanged and 16-bit values are reduced to the upper 8
        bits.

    Returns:
      uint8 array of the same shape.

    Raises:
      Refused: there is no range, and the values are not integers from 0 to 65535.
    """
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if value_range is not None:
        low, high = value_range
        stored = np.arange(np.iinfo(values.dtype).max + 1) if values.dtype in (np.uint8, np.uint16) else values
        with np.errstate(over='ignore', invalid='ignore'):  # NumPy's warnings would not name the file
            scaled = (stored.astype(np.float64) - low) * (255.0 / (high - low))
        mapped = np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)).astype(np.uint8)
        return mapped if stored is values else mapped[values]
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in 'iu':
        raise Refused('floating-point pixels have no fixed range; give --image_range=LOW,HIGH, the values to map to 0 '
                      'and 255, or save the image as an 8-bit PNG')
    low, high = int(values.min()), int(values.max())
    if values.dtype == np.int8 and low >= 0:
        return values.astype(np.uint8)
    if low < 0 or high > 65535:
        raise Refused('its values are %d..%d, but only 0..65535 can be reduced to 8 bits; give '
                      '--image_range=LOW,HIGH, the values to map to 0 and 255, or scale them to that range' % (
                          low, high))
    return (values >> 8).astype(np.uint8)


def lost_levels(values, reduced, value_range=None):
    """Returns a clause that says that to_8_bits leaves few levels or clips most values; None if it does neither.

    Args:
      values, value_range: the arguments of to_8_bits.
      reduced: the result of to_8_bits, uint8.
    """
    counts = np.bincount(reduced.ravel(), minlength=256) / float(reduced.size)
    shares = np.cumsum(counts)
    low, high = int(np.argmax(shares > 0.005)), int(np.argmax(shares >= 0.995))
    with np.errstate(invalid='ignore'):  # older versions of NumPy warn of NaN
        outside = (values < value_range[0]).mean() + (values > value_range[1]).mean() if value_range else 0
    if outside > 0.5:
        return 'most of its pixels lie outside --image_range=%g,%g; give the range of its values' % value_range
    if high - low >= FEW_LEVELS or values.min() == values.max():  # if all pixels are equal, nothing is lost
        return None
    levels = '%d..%d' % (low, high) if low < high else low
    if value_range is not None:
        return 'nearly all of its pixels become %s of 0..255 with --image_range=%g,%g; give the range of the values' % (
            (levels,) + value_range)
    return ('nearly all of its pixels become %s of 0..255 when 16 bits are reduced to 8; give --image_range=LOW,HIGH '
            '(--option=check suggests values)' % levels)


# ---- orientation ----

def orientation_of(image):
    """Returns the EXIF orientation, 1..8, of a Pillow image; 1 (upright) for TIFF, where Pillow applies it."""
    if image.format == 'TIFF':
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises errors of many types for damaged EXIF data; the pixels may still be intact
        return 1
    return value if value in _TURNS else 1


def upright(array, orientation):
    """Turns an array [h, w, ...] that is stored with an EXIF orientation, 1..8, upright."""
    return np.ascontiguousarray(_TURNS[orientation](array)) if orientation in _TURNS else array


# ---- 16-bit colours ----

def is_wide(raw_mode):
    """Returns whether a pixel layout of Pillow (None if unknown) has 16 bits, which Pillow reduces to 8."""
    return bool(raw_mode and _SIXTEEN_BITS.match(raw_mode))


def sixteen_bits(data, raw_mode):
    """Returns all 16 bits of a 16-bit colour image, uint16 [h, w, C], although Pillow keeps only the upper 8.

    The file is decoded twice: if Pillow is told that it has the other byte order, it returns the lower bytes.

    Args:
      data: the bytes of a file in a format that Pillow supports.
      raw_mode: the pixel layout of the file, such as RGB;16B.

    Raises:
      Refused: Pillow does not support this layout in the other byte order.
    """
    if raw_mode == 'LA;16B':  # decoded as RGBA, which has the same four bytes per pixel
        pair = np.asarray(_opened(data, 'RGBA')).astype(np.uint16)
        return pair[:, :, ::2] << 8 | pair[:, :, 1::2]  # [h, w, 2]
    name, order = _SIXTEEN_BITS.match(raw_mode).groups()
    is_big = order == 'B' or order == 'N' and sys.byteorder == 'big'
    upper = np.asarray(_opened(data)).astype(np.uint16)
    try:
        lower = np.asarray(_opened(data, name + ('L' if is_big else 'B')))
    except ValueError as error:
        raise Refused('all 16 bits of its pixel layout %s cannot be read (%s); save it as PNG' % (
            raw_mode, reason(error)))
    return upper << 8 | lower


def _opened(data, raw_mode=None):
    """Returns a loaded Pillow image, decoded with the pixel layout raw_mode if it is given."""
    with Image.open(io.BytesIO(data)) as image:
        if raw_mode:
            image.tile = [_with_layout(tile, raw_mode) for tile in image.tile]
        image.load()
        return image


def _with_layout(tile, raw_mode):
    """Returns a copy of a Pillow tile, (decoder, extents, offset, layout or (layout, ...)), with another layout."""
    args = tile[3]
    fields = tuple(tile[:3]) + (raw_mode if isinstance(args, str) else (raw_mode,) + tuple(args[1:]),)
    return getattr(type(tile), '_make', tuple)(fields)  # a NamedTuple in newer versions of Pillow


# ---- bands and pages of TIFF files ----

def is_tiff(data):
    """Returns whether the bytes of a file are a TIFF or a BigTIFF."""
    return data[:4] in TIFF_STARTS


def choose_bands(values, bands):
    """Selects bands by their 1-based numbers from values [h, w] or [h, w, C]; selects all if `bands` is None."""
    if not bands:
        return values
    values = values[:, :, np.newaxis] if values.ndim == 2 else values
    check_bands(bands, values.shape[2])
    return values[:, :, [band - 1 for band in bands]]


def check_bands(bands, count):
    """Raises Refused if one of the 1-based band numbers is larger than the number of bands, `count`."""
    if max(bands) > count:
        raise Refused('it has %d band%s, but --image_bands names %d' % (count, '' if count == 1 else 's', max(bands)))


def tiff_values(data, bands, free_memory):
    """Returns bands of a TIFF as stored, but turned upright as its orientation tag says.

    Bands are numbered from 1 through all pages, except pages with a reduced resolution and masks.

    Args:
      data: the bytes of the file.
      bands: the 1-based numbers of the bands.
      free_memory: the free memory in bytes.

    Returns:
      array [h, w, len(bands)] with the number type of the file.

    Raises:
      Refused: tifffile or imagecodecs is missing, decoding needs more than the free memory, the file lacks one of the
        bands, they differ in size or type, or their pixels are palette indices.
    """
    try:
        import tifffile
    except ImportError:
        raise Refused('reading its bands needs tifffile: pip install -r requirements-tiff.txt')
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        pages = [page for page in tiff.pages if not page.is_reduced and not page.is_mask and page.imagedepth == 1]
        owners = [(page, sample) for page in pages for sample in range(page.samplesperpixel)]
        check_bands(bands, len(owners))
        chosen = [owners[band - 1] for band in bands]
        used = {page.index: page for page, _ in chosen}
        need = sum(2 * page.size * page.dtype.itemsize for page in used.values())
        if need > free_memory:
            raise Refused('decoding it takes up to %.1f GB of memory, but only %.1f GB are free; cut it into tiles or '
                          'free memory' % (need / 1e9, free_memory / 1e9))
        if len({(page.imagelength, page.imagewidth, page.dtype) for page in used.values()}) > 1:
            raise Refused('the bands of --image_bands differ in size or type')
        planes = {index: _planes(page) for index, page in used.items()}
        values = np.stack([planes[page.index][:, :, sample] for page, sample in chosen], axis=2)
        tag = chosen[0][0].tags.get(ORIENTATION)
        return upright(values, tag.value if tag else 1)


def _planes(page):
    """Returns the samples of a tifffile page, [h, w, C]."""
    try:
        values = page.asarray()
    except (ImportError, ValueError) as error:
        if 'imagecodecs' not in str(error):
            raise
        raise Refused('its compression %s needs imagecodecs: pip install -r requirements-tiff.txt' % (
            getattr(page.compression, 'name', page.compression)))
    if page.photometric == 3:
        raise Refused(HAS_PALETTE)
    if page.photometric == 0 and values.dtype in (np.uint8, np.bool_) and page.bitspersample in (1, 8):
        values = ~values  # white is stored as 0; Pillow also inverts such files
    if values.ndim == 2:
        return values[:, :, np.newaxis]
    return values if page.planarconfig == 1 else np.moveaxis(values, 0, 2)
