"""Regular files alone, read whole: a FIFO or a device would keep a run waiting for ever."""

import errno
import os
import stat

MAX_BYTES = 1 << 30
MANY = 1000


def read_file(path, most_bytes=MAX_BYTES):
    """The bytes of a regular file.

    It is opened without waiting and then looked at, so that nothing can take its place between the two.

    Args:
      path: the file.
      most_bytes: how long it may be.

    Raises:
      OSError: it cannot be read, is no regular file or is longer than most_bytes; strerror says so in a few words.
    """
    try:
        with open(path, 'rb', opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, 'it is a FIFO or a device, not a regular file', path)
            if status.st_size > most_bytes:
                raise OSError(errno.EFBIG, 'it has %d bytes, more than the %d that are read' % (
                    status.st_size, most_bytes), path)
            return file.read()
    except ValueError:  # from os.open, before anything is read
        raise OSError(errno.EINVAL, 'no file can have this name', path)


def text_lines(data):
    """Iterates over the lines of a UTF-8 file's bytes, whatever ends them; UnicodeDecodeError if they are not UTF-8."""
    return _split(data.decode('utf-8-sig').replace('\r\n', '\n').replace('\r', '\n'))


def _split(text):
    """text.split('\\n'), a line at a time: a list of a million lines takes 0.1 GB less."""
    start, end = 0, text.find('\n')
    while end >= 0:
        yield text[start:end]
        start, end = end + 1, text.find('\n', end + 1)
    yield text[start:]


def is_regular(path):
    """Whether there is a regular file of this name."""
    try:
        return os.path.isfile(path)
    except ValueError:  # a NUL in the name; Python 3.8 and later return False themselves
        return False


def find_missing(paths):
    """Those of many paths that name no regular file, a list.

    A folder that many of them are in is listed once, which takes a quarter of the time of asking for each.
    """
    groups, missing = {}, []
    for path in paths:
        groups.setdefault(path[:path.rfind('/') + 1], []).append(path)
    for folder, members in groups.items():
        names = _names(folder) if len(members) > MANY else ()
        # What is not listed is asked for: a file system may know it by another spelling.
        missing += [path for path in members if path[len(folder):] not in names and not is_regular(path)]
    return missing


def _names(folder):
    """The names of a folder's regular files, a set; empty if it cannot be listed."""
    try:
        with os.scandir(folder or '.') as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return set()


def _open_without_waiting(path, flags):
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))
