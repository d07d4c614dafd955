"""Trains, tests, predicts and exports with one network. Multi-scale (model_msc.py) overrides only Model.logits."""

import collections
import dataclasses
import functools
import time
import typing

import numpy as np
import tensorflow.compat.v1 as tf

import network
from utils import write_to_log
from utils.data import augment, sources
from utils.data.palette import load_classes
from utils.data.pixels import format_from_flags
from utils.distributed import devices, towers
from utils.distributed.cluster import Cluster
from utils.image_reader import ImageReader
from utils.net import compat, layers
from utils.prediction import crf, export, masks, metrics, report
from utils.prediction.predictor import VALIDATION, Predictor, Scoring, class_map
from utils.system import memory, output_files, runtime
from utils.system.errors import UserError
from utils.training import losses, optimizer
from utils.training.run import Run, TrainingGraph, all_finite, trains_batch_norm
from utils.weights import run_settings
from utils.weights import trained as trained_weights

FLOAT16_LOSS_SCALE = 128.0
# A session raises one of these when its reader's threads have stopped because a file cannot be read.
READER_ENDED = (tf.errors.OutOfRangeError, tf.errors.CancelledError)


class Validation(typing.NamedTuple):
    """The parts that score the weights during training."""
    reader: ImageReader   # reads the validation list
    predictor: Predictor  # its graph is built once, for the first validation


class Model(object):
    """Runs one option of the flags in `conf`: train(), test(), predict(), export() or check()."""

    def __init__(self, conf, cluster=None):
        """
        Args:
          conf: the flags of main.py, or any object that has them as attributes.
          cluster: the Cluster to run on; by default this machine alone.
        """
        self.cluster = cluster or Cluster()
        self._configure(conf)
        self.train_bn = trains_batch_norm(conf)
        self.precision = runtime.precision_from_flag(conf.mixed_precision)
        self.towers = towers.Towers(conf.num_gpus, self.cluster, conf.variables_on)

    def _configure(self, conf):
        """Stores the flags and the attributes that are derived from them."""
        self.conf, self._classes = conf, None
        self.numerics = compat.numerics(conf.compat)
        self.image_format = format_from_flags(conf)

    @property
    def classes(self):
        """Returns the Classes that the flags choose; read at first use, as the weights may set their number before."""
        if self._classes is None:
            conf = self.conf
            self._classes = load_classes(conf.num_classes, conf.ignore_label, conf.palette, conf.label_map)
        return self._classes

    def logits(self, net, images):
        """Returns a list of the logits on which the loss is computed; predictions use the first.

        Multi-scale overrides this method.

        Args:
          net: the network, built on `images`.
          images: [N, H, W, 3].

        Returns:
          a list of one tensor, logits [N, h, w, num_classes].
        """
        return [net.outputs]

    # train -------------------------------------------------------------------------------------------------------

    def train(self):
        """Trains up to step num_steps, from the newest checkpoint in modeldir, pre-trained weights or random weights.

        Raises:
          UserError: a file that the flags name is missing, faulty or not writable, or training has diverged.
          interrupts.Interrupted: a signal stopped the training, after its weights were saved.
        """
        conf = self.conf
        self.towers.check_batch(conf.batch_size)
        settings = run_settings.settings_from_flags(
            conf, model=type(self).__name__, towers=len(self.towers.devices) if self.train_bn else 1)
        with Run(conf, settings, self.classes, self.towers) as run:
            if run.finished():
                return

            # Data.
            net_input = self._input(run.input)
            reader = self._reader('data_list', net_input)
            class_weights = losses.load_class_weights(
                conf.class_weights, self.classes, reader.images, reader.labels, conf.num_threads, self.image_format)
            validation = None
            if conf.valid_interval:
                scoring = Scoring(window=conf.window, overlap=conf.overlap, with_loss=True,
                                  ignore_label=self.classes.ignore_label)
                validation = Validation(self._reader('valid_data_list', net_input, conf.valid_num_steps),
                                        self._predictor(scoring))

            for attempt in run.attempts():  # one, plus another each time a machine is lost
                with attempt, tf.Graph().as_default():
                    tf.set_random_seed(conf.random_seed)

                    # Network, loss and update.
                    with self.towers.chief():
                        augmentation = augment.augmentation_from_flags(conf, self.numerics.scales)
                        images, labels = reader.training_batch(conf.batch_size, augmentation)
                    graph = self.training_graph(images, labels, class_weights)
                    print('batch norm is %s (--train_bn=%s; by default it is trained only without --pretrain_file)' % (
                        'trained' if self.train_bn else 'frozen', self.train_bn))

                    # Loop.
                    first_image = run.first_step * conf.batch_size * conf.grad_update_every
                    with run.session(graph, net_input, self._session_config()) as sess, \
                            reader.running(sess, first_image):
                        if run.lacks_validation():
                            self.validate(sess, graph.net, run, validation, run.first_step - 1)
                        for step in run.steps():
                            saving = run.is_due(step, conf.save_interval)
                            try:
                                values, pictures = self.train_step(sess, graph, step, with_pictures=saving)
                            except READER_ENDED:  # reader.running turns it into an error that names the file
                                run.save_unfinished(step)
                                raise
                            panels = write_to_log.panel(pictures, self.classes, net_input) if saving else ()
                            run.log(step, values, panels)
                            if saving:
                                run.save(step)
                            if run.is_due(step, conf.valid_interval) and not run.signal.number:
                                self.validate(sess, graph.net, run, validation, step)

    def training_graph(self, images, labels, class_weights=None):
        """Builds the network, the loss and the update.

        Args:
          images: [N, H, W, 3], minus the mean.
          labels: integer [N, H, W, 1].
          class_weights: [num_classes] numbers, or None.

        Returns:
          a TrainingGraph.
        """
        conf, align_corners = self.conf, self.numerics.align_corners
        with self.towers.chief():
            # Network: one, or on each device a tower that shares the variables and takes a part of the batch.
            net, parts = None, []
            faster = {'Conv2D': layers.PRODUCTS} if self.precision == 'bfloat16' else {}
            for place, part in self.towers.split(images):
                with place, tf.get_default_graph().gradient_override_map(faster):
                    tower = net.on(part) if net else self.network(
                        part, phase=True, batch_norm='trained' if self.train_bn else 'frozen')
                    parts.append(self.logits(tower, part) + tower.auxiliary)
                net = net or tower
            outputs = towers.joined(parts)  # a list of [N, h, w, num_classes]; predictions use the first
            count = len(outputs) - len(net.auxiliary)
            logits, auxiliary = outputs[:count], outputs[count:]

            # Loss: the terms of --loss and weight decay. Any function of logits and labels may be added as a term.
            terms = losses.loss_terms(
                losses.LOSSES[conf.loss], logits, labels, self.classes, class_weights, conf, align_corners)
            if auxiliary:
                term = losses.Term('auxiliary', losses.cross_entropy, net.decoder.auxiliary_factor)
                terms.update(losses.loss_terms(
                    [term], auxiliary, labels, self.classes, class_weights, conf, align_corners))
            loss = functools.reduce(tf.add, terms.values())
            decay = losses.total_weight_decay(net.variables, conf.weight_decay)
            if conf.optimizer in optimizer.DECOUPLED_DECAY:  # its weight decay is not part of the loss
                decay = tf.zeros([])

            # Update: the gradients of the loss; the optimizer adds the weight decay.
            rate = tf.placeholder(tf.float32, [], 'learning_rate')
            with tf.control_dependencies([decay]):  # so that the logged decay is computed before the update
                update_rate = tf.identity(rate)
            groups = optimizer.rate_groups(net, conf)
            variables = [v for members, _ in groups for v in members]
            loss_scale = FLOAT16_LOSS_SCALE if self.precision == 'float16' else 1.0
            gradients = towers.gradients(loss * loss_scale if loss_scale != 1 else loss, variables, parts)
            update = optimizer.build_update(groups, gradients, update_rate, conf, net.statistics(), loss_scale)

            logged = collections.OrderedDict(('loss/' + name, term) for name, term in terms.items())
            logged['loss/l2'], logged['loss/total'] = decay, loss + decay
            full_size = layers.resize(logits[0], tf.shape(images)[1:3], align_corners)
            return TrainingGraph(
                net=net, rate=rate, update=update, losses=logged,
                pictures=(images, labels, class_map(full_size)), finite=all_finite(net.variables),
                saver=tf.train.Saver(net.variables + update.state, max_to_keep=conf.max_to_keep))

    def train_step(self, sess, graph, step, with_pictures=False):
        """Updates the weights once, with the gradients of grad_update_every iterations.

        Args:
          sess: a tf.Session of the graph.
          graph: a TrainingGraph.
          step: the number of the step, which decides the learning rate.
          with_pictures: whether to return the pictures too.

        Returns:
          (values, pictures): values is {tag: number} of the losses, averaged over the iterations, and of records.RATES;
          pictures are graph.pictures of the last iteration as arrays, or None unless with_pictures.
        """
        every, rate = self.conf.grad_update_every, optimizer.learning_rate(step, self.conf)
        gradient = graph.update.accumulate if every > 1 else graph.update.apply
        fetched, started = [], time.time()
        for iteration in range(every):
            fetches = {'losses': graph.losses, 'gradient': gradient}
            if with_pictures and iteration == every - 1:
                fetches['pictures'] = graph.pictures
            fetched.append(sess.run(fetches, {graph.rate: rate}))
        if every > 1:
            sess.run(graph.update.apply, {graph.rate: rate})
        seconds = time.time() - started
        values = {tag: np.mean([one['losses'][tag] for one in fetched]) for tag in graph.losses}
        values.update(learning_rate=rate, images_per_second=self.conf.batch_size * every / seconds)
        return values, fetched[-1].get('pictures')

    def validate(self, sess, net, run, validation, step):
        """Scores the weights after `step` on the validation list; records nothing if a signal arrives first.

        Raises:
          UserError: an image or a label of the list cannot be read; the weights are saved first.
        """
        weights = dict(zip([v.op.name for v in net.variables], sess.run(net.variables)))
        try:
            predictions = validation.predictor.predictions(validation.reader, weights, VALIDATION)
            matrix, loss = metrics.count(predictions, self.classes, stopped=lambda: run.signal.number)
        except UserError:  # a file of the list cannot be read, but the step itself is complete: keep it
            run.save(step)
            raise
        if not run.signal.number:
            scores = metrics.scores(matrix, self.classes.ignore_label)
            note = metrics.describe_predictions(matrix, self.classes) if matrix.any() else (
                'no pixel of --valid_data_list counts, so there are no scores and no best checkpoint.')
            run.log_scores(step, dict(scores, loss=float(metrics.ratio(loss, matrix.sum())), note=note))

    # test, predict, export, check ----------------------------------------------------------------------------------

    def test(self):
        """Scores a checkpoint on the validation list.

        Writes metrics.json, confusion_matrix.png and, with report, report.html to out_dir, and prints the scores.

        Returns:
          the dict that metrics.scores returns.

        Raises:
          UserError: the checkpoint is missing or damaged, an image or a label cannot be read, or an output cannot be
            written.
        """
        conf, refinement = self.conf, crf.settings_from_flags(self.conf)
        output_files.make_dir(conf.out_dir, 'out_dir')
        weights = trained_weights.find_weights(conf, 'valid_step')
        net_input, trained = self._follow_training('test', weights)
        conf = self.conf
        reader = self._reader('valid_data_list', net_input, conf.valid_num_steps)
        page = report.Report(conf, self.classes, reader.images, self.image_format) if conf.report else None

        predictions = self._predictions(reader, weights, 'test', self._scoring(), refinement)
        if page:
            predictions = page.watched(predictions)
        matrix, _ = metrics.count(predictions, self.classes)

        scores = metrics.write_scores(conf, matrix, weights, self.classes, trained)
        if page:
            page.write(matrix, weights, trained)
        return scores

    def predict(self):
        """Writes the mask of every readable image, and any further outputs that the flags ask for, to out_dir.

        Raises:
          UserError: the checkpoint is missing or damaged or an output cannot be written; or some images could not be
            read, which is reported after all other masks are written.
        """
        conf, refinement = self.conf, crf.settings_from_flags(self.conf)
        weights = trained_weights.find_weights(conf, 'test_step')
        net_input, _ = self._follow_training('predict', weights)
        conf, scoring = self.conf, dataclasses.replace(self._scoring(), unknown_below=conf.unknown_below)
        writer = masks.MaskWriter(conf, self.classes, sources.images_to_predict(conf), scoring.gives_probabilities,
                                  self.image_format)
        if not writer.paths:
            self.cluster.dismiss()
            return
        reader = ImageReader(writer.paths, [''] * len(writer.paths), self.classes, net_input, conf.num_threads,
                             image_format=self.image_format)
        writer.write_all(self._predictions(reader, weights, 'predict', scoring, refinement, writer.needs_scores))

    def export(self):
        """Writes the network of a checkpoint, from images to masks, to export_dir, for use without this repo.

        Raises:
          UserError: the checkpoint is missing or damaged, or export_dir cannot be written.
        """
        conf = self.conf
        export.check(conf)
        weights = trained_weights.find_weights(conf, 'test_step')
        print('export with %s' % weights)
        net_input, _ = self._follow_training('export', weights)
        conf = self.conf
        export.write(conf, self.scores, weights, net_input, self.classes, self.image_format)

    def check(self):
        """Reads every file in the three lists and prints a report.

        Raises:
          UserError: training, testing or predicting would fail.
        """
        sources.check_lists(self.conf, self.classes)

    # graphs ------------------------------------------------------------------------------------------------------

    def network(self, images, phase, batch_norm):
        """Builds the network that the flags choose on float32 images [N, H, W, 3].

        Args:
          images: float32 [N, H, W, 3], minus the mean.
          phase: True in training.
          batch_norm: one of layers.BATCH_NORM.
        """
        return network.build(images=images, phase=phase, compat=self.conf.compat, batch_norm=batch_norm,
                             **run_settings.network_settings(self.conf))

    def scores(self, images):
        """Builds the network for prediction, with logits at the size of the images.

        Its variables must be set to the values that net.folded computes from a checkpoint's.

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
        """Returns the compat.Input that the flags choose.

        Args:
          known: the compat.Input of the weights, used as the default; None to use the default of --compat.
        """
        conf = self.conf
        return compat.input_from_flags(known or self.numerics.input, conf.channel_order, conf.img_mean)

    def _follow_training(self, option, weights=None):
        """Checks given flags against the training of the weights, and takes the other flags' values from it.

        Args:
          option: the value of --option.
          weights: the path that trained.find_weights returned; used only with --weights.

        Returns:
          (the compat.Input of the network, {name: value} of the training's flags, None if they are unknown).
        """
        trained = trained_weights.describe(self.conf, weights)
        self._configure(trained_weights.follow(self.conf, trained, option))
        return self._input(trained.input), trained.settings

    def _reader(self, flag, net_input, num_steps=None):
        """Checks the files of the list that a flag names and returns an ImageReader of them."""
        conf = self.conf
        source = sources.labelled_list(conf, self.classes, flag, num_steps)
        return ImageReader(source.images, source.labels, self.classes, net_input, conf.num_threads, conf.random_seed,
                           self.image_format)

    def _session_config(self):
        return runtime.set_precision(runtime.session_config(self.conf.xla, self.conf.num_gpus), self.precision)

    def _scoring(self):
        """Returns the Scoring that the flags choose for test and predict."""
        conf = self.conf
        return Scoring(tuple(conf.eval_scales), conf.eval_flip, conf.eval_merge, conf.window, conf.overlap,
                       ignore_label=self.classes.ignore_label)

    def _predictor(self, scoring):
        return Predictor(self.scores, scoring, self.numerics.align_corners, self._session_config())

    def _predictions(self, reader, weights, option, scoring, refinement=None, keep_scores=False):
        """Returns a generator of the Predictions of the reader's images, for test or predict.

        Args:
          reader: an ImageReader.
          weights: the prefix of a checkpoint.
          option: 'test', where an image that cannot be read raises a UserError, or 'predict', where it becomes a
            Prediction with a fault.
          scoring: a Scoring.
          refinement: the crf.Settings to refine the class maps with, or None.
          keep_scores: whether the Predictions hold the scores.
        """
        print('%s with %s' % (option, weights))
        tolerant = option == 'predict'
        unknown = (scoring.unknown_below, scoring.ignore_label) if scoring.unknown_below else None
        if refinement is not None:
            scoring = dataclasses.replace(scoring, unknown_below=0.0)  # the CRF's probabilities decide
        predictor = self._predictor(dataclasses.replace(scoring, keep_scores=keep_scores or refinement is not None))
        if len(self.towers.devices) > 1:
            predictions = devices.predictions(predictor, reader, weights, option, self.towers, tolerant)
        else:
            predictions = predictor.predictions(reader, weights, option, tolerant)
        if refinement is None:
            return predictions
        work = crf.Work(self.conf.num_threads, crf.USED * memory.free(), keep_scores)
        return crf.refined(
            predictions, reader.images, scoring.gives_probabilities, refinement, work, self.image_format, unknown)
