"""What a training writes beside its checkpoints: the flags that decide what it computes, and the network's input."""

import json
import os

from utils.net import compat
from utils.system import output_files
from utils.system.errors import UserError, quoted, reason

FILE = 'settings.json'
SHAPES = ('encoder_name', 'num_classes')  # flags that decide which variables there are
COMPARED = SHAPES + ('compat', 'palette')


def write(modeldir, flags, net_input, run_id):
    """Writes {name: value} of the flags, the compat.Input and the name that the run's event files end with."""
    output_files.save_json({'flags': flags, 'input': net_input._asdict(), 'run': run_id}, os.path.join(modeldir, FILE))


def compare(modeldir, trained, now):
    """Notes on settings of this run that are not those of the training whose weights it takes.

    Args:
      modeldir: the training's folder.
      trained, now: {name: value} of the flags of both, of this run those COMPARED, as run_folder.values gives them.

    Raises:
      UserError: they are of other networks.
    """
    def given(flags, names):
        return ' '.join('--%s=%s' % (name, quoted(flags[name])) for name in names)

    unlike = [name for name in SHAPES if trained.get(name, now[name]) != now[name]]
    if unlike:
        raise UserError('%s was trained with %s, this run has %s: give the flags of that training.' % (
            quoted(modeldir), given(trained, unlike), given(now, unlike)))
    for name, meaning in (('compat', ''), ('palette', '; its names and colours are shown')):
        if _content(trained.get(name)) != _content(now[name]):
            print('note: %s was trained with --%s=%s, this run has --%s=%s%s' % (
                modeldir, name, quoted(trained.get(name)), name, quoted(now[name]), meaning))


def _content(value):
    """What tells values of a flag apart: of a file its checksum, wherever it is."""
    return str(value or 'voc').rpartition('(crc32')[2]


def read(modeldir):
    """What `write` wrote, {'flags': {name: value}, 'input': Input, 'run': run_id}; {} where the run is not known.

    Raises:
      UserError: the file is damaged.
    """
    path = os.path.join(modeldir, FILE)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding='utf-8') as file:
            settings = json.load(file)
        known = compat.Input(settings['input']['channel_order'], tuple(map(float, settings['input']['img_mean'])))
        return {'flags': dict(settings['flags']), 'input': known, 'run': str(settings.get('run', ''))}
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError('%s is damaged (%s): to train, give another --modeldir; to test or predict, remove it and set '
                        '--channel_order, --img_mean and --compat as in that training.' % (quoted(path), reason(error)))
