"""Free memory according to /proc, to control groups of both versions, and to the process's limit."""

import types

import psutil
import pytest
import tensorflow.compat.v1 as tf

from utils.system import memory
from utils.system.errors import UserError

MB = 1 << 20


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(autouse=True)
def available(request, monkeypatch):
    """Pretends that 900 MB are available, except in the test of the real machine."""
    if 'machine' not in request.node.name:
        monkeypatch.setattr(psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=900 * MB))


def free(folder):
    return memory.free(str(folder / 'proc'), str(folder / 'cgroup'))


@pytest.mark.parametrize('groups, files, megabytes', [
    ('', {}, 900),
    ('0::/a/b\n', {'memory.max': 'max\n', 'memory.current': '1\n'}, 900),
    ('0::/\n', {'memory.max': str(500 * MB), 'memory.current': str(200 * MB)}, 300),
    ('0::/a/b\n', {'a/b/memory.max': str(500 * MB), 'a/b/memory.current': str(200 * MB),
                   'a/b/memory.stat': 'anon 5\ninactive_file %d\n' % (50 * MB)}, 350),
    ('0::/a/b\n', {'a/memory.max': str(500 * MB), 'a/memory.current': str(400 * MB),
                   'a/b/memory.max': 'max', 'a/b/memory.current': '1'}, 100),
    ('0::/a/b\n', {'a/b/memory.max': str(500 * MB), 'a/b/memory.current': str(600 * MB)}, 0),
    ('0::/docker/b\n', {'memory.max': str(500 * MB), 'memory.current': str(200 * MB)}, 300),  # in a container
    ('4:memory:/a\n0::/\n', {'memory/a/memory.limit_in_bytes': str(500 * MB), 'memory/a/memory.usage_in_bytes':
                             str(200 * MB), 'memory/a/memory.stat': 'total_inactive_file %d\n' % MB}, 301),
    ('4:cpu,memory:/a:b\n', {'memory/memory.limit_in_bytes': str((1 << 63) - 4096),
                             'memory/memory.usage_in_bytes': '5', 'memory/a:b/memory.limit_in_bytes': str(90 * MB),
                             'memory/a:b/memory.usage_in_bytes': '0'}, 90),
    ('strange\n', {'memory.max': 'strange', 'memory.current': str(200 * MB)}, 900),
    ('0::/a\n', {'memory.max': str(500 * MB)}, 900),
])
def test_the_least_room_counts(tmp_path, groups, files, megabytes):
    write(tmp_path / 'cgroup', files)
    write(tmp_path / 'proc' / 'self', {'cgroup': groups})
    assert free(tmp_path) == megabytes * MB


def test_a_limit_of_address_space(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, 'Process', lambda: types.SimpleNamespace(
        rlimit=lambda which: (300 * MB, 400 * MB), memory_info=lambda: types.SimpleNamespace(vms=100 * MB)))
    assert free(tmp_path) == 200 * MB


def test_nothing_tells(tmp_path, monkeypatch):
    def hidden():
        raise PermissionError(13, '/proc is hidden')

    monkeypatch.setattr(psutil, 'virtual_memory', hidden)
    assert memory.free(str(tmp_path), str(tmp_path)) == float('inf')


def test_of_this_machine():
    assert 0 < memory.free() < 1 << 50


def test_exhaustion_is_one_sentence():
    match = r'out of memory \(OOM\): lower --window\.'
    with pytest.raises(UserError, match=match), memory.report_exhaustion('--window'):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM')
