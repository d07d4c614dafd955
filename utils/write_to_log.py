"""What a run leaves to read: lines of log.txt, and scalars and pictures for TensorBoard."""

import io

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image


def write_log(text, logfile):
    """Appends one line to the log file; complete on disk when this returns."""
    with open(logfile, 'a') as log:
        log.write(text + '\n')


def scalar_summary(values):
    """A tf.Summary of {tag: number}."""
    return tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=float(value))
                             for tag, value in sorted(values.items())])


def image_summary(tag, pictures):
    """A tf.Summary of uint8 RGB pictures [N, h, w, 3], each under tag/i."""
    values = []
    for i, picture in enumerate(pictures):
        png = io.BytesIO()
        Image.fromarray(picture).save(png, format='PNG')
        values.append(tf.Summary.Value(tag='%s/%d' % (tag, i), image=tf.Summary.Image(
            height=picture.shape[0], width=picture.shape[1], colorspace=3, encoded_image_string=png.getvalue())))
    return tf.Summary(value=values)


def side_by_side(*pictures):
    """Pictures [N, h, w, 3] each -> [N, h, sum of w, 3]."""
    return np.concatenate(pictures, axis=2)
