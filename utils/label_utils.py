"""Pictures to network inputs and back, and label maps as pictures: colours, an overlay with a legend."""

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image, ImageDraw, ImageFont

from utils.data.palette import MAX_CLASSES, VOID_COLOUR, Palette, voc_colours


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
    """The image under half-transparent class colours, with a legend of the classes present at its right.

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
    known = ((mask >= 0) & (mask < num_classes))[..., None]  # [h, w, 1]
    tint = decode_labels(mask[None], 1, num_classes, palette)[0].astype(np.uint16)
    blend = np.where(known, (image.astype(np.uint16) + tint) // 2, image).astype(np.uint8)
    present = [int(value) for value in np.unique(mask) if 0 <= value < num_classes]
    strip = legend(present, palette, scale=max(1, image.shape[0] // 400))
    height = max(len(blend), len(strip))
    return np.concatenate([_pad_rows(blend, height), _pad_rows(strip, height)], axis=1)


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


def _pad_rows(picture, height):
    return np.pad(picture, [(0, height - len(picture)), (0, 0), (0, 0)], 'constant', constant_values=255)
