"""Writes the files of --option=predict for each image: its mask, visualisations and scores."""

import collections
import concurrent.futures
import contextlib
import os
import sys

import numpy as np
from tqdm import tqdm

from utils import label_utils
from utils.data import image_files, sources
from utils.data.palette import (
    CITYSCAPES_CLASSES,
    MAX_CLASSES,
    VOC_NAMES,
    benchmark_name,
    cityscapes_frame,
    train_ids_to_label_ids,
)
from utils.data.pixels import AS_STORED
from utils.prediction.crf import softmax
from utils.system import output_files
from utils.system.errors import UserError, quoted

MOST_WAITING, MOST_WAITING_BYTES = 8, 2 ** 28  # limits on the images that wait to be written and on their arrays
FLOAT16_MAX = 65504.0


class MaskWriter(object):
    """Writes the predictions of images into sub-folders of out_dir, in a separate thread while the network runs.

    Attributes:
      paths: of the images to predict; with skip_existing, only the images that lack any of their outputs.
      folders: {kind: folder} of the outputs.
      needs_scores: whether the Predictions must hold scores.
    """

    def __init__(self, conf, classes, images, are_probabilities=False, image_format=AS_STORED):
        """
        Args:
          conf: the flags as attributes, of which out_dir, visual, overlay, save_probabilities, save_logits, id_format,
            unknown_below and skip_existing are used.
          classes: a Classes.
          images: a sources.Images.
          are_probabilities: whether the scores of the Predictions are probabilities; otherwise they are logits.
          image_format: the ImageFormat of the images, which are read again for overlays.

        Raises:
          UserError: a folder cannot be written to, id_format does not fit the classes or the names of the images,
            ignore_label does not fit into a mask, or there are no logits to save.
        """
        if conf.save_logits and are_probabilities:
            raise UserError('--save_logits: several passes are merged by the mean of their probabilities, so there are '
                            'no logits: give --save_probabilities, --eval_merge=max or a single scale without '
                            '--eval_flip.')
        if conf.unknown_below and not 0 <= classes.ignore_label < MAX_CLASSES:
            raise UserError('--unknown_below=%g: --ignore_label=%d does not fit into a mask: give it a value '
                            'from 0 to %d.' % (conf.unknown_below, classes.ignore_label, MAX_CLASSES - 1))
        self.needs_scores = conf.save_probabilities or conf.save_logits
        self._classes, self._are_probabilities, self._image_format = classes, are_probabilities, image_format
        self._unread = 0
        self._label_ids, is_voc = conf.id_format == 'labelIds', conf.id_format == 'voc'
        self._colours = label_utils.colour_table(classes.num_classes, classes.palette)[:MAX_CLASSES] if (
            is_voc or conf.id_format == 'indexed') else None
        if is_voc and classes.num_classes != len(VOC_NAMES):
            raise UserError("--id_format=voc is for VOC's %d classes, not --num_classes=%d: give --id_format=indexed."
                            % (len(VOC_NAMES), classes.num_classes))
        names = self._cityscapes_names(images) if self._label_ids else [
            (name + ('.png' if is_voc else '_mask.png'), name) for name in images.names]
        wanted = zip(sources.PREDICTED, (True, conf.visual, conf.overlay, conf.save_probabilities, conf.save_logits))
        output_files.make_dir(conf.out_dir, 'out_dir')
        self.folders = {kind: output_files.make_dir(os.path.join(
            conf.out_dir, sources.VOC_RESULTS if is_voc and kind == 'prediction' else kind), 'out_dir', follow=False)
            for kind, asked in wanted if asked}
        self._made = set(self.folders.values())
        left = [i for i in range(len(names)) if not (conf.skip_existing and self._is_done(names[i]))]
        self.paths, self._names = [images.paths[i] for i in left], [names[i] for i in left]
        if conf.skip_existing:
            print('%d of %d images have their outputs and are skipped' % (len(names) - len(left), len(names)))

    def write_all(self, predictions):
        """Writes every Prediction of a generator, or reports its fault; the generator is closed at the end.

        Raises:
          UserError: a file cannot be written; or some images could not be read, once all others are written.
        """
        waiting = collections.deque()  # (future, size of its arrays in bytes)
        with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.closing(predictions):
            for prediction in predictions:
                if prediction.fault:
                    self._report_unread(prediction.fault)
                    continue
                mask, scores = prediction.classes.astype(np.uint8), prediction.scores
                size = mask.nbytes + (0 if scores is None else scores.nbytes)
                waiting.append((pool.submit(self._write, prediction.index, mask, scores), size))
                while waiting and (len(waiting) > MOST_WAITING or waiting[0][0].done()
                                   or sum(one[1] for one in waiting) > MOST_WAITING_BYTES):
                    self._report_unread(waiting.popleft()[0].result())
            for future, _ in waiting:
                self._report_unread(future.result())
        count, folders = len(self.paths) - self._unread, list(self.folders.values())
        print('%d prediction%s in %s' % (count, '' if count == 1 else 's', ' and '.join(
            [', '.join(folders[:-1])] * (len(folders) > 1) + folders[-1:])))
        if self._unread:
            raise UserError('%d of %d images could not be read and are named above: replace these files or leave '
                            'them out.' % (self._unread, len(self.paths)))

    def _report_unread(self, fault):
        """Counts and prints a sentence on why an image could not be read, if it is not None."""
        if fault:
            self._unread += 1
            tqdm.write('warning: ' + fault, file=sys.stderr)

    def _cityscapes_names(self, images):
        """Returns [(file name of the mask in the benchmark's form, stem of the other files' names)] of the images.

        Raises:
          UserError: the classes or a file name do not match Cityscapes, or two images show the same frame.
        """
        if self._classes.num_classes != len(CITYSCAPES_CLASSES):
            raise UserError("--id_format=labelIds is for Cityscapes' %d classes, not --num_classes=%d." % (
                len(CITYSCAPES_CLASSES), self._classes.num_classes))
        names, image_of = [], {}
        for path, name in zip(*images):
            folder = os.path.dirname(name)
            names.append((os.path.join(folder, benchmark_name(path)),
                          os.path.join(folder, cityscapes_frame(path))))
            other = image_of.setdefault(names[-1], path)
            if os.path.normpath(other) != os.path.normpath(path):
                raise UserError('--id_format=labelIds: %s and %s show the same frame and would share a mask: leave one '
                                'out.' % (quoted(other), quoted(path)))
        return names

    def _outputs(self, names):
        """Returns {kind: path} of the outputs of an image; names is its (mask's file name, stem of the others)."""
        file_name, name = names
        ends = dict(zip(sources.PREDICTED, (
            file_name, name + '_mask_visual.png', name + '_overlay.png', name + '.npz', name + '.npz')))
        return {kind: os.path.join(folder, ends[kind]) for kind, folder in self.folders.items()}

    def _is_done(self, names):
        """Returns whether all outputs of an image exist."""
        return all(map(image_files.is_regular_file, self._outputs(names).values()))

    def _write(self, index, mask, scores):
        """Writes the outputs of an image.

        Args:
          index: of the image in paths.
          mask: uint8 [H, W].
          scores: float32 [H, W, num_classes] or None.

        Returns:
          None, or a sentence on why the image cannot be read again for its overlay.
        """
        outputs, (num_classes, _, palette) = self._outputs(self._names[index]), self._classes[:3]
        ids = train_ids_to_label_ids(mask) if self._label_ids else mask
        self._save(ids, outputs['prediction'], colours=self._colours)
        if 'visual_prediction' in outputs:
            colours = label_utils.decode_labels(mask[np.newaxis], 1, num_classes, palette)[0]
            self._save(colours, outputs['visual_prediction'])
        if 'logits' in outputs:
            self._save(scores, outputs['logits'], 'logits')
        if 'probabilities' in outputs:
            probabilities = scores if self._are_probabilities else softmax(scores)
            self._save(probabilities, outputs['probabilities'], 'probabilities')
        if 'overlay_prediction' in outputs:
            try:
                image = image_files.load_image(self.paths[index], self._image_format)
            except UserError as error:
                return str(error)
            if image.shape[:2] != mask.shape:
                return '%s: the image changed while it was predicted.' % quoted(self.paths[index])
            self._save(label_utils.overlay(image, mask, palette, num_classes), outputs['overlay_prediction'])
        return None

    def _save(self, values, path, name=None, colours=None):
        """Writes a picture, indexed if colours are given; or, under a name in an .npz, scores [H, W, num_classes]."""
        folder = os.path.dirname(path)
        if folder not in self._made:
            self._made.add(output_files.make_dir(folder, 'out_dir', follow=False))
        if name is None:
            output_files.save_image(values, path, colours)
        else:
            output_files.save_arrays({name: class_first(values)}, path)


def class_first(scores):
    """Returns scores [H, W, num_classes] as float16 [num_classes, H, W], clipped to float16's range."""
    return np.clip(scores, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16).transpose(2, 0, 1).copy()
