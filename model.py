"""Training, testing and predicting with one network; what multi-scale changes is one method of Model."""

import contextlib
import functools

import tensorflow.compat.v1 as tf

import network
from utils import write_to_log
from utils.data import augment, sources
from utils.data.palette import load_classes
from utils.image_reader import ImageReader
from utils.net import compat, layers
from utils.prediction import crf, masks, metrics, passes, score_files, scores
from utils.system import memory, output_files, precision, runtime
from utils.system.errors import UserError
from utils.training import class_weights, loop, losses, optimizer, records, run_folder
from utils.training.start import Start
from utils.weights import checkpoints, run_settings

FLOAT16_LOSS_SCALE = 128.0


class Model(object):
    """Runs one option of the flags in `conf`: train(), test(), predict() or check()."""

    def __init__(self, conf):
        """conf: the flags of main.py, or any object with their names as attributes."""
        self.conf = conf
        self.numerics = compat.numerics(conf.compat)
        self.classes = load_classes(conf.num_classes, conf.ignore_label, conf.palette)
        self.evaluation = passes.Evaluation(tuple(conf.eval_scales), conf.eval_flip, conf.eval_merge)
        self.train_bn = self._trains_bn()
        self.precision = precision.chosen(conf.mixed_precision)

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
        folder = run_folder.RunFolder(conf.modeldir, run_folder.deciding(conf, type(self).__name__))
        with folder.locked(), tf.Graph().as_default():
            output_files.make_dir(conf.logdir, 'logdir')
            output_files.check_file(conf.logfile, 'logfile')
            start = Start(conf, folder)
            log = records.Records(conf, folder.run_id, self.classes)
            log.read(start.step)
            if start.finished(log.mean_iou):
                return
            net_input = self._input(start.input)
            reader = self._reader('data_list', net_input)
            draw_panel = functools.partial(write_to_log.panel, classes=self.classes, net_input=net_input)
            reports = loop.Reports(folder, log, draw_panel, self._validation(net_input))
            weights_of_classes = class_weights.load(conf.class_weights, self.classes, reader.images, reader.labels,
                                                    conf.num_threads)
            tf.set_random_seed(conf.random_seed)
            images, labels = reader.training_batch(conf.batch_size, self._augmentation())
            graph = self.training_graph(images, labels, weights_of_classes)
            with tf.Session(config=self._session_config()) as sess, contextlib.closing(log):
                start.load(sess, graph, net_input)
                print('batch norm is %s (--train_bn=%s; its default is to train without --pretrain_file only)' % (
                    'trained' if self.train_bn else 'frozen', self.train_bn))
                folder.start(graph.saver, start.step, net_input)
                log.open(start.step, sess.graph)
                with memory.enough_for('--batch_size, --input_height or --input_width'), reader.running(
                        sess, start.step * conf.batch_size * conf.grad_update_every):
                    loop.run(sess, graph, conf, reports, start.step)

    def test(self):
        """Prints a checkpoint's scores and writes them with the confusion matrix to out_dir; returns the scores."""
        conf, refinement = self.conf, crf.chosen(self.conf)
        output_files.make_dir(conf.out_dir, 'out_dir')
        prefix = checkpoints.find_checkpoint(conf.modeldir, conf.valid_step, 'valid_step')
        reader = self._reader('valid_data_list', self._trained_input(), conf.valid_num_steps)
        matrix = metrics.count(self._predictions(reader, prefix, 'test', refinement), self.classes)
        return score_files.write(conf, matrix, prefix, self.classes)

    def predict(self):
        """Writes a grey mask of class indices and, with visual, one in colour for every image of the list."""
        conf, refinement = self.conf, crf.chosen(self.conf)
        prefix = checkpoints.find_checkpoint(conf.modeldir, conf.test_step, 'test_step')
        reader = self._reader('test_data_list', self._trained_input(), conf.test_num_steps)
        writer = masks.MaskWriter(conf, self.classes, reader.images, passes.gives_probabilities(self.evaluation))
        found = self._predictions(reader, prefix, 'predict', refinement, masks.keeps_scores(conf))
        with writer.writing() as write, contextlib.closing(found):
            for prediction in found:
                write(prediction)
        print('%d predictions in %s' % (len(reader.images), ' and '.join(writer.folders.values())))

    def check(self):
        """Reads every file of the three lists and reports; UserError if training, testing or predicting would fail."""
        sources.check_lists(self.conf, self.classes)

    # graphs ------------------------------------------------------------------------------------------------------

    def network(self, images, phase, batch_norm):
        """The network of encoder_name on images [N, H, W, 3]; batch_norm is one of layers.BATCH_NORM."""
        conf = self.conf
        settings = {'num_classes': conf.num_classes, 'phase': phase, 'dilated_type': conf.dilated_type,
                    'compat': conf.compat, 'batch_norm': batch_norm}
        if conf.encoder_name == 'deeplab':
            return network.Deeplab_v2(images, **settings)
        return network.ResNet_segmentation(images, encoder_name=conf.encoder_name, **settings)

    def training_graph(self, images, labels, weights_of_classes=None):
        """The loop.TrainingGraph on images [N, H, W, 3] and labels [N, H, W, 1]; weights [num_classes] of the loss."""
        conf, align_corners = self.conf, self.numerics.align_corners
        net = self.network(images, phase=True, batch_norm='trained' if self.train_bn else 'frozen')
        logits = self.logits(net, images)
        weighting = losses.Weighting(weights_of_classes, conf.ohem_fraction if conf.loss == 'ohem' else 1.0)
        entropy = tf.add_n([losses.cross_entropy(one, labels, conf.num_classes, conf.ignore_label, align_corners,
                                                 weighting) for one in logits])
        decay = losses.weight_decay_loss(net.variables, conf.weight_decay)
        rate = tf.placeholder(tf.float32, [], 'learning_rate')
        settings = optimizer.Settings(conf.momentum, conf.grad_update_every, conf.weight_decay,
                                      FLOAT16_LOSS_SCALE if self.precision == 'float16' else 1.0)
        groups = optimizer.rate_groups(net, conf.decoder_rate, conf.freeze_encoder)
        with tf.control_dependencies([decay]):  # or it would be of weights before or after the update, by chance
            update_rate = tf.identity(rate)
        update = optimizer.build_update(entropy, groups, update_rate, settings,
                                        net.update_ops(conf.bn_decay), losses.decayed(net.variables))
        full_size = layers.resize(logits[0], tf.shape(images)[1:3], align_corners)
        return loop.TrainingGraph(
            net=net, rate=rate, update=update,
            losses={'loss/cross_entropy': entropy, 'loss/l2': decay, 'loss/total': entropy + decay},
            pictures=(images, labels, scores.class_map(full_size)),
            finite=tf.reduce_all([tf.reduce_all(tf.is_finite(v)) for v in net.variables]),
            saver=tf.train.Saver(net.variables + update.slots, max_to_keep=conf.max_to_keep))

    def scores(self, images):
        """A network for prediction and the scores of images: [N, H, W, 3] -> (net, float32 [N, H, W, num_classes]).

        net.fold_ops() must run once after the variables were restored.
        """
        padded = layers.pad_to_multiple(images, self.numerics.test_multiple)
        net = self.network(padded, phase=False, batch_norm='folded')
        full_size = layers.resize(self.logits(net, padded)[0], tf.shape(padded)[1:3], self.numerics.align_corners)
        if padded is not images:
            full_size = layers.crop_to(full_size, tf.shape(images)[1:3])
        return net, full_size

    # parts -------------------------------------------------------------------------------------------------------

    def _trains_bn(self):
        """Whether batch norm is trained; UserError if --train_bn asks for it in an encoder that is not trained."""
        conf = self.conf
        if conf.freeze_encoder and conf.train_bn:
            raise UserError('--freeze_encoder and --train_bn exclude each other: batch norm is in the encoder.')
        return not (conf.pretrain_file or conf.freeze_encoder) if conf.train_bn is None else conf.train_bn

    def _augmentation(self):
        """The augment.Augmentation that the flags choose."""
        conf = self.conf
        chosen = augment.Augmentation((conf.input_height, conf.input_width), conf.random_scale, conf.random_mirror,
                                      self.numerics.scales)
        if not conf.random_scale_range:
            return chosen
        low, high = sorted(conf.random_scale_range)
        return chosen._replace(scales=None, scale_range=(low, high))

    def _input(self, known):
        """The compat.Input that the flags choose; by default that of the weights, if it is known, or of the mode."""
        conf = self.conf
        return compat.chosen_input(known or self.numerics.input, conf.channel_order, conf.img_mean)

    def _trained_input(self):
        """The Input for the checkpoints of modeldir: by default that of their training."""
        trained = run_settings.read(self.conf.modeldir)
        if trained and trained['flags'].get('compat') != self.conf.compat:
            print('note: %s was trained with --compat=%s, this run has --compat=%s' % (
                self.conf.modeldir, trained['flags'].get('compat'), self.conf.compat))
        return self._input(trained and trained['input'])

    def _reader(self, flag, net_input, num_steps=None):
        """An ImageReader over the list that a flag names, whose files were checked."""
        conf = self.conf
        source = sources.open_source(conf, self.classes, flag, num_steps)
        return ImageReader(source.images, source.labels, self.classes, net_input, conf.num_threads, conf.random_seed)

    def _session_config(self):
        return precision.configure(runtime.session_config(self.conf.xla), self.precision)

    def _setup(self, restore, evaluation=passes.PLAIN, keep_scores=False):
        """The scores.Setup of this model; restore gives the network's variables their values."""
        build = functools.partial(passes.merged, self.scores, evaluation, self.numerics.align_corners)
        tiling = scores.Tiling(self.conf.window, self.conf.overlap, max(evaluation.scales) ** 2)
        return scores.Setup(build, restore, self._session_config(), tiling, keep_scores)

    def _predictions(self, reader, prefix, desc, refinement, keep_scores=False):
        """Yields a scores.Prediction of each of the reader's images, computed with a checkpoint's weights.

        Class maps are refined if refinement is a crf.Settings, not None.
        """
        print('%s with %s' % (desc, prefix))
        restore = functools.partial(checkpoints.restore_checkpoint, prefix=prefix)
        setup = self._setup(restore, self.evaluation, keep_scores or refinement is not None)
        found = scores.predictions(reader, setup, desc)
        if refinement is None:
            return found
        work = crf.Work(self.conf.num_threads, crf.USED * memory.free(), keep_scores)
        return crf.refined(found, reader.images, passes.gives_probabilities(self.evaluation), refinement, work)

    def _validation(self, net_input):
        """The loop.Reports' function that scores {name: array} of the network's variables; None without validations."""
        if not self.conf.valid_interval:
            return None
        reader = self._reader('valid_data_list', net_input, self.conf.valid_num_steps)

        def validate(values, stopped):
            restore = functools.partial(checkpoints.load_values, values=values)
            found = scores.predictions(reader, self._setup(restore), scores.VALIDATION)
            matrix = metrics.count(found, self.classes, stopped)
            return None if stopped() else metrics.scores(matrix)

        return validate
