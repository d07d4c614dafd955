"""The random changes of a training image: what is drawn for the k-th sample, and the crop that it asks for."""

import collections

import numpy as np
import tensorflow.compat.v1 as tf

ORDER, CHANGES = 0, 1  # streams of random numbers of one seed

# scaled: int32 [2], the size to scale an image to; offset: int32 [2], the crop's first row and column there, after
# mirroring; mirror: boolean, whether left and right are swapped.
Placement = collections.namedtuple('Placement', 'scaled offset mirror')

# size: (h, w) of the crop; random_scale, random_mirror: whether to; scales: those to choose from, None for uniform in
# scale_range.
Augmentation = collections.namedtuple('Augmentation', 'size random_scale random_mirror scales scale_range')
Augmentation.__new__.__defaults__ = (True, True, None, (0.5, 1.5))


def chosen(conf, scales):
    """The Augmentation that flags choose, `scales` being those of the mode."""
    size = conf.input_height, conf.input_width
    if not conf.random_scale_range:
        return Augmentation(size, conf.random_scale, conf.random_mirror, scales)
    low, high = sorted(conf.random_scale_range)
    return Augmentation(size, conf.random_scale, conf.random_mirror, None, (low, high))


def shuffled(seed, epoch, count):
    """The order of an epoch, a permutation of 0..count-1 that depends on seed and epoch alone."""
    return np.random.RandomState([ORDER, seed, epoch]).permutation(count)


def draw(augmentation, seed, k, size):
    """What happens to the k-th sample; it depends on seed and k alone.

    Args:
      augmentation: an Augmentation.
      seed, k: integers in 0..2**32-1.
      size: (height, width) of the image.

    Returns:
      A Placement: the scale uniform in scale_range or one of scales and the scaled size int(size * scale), the offset
      anywhere that the crop fits, mirrored at probability 0.5.
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
    """The pixels of a crop of the scaled and mirrored pair, and no others.

    They are those of scaling all of both, the image bilinearly and the label by its nearest neighbour (TensorFlow's
    legacy rules), mirroring and slicing; but for rounding in the image, below 0.01 of 255 levels.

    Args:
      image: uint8 [H, W, 3].
      label: int32 [H, W, 1].
      placement: a Placement of tensors.
      crop: (h, w); the result is smaller where the scaled image is.
      smooth: False where scaled is the image's own size, whose pixels are then taken as they are.

    Returns:
      float32 (uint8 if not smooth) [min(h, scaled h), min(w, scaled w), 3] and int32 of the same size, 1.
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
    # Pixels beyond the last centre are the edge's (tf.pad is slower); a box from right to left mirrors.
    image = tf.concat([image, image[-1:]], axis=0)
    image = tf.concat([image, image[:, -1:]], axis=1)  # [H + 1, W + 1, 3]
    corners = tf.stack([rows[0], columns[0], rows[-1], columns[-1]])
    box = corners / tf.cast(tf.concat([size, size], 0), tf.float32)
    return tf.image.crop_and_resize(image[tf.newaxis], box[tf.newaxis], [0], shown)[0], label


def gather_pixels(image, rows, columns):
    """[H, W, C] at the whole parts of float row and column positions: [len(rows), len(columns), C]."""
    last = tf.shape(image)[:2] - 1
    rows = tf.minimum(tf.cast(rows, tf.int32), last[0])
    columns = tf.minimum(tf.cast(columns, tf.int32), last[1])
    # Columns are gathered as rows of the transpose, which are copied whole and not value by value.
    image = tf.transpose(tf.gather(image, rows), [1, 0, 2])  # [W, len(rows), C]
    return tf.transpose(tf.gather(image, columns), [1, 0, 2])


def pad_pair(image, label, crop, ignore_label):
    """Both at the size crop, (h, w), padded at the bottom and the right: the image by 0, the label by ignore_label."""
    missing = tf.maximum(crop - tf.shape(image)[:2], 0)
    pad = tf.stack([[0, missing[0]], [0, missing[1]], [0, 0]])
    image, label = tf.pad(image, pad), tf.pad(label, pad, constant_values=ignore_label)
    image.set_shape(list(crop) + [3])
    label.set_shape(list(crop) + [1])
    return image, label
