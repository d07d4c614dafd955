"""A mistake that the user can fix, and how text that is not ours appears in the sentence about it."""

import os
import re

MOST_TOLD = 300
MOST_QUOTED = 80
MOST_LISTED = 90
MOST_REASON = 120  # with a path of MOST_QUOTED and a remedy, below MOST_TOLD
MOST_PATH = 30  # in a reason


class UserError(ValueError):
    """A bad input; its message is one sentence that names the file or flag and the remedy."""


def printable(text):
    """The text with everything that a terminal would not show as a character escaped: \\x1b, \\n, \\udc80."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def quoted(path, most=MOST_QUOTED):
    """A path, or other text from a file, in at most `most` printable characters.

    What is too long keeps its end, which tells the files of one folder apart.
    """
    text = os.fsdecode(path) if isinstance(path, bytes) else str(path)
    shown = printable(text[-most:])
    cut = len(text) > most or len(shown) > most
    return '...' + shown[3 - most:] if cut else shown


def some(items, limit=1, most=MOST_LISTED, show=str):
    """'a, b and 5 more': up to `limit` of the first items, as many as fit in `most` characters but one at least."""
    shown = [show(item) for item in items[:limit]]
    while len(shown) > 1 and len(', '.join(shown)) > most:
        shown.pop()
    more = len(items) - len(shown)
    return ', '.join(shown) + (' and %d more' % more if more > 0 else '')


def reason(error):
    """Why an operation failed, in at most MOST_REASON printable characters.

    An OSError's own words; from TensorFlow's report, in which the op's name, the place that made it and hints
    surround the reason, the reason alone.
    """
    text = getattr(error, 'strerror', None) or getattr(error, 'message', None) or str(error) or type(error).__name__
    text = re.sub(r'(?s)^Graph execution error:.*?\nNode: [^\n]*\n', '', str(text))
    text = re.sub(r'(?s)^\d+ root error\(s\) found\.\s*\(0\) [^:]+: ', '', text)
    text = re.split(r'\s*\[\[|\nHint:|\n\nOriginal stack trace|\n\s*\(1\) ', text)[0]
    text = re.sub(r'^Graph execution error:\s*', '', text)
    text = re.sub(r'^\S+\.tempstate\d+; ', '', text)  # a file that the user did not name
    text = re.sub(r'/\S{%d,}' % MOST_PATH, lambda path: quoted(path.group(), MOST_PATH), text)  # or nothing else fits
    return printable(' '.join(text.split()).rstrip('.'))[:MOST_REASON]
