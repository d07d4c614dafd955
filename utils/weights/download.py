"""Downloads a weights file into the cache; resumes broken downloads and stores only complete files."""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import pathlib
import re
import ssl
import time
import urllib.error
import urllib.request

import filelock
from tqdm import tqdm

from utils.system.errors import UserError, quoted, reason

ADDRESS = 'DEEPLAB_WEIGHTS'  # environment variable: a URL or folder to use instead of the published address
TRIES = 5  # connections
RETRY_SECONDS = 2  # before the second connection; twice as long before each further one
TIMEOUT = 60  # seconds without an answer
SLOWEST = 1000  # bytes per second; a connection that is slower for TIMEOUT seconds counts as broken
BLOCK = 1 << 18  # bytes
MOST_FOLDER, MOST_WHY = 60, 50  # characters in the sentence about a file that cannot be fetched
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes of errors that may be temporary
TROUBLE = (OSError, http.client.HTTPException, ValueError)
NO_ANSWER = (urllib.error.URLError, http.client.InvalidURL, ValueError)  # ValueError: an invalid URL
# Errors in writing the file, which another try would not mend.
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)


class Refused(Exception):
    """The server has no such file, or sends a wrong one; another try would not help."""


def cache_folder():
    """Returns Keras' folder of weights, ~/.keras/models or models in the folder that KERAS_HOME names."""
    return os.path.join(os.path.expanduser(os.environ.get('KERAS_HOME') or os.path.join('~', '.keras')), 'models')


def address_of(url, name):
    """Returns the address from which to fetch a file: its URL, or the one in the environment variable ADDRESS.

    If the variable ends with the suffix of `name`, it is the address of the file, otherwise of its folder.
    """
    place = os.environ.get(ADDRESS, '')
    if not place:
        return url
    if '://' not in place:
        place = pathlib.Path(os.path.abspath(os.path.expanduser(place))).as_uri()
    return place if place.endswith(os.path.splitext(name)[1]) else '%s/%s' % (place.rstrip('/'), name)


def fetch(word, name, url, check):
    """Returns the path of a file in the cache, and downloads it first if necessary.

    Processes that fetch the same file at once wait for the first one.

    Args:
      word: the word by which the user names the file, for messages.
      name: the file's name.
      url: its address.
      check: a function of the path of the downloaded file that raises a UserError if it is the wrong file.

    Raises:
      UserError: the file cannot be fetched, or the wrong file was found at its address.
    """
    folder, address = cache_folder(), address_of(url, name)
    path = os.path.join(folder, name)
    if os.path.isfile(path):
        return path
    try:
        os.makedirs(folder, exist_ok=True)
        with locked(path + '.lock'):
            if not os.path.isfile(path):  # while this process waited, another one may have fetched it
                part = path + '.part'
                receive_all(address, part)
                try:
                    check(part)
                    os.replace(part, path)
                except UserError:
                    raise Refused('this address has a different file')
                finally:
                    remove(part)
                    remove(part + '.json')
        return path
    except TROUBLE + (Refused,) as error:
        if is_local(error):
            raise UserError('%s: %s cannot be written (%s): free space there, name another folder by the environment '
                            'variable KERAS_HOME, or give the path of the file.' % (
                                word, quoted(path), reason(error)[:MOST_WHY]))
        why = reason(getattr(error, 'reason', None) if isinstance(error, urllib.error.URLError) else error)
        raise UserError('%s: %s could not be fetched (%s); put it into %s or give its path.' % (
            word, quoted(address, 130), why[:MOST_WHY], quoted(folder, MOST_FOLDER)))


@contextlib.contextmanager
def locked(path):
    """Holds the lock file at path; prints a line if it has to wait for another process."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print('waiting for another process, which is downloading %s' % os.path.basename(path)[:-len('.lock')])
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def receive_all(address, part):
    """Downloads the file at an address as `part`, over several connections if necessary; resumes an earlier part.

    Raises:
      Refused, or one of TROUBLE: it could not be downloaded; the received part is kept for the next attempt.
    """
    for number in range(TRIES):
        try:
            return receive(address, part)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part belongs to another file
                remove(part)
            elif error.code not in PASSING:
                raise Refused('the server answered %d %s' % (error.code, error.msg))
            trouble = error
        except TROUBLE as error:
            if not number and isinstance(error, NO_ANSWER) or is_local(error):
                raise
            trouble = error
        if number + 1 < TRIES:
            print('the connection broke (%s): trying again' % reason(trouble)[:MOST_WHY])
            time.sleep(RETRY_SECONDS * 2 ** number)
    raise trouble


def is_local(error):
    """Returns whether an error is one of the file that is written, not of the connection."""
    return not isinstance(error, NO_ANSWER + (ssl.SSLError,)) and bool(  # an SSLError has numbers of its own
        getattr(error, 'filename', None) or getattr(error, 'errno', None) in NO_PLACE)


def receive(address, part):
    """Downloads over one connection, and resumes if an earlier one has left a part of the file in `part`.

    The server's validator of the file, an ETag or a time, is kept beside the part, so that the rest of another
    version is never appended to it.

    Raises:
      Refused, or one of TROUBLE.
    """
    known = read_json(part + '.json')
    start = os.path.getsize(part) if os.path.isfile(part) and known.get('address') == address else 0
    if start and start == known.get('size'):
        return
    request = urllib.request.Request(address, headers={'User-Agent': 'deeplab-v2', 'Accept-Encoding': 'identity'})
    if start and known.get('validator'):
        request.add_header('Range', 'bytes=%d-' % start)
        request.add_header('If-Range', known['validator'])
    with contextlib.closing(urllib.request.urlopen(request, timeout=TIMEOUT)) as answer:
        length = answer.headers.get('Content-Length') or ''
        size = int(length) if length.isdecimal() else -1  # -1: unknown
        if answer.getcode() == 206:
            wanted = 'bytes %d-%d/%d' % (start, start + size - 1, start + size)
            if (answer.headers.get('Content-Range') or '').strip() != wanted or start + size != known.get('size'):
                remove(part)
                raise OSError('the server sent another range than requested')
            size += start
        else:  # the server sends the whole file
            start = 0
            remove(part)  # first: a process killed here must not leave the start of another version with this note
            with open(part + '.json', 'w') as file:
                json.dump({'address': address, 'size': size, 'validator': validator(answer.headers)}, file)
        with open(part, 'ab' if start else 'wb') as file, tqdm(
                desc=os.path.basename(part)[:-len('.part')], total=size if size > 0 else None, initial=start,
                unit='B', unit_scale=True, unit_divisor=1024, mininterval=1.0) as progress:
            copy(answer, file, progress)
            arrived = file.tell()
    if size >= 0 and arrived != size:
        raise OSError('%d of %d bytes arrived' % (arrived, size))


def copy(answer, file, progress):
    """Copies an HTTP answer into a file; raises OSError if it is slower than SLOWEST for TIMEOUT seconds."""
    since, received = time.time(), 0
    for block in iter(lambda: answer.read1(BLOCK), b''):
        file.write(block)
        progress.update(len(block))
        received += len(block)
        if time.time() - since > TIMEOUT:
            if received < SLOWEST * TIMEOUT:
                raise OSError('the server is too slow')
            since, received = time.time(), 0


def validator(headers):
    """Returns an identifier of this version of a file, a strong ETag or a time; None if the server sends neither."""
    etag = headers.get('ETag') or ''
    return etag if re.match(r'"', etag) else headers.get('Last-Modified')


def check_md5(path, md5):
    """Raises UserError unless a file has this MD5, in hexadecimal."""
    found = hashlib.md5()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(BLOCK), b''):
            found.update(block)
    if found.hexdigest() != md5:
        raise UserError('%s does not have the checksum of the published file.' % quoted(path))


def read_json(path):
    """Returns the dict in a JSON file; {} if the file is missing or damaged."""
    try:
        with open(path) as file:
            content = json.load(file)
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def remove(path):
    """Removes a file if it exists."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
