"""What --report adds to a test: out_dir/report.html, for which the pictures of the worst and best images are kept."""

import collections
import contextlib
import heapq
import io
import os

import numpy as np
from PIL import Image

from utils import label_utils
from utils.data import image_files
from utils.prediction import metrics, report_page
from utils.system import command_line, output_files

FILE = 'report.html'
WORST, BEST = 20, 5  # images on the page
WIDTH, HEIGHT = 480, 720  # pixels that a picture has at most
WRONG, NOT_COUNTED = (214, 30, 40), (160, 160, 160)  # colours of pixels among the errors

# An image on the page: its index in the list, its mean IoU and its pictures, a (MIME type, bytes) for each of
# report_page.PICTURES.
Shown = collections.namedtuple('Shown', 'index iou pictures')


class Report(object):
    """Keeps the worst and the best of a stream of predictions and writes them on a page with the scores.

    How bad an image is tells the mean IoU of its own confusion matrix; images without a counted pixel have none.
    Pictures are kept of WORST + BEST images at most, however long the stream is.
    """

    def __init__(self, conf, classes, images):
        """
        Args:
          conf: the flags as attributes.
          classes: a Classes.
          images: the paths of the images.

        Raises:
          UserError: there is a folder or the like in the page's place.
        """
        self._conf, self._classes, self._images = conf, classes, images
        self._path = os.path.join(conf.out_dir, FILE)
        output_files.check_replaceable(self._path)
        self._worst, self._best = [], []  # heaps of (key, Shown), at their roots the one that the next may replace
        self._counted = self._left_out = 0  # images with and without an IoU

    def watched(self, predictions):
        """Passes on the scores.Prediction of a generator and looks at each."""
        with contextlib.closing(predictions):
            for prediction in predictions:
                self._look_at(prediction)
                yield prediction

    def _look_at(self, prediction):
        index, (num_classes, ignore_label, _) = prediction.index, self._classes
        iou = metrics.scores(metrics.confusion_matrix(
            prediction.label, prediction.classes, num_classes, ignore_label))['mean_iou']
        if np.isnan(iou):
            self._left_out += 1
            return
        self._counted += 1
        shown = None
        for heap, most, key in ((self._worst, WORST, (-iou, -index)), (self._best, BEST, (iou, -index))):
            if len(heap) < most or key > heap[0][0]:
                shown = shown or Shown(index, iou, self._pictures(prediction))
                add = heapq.heappush if len(heap) < most else heapq.heapreplace
                add(heap, (key, shown))

    def _pictures(self, prediction):
        """Image, label, prediction and errors as files, no larger than WIDTH x HEIGHT."""
        num_classes, ignore_label, palette = self._classes
        photo = image_files.load_image(self._images[prediction.index])  # [H, W, 3]
        label = np.where(prediction.label == ignore_label, -1, prediction.label)  # [H, W]
        maps = [label_utils.decode_labels(mask[None], 1, num_classes, palette)[0]
                for mask in (label, prediction.classes)]
        counted = (label >= 0) & (label < num_classes)
        errors = errors_of(photo, counted, counted & (label != prediction.classes))
        return [encoded(photo, 'JPEG', Image.BOX), encoded(maps[0], 'PNG', Image.NEAREST),
                encoded(maps[1], 'PNG', Image.NEAREST), encoded(errors, 'JPEG', Image.BOX)]

    def write(self, matrix, prefix):
        """Writes the page.

        Args:
          matrix: [num_classes, num_classes], the confusion matrix of all images, rows by label.
          prefix: of the checkpoint that was scored.
        """
        conf, palette = self._conf, self._classes.palette
        worst, best = (sorted((shown for _, shown in heap), key=lambda shown: (shown.iou, shown.index))
                       for heap in (self._worst, self._best))
        twice = {shown.index for shown in worst}
        settings = [(name, getattr(conf, name)) for name in command_line.own_flags() if hasattr(conf, name)]
        page = report_page.page(report_page.Findings(
            matrix=np.asarray(matrix), names=palette.names, colours=palette.colours,
            images=self._images, counted=self._counted, left_out=self._left_out, worst=worst,
            best=[shown for shown in best[::-1] if shown.index not in twice],
            origin=[('checkpoint', prefix), ('list', conf.valid_data_list)], settings=settings))
        with output_files.new_file(self._path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
            file.write(page)
        print('report in %s' % self._path)


def errors_of(photo, counted, wrong):
    """The pale grey photo with wrong pixels in red and those that do not count in grey.

    Args:
      photo: uint8 RGB [H, W, 3].
      counted, wrong: bool [H, W].

    Returns:
      uint8 RGB [H, W, 3].
    """
    pale = 0.5 * (photo @ label_utils.LUMA) + 127  # [H, W]
    picture = np.repeat(pale.astype(np.uint8)[..., None], 3, axis=2)
    picture[~counted], picture[wrong] = NOT_COUNTED, WRONG
    return picture


def encoded(picture, kind, resample):
    """A uint8 RGB picture [H, W, 3], made smaller where it is too large, as (MIME type, bytes of the file)."""
    image, file = Image.fromarray(picture), io.BytesIO()
    factor = min(1, WIDTH / float(image.width), HEIGHT / float(image.height))
    if factor < 1:
        image = image.resize([max(1, int(round(side * factor))) for side in image.size], resample)
    image.save(file, kind, **({'quality': 85, 'subsampling': 0} if kind == 'JPEG' else {'optimize': True}))
    return 'image/' + kind.lower(), file.getvalue()
