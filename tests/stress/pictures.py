"""Images and labels in every format and mode that Pillow writes, intact or damaged, and decompression bombs."""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from tests.stress import damages

Image.init()
warnings.simplefilter('ignore')
# Formats that can hold any picture; the others have one special purpose or need another program.
FORMATS = sorted(set(Image.SAVE) - {'PDF', 'PALM', 'BUFR', 'GRIB', 'HDF5', 'WMF', 'MPO', 'AVIF'})
MODES = ('1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I', 'F', 'I;16')
SIZES = ((1, 1), (1, 10000), (10000, 1), (2, 300), (17, 33), (33, 40), (64, 48))
ANIMATED = ('GIF', 'PNG', 'WEBP', 'TIFF')
SUFFIXES = ('.png', '.jpg', '.tif', '.gif', '.webp', '.bmp', '.ppm', '.tga', '.jp2', '', '.txt')


def picture(rng, size, mode, most=255):
    """Returns a random PIL image of size (h, w), with values up to `most` in modes of whole numbers."""
    height, width = size
    if mode in ('I', 'I;16', 'F'):
        high = [most, 65535][rng.randint(2)]
        array = rng.randint(0, high + 1, size).astype({'I': np.int32, 'I;16': np.uint16, 'F': np.float32}[mode])
        if mode == 'F' and rng.randint(2):
            array[0, 0] = [np.nan, np.inf, -1, 1e38][rng.randint(4)]
        return Image.fromarray(array)
    if mode in ('L', 'P', '1'):
        image = Image.fromarray(rng.randint(0, most + 1, size).astype(np.uint8))
        if mode == 'P':
            image.putpalette(rng.bytes(768))
        return image.convert('1') if mode == '1' else image
    image = Image.fromarray(rng.randint(0, 256, (height, width, 3)).astype(np.uint8))
    try:
        return image.convert(mode)
    except ValueError:  # PA with TensorFlow 1.15's Pillow, LAB...
        return image.convert('RGBA')


def encoded(rng, image):
    """Returns the bytes of an image in a random format, and the format; PNG if the format cannot hold the image."""
    format, options = FORMATS[rng.randint(len(FORMATS))], {}
    if format in ANIMATED and rng.randint(3) == 0:
        options = {'save_all': True, 'append_images': [image.copy(), image.resize((9, 5))]}
    if format in ('JPEG', 'PNG', 'TIFF', 'WEBP') and rng.randint(3) == 0:
        exif = Image.Exif()
        exif[274] = rng.randint(0, 12)
        options['exif'] = exif
    if format == 'JPEG':
        options.update(quality=int(rng.randint(1, 101)), progressive=bool(rng.randint(2)))
    for candidate in (format, 'PNG', 'TIFF'):
        for mode in (image.mode, 'RGB', 'L'):
            try:
                file = io.BytesIO()
                (image if mode == image.mode else image.convert(mode)).save(
                    file, candidate, **(options if candidate == format else {}))
                return file.getvalue(), candidate
            except Exception:  # the writers of some formats raise other errors for images that they cannot write
                continue
    raise AssertionError('no format takes %s' % image)


def bomb(rng):
    """Returns the bytes of a small PNG, BMP, GIF or PPM whose header gives a huge size, or of a huge PNG."""
    height = [1, 1 << 14, 1 << 16][rng.randint(3)]
    width = [1 << 15, (1 << 31) - 1, 65535, 20000][rng.randint(4)]
    kind = rng.randint(5)
    if kind == 0:
        return png_head(width, height) + b'\0' * 30
    if kind == 1:  # a PNG that really has all its pixels
        side = [15000, 30000][rng.randint(2)]
        packer = zlib.compressobj()
        rows = b''.join(packer.compress(b'\0' * (1 + (side + 7) // 8)) for _ in range(side)) + packer.flush()
        return png_head(side, side, depth=1, colour=0) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    if kind == 2:
        return b'BM' + struct.pack('<IHHIIiiHHIIiiII', 100, 0, 0, 54, 40, width & 0x7fffffff, height, 1, 24, 0, 0, 0, 0,
                                   0, 0) + b'\0' * 50
    if kind == 3:
        return b'GIF89a' + struct.pack('<HHBBB', 65535, 65535, 0x80, 0, 0) + b'\0' * 6 + b',' + struct.pack(
            '<HHHHB', 0, 0, 65535, 65535, 0) + b'\x02\x02D\x01\0;'
    return b'P6 %d %d 255\n' % (width, height) + b'\0' * 100


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data) & 0xffffffff)


def png_head(width, height, depth=8, colour=2):
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0))


def some_bytes(rng, most=255):
    """Returns (bytes, (h, w), array) of an image file; size and array are None where they are not certain."""
    if rng.randint(25) == 0:
        print('a bomb')
        return bomb(rng), None, None
    size, mode = SIZES[rng.randint(len(SIZES))], MODES[rng.randint(len(MODES))]
    image = picture(rng, size, mode, most)
    data, format = encoded(rng, image)
    print('%s %s of %s, %d bytes' % (format, mode, size, len(data)))
    if rng.randint(5) < 3:
        return damages.spoil(rng, data), None, None
    if format not in ('PNG', 'BMP', 'PPM', 'JPEG') or b'acTL' in data:  # any frame may give an animated PNG its size
        return data, None, None
    return data, size, np.asarray(image) if format != 'JPEG' and mode in ('L', 'P', 'RGB') else None
