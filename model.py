"""Training, testing and predicting with one network; what multi-scale changes is one method of Model."""

import contextlib
import dataclasses
import functools

import tensorflow.compat.v1 as tf

import network
from utils import write_to_log
from utils.data import augment, sources
from utils.data.palette import load_classes
from utils.distributed import devices
from utils.image_reader import ImageReader
from utils.net import compat, layers
from utils.prediction import crf, export, masks, metrics, report
from utils.prediction.predictor import VALIDATION, Predictor, Scoring, class_map
from utils.system import memory, output_files, precision, runtime
from utils.system.cluster import Cluster
from utils.training import class_weights, loop, losses, optimizer, records, run_folder
from utils.training.start import Start, trains_bn
from utils.training.towers import Loss, Towers
from utils.weights import checkpoints, run_settings

FLOAT16_LOSS_SCALE = 128.0


class Model(object):
    """Runs one option of the flags in `conf`: train(), test(), predict(), export() or check()."""

    def __init__(self, conf, cluster=None):
        """conf: the flags of main.py, or any object with their names as attributes; cluster: the Cluster to work on."""
        self.conf, self.cluster = conf, cluster or Cluster()
        self.numerics = compat.numerics(conf.compat)
        self.classes = load_classes(conf.num_classes, conf.ignore_label, conf.palette)
        self.train_bn = trains_bn(conf)
        self.precision = precision.chosen(conf.mixed_precision)
        self.towers = Towers(conf.num_gpus, self.cluster, conf.variables_on)

    def logits(self, net, images):
        """The logits that are trained, a list; the first is the one to predict with. Multi-scale overrides this.

        Args:
          net: the network, built on `images`.
          images: [N, H, W, 3].

        Returns:
          [logits [N, h, w, num_classes]].
        """
        return [net.outputs]

    # what to do --------------------------------------------------------------------------------------------------

    def train(self):
        """Trains up to step num_steps, whose rate is 0, from the newest checkpoint or from step 0."""
        conf = self.conf
        self.towers.check_batch(conf.batch_size)
        settings = run_folder.deciding(conf, type(self).__name__, len(self.towers.devices) if self.train_bn else 1)
        folder = run_folder.RunFolder(conf.modeldir, settings)
        with folder.locked():
            output_files.make_dir(conf.logdir, 'logdir')
            output_files.check_file(conf.logfile, 'logfile')
            start, log = self._start(folder)
            if start.finished(log.mean_iou):
                return
            data, starts = self._training_data(start.input), [(start, log)]
            self.cluster.lasting(lambda: self._train(folder, data, *(starts.pop() if starts else self._start(folder))))

    def _start(self, folder):
        """(a Start, Records that know the steps before it) from a RunFolder."""
        start = Start(self.conf, folder)
        log = records.Records(self.conf, folder.run_id, self.classes)
        log.read(start.step)
        return start, log

    def _train(self, folder, data, start, log):
        """Trains from a Start on."""
        conf, (net_input, reader, weights_of_classes, validation) = self.conf, data
        draw_panel = functools.partial(write_to_log.panel, classes=self.classes, net_input=net_input)
        with tf.Graph().as_default():
            tf.set_random_seed(conf.random_seed)
            with self.towers.chief():
                images, labels = reader.training_batch(conf.batch_size, augment.chosen(conf, self.numerics.scales))
            graph = self.training_graph(images, labels, weights_of_classes)
            with self.cluster.session(self._session_config()) as sess, contextlib.closing(log):
                self.towers.check_devices(sess)
                start.load(sess, graph, net_input)
                print('batch norm is %s (--train_bn=%s; its default is to train without --pretrain_file only)' % (
                    'trained' if self.train_bn else 'frozen', self.train_bn))
                folder.start(graph.saver, start.step, net_input)
                log.open(start.step, sess.graph)
                with memory.enough_for('--batch_size, --input_height or --input_width'), reader.running(
                        sess, start.step * conf.batch_size * conf.grad_update_every):
                    loop.run(sess, graph, conf, loop.Reports(folder, log, draw_panel, validation), start.step)

    def test(self):
        """Scores a checkpoint on the validation list.

        Writes metrics.json, confusion_matrix.png and, with report, report.html to out_dir, and prints the scores.

        Returns:
          the dict of metrics.scores.

        Raises:
          UserError: there is no such checkpoint, or it, an image, a label or an output has a fault.
        """
        conf, refinement = self.conf, crf.settings_from_flags(self.conf)
        output_files.make_dir(conf.out_dir, 'out_dir')
        weights = checkpoints.find_checkpoint(conf.modeldir, conf.valid_step, 'valid_step')
        reader = self._reader('valid_data_list', self._trained_input(), conf.valid_num_steps)
        page = report.Report(conf, self.classes, reader.images) if conf.report else None

        predictions = self._predictions(reader, weights, 'test', self._scoring(), refinement)
        if page:
            predictions = page.watched(predictions)
        matrix = metrics.count(predictions, self.classes)

        scores = metrics.write_scores(conf, matrix, weights, self.classes)
        if page:
            page.write(matrix, weights)
        return scores

    def predict(self):
        """Writes the mask of every image that can be read, and what else the flags ask for, to out_dir.

        Raises:
          UserError: there is no such checkpoint, it or an output has a fault or, after all other masks are written,
            images could not be read.
        """
        conf, refinement, scoring = self.conf, crf.settings_from_flags(self.conf), self._scoring()
        weights = checkpoints.find_checkpoint(conf.modeldir, conf.test_step, 'test_step')
        net_input = self._trained_input()
        writer = masks.MaskWriter(conf, self.classes, sources.open_images(conf), scoring.gives_probabilities)
        if not writer.paths:
            self.cluster.dismiss()
            return
        reader = ImageReader(writer.paths, [''] * len(writer.paths), self.classes, net_input, conf.num_threads)
        writer.write_all(self._predictions(reader, weights, 'predict', scoring, refinement, writer.needs_scores))

    def export(self):
        """Writes a checkpoint's network, from pictures to masks, to export_dir, for use without this repo.

        Raises:
          UserError: there is no such checkpoint, it has a fault, or export_dir cannot be written.
        """
        conf = self.conf
        export.check(conf)
        weights = checkpoints.find_checkpoint(conf.modeldir, conf.test_step, 'test_step')
        print('export with %s' % weights)
        export.write(conf, self.scores, weights, self._trained_input(), self.classes)

    def check(self):
        """Reads every file of the three lists and reports; UserError if training, testing or predicting would fail."""
        sources.check_lists(self.conf, self.classes)

    # graphs ------------------------------------------------------------------------------------------------------

    def network(self, images, phase, batch_norm):
        """The network of encoder_name on images [N, H, W, 3]; batch_norm is one of layers.BATCH_NORM."""
        conf = self.conf
        return network.build(conf.encoder_name, images, num_classes=conf.num_classes, phase=phase,
                             dilated_type=conf.dilated_type, compat=conf.compat, batch_norm=batch_norm)

    def training_graph(self, images, labels, weights_of_classes=None):
        """The loop.TrainingGraph on images [N, H, W, 3] and labels [N, H, W, 1]; weights [num_classes] of the loss."""
        conf, align_corners = self.conf, self.numerics.align_corners
        trained = 'trained' if self.train_bn else 'frozen'
        towers = self.towers

        def tower(part, first):
            net = first.on(part[0]) if first else self.network(part[0], phase=True, batch_norm=trained)
            logits = self.logits(net, part[0])
            return net, logits[0], [losses.pixel_losses(one, part[1], self.classes, align_corners) for one in logits]

        with towers.chief():
            net, logits, pixels, parts = towers.build(images, labels, tower)
            weighting = losses.Weighting(weights_of_classes, conf.ohem_fraction if conf.loss == 'ohem' else 1.0)
            entropy = layers.ordered_sum([losses.mean_loss(one, weighting) for one in pixels])
            decay = losses.weight_decay_loss(net.variables, conf.weight_decay)
            rate = tf.placeholder(tf.float32, [], 'learning_rate')
            with tf.control_dependencies([decay]):  # or it would be of weights before or after the update, by chance
                update_rate = tf.identity(rate)
            settings = optimizer.Settings(
                conf.momentum, conf.grad_update_every, conf.weight_decay,
                FLOAT16_LOSS_SCALE if self.precision == 'float16' else 1.0, conf.bn_decay)
            groups = optimizer.rate_groups(net, conf.decoder_rate, conf.freeze_encoder)
            update = optimizer.build_update(Loss(entropy, parts), groups, update_rate, settings,
                                            net.statistics(), losses.decayed(net.variables))
            full_size = layers.resize(logits, tf.shape(images)[1:3], align_corners)
            return loop.TrainingGraph(
                net=net, rate=rate, update=update,
                losses={'loss/cross_entropy': entropy, 'loss/l2': decay, 'loss/total': entropy + decay},
                pictures=(images, labels, class_map(full_size)),
                finite=loop.all_finite(net.variables),
                saver=tf.train.Saver(net.variables + update.slots, max_to_keep=conf.max_to_keep))

    def scores(self, images):
        """Builds the network for prediction; its fold_ops() must run once after its variables are restored.

        Args:
          images: float32 [N, H, W, 3], minus the mean.

        Returns:
          (network, logits float32 [N, H, W, num_classes]).
        """
        padded = layers.pad_to_multiple(images, self.numerics.test_multiple)
        net = self.network(padded, phase=False, batch_norm='folded')
        full_size = layers.resize(self.logits(net, padded)[0], tf.shape(padded)[1:3], self.numerics.align_corners)
        if padded is not images:
            full_size = layers.crop_to(full_size, tf.shape(images)[1:3])
        return net, full_size

    # parts -------------------------------------------------------------------------------------------------------

    def _input(self, known):
        """The compat.Input that the flags choose; by default that of the weights, if it is known, or of the mode."""
        conf = self.conf
        return compat.chosen_input(known or self.numerics.input, conf.channel_order, conf.img_mean)

    def _trained_input(self):
        """Returns the compat.Input for the checkpoints of modeldir: by default that of their training."""
        conf = self.conf
        trained = run_settings.read(conf.modeldir)
        if trained:
            run_settings.compare(conf.modeldir, trained['flags'], run_folder.values(conf, run_settings.COMPARED))
        return self._input(trained.get('input'))

    def _reader(self, flag, net_input, num_steps=None):
        """Returns an ImageReader over the list that a flag names, after a check of its files."""
        conf = self.conf
        source = sources.open_source(conf, self.classes, flag, num_steps)
        return ImageReader(source.images, source.labels, self.classes, net_input, conf.num_threads, conf.random_seed)

    def _training_data(self, known):
        """A loop.Data; known: the compat.Input of the weights to start from, or None."""
        conf, net_input = self.conf, self._input(known)
        reader = self._reader('data_list', net_input)
        weights = class_weights.load(conf.class_weights, self.classes, reader.images, reader.labels, conf.num_threads)
        return loop.Data(net_input, reader, weights, self._validation(net_input))

    def _session_config(self):
        return precision.configure(runtime.session_config(self.conf.xla, self.conf.num_gpus), self.precision)

    def _scoring(self):
        """Returns the Scoring of test and predict."""
        conf = self.conf
        return Scoring(tuple(conf.eval_scales), conf.eval_flip, conf.eval_merge, conf.window, conf.overlap)

    def _predictor(self, scoring):
        return Predictor(self.scores, scoring, self.numerics.align_corners, self._session_config())

    def _predictions(self, reader, weights, option, scoring, refinement=None, keep_scores=False):
        """Yields the Prediction of each of the reader's images, for test or predict.

        Args:
          reader: an ImageReader.
          weights: the prefix of a checkpoint.
          option: 'test', in which an image that cannot be read is a UserError, or 'predict', in which it is a fault.
          scoring: a Scoring.
          refinement: the crf.Settings to refine the class maps with, or None.
          keep_scores: whether the Predictions hold their scores.
        """
        print('%s with %s' % (option, weights))
        tolerant = option == 'predict'
        predictor = self._predictor(dataclasses.replace(scoring, keep_scores=keep_scores or refinement is not None))
        if len(self.towers.devices) > 1:
            predictions = devices.predictions(predictor, reader, weights, option, self.towers, tolerant)
        else:
            predictions = predictor.predictions(reader, weights, option, tolerant)
        if refinement is None:
            return predictions
        work = crf.Work(self.conf.num_threads, crf.USED * memory.free(), keep_scores)
        return crf.refined(predictions, reader.images, scoring.gives_probabilities, refinement, work)

    def _validation(self, net_input):
        """Returns the function that validates during a training, None without validations.

        It takes {name: array} of the network's variables and a function that says whether to stop, and returns the
        dict of metrics.scores, or None if it was stopped. Its graph is built once, for the first validation.
        """
        conf = self.conf
        if not conf.valid_interval:
            return None
        reader = self._reader('valid_data_list', net_input, conf.valid_num_steps)
        predictor = self._predictor(Scoring(window=conf.window, overlap=conf.overlap))

        def validate(values, stopped):
            matrix = metrics.count(predictor.predictions(reader, values, VALIDATION), self.classes, stopped)
            return None if stopped() else metrics.scores(matrix)

        return validate
