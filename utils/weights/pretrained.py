"""Starts a network from pre-trained weights: finds the file, chooses what to restore, and reports the rest."""

import os
import typing

from utils.system.errors import UserError, quoted, some
from utils.weights import checkpoints, download, keras_weights, weight_files, weight_names


class Published(typing.NamedTuple):
    """Published weights that are downloaded if the user names them by a word."""

    name: str         # of the file
    num_classes: int
    palette: str      # a value of --palette


IMAGENET = 'imagenet'  # the word for Keras' weights, which exist for each encoder
# kazuto1011's DeepLab v2 in PyTorch, release v1.0 of his repository, by word.
RELEASE = 'https://github.com/kazuto1011/deeplab-pytorch/releases/download/v1.0/'
PUBLISHED = {
    'voc12': Published('deeplabv2_resnet101_msc-vocaug-20000.pth', 21, 'voc'),
    'cocostuff10k': Published('deeplabv2_resnet101_msc-cocostuff10k-20000.pth', 182, 'cocostuff'),
    'cocostuff164k': Published('deeplabv2_resnet101_msc-cocostuff164k-100000.pth', 182, 'cocostuff'),
}


def find_file(path, encoder_name=None):
    """Returns the path of a weights file that the user names, and downloads it if necessary.

    Args:
      path: a file, the prefix of a checkpoint, a directory (for its newest checkpoint), 'imagenet' or a word of
        PUBLISHED.
      encoder_name: the encoder whose ImageNet weights to take.

    Raises:
      UserError: the file cannot be downloaded, or the directory holds no checkpoint.
    """
    if path in PUBLISHED or path == IMAGENET:
        if os.path.exists(path):
            print('note: %s means the published weights; write ./%s for the file or folder here' % (path, path))
        if path in PUBLISHED:
            return fetch_published(path)
        if not encoder_name:
            raise UserError('imagenet has weights for each encoder: choose one with --encoder_name.')
        return keras_weights.fetch_imagenet(encoder_name)
    return checkpoints.newest_in(path)


def fetch_published(word):
    """Returns the path of the weights that a word of PUBLISHED names; downloads them to the cache if necessary.

    Raises:
      UserError: the file is not in the cache and cannot be fetched.
    """
    name, num_classes, _ = PUBLISHED[word]

    def check(path):
        shapes = weight_files.open_weights(path).shapes
        if not weight_names.fits(shapes, 'deeplab') or weight_names.num_classes_of(shapes) != num_classes:
            raise UserError('%s does not hold the weights %s.' % (quoted(path), word))

    path = download.fetch(word, name, RELEASE + name, check)
    try:
        check(path)  # it may have been put there by hand
    except UserError:
        raise UserError('%s does not hold the weights %s or is damaged: remove it, and it is downloaded again.' % (
            quoted(path), word))
    return path


def open_pretrained(pretrain_file, encoder_name):
    """Opens the weights that --pretrain_file names and checks that they fit the encoder.

    Args:
      pretrain_file: as `path` in find_file.
      encoder_name: the network's encoder.

    Returns:
      A WeightsFile.

    Raises:
      UserError: the file is missing or damaged, cannot be downloaded, or is not of this encoder.
    """
    weights = weight_files.open_weights(find_file(pretrain_file, encoder_name), encoder_name)
    choose_pretrained(weight_names.encoder_shapes(encoder_name), weights, encoder_name)
    return weights


def describe_input(made_for, net_input):
    """Returns a line that compares the compat.Input for which weights were made with the one of this run."""
    wanted, given = ('--channel_order=%s --img_mean=%s' % (order, ','.join('%g' % value for value in mean))
                     for order, mean in (made_for, net_input))
    if made_for == net_input:
        return 'input: %s, which these weights were made for' % given
    return 'note: these weights were made for %s, but this run has %s' % (wanted, given)


def split(shapes, encoder_name):
    """Splits {name: shape} of a network's variables into three dicts, for its encoder, its fix_w and its decoder."""
    encoder, fix_w, decoder = {}, {}, {}
    for name, shape in shapes.items():
        if name.endswith('/fix_w'):
            fix_w[name] = shape
        elif weight_names.in_encoder(name, encoder_name) and weight_names.is_model(name):
            encoder[name] = shape
        elif weight_names.is_model(name):
            decoder[name] = shape
    return encoder, fix_w, decoder


def count(encoder, fix_w, decoder, chosen):
    """Returns text such as '520 encoder and 8 decoder variables', which counts the names that `chosen` accepts."""
    counts = [(len([name for name in part if chosen(name)]), kind)
              for part, kind in ((encoder, 'encoder'), (fix_w, 'fix_w'), (decoder, 'decoder'))]
    return ' and '.join('%d %s' % pair for pair in counts if pair[0]) + ' variables'


def choose_pretrained(wanted, weights, encoder_name, restore_decoder=False):
    """Decides which variables to restore from a weights file for a network that is about to be trained.

    Args:
      wanted: {name: shape} of the network's variables; only weights, biases, batch norm and fix_w matter.
      weights: a WeightsFile.
      encoder_name: the network's encoder.
      restore_decoder: whether to restore the decoder too, where shapes fit.

    Returns:
      (set of names to restore, a phrase for the log).

    Raises:
      UserError: the file lacks a part of the encoder, has it in another shape or has additional units.
    """
    found = weights.shapes
    encoder, fix_w, decoder = split(wanted, encoder_name)
    extra = [name for name in found if weight_names.is_unit(name) and name not in wanted]
    problems = checkpoints.mismatches(encoder, found, extra)
    if problems:
        raise UserError('%s (%s) does not fit --encoder_name=%s: %s.' % (
            quoted(weights.path), weights.kind, encoder_name, '; '.join(problems + checkpoints.hints(wanted, found))))
    taken = set(encoder)
    for part in (fix_w, decoder if restore_decoder else {}):
        taken.update(name for name, shape in part.items() if found.get(name) == shape)
    phrase = 'restored %s from %s (%s)' % (
        count(encoder, fix_w, decoder, taken.__contains__), weights.path, weights.kind)
    if len(taken) < len(encoder) + len(fix_w) + len(decoder):
        kept = count(encoder, fix_w, decoder, lambda name: name not in taken)
        phrase += '; %s keep their initial values' % kept
    classes = weight_names.num_classes_of(found)
    if restore_decoder and not taken.intersection(decoder):
        phrase += '; the file has %s' % ('a decoder of %d classes' % classes if classes else 'no decoder')
    if any(name.endswith('/fix_w') and name not in taken for name in found):
        phrase += '; its fix_w, of --dilated_type=%s, are left out' % weight_names.dilated_type_of(found)
    known = set(wanted) if restore_decoder else set(wanted) | weight_names.decoder_names(encoder_name)
    unknown = [name for name in found if weight_names.is_model(name) and not name.endswith('/fix_w')
               and name not in known]
    if unknown:
        phrase += '; it holds further weights, which are left out (%s)' % some(sorted(unknown), show=quoted)
    return taken, phrase


def restore_pretrained(sess, variables, weights, encoder_name, restore_decoder=False):
    """Restores the encoder and, on request, the decoder of a network from pre-trained weights, where shapes fit.

    Args:
      sess: a tf.Session.
      variables: the network's variables (weights, biases, batch norm, fix_w).
      weights: the WeightsFile that open_pretrained returns.
      encoder_name: the network's encoder.
      restore_decoder: whether to restore the decoder too.

    Returns:
      A phrase for the log that says what was restored, from which file, and what keeps its initial values.

    Raises:
      UserError: the file is damaged or not of this encoder; in that case nothing has been restored.
    """
    taken, sentence = choose_pretrained(weight_names.variable_shapes(variables), weights, encoder_name, restore_decoder)
    values = {name: weights.read(name) for name in taken}
    checkpoints.check_finite(values, weights.path)
    checkpoints.load_values(sess, variables, values)
    return sentence
