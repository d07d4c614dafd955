"""Runs main.py with a narrow network in this process and checks what it prints and how it ends."""

import collections
import contextlib
import os
import re
import sys

import main
from tests import stress
from utils.net.blocks import BLOCKS, resnet_blocks
from utils.system import command_line
from utils.system.errors import MOST_TOLD

ERROR = 'error: '

# code: the exit code; stdout, stderr: text; told: the error's sentence, without ERROR.
Ended = collections.namedtuple('Ended', 'code stdout stderr told')


def make_narrow():
    """Narrows all encoders to a 16th of the channels and one unit per block, for the rest of this process."""
    BLOCKS.update((name, resnet_blocks((1, 1, 1, 1), depth=16)) for name in BLOCKS)


def run(folder, args, work=main.main):
    """Runs main.py once with arguments in this process.

    Args:
      folder: the folder for stdout.txt and stderr.txt.
      args: a list of str.
      work: the function that is called instead of main().

    Returns:
      an Ended.

    Raises:
      AssertionError: it ended neither with 0 nor with 1 and one sentence.
    """
    print('main.py %s' % ' '.join(map(ascii, args)), flush=True)
    paths = [os.path.join(folder, name) for name in ('stdout.txt', 'stderr.txt')]
    with _redirected(1, paths[0]), _redirected(2, paths[1]):
        code = command_line.run(work, ['main.py'] + args, main.sample_args)
    stdout, stderr = map(_text, paths)
    print('exit code %d\n%s\n%s' % (code, stdout[-3000:], stderr[-3000:]))
    assert code in (0, 1), 'exit code %d' % code
    for line in ('Traceback (most recent', 'Exception ignored', 'Fatal Python error'):
        assert line not in stderr, line
    told = sentences(stderr)
    assert len(told) == code, '%d sentences at exit code %d' % (len(told), code)
    if code:
        check_sentence(told[0])
    return Ended(code, stdout, stderr, told[0] if told else '')


def sentences(text):
    """Returns the error sentences in a program's output, without ERROR."""
    return [line[len(ERROR):] for line in re.split('[\r\n]', text) if line.startswith(ERROR)]


def check_sentence(sentence, names=()):
    """Checks that a sentence is short and printable and contains one of `names`."""
    assert len(sentence) <= MOST_TOLD, '%d characters: %s' % (len(sentence), sentence)
    assert sentence.isprintable(), ascii(sentence)
    assert not names or any(name in sentence for name in names), 'it names none of %s: %s' % (names, sentence)


def verdict(ended, names):
    """Returns RIGHT for exit code 0, or REFUSED if the sentence, or the output it refers to, has one of `names`."""
    if not ended.code:
        return stress.RIGHT
    if 'listed above' in ended.told or 'could not be' in ended.told or 'are named above' in ended.told:
        check_sentence(ended.told)
        assert any(name in ended.stdout + ended.stderr for name in names), 'nothing names one of %s' % (names,)
    else:
        check_sentence(ended.told, names)
    return stress.REFUSED


def _text(path):
    with open(path, 'rb') as file:
        return file.read().decode('utf-8', 'replace')


@contextlib.contextmanager
def _redirected(standard, path):
    """Redirects file descriptor 1 or 2 to a file."""
    stream = (sys.stdout, sys.stderr)[standard - 1]
    stream.flush()
    kept, file = os.dup(standard), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, standard)
    os.close(file)
    try:
        yield
    finally:
        stream.flush()
        os.dup2(kept, standard)
        os.close(kept)
