"""Data augmentation: the order of the samples, the random crop of each, and the random changes of that crop.

All random numbers depend only on the seed and the number of the sample, so training sees the same samples when it is
resumed or uses a different number of threads.
"""

import dataclasses
import typing
import zlib

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from utils.data.palette import LUMA

ORDER, CHANGES = 0, 1  # the first number in the seeds of two independent random streams


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are augmented."""
    size: typing.Tuple[int, int]  # (h, w) of the crop
    random_scale: bool = True  # whether images are scaled at random
    random_mirror: bool = True  # whether left and right are swapped with probability 0.5
    scales: typing.Optional[typing.Sequence[float]] = None  # the scales to choose from; None: uniform in scale_range
    scale_range: typing.Tuple[float, float] = (0.5, 1.5)  # (lowest, highest)
    # {name in AUGMENTATIONS: value of its flag}, for the augmentations that are switched on
    changes: typing.Mapping[str, typing.Any] = dataclasses.field(default_factory=dict)


class Placement(typing.NamedTuple):
    """The position of a crop in its image."""
    scaled: typing.Any  # int32 [2], (height, width) of the image after scaling
    offset: typing.Any  # int32 [2], first row and column of the crop in the scaled and mirrored image
    mirror: typing.Any  # bool, whether left and right are swapped


PLACEMENT_TYPES = Placement(scaled=tf.int32, offset=tf.int32, mirror=tf.bool)


class Fill(typing.NamedTuple):
    """The values for pixels outside the picture."""
    colour: np.ndarray  # float32 [3], RGB: the mean that is subtracted later, so that the network's input is 0
    label: int  # ignore_label


def augmentation_from_flags(conf, scales):
    """Returns the Augmentation that the flags describe.

    Args:
      conf: the flags as attributes.
      scales: the scales to choose from if --random_scale_range is not given; None for the default range.
    """
    chosen = {'scales': scales}
    if conf.random_scale_range:
        chosen = {'scale_range': tuple(sorted(conf.random_scale_range))}
    return Augmentation((conf.input_height, conf.input_width), conf.random_scale, conf.random_mirror, changes={
        name: getattr(conf, name) for name in AUGMENTATIONS if getattr(conf, name)}, **chosen)


def shuffled(seed, epoch, count):
    """Returns the order of an epoch, a permutation of 0..count-1 that depends only on seed and epoch."""
    return np.random.RandomState([ORDER, seed, epoch]).permutation(count)


# The crop -----------------------------------------------------------------------------------------------------------


def draw(augmentation, seed, k, size):
    """Draws the position of the crop of sample k.

    The scale is drawn uniformly from `scale_range`, or from `scales` if given; the scaled size is int(size * scale), at
    least 1. All positions at which the crop fits into the scaled image are equally likely.

    Args:
      augmentation: an Augmentation.
      seed, k: integers in 0..2**32-1. The random numbers depend only on these.
      size: (height, width) of the image.

    Returns:
      A Placement of arrays.
    """
    random = np.random.RandomState([CHANGES, seed, k])
    scale, mirror, row, column = random.random_sample(4)
    scaled = np.array(size, np.int32)
    if augmentation.random_scale:
        scales = augmentation.scales
        low, high = augmentation.scale_range
        factor = np.float32(low + (high - low) * scale if scales is None else scales[int(scale * len(scales))])
        scaled = np.maximum((scaled.astype(np.float32) * factor).astype(np.int32), 1)
    room = np.maximum(scaled - augmentation.size, 0) + 1
    offset = (room * [row, column]).astype(np.int32)
    return Placement(scaled, offset, bool(augmentation.random_mirror and mirror < 0.5))


def crop_pair(image, label, placement, crop, smooth=True):
    """Returns a crop of a scaled and mirrored image and label, computing only the pixels of the crop.

    The result equals bilinear scaling of the whole image and nearest-neighbour scaling of the whole label (with
    TensorFlow's legacy rules), followed by mirroring and slicing, up to rounding errors below 0.01 in the image.

    Args:
      image: uint8 [H, W, 3].
      label: int32 [H, W, 1].
      placement: a Placement of tensors.
      crop: (h, w); the result is smaller if the scaled image is smaller.
      smooth: False if the image is not scaled; its pixels are then copied unchanged.

    Returns:
      (image, label): float32 (uint8 if not smooth) [min(h, scaled h), min(w, scaled w), 3], and int32 with the same
      height and width and one channel.
    """
    scaled, offset, mirror = placement
    size, shown = tf.shape(image)[:2], tf.minimum(scaled, crop)
    rows = offset[0] + tf.range(shown[0])
    columns = offset[1] + tf.range(shown[1])
    columns = tf.where(mirror, scaled[1] - 1 - columns, columns)
    step = tf.cast(size, tf.float32) / tf.cast(scaled, tf.float32)
    rows, columns = tf.cast(rows, tf.float32) * step[0], tf.cast(columns, tf.float32) * step[1]
    label = gather_pixels(label, rows, columns)
    if not smooth:
        return gather_pixels(image, rows, columns), label
    # Repeat the last row and column for positions beyond the centres of the last pixels (tf.pad is slower). To mirror,
    # crop_and_resize gets a box whose left edge is to the right of its right edge.
    image = tf.concat([image, image[-1:]], axis=0)
    image = tf.concat([image, image[:, -1:]], axis=1)  # [H + 1, W + 1, 3]
    corners = tf.stack([rows[0], columns[0], rows[-1], columns[-1]])
    box = corners / tf.cast(tf.concat([size, size], 0), tf.float32)
    return tf.image.crop_and_resize(image[tf.newaxis], box[tf.newaxis], [0], shown)[0], label


def gather_pixels(image, rows, columns):
    """Returns the pixels of an image [H, W, C] at float positions, rounded down: [len(rows), len(columns), C]."""
    last = tf.shape(image)[:2] - 1
    rows = tf.minimum(tf.cast(rows, tf.int32), last[0])
    columns = tf.minimum(tf.cast(columns, tf.int32), last[1])
    # Columns are gathered as rows of the transposed image, because whole rows are copied at once.
    image = tf.transpose(tf.gather(image, rows), [1, 0, 2])  # [W, len(rows), C]
    return tf.transpose(tf.gather(image, columns), [1, 0, 2])


def pad_pair(image, label, crop, ignore_label):
    """Pads image and label at the bottom and right to the size `crop`, (h, w), with 0 and ignore_label."""
    missing = tf.maximum(crop - tf.shape(image)[:2], 0)
    pad = tf.stack([[0, missing[0]], [0, missing[1]], [0, 0]])
    image, label = tf.pad(image, pad), tf.pad(label, pad, constant_values=ignore_label)
    image.set_shape(list(crop) + [3])
    label.set_shape(list(crop) + [1])
    return image, label


# Changes of the crop ------------------------------------------------------------------------------------------------
#
# Each function takes
#   image: float32 RGB [h, w, 3], from 0 to 255, and label: int32 [h, w, 1]. The function may overwrite both. They are
#     smaller than the crop if the scaled image is smaller; padding follows later;
#   random: a numpy RandomState for this sample and this function;
#   setting: the value of the flag, which is not 0, False or None;
#   fill: a Fill, for pixels outside the picture;
# and returns (image, label) of the same shapes.


def jitter_colour(image, label, random, setting, fill):
    """Changes brightness, contrast and saturation, in this order, by random factors.

    Contrast scales the difference from the mean grey of the crop; saturation scales the difference from the grey of
    each pixel.

    Args:
      setting: (b, c, s), each from 0 to 1; the factors are uniform in [1 - b, 1 + b], [1 - c, 1 + c], [1 - s, 1 + s].
    """
    brightness, contrast, saturation = (1 + random.uniform(-1, 1, 3) * setting).astype(np.float32)
    image = image * brightness
    image = image * contrast + grey(image).mean() * (1 - contrast)
    image = image * saturation + grey(image) * (1 - saturation)
    return np.clip(image, 0, 255), label


def flip_vertical(image, label, random, setting, fill):
    """Swaps top and bottom with probability 0.5."""
    return (image[::-1], label[::-1]) if random.random_sample() < 0.5 else (image, label)


def rotate(image, label, random, degrees, fill):
    """Rotates about the centre of the crop by a random angle, uniform in [-degrees, degrees].

    The image is interpolated bilinearly, the label by nearest neighbour.
    """
    angle = random.uniform(-degrees, degrees)
    channels = [Image.fromarray(image[:, :, c]).rotate(angle, Image.BILINEAR, fillcolor=float(fill.colour[c]))
                for c in range(3)]
    classes = Image.fromarray(label[:, :, 0]).rotate(angle, Image.NEAREST, fillcolor=int(fill.label))
    return np.stack([np.asarray(channel) for channel in channels], axis=2), np.asarray(classes)[:, :, np.newaxis]


# {name of the flag: function}, in the order of application. To add one, write a function, add it here, add a flag.
AUGMENTATIONS = {
    'random_colour': jitter_colour,  # before `rotate`, so that the fill remains the mean
    'random_flip_vertical': flip_vertical,
    'random_rotation': rotate,
}


def change(image, label, changes, seed, k, fill):
    """Applies the changes of an Augmentation to the crop of sample k.

    Each change has its own random stream, so switching one on does not affect the random numbers of the others.

    Args:
      image: RGB [h, w, 3] of numbers from 0 to 255.
      label: int32 [h, w, 1].
      changes: {name in AUGMENTATIONS: setting}.
      seed, k: integers in 0..2**32-1.
      fill: a Fill.

    Returns:
      (image, label): float32 [h, w, 3] and int32 [h, w, 1].

    Raises:
      ValueError: a function returned an image or a label of another shape.
    """
    image, label = np.array(image, np.float32), np.array(label)  # copies, as TensorFlow owns the originals
    for name, function in AUGMENTATIONS.items():
        if name in changes:
            random = np.random.RandomState([CHANGES, seed, k, zlib.crc32(name.encode())])
            size = image.shape[:2]
            image, label = function(image, label, random, changes[name], fill)
            if image.shape != size + (3,) or label.shape != size + (1,):
                raise ValueError('%s returned an image of shape %s and a label of shape %s for a crop of %dx%d' % (
                    (name, image.shape, label.shape) + size))
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label, np.int32)


def grey(image):
    """Returns the luma of an RGB image [h, w, 3] as [h, w, 1]."""
    red, green, blue = np.split(image, 3, axis=2)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]  # faster than a sum over the last axis
