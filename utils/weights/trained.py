"""Finds the weights for test, predict or export, and takes from them the flags that they decide."""

import os
import typing

from utils.data.palette import MAX_CLASSES
from utils.net import compat
from utils.net.blocks import ENCODERS
from utils.system.command_line import RECORDS, is_given
from utils.system.errors import UserError, quoted
from utils.weights import checkpoints, pretrained, run_settings, weight_files, weight_names


class Trained(typing.NamedTuple):
    """The known properties of the weights of a run."""

    name: str       # name of the weights in messages
    input: compat.Input  # the network's input, None if it is unknown
    settings: dict  # {name: value} of all flags of their training, None without settings.json
    inferred: dict  # {name: value} of the flags inferred from the file itself, {} with settings.json


def find_weights(conf, flag):
    """Returns the prefix of the checkpoint, or the path of the other weights file, that the flags choose.

    Args:
      conf: the flags as attributes.
      flag: the flag that gives the step of a checkpoint in modeldir, 'valid_step' or 'test_step'.

    Raises:
      UserError: the file or checkpoint is missing or cannot be downloaded.
    """
    if not conf.weights:
        return checkpoints.find_checkpoint(conf.modeldir, getattr(conf, flag), flag)
    if conf.weights == pretrained.IMAGENET:
        raise UserError('--weights=imagenet: these weights have no decoder; train one with --pretrain_file=imagenet.')
    return weight_files.checkpoint_prefix(pretrained.find_file(conf.weights))


def describe(conf, weights):
    """Returns the Trained of the weights that find_weights returned.

    Raises:
      UserError: settings.json is damaged; or the file that --weights names is damaged, of an unknown network or without
        a decoder, or was made for an input that differs from the flags.
    """
    if not conf.weights:
        known = run_settings.read(conf.modeldir)
        return Trained(conf.modeldir, known.get('input'), known.get('flags'), {})
    name = '--weights=%s' % conf.weights
    known = run_settings.beside(weights) if os.path.isfile(weights + '.index') or os.path.isfile(weights) else {}
    if known:
        trained = Trained(name, known['input'], known['flags'], {})
    else:
        file = weight_files.open_weights(weights, conf.encoder_name if is_given(conf, 'encoder_name') else None)
        trained = Trained(name, file.input, None, flags_of(file, name))
        if not file.compat and not is_given(conf, 'compat'):
            print('note: %s does not say for which --compat it was made; this run has --compat=%s' % (
                name, conf.compat))
    made_for = trained.input
    if made_for and compat.input_from_flags(made_for, conf.channel_order, conf.img_mean) != made_for:
        order, mean = compat.input_from_flags(made_for, conf.channel_order, conf.img_mean)
        raise UserError('%s is for --channel_order=%s --img_mean=%s, but this run has %s %s: leave these flags out.' % (
            quoted(name), made_for.channel_order, numbers(made_for.img_mean), order, numbers(mean)))
    return trained


def numbers(values):
    """Returns numbers as text with commas between them."""
    return ','.join('%g' % value for value in values)


def flags_of(file, name):
    """Returns {name: value} of the flags inferred from a WeightsFile: its network's and, if known, compat.

    Args:
      file: a WeightsFile.
      name: its name in messages.

    Raises:
      UserError: it does not hold a whole encoder, or has no decoder of 2 to 256 classes.
    """
    encoders = [encoder for encoder in ENCODERS if weight_names.fits(file.shapes, encoder)]
    if not encoders:
        raise UserError('%s (%s) cannot be used: %s.' % (
            quoted(name), file.kind, '; '.join(checkpoints.hints({}, file.shapes))))
    decoder, num_classes = weight_names.decoder_of(file.shapes)
    if not decoder:
        raise UserError('%s (%s) has no decoder: train one with --pretrain_file, or give weights with a decoder.' % (
            quoted(name), file.kind))
    if not 2 <= num_classes <= MAX_CLASSES:
        raise UserError('%s has a decoder of %d classes: give weights with 2 to %d classes.' % (
            quoted(name), num_classes, MAX_CLASSES))
    inferred = {'encoder_name': encoders[0], 'decoder': decoder, 'num_classes': num_classes,
            'dilated_type': weight_names.dilated_type_of(file.shapes)}
    return dict(inferred, compat=file.compat) if file.compat else inferred


def follow(conf, trained, option):
    """Returns the flags of a run, completed by those that its weights decide.

    Args:
      conf: the flags as attributes.
      trained: the Trained of its weights.
      option: the value of --option.

    Raises:
      UserError: a given flag contradicts the weights, or a file that the training named has changed.
    """
    if not (trained.settings or trained.inferred):
        return conf
    known = trained.settings or dict(run_settings.settings_from_flags(conf), **trained.inferred)
    run_settings.check_trained(trained.name, known, conf, option)
    completed = run_settings.with_trained(conf, trained.name, known, option)
    if not is_given(conf, 'palette'):
        completed.palette = default_palette(conf, trained, completed.num_classes)
    if trained.settings:
        run_settings.note_palette(trained.name, known, completed)
    return completed


def default_palette(conf, trained, num_classes):
    """Returns the palette of a run that gives none.

    It is the palette of published weights, or of the training if its file is unchanged. Otherwise it is the bundled
    sample's, where its flags are used and the number of classes is the same.
    """
    if conf.weights in pretrained.PUBLISHED:
        return pretrained.PUBLISHED[conf.weights].palette
    known = run_settings.unchanged_palette(trained.settings) if trained.settings else None
    if known is not None:
        return known
    return conf.palette if not conf.weights and num_classes == conf.num_classes else RECORDS['palette'].default
