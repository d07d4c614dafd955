"""Errors that the user can fix, and functions that quote paths and other programs' messages in them."""

import os
import re

# Lengths in characters
MOST_TOLD = 300  # of a message
MOST_QUOTED = 80  # of a path in it
MOST_LISTED = 90  # of a list in it
MOST_REASON = 120  # of a reason, so that a path, a reason and a remedy together fit into MOST_TOLD
MOST_PATH = 30  # of a path in a reason


class UserError(ValueError):
    """A mistake in the input; the message is one sentence that names the file or flag and the remedy."""


def printable(text):
    """Returns the text with escapes in place of unprintable characters, such as \\x1b, \\n or \\udc80."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def quoted(path, most=MOST_QUOTED):
    """Returns a path, or other text from a file, in at most `most` printable characters.

    Text that is too long loses its start, because the end of a path distinguishes the files of a folder.
    """
    text = os.fsdecode(path) if isinstance(path, bytes) else str(path)
    shown = printable(text[-most:])
    cut = len(text) > most or len(shown) > most
    return '...' + shown[3 - most:] if cut else shown


def some(items, limit=1, most=MOST_LISTED, show=str):
    """Returns 'a, b and 5 more': at least one and at most `limit` items, as many as fit into `most` characters."""
    shown = [show(item) for item in items[:limit]]
    while len(shown) > 1 and len(', '.join(shown)) > most:
        shown.pop()
    more = len(items) - len(shown)
    return ', '.join(shown) + (' and %d more' % more if more > 0 else '')


def reason(error):
    """Returns why an operation failed, in at most MOST_REASON printable characters.

    This is an OSError's text, or the reason in TensorFlow's message without the op's name, its traceback and hints.
    """
    text = getattr(error, 'strerror', None) or getattr(error, 'message', None) or str(error) or type(error).__name__
    text = re.sub(r'(?s)^Graph execution error:.*?\nNode: [^\n]*\n', '', str(text))
    text = re.sub(r'(?s)^\d+ root error\(s\) found\.\s*\(0\) [^:]+: ', '', text)
    text = re.split(r'\s*\[\[|\nHint:|\n\nOriginal stack trace|\n\s*\(1\) ', text)[0]
    text = re.sub(r'^Graph execution error:\s*', '', text)
    text = re.sub(r'^\S+\.tempstate\d+; ', '', text)  # a temporary file of TensorFlow's
    # Long paths are shortened; otherwise nothing else would fit.
    text = re.sub(r'/\S{%d,}' % MOST_PATH, lambda path: quoted(path.group(), MOST_PATH), text)
    return printable(' '.join(text.split()).rstrip('.'))[:MOST_REASON]
