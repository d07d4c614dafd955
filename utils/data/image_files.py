"""Reads input files: regular files as bytes or lines, and images and labels in any format as arrays.

An error in an image or a label is reported in one sentence that names the file. Only regular files are read, because a
FIFO or a device could block a run forever.
"""

import contextlib
import errno
import functools
import io
import os
import re
import stat
import sys
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from utils.data import pixels as stored_pixels
from utils.data.pixels import AS_STORED, HAS_PALETTE, Refused, choose_bands
from utils.system.errors import UserError, quoted, reason

MAX_BYTES = 1 << 30  # the largest file that is read; a larger image is read if enough memory is free
LARGE = 178956970  # pixels; larger images are decoded only if enough memory is free
BYTES_PER_PIXEL = 12  # the most memory that decoding an image takes
JPEG_PIXELS = (1 << 29) - 1  # the most pixels that TensorFlow's decoder accepts
HEIF_BRANDS = (b'heic', b'heix', b'hevc', b'heim', b'heis', b'mif1', b'msf1')
AVIF_BRANDS = (b'avif', b'avis')
VIDEO_SUFFIXES = ('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.wmv', '.flv', '.mpg', '.mpeg', '.ts', '.mts',
                  '.m2ts', '.ogv', '.vob', '.3gp')
# Of MP4 and QuickTime files.
VIDEO_BRANDS = (b'isom', b'iso', b'mp4', b'avc1', b'qt  ', b'M4V', b'3gp', b'3g2', b'dash', b'MSNV', b'XAVC', b'f4v')
# The first bytes of Matroska and WebM, Windows Media, Flash, MPEG and Ogg files.
VIDEO_STARTS = (b'\x1a\x45\xdf\xa3', b'\x30\x26\xb2\x75\x8e\x66\xcf\x11', b'FLV\1', b'\0\0\1\xba', b'\0\0\1\xb3',
                b'OggS')
MANY = 1000  # if the existence of more files in one folder is checked, the folder is listed instead

_WIDE_GREY = ('I', 'I;16', 'I;16B', 'I;16L', 'I;16N')
_STRETCHED = {'L;2': 85, 'L;4': 17}  # the factors by which Pillow stretches 2- and 4-bit grey to 0..255
_VOID, _UNKNOWN = -1, -2  # entries of a colour table

# Pillow's warnings (large images, odd tags) do not name the file. Its errors are reported together with the name.
warnings.filterwarnings('ignore', module=r'PIL\.')

# Pillow rejects images above LARGE pixels even if there is enough memory; _check_memory replaces its check.
Image.MAX_IMAGE_PIXELS = None

# Pillow divides the colours of a TIFF by its fourth band if ExtraSamples is 1 (associated alpha). Often that band is
# near infrared, so all bands are read as stored, as Pillow does if ExtraSamples is 2. Grey images with a second band of
# any kind, which some versions of Pillow do not support, are also read as stored.
_TIFF_LAYOUTS = TiffImagePlugin.OPEN_INFO  # {(..., bits per sample, ExtraSamples): (mode, raw mode)}
_TIFF_LAYOUTS.update({key[:5] + ((1,) + key[5][1:],): layout
                      for key, layout in _TIFF_LAYOUTS.items() if key[5][:1] == (2,)})
for _prefix in (b'II', b'MM'):
    for _extra in ((), (0,), (1,), (2,)):
        _TIFF_LAYOUTS.setdefault((_prefix, 1, (1,), 1, (8, 8), _extra), ('LA', 'LA'))


# ---- regular files ----

def read_file(path, most_bytes=MAX_BYTES):
    """Returns the bytes of a regular file.

    The file is opened without blocking and checked afterwards, so it cannot be replaced between check and opening.

    Args:
      path: the file.
      most_bytes: the largest accepted size of the file.

    Raises:
      OSError: the file cannot be read, is not a regular file or is larger than most_bytes; strerror gives the reason.
    """
    try:
        with open(path, 'rb', opener=_open_without_blocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, 'it is a FIFO or a device, not a regular file', path)
            if status.st_size > most_bytes:
                raise OSError(errno.EFBIG, 'it has %d bytes, more than the limit of %d' % (
                    status.st_size, most_bytes), path)
            return file.read()
    except ValueError:  # from os.open, before anything is read
        raise OSError(errno.EINVAL, 'this is not a valid file name', path)


def _open_without_blocking(path, flags):
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))


def is_video(path):
    """Returns whether a regular file is a video: by its first bytes, or by its suffix if it is no image."""
    try:
        with open(path, 'rb', opener=_open_without_blocking) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            start = file.read(16)
            if starts_a_video(start) or not start or not path.lower().endswith(VIDEO_SUFFIXES):
                return starts_a_video(start)
            file.seek(0)
            with Image.open(file):
                return False
    except UnidentifiedImageError:
        return True
    except (OSError, ValueError):  # ValueError: no file can have this name
        return False


def starts_a_video(data):
    """Returns whether bytes start like an MP4, QuickTime or AVI file, or with one of VIDEO_STARTS."""
    return (data[4:8] == b'ftyp' and data[8:12].startswith(VIDEO_BRANDS) or data[4:8] in (b'moov', b'mdat', b'wide') or
            data[:4] == b'RIFF' and data[8:12] == b'AVI ' or data.startswith(VIDEO_STARTS))


def video_remedy(path):
    """Returns the end of a message about a video: how to make images of its frames."""
    name = quoted(path, 60)
    name = name if re.match(r'[\w./+,:@%-]+$', name) else '"%s"' % name
    return ('a video: extract its frames with `mkdir frames && ffmpeg -i %s frames/%%05d.png` and give '
            '--image_dir=frames' % name)


def text_lines(data):
    """Returns an iterator over the lines in the bytes of a UTF-8 file, with any kind of line ending.

    Raises:
      UnicodeDecodeError: the bytes are not UTF-8.
    """
    return _split(data.decode('utf-8-sig').replace('\r\n', '\n').replace('\r', '\n'))


def _split(text):
    """Yields the items of text.split('\\n') one by one, which saves 0.1 GB for a list of a million lines."""
    start, end = 0, text.find('\n')
    while end >= 0:
        yield text[start:end]
        start, end = end + 1, text.find('\n', end + 1)
    yield text[start:]


def is_regular_file(path):
    """Returns whether path is an existing regular file."""
    try:
        return os.path.isfile(path)
    except ValueError:  # a NUL in the name; Python 3.8 and later return False themselves
        return False


def find_missing(paths):
    """Returns a list of the paths that are not existing regular files.

    A folder with more than MANY of the paths is listed once, which takes a quarter of the time of separate checks.
    """
    groups, missing = {}, []
    for path in paths:
        groups.setdefault(path[:path.rfind('/') + 1], []).append(path)
    for folder, members in groups.items():
        listed = _names(folder) if len(members) > MANY else ()
        # Names that are not listed are still checked, as the file system may list them in another spelling.
        missing += [path for path in members if path[len(folder):] not in listed and not is_regular_file(path)]
    return missing


def _names(folder):
    """Returns the set of names of the regular files in a folder; an empty set if it cannot be listed."""
    try:
        with os.scandir(folder or '.') as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return set()


# ---- images ----

class LoadedImage(NamedTuple):
    """An image file, decoded."""
    pixels: np.ndarray  # uint8 RGB [h, w, 3]
    orientation: int    # the EXIF orientation if it is not applied; 1 if the pixels are upright
    is_wide: bool       # whether the file stores more than 8 bits per value
    remarks: dict       # {kind of remark: sentence}, about values or pages that are not used


def load_image(path, image_format=AS_STORED):
    """Reads an image in any format that Pillow supports, such as JPEG, PNG, BMP or WebP, as the training reader does.

    TensorFlow decodes grey and RGB JPEGs with its default method, which is faster than Pillow and was used by the
    original. Pillow decodes all other files to the same values as TensorFlow's decoders: alpha is dropped and colours
    are not divided by it, 16 bits are reduced to the upper 8, grey is repeated, CMYK is converted, the EXIF orientation
    is not applied (except for TIFF, where Pillow applies it), and the first frame of an animation is used.

    Remarks, for example that an image uses few of the 256 levels, are printed on stderr once per kind and process.

    Args:
      path: the file.
      image_format: an ImageFormat: the range of values, the bands and whether to apply the EXIF orientation.

    Returns:
      uint8 RGB array [h, w, 3].

    Raises:
      UserError: the file is missing, empty, truncated or not an image, or its values do not fit the format.
    """
    image = read_image(path, image_format)
    remarks = dict(image.remarks)
    if image.orientation != 1:
        remarks['orientation'] = '%s: its EXIF orientation, %d, is not applied; give --apply_exif to apply it.' % (
            quoted(path), image.orientation)
    for kind, sentence in remarks.items():
        if _pop(_unsaid.get(kind, [])):
            tqdm.write('warning: ' + sentence, file=sys.stderr)
    return image.pixels


# The kinds of remarks that load_image has not printed yet: each list has an item until the kind is printed.
_unsaid = {kind: [kind] for kind in ('levels', 'pages', 'orientation')}


def mark_as_printed(kinds):
    """Keeps load_image from printing remarks of these kinds; for callers that have printed them."""
    for kind in kinds:
        _unsaid[kind].clear()


def _pop(items):
    """Removes the last item and returns whether there was one; safe to call from several threads."""
    try:
        items.pop()
        return True
    except IndexError:
        return False


def read_image(path, image_format=AS_STORED):
    """Reads an image like load_image, but returns the remarks instead of printing them.

    Returns:
      a LoadedImage.

    Raises:
      UserError: as in load_image.
    """
    with _reading(path):
        values, wide, orientation, pages = _decode_values(_read_image(path), image_format)
        pixels = stored_pixels.to_8_bits(values, image_format.value_range)  # [h, w] or [h, w, 1 or 3]
        lost = (wide or image_format.value_range) and stored_pixels.lost_levels(
            values, pixels, image_format.value_range)
    remarks = {'levels': '%s: %s.' % (quoted(path), lost)} if lost else {}
    if pages > 1 and not image_format.bands:
        remarks['pages'] = '%s has %d pages or frames, of which only the first is used%s.' % (
            quoted(path), pages, '; to read bands from several pages, give --image_bands' if path.lower().endswith(
                ('.tif', '.tiff')) else '')
    if image_format.apply_exif and orientation != 1:
        pixels, orientation = stored_pixels.upright(pixels, orientation), 1
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    return LoadedImage(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels, orientation, wide, remarks)


def stored_values(path, image_format=AS_STORED):
    """Returns the values of an image as stored, an array of any number type, [h, w], [h, w, 1] or [h, w, 3].

    Raises:
      UserError: as in load_image.
    """
    with _reading(path):
        return _decode_values(_read_image(path), image_format, exact=True)[0]


def _decode_values(data, image_format, exact=None):
    """Decodes an image file.

    Args:
      data: the bytes of the file.
      image_format: an ImageFormat.
      exact: whether to return all 16 bits of 16-bit colours; None means only if a range of values is given.

    Returns:
      (values, wide, orientation, pages): `values` is an array [h, w], [h, w, 1] or [h, w, 3]. `wide` says whether the
      file stores more than 8 bits per value; if not, the values are uint8. 16-bit colours may be reduced to the upper 8
      bits unless `exact`. `pages` is the number of pages or frames.
    """
    bands, exact = image_format.bands, bool(image_format.value_range) if exact is None else exact
    if stored_pixels.is_tiff(data) and (bands or _has_misread_planes(data)):
        values = stored_pixels.tiff_values(data, bands or (1, 2, 3), _free_memory())
        return values, values.dtype != np.uint8, 1, 1
    if _jpeg_size(data):
        with _open(data) as image:
            return choose_bands(decode_jpeg(data), bands), False, stored_pixels.orientation_of(image), 1
    image, raw_mode, pages = _decode(data)
    _refuse_misread(image, raw_mode, image_format)
    orientation = stored_pixels.orientation_of(image)
    if image.mode in _WIDE_GREY + ('F',):
        return choose_bands(np.asarray(image), bands), True, orientation, pages
    wide = stored_pixels.is_wide(raw_mode)
    # If all pixels are equal, the picture may be in the lower 8 bits.
    if wide and (exact or raw_mode == 'LA;16B' or not np.ptp(np.asarray(image))):
        values = stored_pixels.sixteen_bits(data, raw_mode)
        return choose_bands(values, bands or ((1, 2, 3) if values.shape[2] > 2 else (1,))), True, orientation, pages
    image.info.pop('transparency', None)  # otherwise Pillow warns that it is dropped
    if bands and image.mode in ('L', 'LA', 'RGB', 'RGBA', 'RGBX', 'CMYK'):
        return choose_bands(np.asarray(image), bands), wide, orientation, pages
    pixels = np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))
    return choose_bands(pixels, bands), wide, orientation, pages


def _refuse_misread(image, raw_mode, image_format):
    """Raises Refused if Pillow has not decoded the values as stored, or if bands are chosen from a palette image."""
    if image.format == 'TIFF' and image.tag_v2.get(339, (1,))[0] == 2 and max(image.tag_v2.get(258, (1,))) == 8:
        raise Refused('its values are signed, but Pillow reads them as unsigned; give --image_bands=1, or save the '
                      'image with unsigned values')
    if image.format == 'PPM' and raw_mode is None and image_format.value_range:
        raise Refused('Pillow rescales the values of this PPM or PGM, so --image_range would be wrong; save it as PNG')
    if image.mode in ('P', 'PA') and image_format.bands:
        raise Refused(HAS_PALETTE)


def _has_misread_planes(data):
    """Returns whether a TIFF has separate planes of more than 8 bits, which Pillow misreads or reduces to 8 bits."""
    with contextlib.suppress(UnidentifiedImageError), Image.open(io.BytesIO(data)) as image:
        tags = getattr(image, 'tag_v2', {})
        return tags.get(284) == 2 and tags.get(277, 1) > 1 and max(tags.get(258, (1,))) > 8
    return False


def read_jpeg(path, image_format=AS_STORED):
    """Reads a JPEG file for TensorFlow's own decoder.

    Returns:
      (the bytes of the file, (height, width)); None if load_image must read the file because it is not an RGB or grey
      JPEG, or because image_format changes its pixels.

    Raises:
      UserError: the file is missing or its header is damaged.
    """
    if image_format.value_range or image_format.bands:
        return None
    with _reading(path):
        data = _read_image(path)
        size = _jpeg_size(data)
        if size and image_format.apply_exif:
            with _open(data) as image:
                size = size if stored_pixels.orientation_of(image) == 1 else None
        return (data, size) if size else None


def image_size(path, image_format=AS_STORED):
    """Returns (height, width) from the header of an image; raises UserError if the header cannot be read."""
    with _reading(path), _open(_read_image(path)) as image:
        turned = image_format.apply_exif and stored_pixels.orientation_of(image) in stored_pixels.SWAPPED_SIDES
        return image.size if turned else image.size[::-1]


def decode_jpeg(data):
    """Returns the pixels of a JPEG, uint8 [h, w, 3], decoded as in the reader; raises tf.errors.OpError for damage."""
    sess, encoded, pixels = _jpeg_decoder()
    return sess.run(pixels, {encoded: data})


@functools.lru_cache(maxsize=None)
def _jpeg_decoder():
    """Returns (session, placeholder for the bytes, tensor of pixels), which several threads may use."""
    import tensorflow.compat.v1 as tf  # not at the top: converting a data set does not need it

    from utils.system import runtime

    with tf.Graph().as_default(), tf.device('/cpu:0'):
        encoded = tf.placeholder(tf.string, [])
        pixels = tf.image.decode_jpeg(encoded, channels=3)
        config = runtime.session_config()
        config.use_per_session_threads = True  # otherwise this session would set the thread count of all later ones
        return tf.Session(config=config), encoded, pixels


def _jpeg_size(data):
    """Returns (height, width) if the bytes are an RGB or grey JPEG, otherwise None."""
    if not data.startswith(b'\xff\xd8'):
        return None
    with _open(data) as image:
        if image.mode not in ('RGB', 'L'):
            return None
        _check_memory(image)
        pixels = image.size[0] * image.size[1]
        if pixels > JPEG_PIXELS:
            raise Refused('the JPEG has %d pixels, more than the %d that TensorFlow decodes; cut it into tiles or '
                           'save it as PNG or TIFF' % (pixels, JPEG_PIXELS))
        return image.size[::-1]


@contextlib.contextmanager
def _reading(path):
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError('%s: no such file; check the name, or the list and --data_dir.' % quoted(path))
    except Refused as refusal:
        raise UserError('%s: %s.' % (quoted(path), refusal))
    except MemoryError:
        raise UserError('%s: not enough memory to read it; cut it into tiles or free memory.' % quoted(path))
    except Exception as error:  # decoders raise errors of many types for damaged files
        if getattr(error, 'errno', None) == errno.EFBIG:
            fault, remedy = reason(error), 'cut it into tiles or free memory'
        else:
            fault, remedy = 'damaged or unreadable (%s)' % reason(error)[:80], 'get the file again or leave it out'
        raise UserError('%s: %s; %s.' % (quoted(path), fault, remedy))


def _read_image(path):
    """Returns the bytes of a file; if it is larger than MAX_BYTES, it must fit into half of the free memory.

    Raises:
      OSError: as in read_file.
      Refused: it is a video.
    """
    try:
        data = read_file(path)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        if is_video(path):
            raise Refused(video_remedy(path))
        data = read_file(path, max(MAX_BYTES, int(min(_free_memory() / 2, 1 << 38))))
    if starts_a_video(data[:16]):
        raise Refused(video_remedy(path))
    return data


def _free_memory():
    from utils.system import memory  # not at the top: it imports TensorFlow, which converting a data set does not need

    return memory.free()


def _check_memory(image):
    """Raises Refused if a Pillow image, not loaded yet, is larger than LARGE and does not fit into the free memory."""
    pixels = image.size[0] * image.size[1]
    free = _free_memory() if pixels > LARGE else float('inf')
    if pixels * BYTES_PER_PIXEL > free:
        raise Refused('decoding its %d pixels takes up to %.1f GB of memory, but only %.1f GB are free; cut it into '
                      'tiles or free memory' % (pixels, pixels * BYTES_PER_PIXEL / 1e9, free / 1e9))


def _open(data):
    """Returns a Pillow image that is not loaded yet; raises Refused if Pillow does not support the format."""
    if not data:
        raise ValueError('the file is empty')
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if data[4:8] == b'ftyp' and data[8:12] in HEIF_BRANDS and read_heif():
            with contextlib.suppress(UnidentifiedImageError):
                return Image.open(io.BytesIO(data))
        raise Refused(_why_unknown(data))


def has_decoder(path):
    """Returns whether a decoder for the image's extension is installed; only HEIC and AVIF may lack one."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in ('.heic', '.heif'):
        return read_heif()
    return suffix != '.avif' or '.avif' in Image.registered_extensions()


@functools.lru_cache(maxsize=None)
def read_heif():
    """Enables Pillow to read HEIC files if pillow-heif is installed; returns whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _why_unknown(data):
    """Returns a clause that says what kind of file Pillow did not recognise, and the remedy."""
    suffix = data[4:8] == b'ftyp' and ('.heic' if data[8:12] in HEIF_BRANDS else '.avif' if (
        data[8:12] in AVIF_BRANDS) else None)
    if suffix and has_decoder('a' + suffix):
        return 'damaged or unreadable; get the file again or leave it out'
    if suffix:
        return ('AVIF files need Pillow 11.3 or newer: pip install -U Pillow' if suffix == '.avif' else
                'HEIC files need pillow-heif: pip install -r requirements-heif.txt')
    start = data[:256].lstrip(b'\xef\xbb\xbf \t\r\n')
    if re.match(br'\{\s*["}]|\[\s*[\[{"\]]', start) or start.startswith((b'<?xml', b'<annotation')):
        return ('not an image but %s, probably annotations of LabelMe, CVAT or similar; convert %s to index masks with '
                'convert_annotations.py --annotations=FOLDER --label_dir=NEW_FOLDER and list the masks' % (
                    ('XML', 'a COCO 1.0 export') if start.startswith(b'<') else ('JSON', 'it')))
    with contextlib.suppress(Exception):  # the header may be damaged
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16 if 43 in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits, bands, compression = tags[258], tags.get(277, 1), tags.get(259, 1)
        kind = {2: 'signed ', 3: 'floating-point '}.get(tags.get(339, (1,))[0], '')
        chosen = 'RED,GREEN,BLUE such as 4,3,2' if bands > 4 else '1,2,3' if bands > 2 else '1'
        return ('Pillow cannot read a TIFF with %d band%s of %d %sbits and compression %d; give --image_bands=%s, or '
                'convert images with gdal_translate -b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB%s, and labels with -b 1' % (
                    bands, 's' if bands > 1 else '', bits[0], kind, compression, chosen,
                    ' -ot Byte -scale' if bits[0] != 8 else ''))
    if data.startswith(b'MM\0+'):
        return 'Pillow cannot read a big-endian BigTIFF; give --image_bands=1,2,3 or --image_bands=1'
    return 'not an image in a format that Pillow supports; get the file again or leave it out'


def _decode(data):
    """Returns (loaded Pillow image, pixel layout such as 'L;4' or None, number of pages).

    Layout and pages are determined before loading, which discards them.
    """
    with _open(data) as image:
        pages = _count_pages(image)
        _check_memory(image)
        codec, layout = (image.tile[0][0], image.tile[0][3]) if image.tile else (None, None)
        if codec in ('ppm', 'ppm_plain') and layout[1:] != (255,):  # its values are scaled, so they have no layout
            layout = None
        layout = layout[0] if isinstance(layout, tuple) and layout else layout
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:
            pixels = image.size[0] * image.size[1]
            raise ValueError('%d pixels: %s' % (pixels, reason(error))) if pixels > LARGE else error
        return image, layout if isinstance(layout, str) else None, pages


def _count_pages(image):
    """Returns the number of pages of a TIFF, without reduced copies and masks, or of frames of an animation."""
    if image.format not in ('TIFF', 'GIF', 'PNG', 'WEBP') or not getattr(image, 'is_animated', False):
        return 1
    if image.format != 'TIFF':
        return image.n_frames
    count = 0
    for index in range(image.n_frames):
        image.seek(index)
        count += not image.tag_v2.get(254, 0) & 5
    image.seek(0)
    return count


# ---- labels ----

def load_label(path, classes):
    """Returns only the label, an integer array [h, w], that read_label returns."""
    return read_label(path, classes)[0]


def read_label(path, classes):
    """Reads a label.

    Grey and palette files contain class indices of 1 to 16 bits; the colours of a palette file are never used. RGB
    files are colour-coded: each colour of the palette that the user has given is a class, and all other colours become
    ignore_label. Without such a palette, or with a label map, an RGB file with three equal channels, as OpenCV writes
    it, contains class indices. A label map applies to all class indices.

    Args:
      path: the file.
      classes: a Classes.

    Returns:
      (label, unknown): `label` is an integer array [h, w], uint8 if its values fit. `unknown` lists the colours that
      are neither a class nor void in the palette as (number of pixels, (r, g, b)), the most frequent first.

    Raises:
      UserError: the file is missing, damaged or lossy; or it is colour-coded, but no palette is given, the palette
        contains none of its colours, or there is a label map; or it has three equal channels with invalid indices.
    """
    with _reading(path):
        image, raw_mode, _ = _decode(_read_image(path))
    if image.format in ('JPEG', 'MPO'):
        raise UserError('%s: JPEG is lossy and does not preserve class indices: save labels as PNG.' % quoted(path))
    if image.mode == '1':
        return _mapped(np.asarray(image).astype(np.uint8), classes), []
    if image.mode in ('L', 'P'):
        return _mapped(np.asarray(image) // np.uint8(_STRETCHED.get(raw_mode, 1)), classes), []
    if image.mode in _WIDE_GREY:
        return _mapped(np.asarray(image), classes), []
    if image.mode in ('RGB', 'RGBA'):
        may_be_indices = classes.label_map or not classes.palette.named
        if may_be_indices and ';16' in (raw_mode or ''):  # Pillow keeps only the upper 8 bits
            raise UserError('%s: the label has three channels of 16 bits: save one channel that contains the class '
                            'indices, or give the colours with --palette.' % quoted(path))
        rgb = np.asarray(image)[:, :, :3]
        if may_be_indices and _equal_channels(rgb):
            return _index_channel(rgb, classes, path), []
        if classes.label_map:
            raise UserError('%s: the label is colour-coded, but --label_map maps only class indices: leave it out, and '
                            'give the colours with --palette.' % quoted(path))
        return _classes_of_colours(rgb, classes, path)
    raise UserError("%s: a label with Pillow's mode %s contains neither class indices nor colours: save it as a grey "
                    'PNG of class indices.' % (quoted(path), image.mode))


def own_palette(path):
    """Returns the palette stored in a palette PNG, uint8 [n, 3]; None for other files.

    Raises:
      UserError: the header is damaged.
    """
    with _reading(path), _open(_read_image(path)) as image:
        if image.format != 'PNG' or image.mode != 'P':
            return None
        return np.frombuffer(image.palette.getdata()[1], np.uint8).reshape(-1, 3)


def is_colour_coded(path, classes):
    """Returns whether read_label treats the pixels of a label as colours; raises UserError for a damaged header."""
    with _reading(path), _open(_read_image(path)) as image:
        return classes.palette.named and not classes.label_map and image.mode in ('RGB', 'RGBA')


def _mapped(label, classes):
    """Applies the label map, if there is one, to class indices as stored, integer [h, w]."""
    return classes.label_map(label) if classes.label_map else label


def _equal_channels(rgb):
    """Returns whether the channels of uint8 [h, w, 3] are equal."""
    return bool((rgb[:, :, :2] == rgb[:, :, 1:]).all())


def _index_channel(rgb, classes, path):
    """Returns one of three equal channels [h, w, 3] as mapped class indices, integer [h, w].

    Raises:
      UserError: there is no label map, and a value is neither a class nor ignore_label.
    """
    label = _mapped(rgb[:, :, 0].copy(), classes)  # [h, w]
    if classes.label_map:  # given for indices; data_check reports invalid ones
        return label
    values = np.unique(label)
    strange = values[(values >= classes.num_classes) & (values != classes.ignore_label)].tolist()
    if strange:
        raise UserError('%s: its three channels are equal, as in indices saved by OpenCV, but the value%s %s%s %s '
                        'neither 0..%d nor --ignore_label=%d; save one channel, give --label_map=%s, or give colours '
                        'with --palette.' % (
                            quoted(path), 's' if strange[1:] else '', ' '.join(map(str, strange[:5])),
                            ' ...' if strange[5:] else '', 'are' if strange[1:] else 'is', classes.num_classes - 1,
                            classes.ignore_label, 'binary' if set(values) <= {0, 255} else 'FILE'))
    return label


def _classes_of_colours(rgb, classes, path):
    """Returns (label, unknown), as read_label does, for the pixels of a colour-coded label, uint8 [h, w, 3]."""
    palette = classes.palette
    if not palette.named:
        raise UserError('%s: the label is colour-coded: give its colours with --palette=voc|cityscapes|FILE, '
                        'or convert VOC labels to class indices with convert_voc.py.' % quoted(path))
    table = _colour_table(palette.colours[:classes.num_classes].tobytes(), tuple(palette.void))
    red, green, blue = (rgb[:, :, channel].astype(np.int32) for channel in range(3))
    codes = red << 16 | green << 8 | blue  # [h, w]
    label = table[codes]
    colours, pixels = np.unique(codes[label == _UNKNOWN], return_counts=True)
    order = np.argsort(-pixels, kind='mergesort')
    unknown = [(int(pixels[i]), (int(colours[i]) >> 16, int(colours[i]) >> 8 & 255, int(colours[i]) & 255))
               for i in order]
    # If black is the only known colour, these are probably indices: as colours, every object would be ignored.
    may_be_indices = any(colour[0] < classes.num_classes for _, colour in unknown)
    if may_be_indices and _equal_channels(rgb) and not rgb[label != _UNKNOWN].any():
        raise UserError('%s: its three channels are equal, as in class indices saved by OpenCV, and none of its '
                        'colours (r g b: %s) is in --palette; save one channel, or leave out --palette.' % (
                            quoted(path), show_colours(unknown)))
    if pixels.sum() == label.size:
        raise UserError('%s: none of its colours (r g b: %s) is in the palette: give the right palette with '
                        '--palette=voc|cityscapes|FILE and its number of classes with --num_classes.' % (
                            quoted(path), show_colours(unknown)))
    wide = np.where(label < 0, np.int32(classes.ignore_label), label)
    return wide.astype(np.uint8) if 0 <= classes.ignore_label < 256 else wide, unknown


def show_colours(unknown, count=3):
    """Returns the first `count` of the unknown colours that read_label returns, as text."""
    return ', '.join('%d %d %d' % colour for _, colour in unknown[:count]) + (', ...' if unknown[count:] else '')


@functools.lru_cache(maxsize=2)
def _colour_table(colours, void):
    """Returns the table from colours r << 16 | g << 8 | b to classes, _VOID or _UNKNOWN: int16 [2**24]."""
    table = np.full(1 << 24, _UNKNOWN, np.int16)
    for red, green, blue in void:
        table[red << 16 | green << 8 | blue] = _VOID
    red, green, blue = np.frombuffer(colours, np.uint8).reshape(-1, 3).astype(np.int32).T
    table[red << 16 | green << 8 | blue] = np.arange(len(red))
    return table
