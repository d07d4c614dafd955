"""Saves the settings of a training in settings.json beside its checkpoints, and compares them with those of a run.

main.py records for each flag what it decides, see command_line.FlagRecord.
"""

import contextlib
import json
import os
import re
import typing
import zlib

from absl import flags

from utils.data.image_files import read_file
from utils.net import compat
from utils.system import output_files
from utils.system.command_line import NETWORK, NOTHING, RECORDS, is_given
from utils.system.errors import UserError, quoted, reason

FILE = 'settings.json'
# Settings that decide a training's result but are not flags, each with the value to assume if an older file lacks it:
# the number of parts of a batch that have their own batch norm statistics, and the name of the model's class, Model or
# Model_msc.
NO_FLAGS = {'towers': 1, 'model': None}
_CHECKSUM = re.compile(r' \(crc32 [0-9a-f]{8}\)$')
UNKNOWN = 'unknown'  # this run's value of a setting that only another version has
MOST_DIR, MOST_VALUE, MOST_UNLIKE = 50, 12, 3  # characters and flags in the sentence about another network
MOST_DAMAGE = 50  # characters of the reason in the sentence about a damaged file


class Change(typing.NamedTuple):
    """A setting that has changed."""

    name: str
    known: object  # its value in settings.json
    now: object  # its value in this run


def settings_from_flags(conf, names=None, **others):
    """Returns {name: value} of flags in canonical form, so that equivalent settings compare equal.

    Paths are absolute, and a checksum follows if the contents of the file count.

    Args:
      conf: the flags as attributes; a missing flag has its default.
      names: names of the flags; by default all that decide the result of a training.
      others: settings that are not flags, see NO_FLAGS.

    Raises:
      RuntimeError: no flags are recorded, because main.py was not imported.
    """
    if not RECORDS:
        raise RuntimeError('import main before you train or predict: it declares the flags and what they decide')
    if names is None:
        names = [name for name, record in RECORDS.items() if record.decides != NOTHING]
    settings = {name: _comparable(RECORDS[name], getattr(conf, name, RECORDS[name].default)) for name in names}
    return dict(settings, **others)


def network_settings(conf):
    """Returns {name: value} of the flags that decide the network, which are arguments of the network's class."""
    return {name: getattr(conf, name, record.default) for name, record in RECORDS.items() if record.decides == NETWORK}


def _comparable(record, value):
    """Returns a flag's value; a path is made absolute and, where the content counts, followed by its checksum."""
    if value == []:  # from an empty --img_mean=
        return None
    if record.name == 'label_map' and value == 'none':
        return record.default
    if record.is_path and os.path.exists(value):
        value = os.path.realpath(value)
        if record.content_counts and os.path.isfile(value):
            with contextlib.suppress(OSError):  # the code that uses the file reports the error
                value += ' (crc32 %08x)' % zlib.crc32(read_file(value, 1 << 31))
    return value


def changed_settings(known, now):
    """Returns the Changes from the settings of an earlier run to those of this one, sorted by name.

    Args:
      known: {name: value} from settings.json. A missing flag did not exist yet; its value is its record's `before`.
      now: {name: value} from settings_from_flags.
    """
    now = json.loads(json.dumps(now))  # lists instead of tuples, as in the file
    changes = [Change(name, _known(known, name), now[name]) for name in now if _known(known, name) != now[name]]
    changes += [Change(name, known[name], UNKNOWN) for name in known
                if name not in now and name not in RECORDS and name not in NO_FLAGS]
    return sorted(changes)


def _known(known, name):
    """Returns the value of a setting in an earlier run, even if its version did not have the setting yet."""
    if name in known:
        return known[name]
    before = RECORDS[name].before if name in RECORDS else NO_FLAGS.get(name)
    return json.loads(json.dumps(before))


def check_trained(modeldir, trained, conf, option=None):
    """Compares the given flags with those of the training whose weights the run uses.

    Args:
      modeldir: the training's folder.
      trained: {name: value} of its flags from settings.json.
      conf: the flags of this run as attributes.
      option: the value of --option.

    Raises:
      UserError: a given flag that decides the network or its numerics has another value; or the bundled sample is
        tested, because no data flags are given, and has another number of classes.
    """
    now = settings_from_flags(conf, list(network_settings(conf)) + ['compat'])
    known = {name: _known(trained, name) for name in now}
    unlike = [name for name in now if known[name] != now[name] and is_given(conf, name)
              and not all(value in RECORDS[name].same_network for value in (known[name], now[name]))][:MOST_UNLIKE]
    if unlike:
        was, has = (' '.join('--%s=%s' % (name, quoted(flags[name], MOST_VALUE)) for name in unlike)
                    for flags in (known, now))
        raise UserError('%s was trained with %s, but this run has %s: give the flags of that training or leave them '
                        'out.' % (quoted(modeldir, MOST_DIR), was, has))
    if option == 'test' and now['num_classes'] not in (known['num_classes'], RECORDS['num_classes'].default):
        raise UserError("%s was trained with --num_classes=%s, but the bundled sample has %d classes: name the data to "
                        'test, for example with --data_dir and --valid_data_list.' % (
                            quoted(modeldir, MOST_DIR), quoted(known['num_classes'], MOST_VALUE), now['num_classes']))


def note_palette(modeldir, trained, conf):
    """Prints a note if a run and its training have different palettes; takes the arguments of check_trained."""
    known, now = _known(trained, 'palette'), settings_from_flags(conf, ['palette'])['palette']
    if _content(known) != _content(now):
        print('note: %s was trained with --palette=%s, but this run has --palette=%s; the names and colours of this '
              'run are used' % (modeldir, quoted(known), quoted(now)))


def unchanged_palette(trained):
    """Returns the palette in {name: value} of a training's flags; None if it is a file that has changed."""
    known = _known(trained, 'palette')
    path = _CHECKSUM.sub('', str(known))
    return path if _comparable(RECORDS['palette'], path) == known else None


def with_trained(conf, modeldir, trained, option):
    """Returns the flags of a run, completed by those of the training whose weights it uses.

    Args:
      conf: the flags as attributes.
      modeldir: the training's folder.
      trained: {name: value} of its flags from settings.json.
      option: the value of --option.

    Returns:
      an object with the flags as attributes. A flag that `option` reads, and that decides the network or whose record
      has `from_training`, gets the training's value if it is not given, or is None or empty.

    Raises:
      UserError: a file that such a flag names is missing or has changed since the training.
    """
    completed = {}
    for name, record in RECORDS.items():
        if not (record.from_training or record.decides == NETWORK) or option not in record.options:
            continue
        value, now = _known(trained, name), getattr(conf, name)
        if not (value or record.default) or value == now or now not in (None, '') and is_given(conf, name):
            continue
        parsed = _parsed(modeldir, name, value)
        if record.is_path:
            path = _CHECKSUM.sub('', value)
            if _comparable(record, path) != value:
                raise UserError('%s was trained with --%s=%s, which is missing or has changed: restore it or give '
                                '--%s.' % (quoted(modeldir, MOST_DIR), name, quoted(path), name))
            value = parsed = path
        completed[name] = parsed
        print('--%s=%s, as in the training' % (name, ','.join('%g' % n for n in value) if isinstance(
            value, list) else quoted(value)))
    return _Completed(conf, completed)


def _parsed(modeldir, name, value):
    """Returns a value from settings.json as the flag parses it; raises UserError if the flag does not accept it."""
    parse = flags.FLAGS[name].parser.parse
    try:
        return parse(','.join('%r' % number for number in value) if isinstance(value, list) else value)
    except (ValueError, TypeError, AttributeError):
        raise UserError("%s: %s=%s is not a valid value of --%s; restore the file or give the flag." % (
            quoted(os.path.join(modeldir, FILE)), name, quoted(value, MOST_VALUE), name))


class _Completed(object):
    """Flags as attributes, some of which are replaced."""

    def __init__(self, conf, values):
        self._conf = conf
        self.__dict__.update(values)

    def __getattr__(self, name):
        return getattr(self._conf, name)


def _content(value):
    """Returns the text by which palettes are compared: the checksum of a file, regardless of its path, or a name."""
    return str(value or 'voc').rpartition('(crc32')[2]


def beside(prefix):
    """Returns the result of `read` for the folder of a training's checkpoint; {} for any other weights file."""
    return read(os.path.dirname(prefix)) if re.search(r'(model|best)\.ckpt-\d+$', prefix) else {}


def write(modeldir, settings, net_input, run_id):
    """Writes settings.json.

    Args:
      modeldir: the training's folder.
      settings: {name: value} from settings_from_flags.
      net_input: the network's compat.Input.
      run_id: the end of the names of the run's event files.
    """
    output_files.save_json({'flags': settings, 'input': net_input._asdict(), 'run': run_id},
                           os.path.join(modeldir, FILE))


def read(modeldir):
    """Returns the contents, {'flags': {name: value}, 'input': Input, 'run': run_id}; {} if there is no file.

    Raises:
      UserError: the file is damaged.
    """
    path = os.path.join(modeldir, FILE)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding='utf-8-sig') as file:  # editors may add a byte order mark
            settings = json.load(file)
        known = compat.input_from_file(settings['input']['channel_order'], settings['input']['img_mean'])
        return {'flags': dict(settings['flags']), 'input': known, 'run': str(settings.get('run', ''))}
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError('%s is damaged (%s): to train there, give another --modeldir; to use its weights, remove it '
                        'and give --compat, --channel_order, --img_mean and the flags of the network as in that '
                        'training.' % (quoted(path, MOST_DIR), reason(error)[:MOST_DAMAGE]))
