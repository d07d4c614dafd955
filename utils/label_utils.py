"""Pictures to network inputs and back, and label maps as pictures: colours, an overlay with a legend."""

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image, ImageDraw, ImageFont

from utils.data.palette import MAX_CLASSES, VOID_COLOUR, Palette, voc_colours

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, ITU-R BT.601
TINT = 0.6  # the class's share in the chroma of an overlay
BRIGHT = 140  # the luma from which a class's line is set off by black instead of white
LINE_EVERY = 300.0  # pixels of an overlay's shorter side for each pixel of the lines' width


def decode_labels(mask, num_images=1, num_classes=21, palette=None):
    """Colours class indices.

    Args:
      mask: integer array [N, h, w, 1] or [N, h, w].
      num_images: how many of the N to colour (all N if there are fewer).
      num_classes: values outside 0..num_classes-1 get VOC's void colour (224, 224, 192).
      palette: a Palette; VOC's colours if None.

    Returns:
      uint8 array [min(num_images, N), h, w, 3], a view of an array with four bytes a pixel.
    """
    mask = np.asarray(mask)[:num_images]
    mask = mask[..., 0] if mask.ndim == 4 else mask  # [n, h, w]
    colours = voc_colours() if palette is None else palette.colours
    # Four bytes a colour: numpy looks numbers of 32 bits up faster than rows of three bytes, and faster
    # still if it need not check the indices, which are all within the table.
    table = np.zeros([MAX_CLASSES + 1, 4], np.uint8)
    table[:, :3] = VOID_COLOUR
    table[:num_classes, :3] = colours[:num_classes]
    if mask.dtype != np.uint8:
        mask = np.where((mask >= 0) & (mask < num_classes), mask, MAX_CLASSES)
    return table.view(np.uint32)[:, 0].take(mask, mode='wrap').view(np.uint8).reshape(mask.shape + (4,))[..., :3]


def preprocess(image, net_input):
    """A picture as the network gets it.

    Args:
      image: uint8 RGB tensor [H, W, 3].
      net_input: a compat.Input.

    Returns:
      float32 [H, W, 3] in net_input's channel order, minus its mean.
    """
    # One product with a permutation, exact, is quicker than tf.reverse and a subtraction.
    order = np.eye(3, dtype=np.float32)[::-1 if net_input.channel_order == 'bgr' else 1]
    pixels = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
    pixels = tf.nn.xw_plus_b(pixels, order, -np.array(net_input.img_mean, np.float32))
    return tf.reshape(pixels, tf.shape(image))


def inv_preprocess(images, num_images, img_mean, channel_order='bgr'):
    """Turns network inputs back into pictures.

    Args:
      images: float array [N, h, w, 3], mean-subtracted.
      num_images: how many of the N to turn (all N if there are fewer).
      img_mean: three floats, in the images' channel order.
      channel_order: 'bgr' or 'rgb', the images' order.

    Returns:
      uint8 RGB array [min(num_images, N), h, w, 3].

    Raises:
      ValueError: channel_order is neither.
    """
    if channel_order not in ('bgr', 'rgb'):
        raise ValueError("channel_order '%s' is not one of: bgr rgb" % channel_order)
    pictures = np.asarray(images)[:num_images] + np.asarray(img_mean, np.float32)
    if channel_order == 'bgr':
        pictures = pictures[..., ::-1]
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def overlay(image, mask, palette, num_classes):
    """The image tinted by class and outlined, with a legend of the classes present at its right.

    A class gives its hue, not its brightness, so that the photo stays readable under dark classes; where the hue does
    not tell (black and grey, or a white sky), the lines do: each region has one in its colour along its border and
    next to that, inside, one in white or black.

    Args:
      image: uint8 RGB array [h, w, 3].
      mask: integer array [h, w]; pixels outside 0..num_classes-1 stay as in the image.
      palette: a Palette; VOC's colours if None.
      num_classes: number of classes.

    Returns:
      uint8 RGB array [at least h, w + width of the legend, 3].
    """
    palette = palette or Palette(voc_colours(), None)
    image, mask = np.asarray(image), np.asarray(mask)
    known = (mask >= 0) & (mask < num_classes)  # [h, w]
    mask = np.where(known, mask, MAX_CLASSES)  # all unknown values are one region
    colours = decode_labels(mask[None], 1, num_classes, palette)[0]  # [h, w, 3]
    contrast = np.where(colours @ LUMA > BRIGHT, 0, 255)[..., None]
    line = max(1, int(round(min(mask.shape) / LINE_EVERY)))  # pixels
    border = _grown(_borders(mask), line - 1)
    picture = tint(image, colours)
    picture = np.where((_grown(border, (line + 1) // 2) & ~border)[..., None], (picture + 2.0 * contrast) / 3, picture)
    picture = np.where(border[..., None], colours, picture)
    picture = np.where(known[..., None], np.rint(picture), image).astype(np.uint8)
    present = [int(value) for value in np.unique(mask[known])]
    strip = legend(present, palette, scale=max(1, image.shape[0] // 400))
    height = max(len(picture), len(strip))
    return np.concatenate([_pad_rows(picture, height), _pad_rows(strip, height)], axis=1)


def tint(image, colours):
    """The image with its chroma moved towards that of colours, at the luma of ITU-R BT.601 that each pixel has.

    Args:
      image, colours: uint8 RGB arrays [h, w, 3].

    Returns:
      float32 [h, w, 3], from 0 to 255.
    """
    image, colours = image.astype(np.float32), colours.astype(np.float32)
    luma = (image @ LUMA)[..., None]  # [h, w, 1]
    chroma = (1 - TINT) * (image - luma) + TINT * (colours - (colours @ LUMA)[..., None])
    room = np.where(chroma > 0, 255 - luma, luma)  # up to white or down to black
    factor = np.min(room / np.maximum(np.abs(chroma), 1e-3), axis=2, keepdims=True)
    return np.clip(luma + np.minimum(factor, 1) * chroma, 0, 255)


def legend(classes, palette, scale=1, row=16):
    """Colours and names of some classes of a Palette below each other, uint8 RGB [row * scale * n, width, 3]."""
    # Pillow's built-in font has one size on old versions, so a big picture gets an enlarged legend.
    names = [palette.names[index] if palette.names else 'class %d' % index for index in classes]
    names = [name.encode('latin-1', 'replace').decode('latin-1') for name in names]  # all that the font knows
    font = ImageFont.load_default()
    width = 2 * row + max([font.getbbox(name)[2] for name in names] or [0])
    strip = Image.new('RGB', (int(width), row * max(1, len(classes))), 'white')
    draw = ImageDraw.Draw(strip)
    for i, (index, name) in enumerate(zip(classes, names)):
        colour = tuple(int(value) for value in palette.colours[index])
        draw.rectangle([4, i * row + 3, row, i * row + row - 4], fill=colour, outline='black')
        draw.text((row + 6, i * row + 2), name, fill='black', font=font)
    return np.asarray(strip.resize((strip.width * scale, strip.height * scale), Image.NEAREST))


def _borders(mask):
    """Pixels with another value above, below or beside them: [h, w] -> bool [h, w]."""
    border = np.zeros(mask.shape, bool)
    rows, columns = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    border[1:] |= rows
    border[:-1] |= rows
    border[:, 1:] |= columns
    border[:, :-1] |= columns
    return border


def _grown(area, pixels):
    """A bool area [h, w], larger by so many pixels in the four directions."""
    for _ in range(pixels):
        area, inner = area.copy(), area
        area[1:] |= inner[:-1]
        area[:-1] |= inner[1:]
        area[:, 1:] |= inner[:, :-1]
        area[:, :-1] |= inner[:, 1:]
    return area


def _pad_rows(picture, height):
    return np.pad(picture, [(0, height - len(picture)), (0, 0), (0, 0)], 'constant', constant_values=255)
