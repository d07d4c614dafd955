"""Where a training starts from: its newest checkpoint, pre-trained weights or random ones."""

import tensorflow.compat.v1 as tf

from utils.system.errors import UserError
from utils.weights import checkpoints, pretrained


def trains_bn(conf):
    """Whether batch norm is trained; UserError if --train_bn asks for it in an encoder that is not trained."""
    if conf.freeze_encoder and conf.train_bn:
        raise UserError('--freeze_encoder and --train_bn exclude each other: batch norm is in the encoder.')
    return not (conf.pretrain_file or conf.freeze_encoder) if conf.train_bn is None else conf.train_bn


class Start(object):
    """The step that a training begins with and the weights of before it."""

    def __init__(self, conf, folder):
        """
        Args:
          conf: the flags as attributes.
          folder: the RunFolder, which says whether there is something to go on from.

        Raises:
          UserError: it may not be gone on from, or the weights file does not fit.
        """
        self._conf, self._weights = conf, None
        self.step, self._values, self.input = folder.resume(conf.resume)  # input: the weights' compat.Input or None
        if self.step == 0 and conf.pretrain_file:
            self._weights = pretrained.open_pretrained(conf.pretrain_file, conf.encoder_name)
            self.input = self._weights.input

    def finished(self, scored):
        """Whether nothing is left to do, `scored` being the steps that were validated; says so then."""
        conf = self._conf
        if self.step <= conf.num_steps or conf.valid_interval and self.step - 1 not in scored:
            return False
        print('%s holds a finished training of %d steps: raise --num_steps=%d to go on with a longer schedule, begin '
              'again with --resume=never or score it with --option=test' % (conf.modeldir, self.step, conf.num_steps))
        return True

    def load(self, sess, graph, net_input):
        """Gives a loop.TrainingGraph its weights, whose network gets the Input net_input, and prints which they are."""
        conf, variables = self._conf, graph.net.variables
        if self.step:
            prefix = '%s/%s-%d' % (conf.modeldir, checkpoints.NEWEST, self.step - 1)
            saved = variables + graph.update.slots
            checkpoints.check_fit(saved, {name: value.shape for name, value in self._values.items()}, prefix)
            sess.run(tf.local_variables_initializer())
            checkpoints.load_values(sess, saved, self._values)
            print('resumed from %s: step %d of %d is next' % (prefix, self.step, conf.num_steps))
        else:
            sess.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        self._values = {}
        if self._weights:
            print(pretrained.restore_pretrained(sess, variables, self._weights, conf.encoder_name,
                                                conf.restore_decoder))
            self._describe(net_input)

    def _describe(self, net_input):
        """Prints what the pre-trained weights were made for."""
        if self._weights.input:
            print(pretrained.describe_input(self._weights.input, net_input))
        if self._weights.compat not in (None, self._conf.compat):
            print('note: these weights were made for --compat=%s, this run has --compat=%s' % (
                self._weights.compat, self._conf.compat))
