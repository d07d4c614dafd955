"""Converts images to network inputs and back, and labels to colours or to overlays with a legend."""

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image, ImageDraw

from utils import fonts
from utils.data.palette import LUMA, MAX_CLASSES, VOID_COLOUR, Palette, voc_colours

TINT = 0.6  # the share of the class's colour in the chroma of an overlay
BRIGHT = 140  # if the luma of a class's colour is higher, the line beside its border is black instead of white
LINE_EVERY = 300.0  # pixels of the shorter side of an overlay per pixel of line width


def decode_labels(mask, num_images=1, num_classes=21, palette=None):
    """Converts class indices to colours.

    Args:
      mask: integer array [N, h, w, 1] or [N, h, w].
      num_images: the number of masks to convert, starting with the first; all of them if N is smaller.
      num_classes: number of classes; values outside 0..num_classes-1 get VOC's void colour (224, 224, 192).
      palette: a Palette; VOC's colours if None.

    Returns:
      uint8 array [min(num_images, N), h, w, 3], a view of an array with four bytes per pixel.
    """
    mask = np.asarray(mask)[:num_images]
    mask = mask[..., 0] if mask.ndim == 4 else mask  # [n, h, w]
    # Colours have four bytes because numpy's take is faster for 32-bit numbers than for rows of three bytes. With
    # mode='wrap', it does not check the indices, which all lie within the table.
    table = np.zeros([MAX_CLASSES + 1, 4], np.uint8)
    table[:, :3] = colour_table(num_classes, palette)
    if mask.dtype != np.uint8:
        mask = np.where((mask >= 0) & (mask < num_classes), mask, MAX_CLASSES)
    return table.view(np.uint32)[:, 0].take(mask, mode='wrap').view(np.uint8).reshape(mask.shape + (4,))[..., :3]


def colour_table(num_classes, palette=None):
    """Returns the colours of 0..256 in masks, uint8 [257, 3]: VOC's void colour from num_classes on."""
    table = np.full([MAX_CLASSES + 1, 3], VOID_COLOUR, np.uint8)
    table[:num_classes] = (voc_colours() if palette is None else palette.colours)[:num_classes]
    return table


def preprocess(image, net_input):
    """Converts an image to the network's input.

    Args:
      image: uint8 RGB tensor [H, W, 3].
      net_input: a compat.Input.

    Returns:
      float32 [H, W, 3] in net_input's channel order, minus its mean.
    """
    # Multiplying by a permutation matrix is exact, and faster than tf.reverse followed by a subtraction.
    order = np.eye(3, dtype=np.float32)[::-1 if net_input.channel_order == 'bgr' else 1]
    pixels = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
    pixels = tf.nn.xw_plus_b(pixels, order, -np.array(net_input.img_mean, np.float32))
    return tf.reshape(pixels, tf.shape(image))


def inv_preprocess(images, num_images, img_mean, channel_order='bgr'):
    """Converts network inputs back to images.

    Args:
      images: float array [N, h, w, 3], mean-subtracted.
      num_images: the number of images to convert, starting with the first; all of them if N is smaller.
      img_mean: three floats, in the channel order of the images.
      channel_order: 'bgr' or 'rgb', the channel order of the images.

    Returns:
      uint8 RGB array [min(num_images, N), h, w, 3].

    Raises:
      ValueError: channel_order is neither 'bgr' nor 'rgb'.
    """
    if channel_order not in ('bgr', 'rgb'):
        raise ValueError("channel_order '%s' is not one of: bgr rgb" % channel_order)
    pictures = np.asarray(images)[:num_images] + np.asarray(img_mean, np.float32)
    if channel_order == 'bgr':
        pictures = pictures[..., ::-1]
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def overlay(image, mask, palette, num_classes):
    """Returns the image with its classes tinted and outlined, and with a legend on the right.

    The tint changes the hue of a pixel but not its brightness, so that the photo remains recognisable under dark
    classes. Where the hue is not visible (for black or grey classes, or on a white sky), lines show the region: one in
    the colour of the class along its border, and a white or black one on the inside.

    Args:
      image: uint8 RGB array [h, w, 3].
      mask: integer array [h, w]; pixels with values outside 0..num_classes-1 remain unchanged.
      palette: a Palette; VOC's colours if None.
      num_classes: number of classes.

    Returns:
      uint8 RGB array [max(h, height of the legend), w + width of the legend, 3].
    """
    palette = palette or Palette(voc_colours(), None)
    image, mask = np.asarray(image), np.asarray(mask)
    known = (mask >= 0) & (mask < num_classes)  # [h, w]
    mask = np.where(known, mask, MAX_CLASSES)  # all other values form one region
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
    """Moves the chroma of an image towards the chroma of `colours`; the luma (ITU-R BT.601) does not change.

    Args:
      image, colours: uint8 RGB arrays [h, w, 3].

    Returns:
      float32 [h, w, 3], from 0 to 255.
    """
    image, colours = image.astype(np.float32), colours.astype(np.float32)
    luma = (image @ LUMA)[..., None]  # [h, w, 1]
    chroma = (1 - TINT) * (image - luma) + TINT * (colours - (colours @ LUMA)[..., None])
    room = np.where(chroma > 0, 255 - luma, luma)  # the distance to 255 or to 0
    factor = np.min(room / np.maximum(np.abs(chroma), 1e-3), axis=2, keepdims=True)
    return np.clip(luma + np.minimum(factor, 1) * chroma, 0, 255)


def legend(classes, palette, scale=1, row=16):
    """Draws a legend with the colours and names of n classes.

    Args:
      classes: list of n class indices.
      palette: a Palette.
      scale: factor by which the legend is enlarged, as old versions of Pillow's built-in font have only one size.
      row: height of a row in pixels, before enlarging.

    Returns:
      uint8 RGB array [row * scale * max(n, 1), width, 3].
    """
    names = {index: palette.names[index] if palette.names else 'class %d' % index for index in classes}
    font = fonts.legend_font(names)
    names = fonts.labels(names, fonts.characters_of_pillow(font))
    width = 2 * row + max([font.getbbox(name)[2] for name in names] or [0])
    strip = Image.new('RGB', (int(width), row * max(1, len(classes))), 'white')
    draw = ImageDraw.Draw(strip)
    for i, (index, name) in enumerate(zip(classes, names)):
        colour = tuple(int(value) for value in palette.colours[index])
        draw.rectangle([4, i * row + 3, row, i * row + row - 4], fill=colour, outline='black')
        draw.text((row + 6, i * row + 2), name, fill='black', font=font)
    return np.asarray(strip.resize((strip.width * scale, strip.height * scale), Image.NEAREST))


def _borders(mask):
    """Returns a bool array [h, w]: whether a pixel of a mask [h, w] has a neighbour with another value."""
    border = np.zeros(mask.shape, bool)
    rows, columns = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    border[1:] |= rows
    border[:-1] |= rows
    border[:, 1:] |= columns
    border[:, :-1] |= columns
    return border


def _grown(area, pixels):
    """Returns a bool array [h, w], dilated by a number of pixels in the four directions."""
    for _ in range(pixels):
        area, previous = area.copy(), area
        area[1:] |= previous[:-1]
        area[:-1] |= previous[1:]
        area[:, 1:] |= previous[:, :-1]
        area[:, :-1] |= previous[:, 1:]
    return area


def _pad_rows(picture, height):
    return np.pad(picture, [(0, height - len(picture)), (0, 0), (0, 0)], 'constant', constant_values=255)
