"""Tests downloads from a local server that breaks off, is slow, or sends another file or nothing."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

from utils.system.errors import UserError, quoted
from utils.weights import download

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONTENT = os.urandom(300000)
NAME = 'weights.pth'


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends the server's `content`; `plan` holds the fault of each request, such as the bytes after which it breaks."""

    protocol_version = 'HTTP/1.1'
    timeout = 10

    def do_GET(self):
        server = self.server
        server.requests.append({name: self.headers[name] for name in ('Range', 'If-Range') if name in self.headers})
        fate = server.plan.pop(0) if server.plan else {}
        if 'code' in fate:
            self.send_error(fate['code'])
            return
        start, end = 0, len(server.content)
        asked = re.match(r'bytes=(\d+)-', self.headers.get('Range', ''))
        if asked and server.ranges and self.headers.get('If-Range') == server.etag:
            start = int(asked.group(1)) + fate.get('shifted', 0)
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', 'bytes %d-%d/%d' % (start, end - 1, end))
        if fate.get('sized', True):
            self.send_header('Content-Length', fate.get('length', str(end - start)))
        if server.etag:
            self.send_header('ETag', server.etag)
        self.send_header('Connection', 'close')
        self.end_headers()
        with contextlib.suppress(OSError):
            for at in range(start, min(end, start + fate.get('bytes', end)), 10000):
                self.wfile.write(server.content[at:at + 10000])
                time.sleep(fate.get('pause', 0))
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Starts a server for `fetch`, with an empty cache."""
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as one:
        one.content, one.etag, one.ranges, one.plan, one.requests = CONTENT, '"1"', True, [], []
        one.url = 'http://127.0.0.1:%d/files/%s' % (one.server_address[1], NAME)
        thread = threading.Thread(target=one.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        monkeypatch.setenv('KERAS_HOME', str(tmp_path))
        monkeypatch.delenv(download.ADDRESS, raising=False)
        monkeypatch.setattr(download, 'RETRY_SECONDS', 0.01)
        yield one
        one.shutdown()
        thread.join()


def check(path):
    download.check_md5(path, hashlib.md5(CONTENT).hexdigest())


def fetch(server):
    return download.fetch('voc12', NAME, server.url, check)


def assert_whole(server, tmp_path, requests):
    """Fetches the file and checks that it is complete, after so many requests, and that a later call makes none."""
    for _ in range(2):
        path = fetch(server)
        assert path == str(tmp_path / 'models' / NAME)
        with open(path, 'rb') as file:
            assert file.read() == CONTENT
    assert len(server.requests) == requests
    assert set(os.listdir(str(tmp_path / 'models'))) <= {NAME, NAME + '.lock'}


def failed(server, tmp_path):
    """Returns the message about a file that cannot be fetched, and checks that the file did not get its final name."""
    with pytest.raises(UserError) as info:
        fetch(server)
    message = str(info.value)
    assert message.startswith('voc12: ' + server.url) and message.isprintable() and message.endswith('.')
    assert len(message.replace(str(tmp_path), '~')) <= 300 and 'put it into ' in message
    assert not (tmp_path / 'models' / NAME).exists()
    return message


def test_a_whole_file_with_a_progress_bar(server, tmp_path, capsys):
    assert_whole(server, tmp_path, 1)
    assert NAME in capsys.readouterr().err and server.requests == [{}]


RESUMED = {'Range': 'bytes=100000-', 'If-Range': '"1"'}


@pytest.mark.parametrize('plan, last', [
    ([{'bytes': 100000}], RESUMED),
    ([{'bytes': 60000}, {'bytes': 40000}, {'code': 503}], RESUMED),
    ([{'bytes': 0}], {}),
    ([{'code': 500}], {}),
    ([{'bytes': 100000}, {'shifted': 10}], {}),  # another range than requested
    ([{'bytes': 100000}, {'code': 416}], {}),
], ids=['once', 'often', 'at once', 'busy', 'another part', 'out of range'])
def test_a_broken_connection_is_resumed(server, tmp_path, plan, last):
    requests, server.plan = len(plan) + 1, plan
    assert_whole(server, tmp_path, requests)
    assert server.requests[-1] == last


@pytest.mark.parametrize('changed', [{'ranges': False}, {'etag': None}, {'etag': 'W/"1"'}],
                         ids=['ignores Range', 'no validator', 'weak validator'])
def test_a_server_that_cannot_resume_sends_the_whole_again(server, tmp_path, changed):
    for name, value in changed.items():
        setattr(server, name, value)
    server.plan = [{'bytes': 100000}]
    assert_whole(server, tmp_path, 2)


def test_a_server_that_does_not_say_the_size(server, tmp_path):
    server.plan = [{'sized': False}]
    assert_whole(server, tmp_path, 1)
    (tmp_path / 'models' / NAME).unlink()
    server.plan = [{'sized': False, 'bytes': 100000}]
    assert 'this address has a different file' in failed(server, tmp_path)


def test_a_part_is_resumed_by_the_next_program(server, tmp_path):
    server.plan = [{'bytes': 20000} for _ in range(download.TRIES)]
    assert '%d of 300000 bytes arrived' % (20000 * download.TRIES) in failed(server, tmp_path)
    assert len(server.requests) == download.TRIES
    assert_whole(server, tmp_path, download.TRIES + 1)
    assert server.requests[-1] == RESUMED


def test_a_part_of_an_older_file_is_not_resumed(server, tmp_path):
    server.content, server.etag = os.urandom(300000), '"0"'
    server.plan = [{'bytes': 20000} for _ in range(download.TRIES)]
    failed(server, tmp_path)
    server.content, server.etag = CONTENT, '"1"'
    assert_whole(server, tmp_path, download.TRIES + 1)


@pytest.mark.parametrize('content', [b'<html><body>Please log in</body></html>', b'', CONTENT[:-1]],
                         ids=['a page', 'empty', 'truncated'])
def test_a_wrong_file_is_refused(server, tmp_path, content):
    server.content = content
    assert 'this address has a different file' in failed(server, tmp_path)
    assert set(os.listdir(str(tmp_path / 'models'))) <= {NAME + '.lock'}


def test_a_missing_file_is_reported(server, tmp_path):
    server.plan = [{'code': 404}] * 2
    assert 'the server answered 404 Not Found' in failed(server, tmp_path)
    assert len(server.requests) == 1


def test_a_slow_server(server, tmp_path, monkeypatch):
    """A connection with no or few bytes for TIMEOUT seconds counts as broken."""
    monkeypatch.setattr(download, 'TIMEOUT', 0.3)
    server.plan = [{'pause': 0.5, 'bytes': 20000}]
    assert_whole(server, tmp_path, 2)
    (tmp_path / 'models' / NAME).unlink()
    monkeypatch.setattr(download, 'SLOWEST', 10 ** 9)
    server.plan = [{'pause': 0.1} for _ in range(download.TRIES)]
    assert 'the server is too slow' in failed(server, tmp_path)


def test_a_server_that_never_answers(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT', 0.1)
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen(10)
        server.url = 'http://127.0.0.1:%d/%s' % (silent.getsockname()[1], NAME)
        start = time.time()
        assert 'timed out' in failed(server, tmp_path)
    assert time.time() - start < 10


def test_without_a_network(server, tmp_path, monkeypatch):
    """There is one try only, and the message names the address and the folder."""
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        server.url = 'http://127.0.0.1:%d/%s' % (unused.getsockname()[1], NAME)
    monkeypatch.setattr(time, 'sleep', lambda seconds: pytest.fail('tried again'))
    assert 'Connection refused); put it into %s or give' % quoted(
        tmp_path / 'models', download.MOST_FOLDER) in failed(server, tmp_path)


def test_another_address(server, tmp_path, monkeypatch):
    """DEEPLAB_WEIGHTS is the address of a mirror, of a folder or of the file itself."""
    mirror = tmp_path / 'a mirror'
    mirror.mkdir()
    (mirror / NAME).write_bytes(CONTENT)
    (mirror / 'copy.pth').write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    for place, asked in ((server.url.rpartition('/')[0], 1), (str(mirror), 0), ('a mirror', 0), (mirror.as_uri(), 0),
                         (str(mirror / 'copy.pth'), 0), (server.url, 1)):
        monkeypatch.setenv(download.ADDRESS, place)
        server.requests = []
        path = download.fetch('voc12', NAME, 'https://nowhere.invalid/' + NAME, check)
        with open(path, 'rb') as file:
            assert file.read() == CONTENT
        os.remove(path)
        assert len(server.requests) == asked, place
    for place in ('nowhere', 'mailto://x', 'http://[', str(mirror)):
        (mirror / NAME).write_bytes(b'x')
        monkeypatch.setenv(download.ADDRESS, place)
        with pytest.raises(UserError, match='could not be fetched'):
            download.fetch('voc12', NAME, server.url, check)


PROGRAM = """
import sys
from utils.weights import download
print(download.fetch('voc12', sys.argv[1], sys.argv[2], lambda path: None))
"""


def test_several_processes_fetch_it_once(server, tmp_path):
    server.plan = [{'pause': 0.05}]
    command = [sys.executable, '-c', PROGRAM, NAME, server.url]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True) for _ in range(3)]
    for process in started:
        assert process.communicate()[0].endswith(str(tmp_path / 'models' / NAME) + '\n') and process.returncode == 0
    assert_whole(server, tmp_path, 1)


def test_a_killed_download_is_resumed(server, tmp_path):
    server.plan = [{'pause': 0.05}]
    killed = subprocess.Popen([sys.executable, '-c', PROGRAM, NAME, server.url], cwd=ROOT)
    part, limit = tmp_path / 'models' / (NAME + '.part'), time.time() + 60
    while not (part.exists() and part.stat().st_size) and time.time() < limit:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    arrived = part.stat().st_size
    assert arrived
    assert_whole(server, tmp_path, 2)
    assert server.requests[-1] == {'Range': 'bytes=%d-' % arrived, 'If-Range': '"1"'}


def test_a_full_disk_is_reported(server, tmp_path, full_disk):
    message = 'weights.pth cannot be written .File too large.: free space there, name'
    with full_disk(100000), pytest.raises(UserError, match=message):
        fetch(server)
    assert len(server.requests) == 1


def test_a_cache_that_cannot_be_written_to_is_named(server, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    for place in ('file', os.path.join('file', 'below')):
        monkeypatch.setenv('KERAS_HOME', str(tmp_path / place))
        with pytest.raises(UserError, match='voc12: .* cannot be written .*KERAS_HOME') as info:
            fetch(server)
        assert 'put it into' not in str(info.value)
    assert not server.requests


def test_a_broken_encrypted_connection_is_no_full_disk(server, tmp_path, monkeypatch):
    """An SSLError has the number of EPERM."""
    broken, copy = [ssl.SSLError(1, '[SSL] bad record mac')], download.copy

    def copy_after_an_error(*args):
        if broken:
            raise broken.pop()
        copy(*args)

    monkeypatch.setattr(download, 'copy', copy_after_an_error)
    assert_whole(server, tmp_path, 2)


def test_a_kill_before_the_first_byte_leaves_no_part_of_another_version(server, tmp_path, monkeypatch):
    server.plan = [{'bytes': 40000}] * download.TRIES
    failed(server, tmp_path)
    server.content, server.etag = os.urandom(300000), '"2"'

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(json, 'dump', killed)
        fetch(server)
    assert not (tmp_path / 'models' / (NAME + '.part')).exists()


def test_a_length_that_is_no_number(server, tmp_path):
    server.plan = [{'length': 'abc'}]
    assert_whole(server, tmp_path, 1)
