"""What predict writes of an image: its mask, and pictures of it, each under a name of its own."""

import concurrent.futures
import contextlib
import os

import numpy as np

from utils import label_utils
from utils.data import cityscapes_labels, data_lists, image_files
from utils.system import output_files
from utils.system.errors import UserError

MOST_WAITING = 8


class MaskWriter(object):
    """Writes the masks of a list of images into sub-folders of out_dir, behind the network, in a thread."""

    def __init__(self, conf, classes, images):
        """
        Args:
          conf: the flags as attributes; out_dir, visual, overlay and id_format matter.
          classes: a Classes.
          images: the paths of the images, whose names the masks get.

        Raises:
          UserError: a folder cannot be written to, or id_format does not fit the classes or the names of the images.
        """
        self._classes, self._images = classes, images
        self._label_ids = conf.id_format == 'labelIds'
        self._names = self._cityscapes_names() if self._label_ids else [
            (name + '_mask.png', name) for name in data_lists.output_names(images)]
        wanted = {'prediction': True, 'visual_prediction': conf.visual, 'overlay_prediction': conf.overlay}
        output_files.make_dir(conf.out_dir, 'out_dir')
        self.folders = {kind: output_files.make_dir(os.path.join(conf.out_dir, kind), 'out_dir', follow=False)
                        for kind, asked in sorted(wanted.items()) if asked}

    @contextlib.contextmanager
    def writing(self):
        """Gives a function of a scores.Prediction, which writes it; all is written when this ends."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = []

            def write(prediction):
                waiting.append(pool.submit(self._write, prediction.index, prediction.classes.astype(np.uint8)))
                while len(waiting) > MOST_WAITING or waiting and waiting[0].done():
                    waiting.pop(0).result()

            yield write
            for one in waiting:
                one.result()

    def _cityscapes_names(self):
        """(name that the benchmark wants, name that pictures start with) of each image."""
        if self._classes.num_classes != len(cityscapes_labels.CLASSES):
            raise UserError("--id_format=labelIds is for Cityscapes' %d classes, not --num_classes=%d." % (
                len(cityscapes_labels.CLASSES), self._classes.num_classes))
        return [(cityscapes_labels.server_name(image), cityscapes_labels.frame_key(image)) for image in self._images]

    def _write(self, index, mask):
        """Writes the mask, uint8 [H, W], of an image and its pictures."""
        (file_name, name), (num_classes, _, palette) = self._names[index], self._classes
        ids = cityscapes_labels.train_ids_to_label_ids(mask) if self._label_ids else mask
        self._save(ids, 'prediction', file_name)
        if 'visual_prediction' in self.folders:
            colours = label_utils.decode_labels(mask[np.newaxis], 1, num_classes, palette)[0]
            self._save(colours, 'visual_prediction', name + '_mask_visual.png')
        if 'overlay_prediction' in self.folders:
            picture = label_utils.overlay(image_files.load_image(self._images[index]), mask, palette, num_classes)
            self._save(picture, 'overlay_prediction', name + '_overlay.png')

    def _save(self, pixels, kind, name):
        output_files.save_image(pixels, os.path.join(self.folders[kind], name))
