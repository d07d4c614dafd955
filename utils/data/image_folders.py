"""Images named without a list: one by one, or by the folder that they and its sub-folders lie in."""

import collections
import os
import sys

from utils.data.regular_files import find_missing
from utils.system.command_line import is_picture
from utils.system.errors import UserError, quoted, reason


def named_images(names):
    """Paths of images that --image names; commas divide a name that is no file's.

    Args:
      names: a list of the flag's values.

    Returns:
      list of paths, each once.

    Raises:
      UserError: one is a folder, or not one of them is there.
    """
    paths = []
    for name in names:
        parts = [name] if os.path.lexists(name) else name.split(',')
        paths += [os.path.expanduser(part) for part in parts if part]
    paths = list(dict.fromkeys(paths))
    folders = [path for path in paths if os.path.isdir(path)]
    if folders:
        raise UserError('--image=%s is a folder: give it with --image_dir.' % quoted(folders[0]))
    if len(find_missing(paths)) == len(paths):
        raise UserError('--image=%s: %s; check the name.' % (quoted(names[0]), (
            'no such file' if len(paths) == 1 else 'none of the %d images is there' % len(paths))))
    return paths


def images_below(folder, left_out=()):
    """Images of a folder and all folders below it, by their suffix; no file is opened.

    Names that start with a dot are passed over. Links to folders are followed, and every folder is read once, however
    many links lead there. Folders that cannot be read are reported on stderr.

    Args:
      folder: the folder.
      left_out: folders whose contents do not count, wherever they are below the folder; they may be missing.

    Returns:
      sorted list of paths relative to the folder.

    Raises:
      UserError: the folder is none, or it holds no image.
    """
    if not os.path.isdir(folder):
        raise UserError('--image_dir=%s is %s.' % (quoted(folder), 'no folder: give an image with --image' if (
            os.path.lexists(folder)) else 'not there: name the folder of the images'))
    seen = {_identity(path) for path in left_out} - {_identity(folder), None}
    found, waiting = [], collections.deque([''])
    while waiting:
        below = waiting.popleft()  # '' or a relative path that ends with a slash
        path = os.path.join(folder, below)
        identity = _identity(path)
        if identity in seen:
            continue
        seen.update([identity] if identity else [])
        for name, is_dir, is_link in _entries(path):
            if is_dir:  # those behind links come last: a folder's own name goes before that of a link to it
                (waiting.append if is_link else waiting.appendleft)(below + name + '/')
            elif is_picture(name):
                found.append(below + name)
    if not found:
        raise UserError('--image_dir=%s: there is no image in it, by the suffix of the name (.jpg, .png...).' % (
            quoted(folder)))
    return sorted(found)


def _identity(path):
    """What tells a file or folder from all others; None if it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _entries(folder):
    """[(name, whether it is a folder, whether it is a link)] of what a folder holds and does not hide, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries
                          if not entry.name.startswith('.'))
    except OSError as error:
        print('warning: folder %s cannot be read (%s): its images are left out.' % (quoted(folder), reason(error)),
              file=sys.stderr)
        return []


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
