"""Applies every change of docs/changing_it.md to a copy of the repo and trains a few steps with it."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PRODUCT = ['main.py', 'main_msc.py', 'model.py', 'model_msc.py', 'network.py']
SHORT = ['--num_steps=2', '--save_interval=1', '--valid_interval=0', '--input_height=33', '--input_width=33',
         '--batch_size=2', '--check_labels=false', '--num_threads=2']
# The place of a block of lines, and the block.
PLACE = re.compile(r'^In (?:the new file `(?P<new>[^`]+)`|`(?P<file>[^`]+)`, (?P<where>above|below|instead of) '
                   r'`(?P<anchor>[^`]+)`)\n\n```\w+\n(?P<lines>.*?)```$', re.M | re.S)
COMMAND = re.compile(r'^```bash\npython main.py (.*?)\n```$', re.M)


def changes():
    """Returns {title: text} of the page's worked changes; the last section has no worked change."""
    with open(os.path.join(ROOT, 'docs', 'changing_it.md'), encoding='utf-8') as file:
        parts = re.split(r'^## (.*)\n', file.read(), flags=re.M)
    assert parts[-2] == 'Other changes' and len(parts) == 1 + 2 * 9
    return dict(zip(parts[1:-2:2], parts[2:-2:2]))


def edit(text, place):
    """Returns the text of a file after inserting or replacing the lines that `place` gives."""
    anchor, lines = place['anchor'], place['lines']
    if place['where'] == 'instead of':
        assert text.count(anchor) == 1, anchor
        return text.replace(anchor, lines.rstrip('\n'))
    rows = text.splitlines(True)
    at, = [number for number, row in enumerate(rows) if row.rstrip('\n') == anchor]
    at += place['where'] == 'below'
    return ''.join(rows[:at]) + lines + ''.join(rows[at:])


def train(folder, words):
    """Runs main.py in a copy of the repo, with a narrow network."""
    command = [sys.executable, os.path.join('tests', 'narrow_main.py'), 'main'] + words
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


@pytest.mark.parametrize('title', list(changes()))
def test_change(title, tmp_path):
    text = changes()[title]
    for name in PRODUCT:
        shutil.copy(os.path.join(ROOT, name), str(tmp_path))
    for name in ('utils', 'dataset'):
        shutil.copytree(os.path.join(ROOT, name), str(tmp_path / name))
    (tmp_path / 'tests').mkdir()
    shutil.copy(os.path.join(ROOT, 'tests', 'narrow_main.py'), str(tmp_path / 'tests'))

    places = [match.groupdict() for match in PLACE.finditer(text)]
    assert places and text.count('\nIn ') == len(places)
    for place in places:
        path = tmp_path / (place['new'] or place['file'])
        assert path.exists() != bool(place['new'])
        path.write_text(place['lines'] if place['new'] else edit(path.read_text('utf-8'), place), 'utf-8')
    assert sum(len(place['lines'].strip().splitlines()) for place in places) <= 15
    assert len({place['file'] for place in places if place['file']}) <= 2

    (command,) = COMMAND.findall(text)
    given = {word.partition('=')[0] for word in shlex.split(command)}
    words = shlex.split(command) + [word for word in SHORT if word.partition('=')[0] not in given]
    ended = train(str(tmp_path), words)
    assert ended.returncode == 0, ended.stderr
    assert os.path.exists(str(tmp_path / 'model' / 'model.ckpt-2.index'))
    flag = re.search(r"DEFINE_\w+\('(\w+)'", text)
    if flag:  # a new flag decides the result: the run does not resume with another value of it
        own = next(word for word in words if word.startswith('--%s=' % flag.group(1)))
        ended = train(str(tmp_path), [word for word in words if word != own] + ['--%s=1' % flag.group(1)])
        assert ended.returncode == 1 and flag.group(1) in ended.stderr, ended.stderr
