"""Damages the bytes of files: cuts, flips, overwrites, inflates lengths, or replaces everything."""

import os

import numpy as np

HUGE = (0xffffffff, 0x7fffffff, 0x80000000, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def cut(rng, data):
    """Keeps between none and nine tenths of the data."""
    return data[:len(data) * rng.randint(10) // 10]


def flip_bits(rng, data):
    changed = bytearray(data)
    for _ in range(rng.randint(1, 20)):
        changed[rng.randint(len(changed))] ^= 1 << rng.randint(8)
    return bytes(changed)


def flip_region(rng, data):
    """Flips all bits of up to 64 consecutive bytes."""
    start = rng.randint(len(data))
    end = start + rng.randint(1, 65)
    return data[:start] + bytes(255 - byte for byte in data[start:end]) + data[end:]


def flip_structure(rng, data):
    """Changes bytes at or near lower-case letters, which are parts of names, not numbers."""
    changed = np.frombuffer(data, np.uint8).copy()
    letters = np.flatnonzero((changed > 96) & (changed < 123))
    if not len(letters):
        return flip_bits(rng, data)
    places = np.clip(rng.choice(letters, 3) + rng.randint(-24, 25, 3), 0, len(data) - 1)
    changed[places] = rng.randint(0, 256, 3)
    return changed.tobytes()


def inflate(rng, data):
    """Replaces 4 or 8 bytes by a huge number, often beside a small number, which may be a length."""
    size = int(rng.choice([4, 8]))
    start = rng.randint(max(1, len(data) - size))
    if rng.randint(2):
        near = data.find(b'\0\0\0', start)
        start = max(0, near - 1) if near >= 0 else start
    number = HUGE[rng.randint(len(HUGE))] & ((1 << 8 * size) - 1)
    return data[:start] + number.to_bytes(size, ['little', 'big'][rng.randint(2)]) + data[start + size:]


def inflate_varint(rng, data):
    """Replaces a byte by a varint of 5 to 10 bytes; protocol buffers write lengths in this way."""
    start = rng.randint(len(data))
    return data[:start] + b'\xff' * rng.randint(4, 10) + b'\x7f' + data[start + 1:]


def repeat(rng, data):
    """Repeats a part of the data."""
    start, end = sorted(rng.randint(0, len(data) + 1, 2))
    return data[:end] + data[start:end] + data[end:]


def drop(rng, data):
    """Removes a part of the data."""
    start = rng.randint(len(data))
    return data[:start] + data[start + rng.randint(1, 200):]


def replace(rng, data):
    """Returns other data altogether."""
    return [b'', b'\0' * len(data), rng.bytes(len(data)), b'a text\n' * 5, b'\xff\xfe' + b'a\0b\0', b'PK\x03\x04',
            b'\x89HDF\r\n\x1a\n', b'\xff\xd8\xff\xe0', b'\x89PNG\r\n\x1a\n', b'\n' * 10 ** 5][rng.randint(10)]


ALL = (cut, flip_bits, flip_region, flip_structure, inflate, inflate_varint, repeat, drop, replace)


def spoil(rng, data):
    """Returns data changed by a random one of ALL, whose name is printed."""
    change = ALL[rng.randint(len(ALL))] if data else replace
    print('damage: %s of %d bytes' % (change.__name__, len(data)))
    return change(rng, data)


def spoil_file(rng, path):
    """Damages a file."""
    with open(path, 'rb') as file:
        data = file.read()
    write(path, spoil(rng, data))


def write(path, data):
    with open(path, 'wb') as file:
        file.write(data)


def not_a_file(rng, path):
    """Puts a folder, a pipe, a link to nothing, to itself or to a device, or nothing at a path."""
    if os.path.lexists(path):
        os.remove(path)
    kind = rng.randint(6)
    print('no file: kind %d at %s' % (kind, path))
    if kind == 0:
        os.mkdir(path)
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        os.symlink(path, path)
    elif kind == 3:
        os.symlink(path + '.gone', path)
    elif kind == 4:
        os.symlink('/dev/zero', path)
