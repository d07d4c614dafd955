"""What predict writes of an image: its mask, pictures of it and its scores, each under a name of its own."""

import concurrent.futures
import contextlib
import os

import numpy as np

from utils import label_utils
from utils.data import cityscapes_labels, data_lists, image_files
from utils.prediction import score_maps
from utils.system import output_files
from utils.system.errors import UserError

MOST_WAITING, MOST_WAITING_BYTES = 8, 2 ** 28  # images, and bytes of their arrays


def keeps_scores(conf):
    """Whether the flags ask for files of scores."""
    return conf.save_probabilities or conf.save_logits


class MaskWriter(object):
    """Writes the masks of a list of images into sub-folders of out_dir, behind the network, in a thread."""

    def __init__(self, conf, classes, images, are_probabilities=False):
        """
        Args:
          conf: the flags as attributes; out_dir, visual, overlay, id_format and those of keeps_scores matter.
          classes: a Classes.
          images: the paths of the images, whose names the masks get.
          are_probabilities: whether the scores that come are probabilities; otherwise they are logits.

        Raises:
          UserError: a folder cannot be written to, id_format does not fit the classes or the names of the images, or
            there are no logits to save.
        """
        if conf.save_logits and are_probabilities:
            raise UserError('--save_logits: the mean of several passes is of probabilities, there are no logits: give '
                            '--save_probabilities, --eval_merge=max or a single scale without --eval_flip.')
        self._classes, self._images, self._are_probabilities = classes, images, are_probabilities
        self._label_ids = conf.id_format == 'labelIds'
        self._names = self._cityscapes_names() if self._label_ids else [
            (name + '_mask.png', name) for name in data_lists.output_names(images)]
        wanted = {'prediction': True, 'visual_prediction': conf.visual, 'overlay_prediction': conf.overlay,
                  'probabilities': conf.save_probabilities, 'logits': conf.save_logits}
        output_files.make_dir(conf.out_dir, 'out_dir')
        self.folders = {kind: output_files.make_dir(os.path.join(conf.out_dir, kind), 'out_dir', follow=False)
                        for kind, asked in sorted(wanted.items()) if asked}

    @contextlib.contextmanager
    def writing(self):
        """Gives a function of a scores.Prediction, which writes it; all is written when this ends."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = []  # (future, bytes of its arrays)

            def write(prediction):
                mask, scores = prediction.classes.astype(np.uint8), prediction.scores
                size = mask.nbytes + (0 if scores is None else scores.nbytes)
                waiting.append((pool.submit(self._write, prediction.index, mask, scores), size))
                while waiting and (len(waiting) > MOST_WAITING or waiting[0][0].done()
                                   or sum(one[1] for one in waiting) > MOST_WAITING_BYTES):
                    waiting.pop(0)[0].result()

            yield write
            for future, _ in waiting:
                future.result()

    def _cityscapes_names(self):
        """(name that the benchmark wants, name that pictures start with) of each image."""
        if self._classes.num_classes != len(cityscapes_labels.CLASSES):
            raise UserError("--id_format=labelIds is for Cityscapes' %d classes, not --num_classes=%d." % (
                len(cityscapes_labels.CLASSES), self._classes.num_classes))
        return [(cityscapes_labels.server_name(image), cityscapes_labels.frame_key(image)) for image in self._images]

    def _write(self, index, mask, scores):
        """Writes the mask, uint8 [H, W], of an image, its pictures and its scores, [H, W, num_classes] or None."""
        (file_name, name), (num_classes, _, palette) = self._names[index], self._classes
        ids = cityscapes_labels.train_ids_to_label_ids(mask) if self._label_ids else mask
        self._save(ids, 'prediction', file_name)
        if 'visual_prediction' in self.folders:
            colours = label_utils.decode_labels(mask[np.newaxis], 1, num_classes, palette)[0]
            self._save(colours, 'visual_prediction', name + '_mask_visual.png')
        if 'overlay_prediction' in self.folders:
            picture = label_utils.overlay(image_files.load_image(self._images[index]), mask, palette, num_classes)
            self._save(picture, 'overlay_prediction', name + '_overlay.png')
        if 'logits' in self.folders:
            self._save_scores(scores, 'logits', name)
        if 'probabilities' in self.folders:
            probabilities = scores if self._are_probabilities else score_maps.softmax(scores)
            self._save_scores(probabilities, 'probabilities', name)

    def _save(self, pixels, kind, name):
        output_files.save_image(pixels, os.path.join(self.folders[kind], name))

    def _save_scores(self, scores, kind, name):
        path = os.path.join(self.folders[kind], name + '.npz')
        output_files.save_arrays({kind: score_maps.class_first(scores)}, path)
