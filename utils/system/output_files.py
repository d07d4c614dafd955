"""Files and folders that a run writes: checked before the work, complete or absent after it."""

import contextlib
import json
import os
import tempfile

from utils.system.errors import UserError

FIGURE_FORMATS = ('eps', 'jpg', 'pdf', 'png', 'svg')


def make_dir(path, flag):
    """Makes a folder that can be written to; UserError naming the flag if it can't be."""
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError('cannot write to %s (%s): give another folder with --%s.' % (path, error.strerror, flag))
    return path


def set_aside(path, flag):
    """Makes room for a new file at path: its folder exists, an older file is kept as path.old."""
    make_dir(os.path.dirname(path) or '.', flag)
    if os.path.isdir(path):
        raise UserError('--%s=%s is a folder: give a file name.' % (flag, path))
    if os.path.exists(path):
        os.replace(path, path + '.old')


@contextlib.contextmanager
def whole(path):
    """Gives a temporary name to write to, beside path; the file gets its own name once it is whole.

    Raises:
      UserError: the file cannot be written.
    """
    temporary = '%s.%d.tmp' % (path, os.getpid())
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError("'%s' cannot be written (%s): name a file in a folder that can." % (
            path, error.strerror or error))
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def save_image(pixels, path):
    """Writes a uint8 array [h, w] or [h, w, 3] as PNG."""
    from PIL import Image

    with whole(path) as temporary:
        Image.fromarray(pixels).save(temporary, format='PNG')


def save_json(values, path):
    """Writes a dict as JSON."""
    with whole(path) as temporary, open(temporary, 'w') as file:
        json.dump(values, file, indent=1, sort_keys=True)


def save_figure(figure, path):
    """Writes a matplotlib Figure in the format that the path's suffix names.

    Raises:
      UserError: the suffix is none of FIGURE_FORMATS, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    suffix = os.path.splitext(path)[1].lstrip('.').lower()
    if suffix not in FIGURE_FORMATS:
        raise UserError("figure '%s' must end in one of %s." % (
            path, ', '.join('.' + name for name in FIGURE_FORMATS)))
    with whole(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, format=suffix, dpi=150)
