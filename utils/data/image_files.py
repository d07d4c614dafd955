"""Image and label files to arrays, whatever their format, with one sentence for a bad file."""

import contextlib
import functools
import io
import warnings

import numpy as np
from PIL import Image

from utils.data.regular_files import read_file
from utils.system.errors import UserError, quoted, reason

_WIDE_GREY = ('I', 'I;16', 'I;16B', 'I;16L', 'I;16N')
_STRETCHED = {'L;2': 85, 'L;4': 17}  # Pillow stretches 2- and 4-bit grey to 0..255
_VOID, _UNKNOWN = -1, -2  # entries of a colour table

# Pillow's warnings (large pictures, odd tags) name no file; what it cannot read is an error, which does.
warnings.filterwarnings('ignore', module=r'PIL\.')


def load_image(path):
    """Reads a JPEG, PNG, BMP, WebP or any other file that Pillow knows, as the reader does.

    Grey and RGB JPEGs are decoded by TensorFlow, whose default is quicker than Pillow's and the original's; all else
    by Pillow, to the values of TensorFlow's decoders: alpha is dropped, 16 bits become the upper 8, grey is repeated,
    CMYK converted, EXIF rotation left alone (but a TIFF's, which Pillow applies); of an animation the first picture is
    taken.

    Returns:
      uint8 RGB array [h, w, 3].

    Raises:
      UserError: the file is missing, empty, truncated or no image.
    """
    with _reading(path):
        data = read_file(path)
        if _jpeg_size(data):
            return decode_jpeg(data)
        image, _ = _decode(data)
        if image.mode in _WIDE_GREY:
            grey = (np.asarray(image) >> 8).astype(np.uint8)  # [h, w]
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode == 'F':
            raise UserError('%s: floating-point pixels have no fixed range; save the image as 8-bit PNG.' % (
                quoted(path)))
        image.info.pop('transparency', None)  # or Pillow warns that it is dropped
        return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))


def load_label(path, classes):
    """The label map that read_label reads, without the account of its colours."""
    return read_label(path, classes)[0]


def read_label(path, classes):
    """Reads a label map.

    Grey and palette files hold class indices, of 1 to 16 bits; a palette file's colours are never read. An
    RGB file is colour-coded: each colour of a palette that the user named is a class, all other colours become
    ignore_label.

    Args:
      path: the file.
      classes: a Classes.

    Returns:
      (label, unknown): an integer array [h, w], uint8 where its values allow; the colours that the palette neither
      gives to a class nor calls void, as a list of (pixels, (r, g, b)), most frequent first.

    Raises:
      UserError: the file is missing, broken, lossy, colour-coded without a named palette or in none of its colours.
    """
    with _reading(path):
        image, raw_mode = _decode(read_file(path))
    if image.format in ('JPEG', 'MPO'):
        raise UserError('%s: JPEG is lossy, it does not keep class indices; save labels as PNG.' % quoted(path))
    if image.mode == '1':
        return np.asarray(image).astype(np.uint8), []
    if image.mode in ('L', 'P'):
        return np.asarray(image) // np.uint8(_STRETCHED.get(raw_mode, 1)), []
    if image.mode in _WIDE_GREY:
        return np.asarray(image), []
    if image.mode in ('RGB', 'RGBA'):
        return _classes_of_colours(np.asarray(image)[:, :, :3], classes, path)
    raise UserError("%s: a label of Pillow's mode %s holds neither class indices nor colours; save it as "
                    'grey PNG with the class index as value.' % (quoted(path), image.mode))


def read_jpeg(path):
    """A JPEG file for TensorFlow's own decoder.

    Returns:
      (the file's bytes, (height, width)), or None if it is no JPEG or has other channels than RGB or grey.

    Raises:
      UserError: the file is missing or its header is damaged.
    """
    with _reading(path):
        data = read_file(path)
        size = _jpeg_size(data)
        return (data, size) if size else None


def image_size(path):
    """(height, width) by the file's header; UserError as load_image, as far as the header tells."""
    with _reading(path), Image.open(io.BytesIO(read_file(path))) as image:
        return image.size[::-1]


def decode_jpeg(data):
    """Decodes a JPEG's bytes as the reader's graph does: uint8 [h, w, 3]; tf.errors.OpError if it is damaged."""
    sess, encoded, pixels = _jpeg_decoder()
    return sess.run(pixels, {encoded: data})


@functools.lru_cache(maxsize=None)
def _jpeg_decoder():
    """(session, placeholder of the bytes, pixels), for any number of threads."""
    import tensorflow.compat.v1 as tf  # not at the top: converting data sets takes none of it

    from utils.system import runtime

    with tf.Graph().as_default(), tf.device('/cpu:0'):
        encoded = tf.placeholder(tf.string, [])
        pixels = tf.image.decode_jpeg(encoded, channels=3)
        config = runtime.session_config()
        config.use_per_session_threads = True  # or this session would set the number of threads for all that follow
        return tf.Session(config=config), encoded, pixels


def _jpeg_size(data):
    """(height, width) of the bytes of an RGB or grey JPEG, else None."""
    if not data.startswith(b'\xff\xd8'):
        return None
    with Image.open(io.BytesIO(data)) as image:
        return image.size[::-1] if image.mode in ('RGB', 'L') else None


@contextlib.contextmanager
def _reading(path):
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError('%s: no such file; check its name, or the list and --data_dir.' % quoted(path))
    except Exception as error:  # decoders raise errors of all types on damaged files
        unknown = type(error).__name__ == 'UnidentifiedImageError'
        fault = 'not an image in a format that Pillow knows' if unknown else (
            'damaged or unreadable (%s)' % reason(error)[:80])
        raise UserError('%s: %s; get the file again or leave it out.' % (quoted(path), fault))


def _decode(data):
    """(loaded Pillow image, the pixel layout in the file such as 'L;4', known only before loading)."""
    if not data:
        raise ValueError('the file is empty')
    with Image.open(io.BytesIO(data)) as image:
        layout = image.tile[0][3] if image.tile else None
        image.load()
        return image, layout if isinstance(layout, str) else None


def _classes_of_colours(rgb, classes, path):
    # rgb: uint8 [h, w, 3] -> what read_label returns
    palette = classes.palette
    if not palette.named:
        raise UserError('%s: the label is colour-coded; name its colours with --palette=voc|cityscapes|FILE, '
                        'or turn VOC labels into class indices with convert_voc.py.' % quoted(path))
    table = _colour_table(palette.colours[:classes.num_classes].tobytes(), tuple(palette.void))
    red, green, blue = (rgb[:, :, channel].astype(np.int32) for channel in range(3))
    codes = red << 16 | green << 8 | blue  # [h, w]
    label = table[codes]
    colours, pixels = np.unique(codes[label == _UNKNOWN], return_counts=True)
    order = np.argsort(-pixels, kind='mergesort')
    unknown = [(int(pixels[i]), (int(colours[i]) >> 16, int(colours[i]) >> 8 & 255, int(colours[i]) & 255))
               for i in order]
    if pixels.sum() == label.size:
        raise UserError("%s: none of its colours is one of the palette's (r g b: %s); name the label's own palette "
                        'with --palette=voc|cityscapes|FILE and its size with --num_classes.' % (
                            quoted(path), show_colours(unknown)))
    wide = np.where(label < 0, np.int32(classes.ignore_label), label)
    return wide.astype(np.uint8) if 0 <= classes.ignore_label < 256 else wide, unknown


def show_colours(unknown, count=3):
    """The first colours of those that read_label returns, in words."""
    return ', '.join('%d %d %d' % colour for _, colour in unknown[:count]) + (', ...' if unknown[count:] else '')


@functools.lru_cache(maxsize=2)
def _colour_table(colours, void):
    # int16 [2**24]: the class of each colour (r << 16 | g << 8 | b), _VOID or _UNKNOWN.
    table = np.full(1 << 24, _UNKNOWN, np.int16)
    for red, green, blue in void:
        table[red << 16 | green << 8 | blue] = _VOID
    red, green, blue = np.frombuffer(colours, np.uint8).reshape(-1, 3).astype(np.int32).T
    table[red << 16 | green << 8 | blue] = np.arange(len(red))
    return table
