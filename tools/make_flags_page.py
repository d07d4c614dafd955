"""Writes the page that lists all flags: python tools/make_flags_page.py > docs/flags.md."""

import os
import sys

from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import main  # noqa: E402, F401  defines the flags
from utils.system.command_line import NOTHING, RECORDS  # noqa: E402

START = '''# Flags

This page is generated from the declarations in main.py by `python tools/make_flags_page.py > docs/flags.md`; edit
main.py, not this page.

Every setting is a flag, `--name=value`, given on the command line or on a line of a file that `--flagfile` names. A
switch is written `--name` or `--noname`. main_msc.py takes the same flags.

- **read by** lists the values of `--option` for which the flag has an effect. With any other option the flag is an
  error on the command line, but not in a flag file.
- **decides** names the effect of the flag's value. A flag that decides the network has the same value in test, predict
  and export as in the training, or as in the file of `--weights`; another value is refused. If a flag decides the
  result, a training with another value does not resume from the older checkpoints.
- An empty **default** is explained in the meaning.
'''
HEAD = """
## %s

| flag | default | meaning | values | read by | decides |
|---|---|---|---|---|---|
"""


def shown(value):
    """Returns a value as written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ','.join(map(shown, value))
    return '' if value is None else str(value)


def default(record, other):
    """Returns the text for the default of a flag in main.py, followed by its default in main_msc.py if it differs.

    Args:
      record: the FlagRecord of the flag.
      other: the default in main_msc.py.
    """
    if 'by default' in record.help:  # the help explains the default
        return ''
    return shown(record.default) + ('' if other == record.default else ' (main_msc.py: %s)' % shown(other))


def row(record, other):
    """Returns the row of the table for a flag; the arguments are as for `default`."""
    meaning = record.help
    if record.needs and '--' + record.needs not in meaning:
        meaning += ' (needs --%s)' % record.needs.replace('|', ' or ')
    options = 'all' if record.options == RECORDS['option'].options else ', '.join(record.options)
    cells = [record.name, default(record, other), meaning, record.bounds, options,
             '' if record.decides == NOTHING else record.decides]
    return '| %s |\n' % ' | '.join(cell.replace('|', '\\|') for cell in cells)


def page():
    """Returns the text of docs/flags.md."""
    import main_msc  # noqa: F401  changes the defaults of some flags in this process

    text, topic = START, ''
    for record in RECORDS.values():
        if record.topic != topic:
            topic = record.topic
            text += HEAD % topic
        text += row(record, flags.FLAGS[record.name].default)
    return text


if __name__ == '__main__':
    sys.stdout.buffer.write(page().encode('utf-8'))
