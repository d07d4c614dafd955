"""Errors that the user can fix, and functions that quote paths and messages of other programs in them."""

import os
import re

# Maximum lengths in characters
MOST_TOLD = 300  # a message
MOST_QUOTED = 80  # a path in a message
MOST_LISTED = 90  # a list in a message
MOST_REASON = 120  # a reason in a message: a path, a reason and a remedy together fit into MOST_TOLD
MOST_PATH = 30  # a path in a reason


class UserError(ValueError):
    """An error that the user can fix; the message is one sentence that names the file or flag and the remedy."""


def printable(text):
    """Returns the text with unprintable characters replaced by escapes, such as \\x1b, \\n or \\udc80."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def quoted(path, most=MOST_QUOTED):
    """Returns a path, or other text from a file, as at most `most` printable characters.

    If the text is too long, '...' replaces its start, because the end of a path tells the files of a folder apart.
    """
    text = os.fsdecode(path) if isinstance(path, bytes) else str(path)
    shown = printable(text[-most:])
    cut = len(text) > most or len(shown) > most
    return '...' + shown[3 - most:] if cut else shown


def some(items, limit=1, most=MOST_LISTED, show=str):
    """Returns text such as 'a, b and 5 more', with as many items as fit into `most` characters.

    Args:
      items: a list.
      limit: the most items to show; at least one is shown.
      most: the maximum length of the shown items, in characters.
      show: a function that returns the text of an item.
    """
    shown = [show(item) for item in items[:limit]]
    while len(shown) > 1 and len(', '.join(shown)) > most:
        shown.pop()
    more = len(items) - len(shown)
    return ', '.join(shown) + (' and %d more' % more if more > 0 else '')


def reason(error):
    """Returns the reason given by an exception, as at most MOST_REASON printable characters.

    For an OSError, this is its strerror. For TensorFlow's errors, the name of the op, tracebacks and hints are removed.
    """
    text = getattr(error, 'strerror', None) or getattr(error, 'message', None) or str(error) or type(error).__name__
    text = re.sub(r'(?s)^Graph execution error:.*?\nNode: [^\n]*\n', '', str(text))
    text = re.sub(r'(?s)^\d+ root error\(s\) found\.\s*\(0\) [^:]+: ', '', text)
    text = re.split(r'\s*\[\[|\nHint:|\n\nOriginal stack trace|\n\s*\(1\) ', text)[0]
    text = re.sub(r'^Graph execution error:\s*', '', text)
    text = re.sub(r'^\S+\.tempstate\d+; ', '', text)  # the name of a temporary file of TensorFlow
    # Long paths are shortened, because the rest of the reason would not fit otherwise.
    text = re.sub(r'/\S{%d,}' % MOST_PATH, lambda path: quoted(path.group(), MOST_PATH), text)
    return printable(' '.join(text.split()).rstrip('.'))[:MOST_REASON]
