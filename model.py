"""Training, testing and predicting with one network; what multi-scale changes are a few methods of Model."""

import concurrent.futures
import contextlib
import os
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import network
from utils import label_utils, write_to_log
from utils.data import cityscapes_labels, data_check, data_lists, image_files
from utils.data.palette import load_palette
from utils.image_reader import ImageReader
from utils.net import compat, layers
from utils.prediction import metrics
from utils.system import command_line, output_files, runtime
from utils.system.errors import UserError
from utils.training import losses, optimizer
from utils.weights import checkpoints, pretrained

MAX_CHECKED_LABELS = 2000
SUMMARY_IMAGES = 4
FLOAT16_LOSS_SCALE = 128.0


@contextlib.contextmanager
def enough_memory(remedy):
    """Turns TensorFlow's report of exhausted memory into a UserError that says what to lower."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise UserError('out of memory (%s): lower %s.' % (error.message.split('\n')[0], remedy))


class Model(object):
    """Runs one option of the flags in `conf`: train(), test() or predict()."""

    def __init__(self, conf):
        """conf: the flags of main.py, or any object with their names as attributes."""
        self.conf = conf
        self.numerics = compat.with_input(compat.numerics(conf.compat), conf.channel_order, conf.img_mean)
        self.palette = load_palette(conf.palette, conf.num_classes)
        self.train_bn = not conf.pretrain_file if conf.train_bn is None else conf.train_bn

    # what multi-scale changes ------------------------------------------------------------------------------------

    def logits(self, net, images):
        """The logits that are trained, a list; the first is the one to predict with.

        Args:
          net: the network, built on `images`.
          images: [N, H, W, 3].

        Returns:
          [logits [N, h, w, num_classes]].
        """
        return [net.outputs]

    # train -------------------------------------------------------------------------------------------------------

    def train(self):
        """Trains from random or pre-trained weights for num_steps + 1 iterations, the last at rate 0."""
        conf = self.conf
        output_files.make_dir(conf.modeldir, 'modeldir')
        output_files.make_dir(conf.logdir, 'logdir')
        weights = pretrained.open_pretrained(conf.pretrain_file, conf.encoder_name) if conf.pretrain_file else None
        reader = self._reader(conf.data_list, need_labels=True)
        with tf.Graph().as_default():
            tf.set_random_seed(conf.random_seed)
            images, labels = reader.training_batch(
                conf.batch_size, (conf.input_height, conf.input_width), conf.random_scale, conf.random_mirror,
                self.numerics.scales)
            graph = self.training_graph(images, labels)
            with tf.Session(config=self._session_config()) as sess:
                self._start(sess, graph, weights)
                with reader.running(sess), enough_memory('--batch_size, --input_height or --input_width'):
                    self._train_loop(sess, graph)

    def training_graph(self, images, labels):
        """The tensors and ops of training on images [N, H, W, 3] and labels [N, H, W, 1] by name, a dict."""
        conf = self.conf
        net = self.network(images, phase=True)
        logits = self.logits(net, images)
        entropy = tf.add_n([losses.cross_entropy(one, labels, conf.num_classes, conf.ignore_label,
                                                 self.numerics.align_corners) for one in logits])
        decay = losses.weight_decay_loss(net.variables, conf.weight_decay)
        rate = tf.placeholder(tf.float32, [], 'learning_rate')
        update = optimizer.build_update(
            entropy, optimizer.rate_groups(net), rate, conf.momentum, conf.grad_update_every,
            net.update_ops(conf.bn_decay), FLOAT16_LOSS_SCALE if conf.mixed_precision else 1.0,
            conf.weight_decay, losses.decayed(net.variables))
        return {
            'net': net, 'rate': rate, 'update': update,
            'losses': {'loss/cross_entropy': entropy, 'loss/l2': decay, 'loss/total': entropy + decay},
            'pictures': (images, labels, self._prediction(logits[0], tf.shape(images)[1:3])),
            'saver': tf.train.Saver(net.variables + update.slots, max_to_keep=conf.max_to_keep),
            'finite': tf.reduce_all([tf.reduce_all(tf.is_finite(v)) for v in net.variables]),
        }

    def _start(self, sess, graph, weights):
        """Initial weights or those of the WeightsFile `weights`, and a fresh log."""
        conf = self.conf
        sess.run(tf.global_variables_initializer())
        if weights:
            print(pretrained.restore_pretrained(sess, graph['net'].variables, weights, conf.encoder_name,
                                                conf.restore_decoder))
            if weights.compat not in (None, conf.compat):
                print('note: these weights were made for --compat=%s, this run has --compat=%s' % (
                    weights.compat, conf.compat))
        print('batch norm is %s (--train_bn=%s; its default is to train without --pretrain_file only)' % (
            'trained' if self.train_bn else 'frozen', self.train_bn))
        steps = checkpoints.checkpoint_steps(conf.modeldir)
        if steps:
            print('%s holds checkpoints of an earlier run (%s): those of the same steps will be replaced' % (
                conf.modeldir, ', '.join(map(str, steps))))
        output_files.set_aside(conf.logfile, 'logfile')

    def _train_loop(self, sess, graph):
        conf = self.conf
        writer = tf.summary.FileWriter(conf.logdir, sess.graph)
        steps = range(conf.num_steps + 1)
        try:
            with tqdm(steps, desc='train', unit='step', mininterval=1.0) as bar:
                for step in bar:
                    saving = step % conf.save_interval == 0 or step == conf.num_steps
                    values = self.train_step(sess, graph, step, writer if saving else None)
                    self._check_loss(values['loss/total'], step)
                    write_to_log.write_log('%d, %f' % (step, values['loss/total']), conf.logfile)
                    writer.add_summary(write_to_log.scalar_summary(values), step)
                    bar.set_postfix(loss='%.3f' % values['loss/total'], refresh=False)
                    if saving:
                        self._save(sess, graph, step)
                        writer.flush()
        except KeyboardInterrupt:
            print('\ninterrupted in step %d: the weights are saved as %s' % (step, self._save(sess, graph, step)))
            raise
        finally:
            writer.close()
        print('trained: checkpoints in %s, losses in %s, TensorBoard in %s' % (
            conf.modeldir, conf.logfile, conf.logdir))

    def train_step(self, sess, graph, step, picture_writer=None):
        """One update of the weights; returns the step's scalars by tag, losses averaged over its iterations.

        Args:
          graph: what training_graph returned.
          picture_writer: a FileWriter for the step's pictures, or None.
        """
        conf, update = self.conf, graph['update']
        rate = optimizer.poly(conf.learning_rate, step, conf.num_steps, conf.power)
        feed, fetched = {graph['rate']: rate}, []
        started = time.time()
        if update.accumulate is None:
            fetches = [graph['losses'], update.apply] + ([graph['pictures']] if picture_writer else [])
            fetched.append(sess.run(fetches, feed))
        else:
            for i in range(conf.grad_update_every):
                last = picture_writer and i == conf.grad_update_every - 1
                fetched.append(sess.run([graph['losses'], update.accumulate]
                                        + ([graph['pictures']] if last else [])))
            sess.run(update.apply, feed)
        seconds = time.time() - started
        if picture_writer:
            self._write_pictures(picture_writer, fetched[-1][-1], step)
        values = {tag: np.mean([losses_[tag] for losses_ in (f[0] for f in fetched)]) for tag in graph['losses']}
        return dict(values, learning_rate=rate,
                    images_per_second=conf.batch_size * conf.grad_update_every / seconds)

    def _write_pictures(self, writer, pictures, step):
        """Input | label | prediction of the first images of the batch, in colour."""
        images, labels, predictions = pictures
        colours = [label_utils.decode_labels(mask, SUMMARY_IMAGES, self.conf.num_classes, self.palette)
                   for mask in (labels, predictions)]
        inputs = label_utils.inv_preprocess(images, SUMMARY_IMAGES, self.numerics.img_mean,
                                            self.numerics.channel_order)
        panel = write_to_log.side_by_side(inputs, *colours)  # [n, h, 3 * w, 3]
        writer.add_summary(write_to_log.image_summary('input_label_prediction', panel), step)

    def _check_loss(self, loss, step):
        if not np.isfinite(loss):
            self._diverged('the loss is %f at step %d' % (loss, step))

    def _diverged(self, what):
        steps = checkpoints.checkpoint_steps(self.conf.modeldir)
        kept = 'the checkpoints in %s are kept' % self.conf.modeldir if steps else 'no checkpoint was written'
        raise UserError('%s: training has diverged and stops (%s); lower --learning_rate=%g or, with weights that '
                        'are not pre-trained, train batch norm (--train_bn).' % (what, kept, self.conf.learning_rate))

    def _save(self, sess, graph, step):
        """Saves a checkpoint and returns its path; weights that are not finite never replace good ones."""
        if not sess.run(graph['finite']):
            self._diverged('a weight is not finite after step %d' % step)
        path = os.path.join(self.conf.modeldir, 'model.ckpt')
        try:
            return graph['saver'].save(sess, path, step, write_meta_graph=False)
        except tf.errors.OpError as error:
            raise UserError('%s-%d cannot be written (%s): free space or give another --modeldir.' % (
                path, step, error.message.split('\n')[0]))

    # test and predict --------------------------------------------------------------------------------------------

    def test(self):
        """Prints a checkpoint's scores and writes them with the confusion matrix to out_dir; returns the scores."""
        conf = self.conf
        output_files.make_dir(conf.out_dir, 'out_dir')
        prefix = checkpoints.find_checkpoint(conf.modeldir, conf.valid_step, 'valid_step')
        reader = self._reader(conf.valid_data_list, True, conf.valid_num_steps)
        matrix = np.zeros([conf.num_classes, conf.num_classes], np.int64)
        for _, label, prediction in self._predictions(reader, prefix, 'test'):
            matrix += metrics.confusion_matrix(label, prediction, conf.num_classes, conf.ignore_label)
        scores = metrics.scores(matrix)
        print(metrics.format_table(scores, self.palette.names))
        self._write_scores(matrix, scores, prefix)
        return scores

    def _write_scores(self, matrix, scores, prefix):
        conf = self.conf
        figures = {name: np.where(np.isnan(value), None, value).tolist() for name, value in scores.items()}
        figures.update(
            confusion_matrix=matrix.tolist(), classes=self.palette.names, checkpoint=prefix, list=conf.valid_data_list,
            flags={name: getattr(conf, name) for name in command_line.own_flags() if hasattr(conf, name)})
        path = os.path.join(conf.out_dir, 'metrics.json')
        output_files.save_json(figures, path)
        picture = os.path.join(conf.out_dir, 'confusion_matrix.png')
        metrics.plot_confusion_matrix(matrix, picture, self.palette.names)
        print('scores in %s and %s' % (path, picture))

    def predict(self):
        """Writes a grey mask of class indices and, with visual, one in colour for every image of the list."""
        conf = self.conf
        prefix = checkpoints.find_checkpoint(conf.modeldir, conf.test_step, 'test_step')
        reader = self._reader(conf.test_data_list, False, conf.test_num_steps)
        names = self._mask_names(reader.images)
        folders = self._output_folders()
        with concurrent.futures.ThreadPoolExecutor(1) as writer:  # writes behind the network
            written = []
            for index, _, prediction in self._predictions(reader, prefix, 'predict'):
                written.append(writer.submit(self._write_prediction, prediction, reader.images[index], names[index],
                                             folders))
                while len(written) > 8 or written and written[0].done():
                    written.pop(0).result()
            for one in written:
                one.result()
        print('%d predictions in %s' % (len(names), ' and '.join(folders[kind] for kind in sorted(folders))))

    def _mask_names(self, images):
        """(name of the mask, name that its pictures start with) of each image."""
        if self.conf.id_format == 'labelIds':
            if self.conf.num_classes != len(cityscapes_labels.CLASSES):
                raise UserError("--id_format=labelIds is for Cityscapes' %d classes, not --num_classes=%d." % (
                    len(cityscapes_labels.CLASSES), self.conf.num_classes))
            return [(cityscapes_labels.server_name(image), cityscapes_labels.frame_key(image)) for image in images]
        return [(name + '_mask.png', name) for name in data_lists.output_names(images)]

    def _output_folders(self):
        """{kind of output: folder} of the outputs that the flags ask for; the folders are made."""
        wanted = {'prediction': True, 'visual_prediction': self.conf.visual, 'overlay_prediction': self.conf.overlay}
        return {kind: output_files.make_dir(os.path.join(self.conf.out_dir, kind), 'out_dir')
                for kind, asked in wanted.items() if asked}

    def _write_prediction(self, prediction, image, names, folders):
        """Writes the mask [H, W] of an image and its pictures."""
        num_classes, mask = self.conf.num_classes, prediction.astype(np.uint8)
        ids = cityscapes_labels.train_ids_to_label_ids(mask) if self.conf.id_format == 'labelIds' else mask
        output_files.save_image(ids, os.path.join(folders['prediction'], names[0]))
        if 'visual_prediction' in folders:
            colours = label_utils.decode_labels(mask[np.newaxis], 1, num_classes, self.palette)[0]
            output_files.save_image(colours, os.path.join(folders['visual_prediction'], names[1] + '_mask_visual.png'))
        if 'overlay_prediction' in folders:
            picture = label_utils.overlay(image_files.load_image(image), mask, self.palette, num_classes)
            output_files.save_image(picture, os.path.join(folders['overlay_prediction'], names[1] + '_overlay.png'))

    def _predictions(self, reader, prefix, desc):
        """Yields (index in the list, label [H, W], prediction [H, W]) of every image, in the order they come."""
        with tf.Graph().as_default():
            image, label, index = reader.single()  # [1, H, W, 3], [1, H, W, 1], [1]
            net, prediction = self.inference(image)
            fold = net.fold_ops()
            with tf.Session(config=self._session_config(one_op_at_a_time=True)) as sess:
                checkpoints.restore_checkpoint(sess, net.variables, prefix)
                sess.run(fold)
                print('%s with %s' % (desc, prefix))
                with reader.running(sess), enough_memory('the size of the images'):
                    for _ in tqdm(reader.images, desc=desc, unit='image', mininterval=1.0):
                        i, truth, guess = sess.run([index, label, prediction])
                        yield i[0], truth[0, :, :, 0], guess[0]

    # check -------------------------------------------------------------------------------------------------------

    def check(self):
        """Reads every file of the three lists and reports; UserError if training, testing or predicting would fail."""
        conf, problems, checked = self.conf, 0, set()
        for flag in ('data_list', 'valid_data_list', 'test_data_list'):
            data_list = getattr(conf, flag)
            if data_list in checked:
                continue
            checked.add(data_list)
            if flag != 'data_list' and not os.path.exists(data_list):
                print('there is no --%s=%s' % (flag, data_list))
                continue
            images, labels = data_lists.read_labeled_image_list(conf.data_dir, data_list)
            result = self._check(images, labels, data_list)
            if flag == 'data_list':
                bare = [image for image, label in zip(images, labels) if not label]
                result.problems.extend('%s has no label in the list.' % image for image in bare)
            print('%s (--%s)' % (data_list, flag))
            data_check.print_report(result, self.palette)
            problems += len(result.problems)
        if problems:
            raise UserError('the data has %d problems, listed above: mend files, lists or flags.' % problems)
        print('all files are as they should be')

    # shared ------------------------------------------------------------------------------------------------------

    def network(self, images, phase, **settings):
        """The network of encoder_name on images [N, H, W, 3]."""
        conf = self.conf
        settings.update(num_classes=conf.num_classes, phase=phase, dilated_type=conf.dilated_type,
                        compat=conf.compat, train_bn=phase and self.train_bn)
        if conf.encoder_name == 'deeplab':
            return network.Deeplab_v2(images, **settings)
        return network.ResNet_segmentation(images, encoder_name=conf.encoder_name, **settings)

    def inference(self, images):
        """The network in prediction: images [N, H, W, 3] -> (net, class indices int32 [N, H, W]).

        net.fold_ops() must run once after the variables were restored.
        """
        padded = layers.pad_to_multiple(images, self.numerics.test_multiple)
        net = self.network(padded, phase=False, fold_in_place=True)
        prediction = self._prediction(self.logits(net, padded)[0], tf.shape(padded)[1:3])
        size = tf.shape(images)
        return net, prediction[:, :size[1], :size[2]]

    def _prediction(self, logits, size):
        """Class indices at the images' size: [N, h, w, num_classes] -> int32 [N, H, W]."""
        return tf.argmax(layers.resize(logits, size, self.numerics.align_corners), axis=3, output_type=tf.int32)

    def _reader(self, data_list, need_labels, num_steps=None):
        """An ImageReader over a list whose files were checked; only its first num_steps lines if given."""
        conf = self.conf
        images, labels = data_lists.read_labeled_image_list(conf.data_dir, data_list)
        if num_steps is not None and num_steps > len(images):
            print('%s has %d lines only, so all of them are used once' % (data_list, len(images)), file=sys.stderr)
        images, labels = images[:num_steps], labels[:num_steps]
        if not need_labels:
            labels = [''] * len(images)
        data_lists.check_files_exist(images, labels, need_labels)
        if conf.check_labels and len(images) <= MAX_CHECKED_LABELS:
            data_check.raise_on_problems(self._check(images, labels, data_list))
        return ImageReader(images, labels, self.numerics.img_mean, self.numerics.channel_order, conf.num_classes,
                           conf.ignore_label, self._label_palette(), conf.num_threads)

    def _check(self, images, labels, data_list):
        conf = self.conf
        return data_check.check_pairs(images, labels, conf.num_classes, conf.ignore_label, self._label_palette(),
                                      conf.num_threads, desc='check ' + data_list)

    def _session_config(self, one_op_at_a_time=False):
        return runtime.session_config(one_op_at_a_time, self.conf.xla, self.conf.mixed_precision)

    def _label_palette(self):
        """The palette to read colour-coded labels with: only one that the user named."""
        return self.palette if self.conf.palette else None
