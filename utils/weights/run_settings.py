"""What a training writes beside its checkpoints: the flags that decide what it computes, and the network's input."""

import json
import os

from utils.net import compat
from utils.system import output_files
from utils.system.errors import UserError, quoted, reason

FILE = 'settings.json'


def write(modeldir, flags, net_input, run_id):
    """Writes {name: value} of the flags, the compat.Input and the name that the run's event files end with."""
    output_files.save_json({'flags': flags, 'input': net_input._asdict(), 'run': run_id}, os.path.join(modeldir, FILE))


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


def trained_input(modeldir, mode):
    """The compat.Input of the training in modeldir, None where it is not known; a line says so if its mode is another.

    Args:
      mode: the --compat of this run.
    """
    trained = read(modeldir)
    if trained and trained['flags'].get('compat') != mode:
        print('note: %s was trained with --compat=%s, this run has --compat=%s' % (
            modeldir, trained['flags'].get('compat'), mode))
    return trained.get('input')
