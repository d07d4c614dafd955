"""Image and label files to arrays, whatever their format, with one sentence for a bad file."""

import contextlib
import functools
import io
import os

import numpy as np
from PIL import Image

from utils.data.palette import MAX_CLASSES, VOID_COLOUR
from utils.system.errors import UserError

# The label value of pixels that a colour-coded label leaves without a class.
VOID = 255

_WIDE_GREY = ('I', 'I;16', 'I;16B', 'I;16L', 'I;16N')
_STRETCHED = {'L;2': 85, 'L;4': 17}  # Pillow stretches 2- and 4-bit grey to 0..255


def load_image(path):
    """Reads a JPEG, PNG, BMP, WebP or any other file that Pillow knows.

    Alpha is dropped, 16 bits become the upper 8, grey is repeated, CMYK converted, EXIF rotation left alone.
    TensorFlow's decoders do the same; JPEG agrees to the bit with their dct_method='INTEGER_ACCURATE'.

    Returns:
      uint8 RGB array [h, w, 3].

    Raises:
      UserError: the file is missing, empty, truncated or no image.
    """
    image, _ = _decode(path)
    if image.mode in _WIDE_GREY:
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # [h, w]
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == 'F':
        raise UserError('%s: floating-point pixels have no fixed range; save the image as 8-bit PNG.' % path)
    image.info.pop('transparency', None)  # or Pillow warns that it is dropped
    return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))


def load_label(path, palette=None):
    """Reads a label map.

    Grey and palette files hold class indices, of 1 to 16 bits; a palette file's colours are never read. An
    RGB file is colour-coded: each colour of the palette is a class; the palette's void colours, VOC's
    (224, 224, 192), and black if it is no class become 255.

    Args:
      path: the file.
      palette: a Palette for colour-coded files, or None to refuse them.

    Returns:
      integer array [h, w]: uint8, or uint16 / int32 for 16-bit files.

    Raises:
      UserError: the file is missing, broken, lossy, colour-coded without a palette, or has a colour that the
        palette does not know.
    """
    image, raw_mode = _decode(path)
    if image.format in ('JPEG', 'MPO'):
        raise UserError('%s: JPEG is lossy, it does not keep class indices; save labels as PNG.' % path)
    if image.mode == '1':
        return np.asarray(image).astype(np.uint8)
    if image.mode in ('L', 'P'):
        return np.asarray(image) // np.uint8(_STRETCHED.get(raw_mode, 1))
    if image.mode in _WIDE_GREY:
        return np.asarray(image)
    if image.mode in ('RGB', 'RGBA'):
        return _classes_of_colours(np.asarray(image)[:, :, :3], palette, path)
    raise UserError("%s: a label of Pillow's mode %s holds neither class indices nor colours; save it as "
                    'grey PNG with the class index as value.' % (path, image.mode))


def read_jpeg(path):
    """A JPEG file for TensorFlow's own decoder, whose default is quicker than Pillow's and the original's.

    Returns:
      (the file's bytes, (height, width)), or None if it is no JPEG or has other channels than RGB or grey.

    Raises:
      UserError: the file is missing or its header is damaged.
    """
    with _reading(path):
        with open(path, 'rb') as file:
            data = file.read()
        if not data.startswith(b'\xff\xd8'):
            return None
        with Image.open(io.BytesIO(data)) as image:
            return (data, image.size[::-1]) if image.mode in ('RGB', 'L') else None


@contextlib.contextmanager
def _reading(path):
    remedy = 'get the file anew or take it off the list'
    try:
        yield
    except FileNotFoundError:
        raise UserError('%s: no such file; check the list and --data_dir.' % path)
    except Exception as error:  # Pillow's decoders raise errors of all types on damaged files
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise UserError('%s: the file is empty; %s.' % (path, remedy))
        if type(error).__name__ == 'UnidentifiedImageError':
            raise UserError('%s: not an image in a format that Pillow knows; %s.' % (path, remedy))
        raise UserError('%s: damaged or unreadable (%s); %s.' % (
            path, getattr(error, 'strerror', None) or error, remedy))


def _decode(path):
    """(loaded Pillow image, the pixel layout in the file such as 'L;4', known only before loading)."""
    with _reading(path), Image.open(path) as image:
        layout = image.tile[0][3] if image.tile else None
        image.load()
        return image, layout if isinstance(layout, str) else None


def _classes_of_colours(rgb, palette, path):
    # rgb: uint8 [h, w, 3] -> uint8 [h, w]
    if palette is None:
        raise UserError('%s: the label is colour-coded; name its colours with --palette=voc|cityscapes|FILE, '
                        'or turn VOC labels into class indices with convert_voc.py.' % path)
    num_classes = len(palette.names) if palette.names else MAX_CLASSES
    table = _colour_table(palette.colours[:num_classes].tobytes(), tuple(palette.void))
    red, green, blue = (rgb[:, :, channel].astype(np.int32) for channel in range(3))
    codes = red << 16 | green << 8 | blue  # [h, w]
    label = table[codes]
    if label.min() < 0:
        unknown = np.unique(codes[label < 0])
        colours = ', '.join('%d %d %d' % (c >> 16, c >> 8 & 255, c & 255) for c in unknown[:3])
        raise UserError("%s: %d of its colours are none of the palette's %d classes (r g b: %s%s); name the label's "
                        'own palette with --palette=voc|cityscapes|FILE and its size with --num_classes.' % (
                            path, len(unknown), num_classes, colours, ', ...' if len(unknown) > 3 else ''))
    return label.astype(np.uint8)


@functools.lru_cache(maxsize=2)
def _colour_table(colours, void):
    # int16 [2**24]: the class of each colour (r << 16 | g << 8 | b), -1 where there is none.
    table = np.full(1 << 24, -1, np.int16)
    for red, green, blue in ((0, 0, 0), VOID_COLOUR) + void:
        table[red << 16 | green << 8 | blue] = VOID
    red, green, blue = np.frombuffer(colours, np.uint8).reshape(-1, 3).astype(np.int32).T
    table[red << 16 | green << 8 | blue] = np.arange(len(red))
    return table
