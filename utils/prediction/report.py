"""Writes the page of --report, out_dir/report.html, with the scores and the worst and best images of a test.

Its text and style are in report.html.j2. The page works offline: it runs no script and loads no other file.
"""

import base64
import contextlib
import dataclasses
import heapq
import io
import os
from typing import Dict, Tuple

import jinja2
import numpy as np
from PIL import Image

from utils import label_utils
from utils.data import data_check, image_files
from utils.data.palette import LUMA
from utils.data.pixels import AS_STORED
from utils.prediction import metrics
from utils.system import output_files
from utils.system.errors import printable

FILE, TEMPLATE = 'report.html', 'report.html.j2'
WORST, BEST = 20, 5  # images on the page
PICTURES = ('image', 'label', 'prediction', 'errors')  # of each image on the page
WIDTH, HEIGHT = 480, 720  # the largest size of a picture, in pixels
WRONG, NOT_COUNTED = (214, 30, 40), (160, 160, 160)  # colours in the picture 'errors'
MOST_CELLS = 40  # with more classes than this, the confusion matrix is a picture instead of a table
MATRIX_SIDE = 768  # approximate side of that picture, in pixels
CONFUSIONS = 10  # number of pairs of classes that are listed
TOTALS = (('mean IoU', 'mean_iou'), ('pixel accuracy', 'pixel_accuracy'), ('mean accuracy (recall)', 'mean_accuracy'),
          ('frequency weighted IoU', 'frequency_weighted_iou'), ('mean precision', 'mean_precision'),
          ('mean F1 (Dice)', 'mean_f1'))
WITHOUT_0 = (('IoU', 'mean_iou_without_0'), ('recall', 'mean_recall_without_0'),
             ('precision', 'mean_precision_without_0'), ('F1', 'mean_f1_without_0'))
OF_CLASSES = (('IoU', 'iou'), ('recall', 'recall'), ('precision', 'precision'), ('F1', 'f1'))


@dataclasses.dataclass
class Shown:
    """An image on the page."""

    index: int  # in the list
    path: str
    iou: float  # mean IoU over the classes in the image
    pictures: Dict[str, Tuple[str, bytes]]  # {one of PICTURES: (MIME type, bytes of the file)}


class Report(object):
    """Collects the worst and the best predictions of a test and writes a page with them and the scores.

    Images are ranked by the mean IoU of their own confusion matrix; images without a counted pixel have none and are
    left out. Pictures of at most WORST + BEST images are kept in memory, however many images the test has.
    """

    def __init__(self, conf, classes, images, image_format=AS_STORED):
        """
        Args:
          conf: the flags as attributes.
          classes: a Classes.
          images: the paths of the images.
          image_format: their ImageFormat.

        Raises:
          UserError: the page cannot be written because its path is a folder or the like.
        """
        self._conf, self._classes, self._images, self._image_format = conf, classes, images, image_format
        self._path = os.path.join(conf.out_dir, FILE)
        output_files.check_replaceable(self._path)
        self._template = load_template()  # loaded now, so that an error is raised before the test and not after it
        self._worst, self._best = [], []  # heaps of (key, Shown); the root is replaced next
        self._counted = self._left_out = 0  # images with and without an IoU

    def watched(self, predictions):
        """Yields the Predictions of a generator unchanged and keeps the pictures of the worst and best."""
        with contextlib.closing(predictions):
            for prediction in predictions:
                self._look_at(prediction)
                yield prediction

    def _look_at(self, prediction):
        """Ranks a Prediction, and keeps its pictures while it is among the worst or the best."""
        index, (num_classes, ignore_label) = prediction.index, self._classes[:2]
        iou = metrics.scores(metrics.confusion_matrix(
            prediction.label, prediction.classes, num_classes, ignore_label), ignore_label)['mean_iou']
        if np.isnan(iou):
            self._left_out += 1
            return
        self._counted += 1
        shown = None
        for heap, most, key in ((self._worst, WORST, (-iou, -index)), (self._best, BEST, (iou, -index))):
            if len(heap) < most or key > heap[0][0]:
                shown = shown or Shown(index, self._images[index], iou, self._pictures(prediction))
                add = heapq.heappush if len(heap) < most else heapq.heapreplace
                add(heap, (key, shown))

    def _pictures(self, prediction):
        """Returns the pictures of a Prediction, {one of PICTURES: (MIME type, bytes of the file)}."""
        num_classes, ignore_label, palette = self._classes[:3]
        photo = image_files.load_image(self._images[prediction.index], self._image_format)  # [H, W, 3]
        label = np.where(prediction.label == ignore_label, -1, prediction.label)  # [H, W]
        maps = [label_utils.decode_labels(mask[None], 1, num_classes, palette)[0]
                for mask in (label, prediction.classes)]
        counted = (label >= 0) & (label < num_classes)
        errors = errors_of(photo, counted, counted & (label != prediction.classes))
        return dict(zip(PICTURES, (
            encoded(photo, 'JPEG', Image.BOX), encoded(maps[0], 'PNG', Image.NEAREST),
            encoded(maps[1], 'PNG', Image.NEAREST), encoded(errors, 'JPEG', Image.BOX))))

    def write(self, matrix, prefix, trained=None):
        """Writes the page.

        Args:
          matrix: [num_classes, num_classes], the confusion matrix of all images, rows by label.
          prefix: the checkpoint that was scored.
          trained: {name: value}, the settings of the training; None if they are unknown.

        Raises:
          UserError: the page cannot be written.
        """
        matrix = np.asarray(matrix)
        count, palette = len(matrix), self._classes.palette
        scores = metrics.scores(matrix, self._classes.ignore_label)
        shares = metrics.ratio(matrix, np.broadcast_to(matrix.sum(1, keepdims=True), matrix.shape))  # of the label
        page = self._template.render(
            names=['%d %s' % (index, palette.names[index]) if palette.names else 'class %d' % index
                   for index in range(count)],
            colours=['#%02x%02x%02x' % tuple(int(value) for value in colour) for colour in palette.colours[:count]],
            checkpoint=prefix, list=self._conf.valid_data_list, counted=self._counted, left_out=self._left_out,
            totals=[(name, scores[key]) for name, key in TOTALS],
            without_0=[(name, scores[key]) for name, key in WITHOUT_0],
            note=data_check.describe_classes(matrix.sum(1), self._classes),
            predicted=metrics.describe_predictions(matrix, self._classes),
            heads=[name for name, _ in OF_CLASSES], classes=list(zip(*[scores[key].tolist() for _, key in OF_CLASSES])),
            shares=shares.tolist(), matrix_picture=picture_of(shares) if count > MOST_CELLS else None,
            confusions=confusions(matrix, shares), galleries=self._galleries(),
            flags=sorted(metrics.flags_of_test(self._conf).items()), trained=sorted((trained or {}).items()))
        with output_files.new_file(self._path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
            file.write(page)
        print('report in %s' % self._path)

    def _galleries(self):
        """Returns the page's galleries as [(title, [Shown])]; each image is in one of them only."""
        worst, best = (sorted((shown for _, shown in heap), key=lambda shown: (shown.iou, shown.index))
                       for heap in (self._worst, self._best))
        if self._counted <= len(worst):
            return [('All images, worst first', worst)]
        twice = {shown.index for shown in worst}
        best = [shown for shown in best[::-1] if shown.index not in twice]
        return [('The %d worst images, worst first' % len(worst), worst),
                ('The %d best images, best first' % len(best), best)]


def load_template():
    """Returns the page's jinja2.Template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, data_uri=data_uri, printable=lambda value: printable(str(value)))
    environment.tests['nan'] = np.isnan
    return environment.get_template(TEMPLATE)


def percent(value, digits=1):
    """Returns a fraction as text in per cent, '-' for nan."""
    return '-' if np.isnan(value) else '%.*f' % (digits, 100 * value)


def data_uri(picture):
    """Returns a data URI that contains a picture, (MIME type, bytes of the file)."""
    return 'data:%s;base64,%s' % (picture[0], base64.b64encode(picture[1]).decode('ascii'))


def confusions(matrix, shares):
    """Returns the most frequent confusions, [(label's class, predicted class, fraction of the label's pixels)].

    Args:
      matrix: [num_classes, num_classes], the confusion matrix, rows by label.
      shares: the same with every row divided by its sum.
    """
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind='mergesort')[:CONFUSIONS]
    pairs = [divmod(int(place), len(wrong)) for place in order]
    return [(label, other, float(shares[label, other])) for label, other in pairs if wrong[label, other]]


def picture_of(shares):
    """Draws a confusion matrix of fractions [n, n], from white (0) to blue (1).

    Returns:
      (MIME type, bytes of the file).
    """
    blue = 255 - np.nan_to_num(shares)[..., None] * (255 - np.array([8, 48, 107]))  # [n, n, 3]
    side, file = max(1, MATRIX_SIDE // len(shares)), io.BytesIO()
    Image.fromarray(blue.astype(np.uint8).repeat(side, axis=0).repeat(side, axis=1)).save(file, 'PNG')
    return 'image/png', file.getvalue()


def errors_of(photo, counted, wrong):
    """Returns the photo in pale grey, with wrong pixels in red and uncounted pixels in grey.

    Args:
      photo: uint8 RGB [H, W, 3].
      counted, wrong: bool [H, W].

    Returns:
      uint8 RGB [H, W, 3].
    """
    pale = 0.5 * (photo @ LUMA) + 127  # [H, W]
    picture = np.repeat(pale.astype(np.uint8)[..., None], 3, axis=2)
    picture[~counted], picture[wrong] = NOT_COUNTED, WRONG
    return picture


def encoded(picture, kind, resample):
    """Encodes a picture, scaled down if it is larger than WIDTH x HEIGHT.

    Args:
      picture: uint8 RGB [H, W, 3].
      kind: 'JPEG' or 'PNG'.
      resample: Pillow's filter for scaling.

    Returns:
      (MIME type, bytes of the file).
    """
    image, file = Image.fromarray(picture), io.BytesIO()
    factor = min(1, WIDTH / float(image.width), HEIGHT / float(image.height))
    if factor < 1:
        image = image.resize([max(1, int(round(side * factor))) for side in image.size], resample)
    image.save(file, kind, **({'quality': 85, 'subsampling': 0} if kind == 'JPEG' else {'optimize': True}))
    return 'image/' + kind.lower(), file.getvalue()
