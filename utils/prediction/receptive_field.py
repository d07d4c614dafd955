"""Effective receptive fields: what one pixel of a map depends on, how far that reaches and how much it is a grid."""

import numpy as np
import tensorflow.compat.v1 as tf

NEAR = 0.0455  # of the greatest gradient: Luo et al. (2016), section 4, count what is within two deviations of a Gauss
FAINTEST = 1e-4  # of the greatest gradient, in the figure
PANEL, GAP = 3.0, 0.5  # inches


def centre(maps):
    """The pixel in the middle of the first map: [N, h, w, C] -> [C]."""
    shape = tf.shape(maps)
    return maps[0, shape[1] // 2, shape[2] // 2]


def field(target, source):
    """The field of a number: how much it changes with each pixel of what it is computed from.

    Luo, Li, Urtasun and Zemel, Understanding the Effective Receptive Field (2016), take the gradient of a central
    unit, too; here its absolute values are summed over the channels, so that no sign hides another.

    Args:
      target: a scalar tensor.
      source: a tensor [1, h, w, C] that it is computed from.

    Returns:
      float32 [h, w], sum over c of |d target / d source[0, y, x, c]|.
    """
    return tf.reduce_sum(tf.abs(tf.gradients(target, source)[0][0]), axis=2)


def extent(values):
    """The side in pixels of a square as large as the area where a field [h, w] is above NEAR of its greatest value."""
    return float(np.sqrt(np.sum(values > NEAR * values.max())))


def gridding(values, rate):
    """How much a field is a grid of period `rate`, what dilated convolutions of that rate in a row make of it.

    Such convolutions reach every rate-th pixel of a row and column only. In the spectrum of the field,

        F(u, v) = sum over y, x of values[y, x] * exp(-2 pi i (u y + v x)),

    a grid has peaks at the frequencies (a / rate, b / rate), a smooth field has none there, and one that is all in few
    pixels is high at them but as high beside them. So the score is

        mean over (a, b) != (0, 0) of (|F| at (a / rate, b / rate) - mean of |F| at its eight neighbours) / F(0, 0),

    a and b from 0 to rate - 1, the neighbours half a period, 1 / (2 rate), away along one axis or both:
    1 for a wide grid, near 0 for a field that is smooth, too narrow to tell or a grid of twice the period, at most 1
    and hardly ever below 0. At multiples of 1 / (2 rate), F is the discrete transform of the field folded to
    2 rate x 2 rate pixels. The central pixel is left out: the shortcuts of a ResNet reach it whatever its convolutions
    do.

    Args:
      values: [h, w], not negative; the central pixel is [h // 2, w // 2].
      rate: 2 or more.

    Returns:
      a float; nan if the field is zero outside the centre.
    """
    around = np.array(values, np.float64)
    height, width = around.shape
    around[height // 2, width // 2] = 0
    if not around.sum() > 0:
        return float('nan')
    period = 2 * rate
    padded = np.pad(around, [(0, -height % period), (0, -width % period)], 'constant')
    folded = padded.reshape(len(padded) // period, period, -1, period).sum(axis=(0, 2))  # [2 * rate, 2 * rate]
    spectrum = np.abs(np.fft.fft2(folded)) / around.sum()
    neighbours = sum(np.roll(spectrum, (rows, columns), (0, 1)) for rows in (-1, 0, 1) for columns in (-1, 0, 1)
                     if rows or columns) / 8
    peaks = (spectrum - neighbours)[::2, ::2].ravel()[1:]  # without (0, 0)
    return float(peaks.mean())


def draw(columns):
    """A matplotlib Figure of fields: a column for each network, a row for each kind of field.

    Args:
      columns: a list of (title, list of (title, field [h, w])), the fields in the same order in each.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows = max(len(fields) for _, fields in columns)
    width, height = (PANEL + GAP) * len(columns) + 1.1, (PANEL + GAP) * rows + 0.4
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(rows, len(columns), squeeze=False, gridspec_kw={
        'left': GAP / width, 'right': 1 - 1.1 / width, 'bottom': 0.3 / height, 'top': 1 - (GAP + 0.1) / height,
        'wspace': GAP / PANEL, 'hspace': GAP / PANEL})
    for number, (name, fields) in enumerate(columns):
        for row, (title, values) in enumerate(fields):
            axes, (tall, wide) = panels[row, number], values.shape
            image = axes.imshow(np.maximum(values / (values.max() or 1), FAINTEST), cmap='magma',
                                norm=LogNorm(FAINTEST, 1), extent=(-wide / 2, wide / 2, tall / 2, -tall / 2))
            axes.set_title(('' if row else plain(name) + '\n') + title, fontsize='small')
            axes.tick_params(labelsize='x-small')
    bar = figure.add_axes([1 - 0.9 / width, 0.2, 0.13 / width, 0.6])
    figure.colorbar(image, cax=bar, label='mean absolute gradient / its greatest')
    return figure


def plain(name, longest=40):
    """A name of at most `longest` characters as matplotlib shows it, no formula."""
    return (name if len(name) <= longest else '...' + name[3 - longest:]).replace('$', r'\$')
