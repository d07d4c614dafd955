"""Output files and folders: they are checked before the work begins, and afterwards they are complete or absent.

This holds no matter how the process ends. After a power failure, it holds only for files on which `sync` was called.
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
# (function that tests the mode of a file, name of this kind of file in messages)
KINDS = [(stat.S_ISREG, 'a file'), (stat.S_ISDIR, 'a folder'), (stat.S_ISLNK, 'a symbolic link'),
         (stat.S_ISFIFO, 'a named pipe'), (stat.S_ISSOCK, 'a socket')]


def kind_of(path):
    """Returns the kind of file at path, without following links: a name in KINDS or 'a device'; None if none exists."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    return next((name for is_kind, name in KINDS if is_kind(mode)), 'a device')


def check_file(path, flag, inside=False):
    """Checks that a file can be written at path, creates its folder and returns the path.

    Args:
      path: the file.
      flag: the flag that names it, for the message.
      inside: whether the flag names the folder of the file instead of the file.

    Raises:
      UserError: path is a folder, link, pipe, socket or device, or the folder cannot be written to.
    """
    make_dir(os.path.dirname(path) or '.', flag)
    kind = kind_of(path)
    if kind not in (None, 'a file') and inside:
        raise UserError('%s is %s, not a regular file: remove it or give another --%s.' % (quoted(path), kind, flag))
    if kind not in (None, 'a file'):
        raise UserError('--%s=%s is %s: give the name of a regular file.' % (flag, quoted(path), kind))
    return path


def make_dir(path, flag, follow=True):
    """Creates a folder unless it exists, checks that files can be written to it, and returns its path.

    Args:
      path: the folder.
      flag: the flag that names it, for the message.
      follow: whether a symbolic link to a folder is accepted.

    Raises:
      UserError: path is not a folder, or the folder cannot be written to.
    """
    if os.path.lexists(path) and not os.path.isdir(path) or not follow and os.path.islink(path):
        raise UserError('cannot write to %s (it is %s): give another folder with --%s.' % (
            quoted(path), kind_of(path), flag))
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RecursionError) as error:  # os.makedirs calls itself for each parent folder
        raise UserError('cannot write to %s (%s): give another folder with --%s.' % (
            quoted(path), reason(error), flag))
    return path


def set_aside(path, flag, inside=False):
    """Prepares path for a new file: creates its folder and renames an existing file.

    The arguments are as for check_file.

    Returns:
      the new name of the existing file, which is the first unused one of path.old, path.old2, path.old3 and so on; None
      if no file existed.

    Raises:
      UserError: as in check_file; or the existing file cannot be renamed.
    """
    if kind_of(check_file(path, flag, inside)) is None:
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
    """Raises UserError if path is something that a new file cannot replace: a folder, pipe, socket or device."""
    kind = kind_of(path)
    if kind not in (None, 'a file', 'a symbolic link'):
        raise UserError("'%s' cannot be written (it is %s): give another name." % (quoted(path), kind))


@contextlib.contextmanager
def new_file(path):
    """Yields a temporary path next to `path` to write to; at the end of the `with` block the file is renamed to `path`.

    A link at path is replaced, not followed. After an error, no part of the file remains.

    Raises:
      UserError: the file cannot be written, or path is a folder, pipe, socket or device.
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
        raise UserError("'%s' cannot be written (%s): free some space or give a file in another folder." % (
            quoted(path), reason(error)))
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def check_new_folder(path, flag, least, most):
    """Checks that new_folder can write path: it does not exist, is empty, or was written by an earlier run.

    Args:
      path: the folder.
      flag: the flag that names it, for the message.
      least, most: sets of names. The folder was written by an earlier run if it contains all names in `least`, and
        all its names are in `most`.

    Raises:
      UserError: path is something else, or its parent folder cannot be written to.
    """
    path = os.path.abspath(path)
    make_dir(os.path.dirname(path), flag)
    kind = kind_of(path)
    if kind not in (None, 'a folder'):
        raise UserError('--%s=%s is %s: give the name of a new folder.' % (flag, quoted(path), kind))
    held = set(os.listdir(path)) if kind else set()
    if held and not (least <= held <= most):
        other = sorted(held - most)[:1] or ['no %s' % name for name in sorted(least - held)]
        raise UserError('--%s=%s contains %s, so it was not written by an earlier run and is not replaced: give '
                        'another folder.' % (flag, quoted(path), quoted(other[0])))


@contextlib.contextmanager
def new_folder(path, flag, least, most):
    """Yields a temporary folder next to `path`; at the end of the `with` block it replaces the folder at `path`.

    The arguments and errors are as for check_new_folder. No matter how the process ends, the folder is complete, either
    as before or as written now.
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
    """Waits until the contents and names of files, given as a list of paths, are on disk."""
    for path in list(paths) + sorted({os.path.dirname(path) or '.' for path in paths}):
        with contextlib.suppress(OSError):  # some file systems cannot sync
            try:
                file = os.open(path, os.O_RDWR)  # Windows cannot sync a file that is open only for reading
            except OSError:  # a folder
                file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def save_image(pixels, path, colours=None):
    """Writes a uint8 array [h, w] or [h, w, 3] as a PNG; [h, w] with colours uint8 [256, 3] as an indexed one."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if colours is not None:
        image.putpalette(colours.tobytes())
    with new_file(path) as temporary:
        image.save(temporary, format='PNG')


def save_arrays(arrays, path):
    """Writes a dict of arrays as a compressed .npz file."""
    import numpy as np

    packed = io.BytesIO()  # in memory, because an unfinished ZipFile object prints a traceback when it is deleted
    np.savez_compressed(packed, **arrays)
    with new_file(path) as temporary, open(temporary, 'wb') as file:
        file.write(packed.getbuffer())


def save_json(values, path):
    """Writes a dict as JSON."""
    with new_file(path) as temporary, open(temporary, 'w') as file:
        json.dump(values, file, indent=1, sort_keys=True)


def check_figure(path, flag):
    """Checks that a figure can be written at path, as check_file does, and that its suffix is in FIGURE_FORMATS."""
    figure_format(path)
    return check_file(path, flag)


def figure_format(path):
    """Returns the format for the suffix of a figure's path; raises UserError if it is not in FIGURE_FORMATS."""
    suffix = os.path.splitext(path)[1].lstrip('.').lower()
    if suffix not in FIGURE_FORMATS:
        raise UserError("the name of the figure '%s' must end in one of %s." % (
            quoted(path), ', '.join('.' + name for name in FIGURE_FORMATS)))
    return suffix


def save_figure(figure, path):
    """Writes a matplotlib Figure in the format given by the suffix of the path.

    Raises:
      UserError: the suffix is not in FIGURE_FORMATS, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    suffix = figure_format(path)
    with new_file(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, format=suffix, dpi=150)
