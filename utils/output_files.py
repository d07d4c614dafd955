"""Files and folders that a run writes: checked before the work, complete or absent after it."""

import os
import tempfile

from utils.errors import UserError


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


def save_image(image, path):
    """Writes a Pillow image as PNG, under its name only once it is whole."""
    partial = path + '.partial'
    image.save(partial, format='PNG')
    os.replace(partial, path)
