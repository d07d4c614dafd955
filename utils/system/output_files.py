"""Files and folders that a run writes: checked before the work, whole or absent after it.

A file is whole or absent however the process ends. Only what `sync` was called for also outlives a loss of power.
"""

import contextlib
import io
import json
import os
import shutil
import stat
import tempfile

from utils.system.errors import UserError, quoted, reason

FIGURE_FORMATS = ('eps', 'jpg', 'pdf', 'png', 'svg')
KINDS = [(stat.S_ISREG, 'a file'), (stat.S_ISDIR, 'a folder'), (stat.S_ISLNK, 'a symbolic link'),
         (stat.S_ISFIFO, 'a named pipe'), (stat.S_ISSOCK, 'a socket')]


def kind_of(path):
    """What is at path itself, no link followed: one of KINDS' names, 'a device', or None for nothing."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    return next((name for is_kind, name in KINDS if is_kind(mode)), 'a device')


def check_file(path, flag):
    """Checks that a file can be written at path, where there is nothing or a regular file; makes its folder.

    Raises:
      UserError: naming the flag; it is a folder, link, pipe, socket or device, or its folder cannot be written.
    """
    make_dir(os.path.dirname(path) or '.', flag)
    kind = kind_of(path)
    if kind not in (None, 'a file'):
        raise UserError('--%s=%s is %s: give the name of a regular file.' % (flag, quoted(path), kind))
    return path


def make_dir(path, flag, follow=True):
    """Makes a folder that can be written to; UserError naming the flag if that fails.

    A symbolic link to a folder is one, too, unless `follow` is False.
    """
    if os.path.lexists(path) and not os.path.isdir(path) or not follow and os.path.islink(path):
        raise UserError('cannot write to %s (it is %s): give another folder with --%s.' % (
            quoted(path), kind_of(path), flag))
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RecursionError) as error:  # os.makedirs calls itself for each folder above
        raise UserError('cannot write to %s (%s): give another folder with --%s.' % (
            quoted(path), reason(error), flag))
    return path


def set_aside(path, flag):
    """Makes room for a new file at path: its folder exists, an older file is kept.

    Returns:
      the older file's new name, the first free one of path.old, path.old2, path.old3...; None if there was none.
    """
    if kind_of(check_file(path, flag)) is None:
        return None
    kept, number = path + '.old', 1
    while os.path.lexists(kept):
        number += 1
        kept = '%s.old%d' % (path, number)
    try:
        os.rename(path, kept)
    except OSError as error:
        raise UserError("'%s' cannot be renamed to %s (%s): give another file with --%s." % (
            quoted(path), quoted(kept), reason(error), flag))
    return kept


def check_replaceable(path):
    """UserError if what is at path is nothing that a new file could take the place of: a folder, pipe or device."""
    kind = kind_of(path)
    if kind not in (None, 'a file', 'a symbolic link'):
        raise UserError("'%s' cannot be written (it is %s): give another name." % (quoted(path), kind))


@contextlib.contextmanager
def whole(path):
    """Gives a temporary name to write to, beside path; the file gets its own name once it is whole.

    A link at path is replaced, not followed.

    Raises:
      UserError: the file cannot be written, or path is a folder, pipe, socket or device; no part of the file
        is left.
    """
    temporary = '%s.%d.tmp' % (path, os.getpid())
    try:
        check_replaceable(path)
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError("'%s' cannot be written (%s): free space or name a file in another folder." % (
            quoted(path), reason(error)))
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def check_new_folder(path, flag, least, most):
    """Checks that new_folder can write path.

    Args:
      path: where there is nothing, an empty folder, or one that was written before: it holds the names `least` and no
        others than the names `most`.

    Raises:
      UserError: naming the flag; anything else is there, or the folder around it cannot be written.
    """
    path = os.path.abspath(path)
    make_dir(os.path.dirname(path), flag)
    kind = kind_of(path)
    if kind not in (None, 'a folder'):
        raise UserError('--%s=%s is %s: give the name of a new folder.' % (flag, quoted(path), kind))
    held = set(os.listdir(path)) if kind else set()
    if held and not (least <= held <= most):
        other = sorted(held - most)[:1] or ['no %s' % name for name in sorted(least - held)]
        raise UserError('--%s=%s holds %s, so it is not what an earlier run wrote and stays as it is: give another '
                        'folder.' % (flag, quoted(path), quoted(other[0])))


@contextlib.contextmanager
def new_folder(path, flag, least, most):
    """Gives a temporary folder beside path, which gets that name once it is whole, in place of an earlier one.

    Args and Raises: as check_new_folder. However it ends, a folder at path is whole: the earlier or the new one.
    """
    check_new_folder(path, flag, least, most)
    path = os.path.abspath(path)
    temporary, earlier = ('%s.%d.%s' % (path, os.getpid(), suffix) for suffix in ('tmp', 'old'))
    try:
        os.mkdir(temporary)
        yield temporary
        check_new_folder(path, flag, least, most)
        if os.path.isdir(path):
            os.rename(path, earlier)
        try:
            os.rename(temporary, path)
        except OSError:
            if os.path.isdir(earlier):
                os.rename(earlier, path)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        raise UserError('cannot write to %s (%s): give another folder with --%s.' % (
            quoted(path), reason(error), flag))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(paths):
    """Waits until the contents and the names of files are on the disk."""
    for path in list(paths) + sorted({os.path.dirname(path) or '.' for path in paths}):
        with contextlib.suppress(OSError):  # on file systems that cannot do it
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def save_image(pixels, path):
    """Writes a uint8 array [h, w] or [h, w, 3] as PNG."""
    from PIL import Image

    with whole(path) as temporary:
        Image.fromarray(pixels).save(temporary, format='PNG')


def save_arrays(arrays, path):
    """Writes a dict of arrays as compressed .npz."""
    import numpy as np

    packed = io.BytesIO()  # as a zip file that cannot be finished prints a traceback when it is collected
    np.savez_compressed(packed, **arrays)
    with whole(path) as temporary, open(temporary, 'wb') as file:
        file.write(packed.getbuffer())


def save_json(values, path):
    """Writes a dict as JSON."""
    with whole(path) as temporary, open(temporary, 'w') as file:
        json.dump(values, file, indent=1, sort_keys=True)


def check_figure(path, flag):
    """check_file for a figure, whose suffix names one of FIGURE_FORMATS."""
    figure_format(path)
    return check_file(path, flag)


def figure_format(path):
    """The format that a figure's suffix names; UserError if it is none of FIGURE_FORMATS."""
    suffix = os.path.splitext(path)[1].lstrip('.').lower()
    if suffix not in FIGURE_FORMATS:
        raise UserError("figure '%s' must end in one of %s." % (
            quoted(path), ', '.join('.' + name for name in FIGURE_FORMATS)))
    return suffix


def save_figure(figure, path):
    """Writes a matplotlib Figure in the format that the path's suffix names.

    Raises:
      UserError: the suffix is none of FIGURE_FORMATS, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    suffix = figure_format(path)
    with whole(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, format=suffix, dpi=150)
