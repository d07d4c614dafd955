"""Writes the page of all flags from their records: python tools/make_flags_page.py > docs/flags.md."""

import os
import sys

from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import main  # noqa: E402, F401  once the path is set; it defines the flags
from utils.system.command_line import NOTHING, RECORDS  # noqa: E402

START = '''# Flags

Made by `python tools/make_flags_page.py > docs/flags.md` from what main.py declares; edit main.py, not this page.

Every setting is a flag, `--name=value`, on the command line or as a line of a file that `--flagfile` names; a switch is
written `--name` or `--noname`. main_msc.py takes the same flags. "Read by" are the values of `--option` for which a
flag has an effect: given on the command line with another one it is refused, in a flag file it is not. "Decides" is the
network, whose value must then be the same for train, test, predict and export, or the result: a training with another
value does not resume from the older checkpoints. An empty default is explained beside it.
'''
HEAD = """
## %s

| flag | default | meaning | values | read by | decides |
|---|---|---|---|---|---|
"""


def shown(value):
    """Returns a value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ','.join(map(shown, value))
    return '' if value is None else str(value)


def default(record, other):
    """Returns a flag's default in main.py and, where main_msc.py has another one, that too."""
    if 'by default' in record.help:  # where it is not the same on all machines, or none
        return ''
    return shown(record.default) + ('' if other == record.default else ' (main_msc.py: %s)' % shown(other))


def row(record, other):
    """Returns a flag's line of the table."""
    meaning = record.help
    if record.needs and '--' + record.needs not in meaning:
        meaning += ' (needs --%s)' % record.needs.replace('|', ' or ')
    options = 'all' if record.options == RECORDS['option'].options else ', '.join(record.options)
    cells = [record.name, default(record, other), meaning, record.bounds, options,
             '' if record.decides == NOTHING else record.decides]
    return '| %s |\n' % ' | '.join(cell.replace('|', '\\|') for cell in cells)


def page():
    """Returns the text of docs/flags.md."""
    import main_msc  # noqa: F401  sets its own defaults, for this process

    text, topic = START, ''
    for record in RECORDS.values():
        if record.topic != topic:
            topic = record.topic
            text += HEAD % topic
        text += row(record, flags.FLAGS[record.name].default)
    return text


if __name__ == '__main__':
    sys.stdout.buffer.write(page().encode('utf-8'))
