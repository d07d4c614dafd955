"""Reads the weights of kazuto1011's DeepLab v2, a PyTorch .pth, under the names of our encoders.

PyTorch is not needed, and nothing in the file is executed. There are two formats. Since PyTorch 1.6, the file is a zip
archive of a folder with any name, which contains the pickle data.pkl and a file data/KEY for each storage. Before, it
was a stream of pickles (a magic number, a version, facts about the system, the object and the list of its storages'
keys), followed by the storages, each preceded by the number of its elements.
"""

import functools
import os
import re
import typing
import zipfile
import zlib

import numpy as np
from numpy.lib.stride_tricks import as_strided

from utils.system.errors import UserError, quoted
from utils.weights import weight_names
from utils.weights.torch_pickle import ELEMENTS, RefusedGlobal, Tensor, Unpickler

ZIP_MAGIC = b'PK\x03\x04'
MAGIC, VERSION = (0x1950a86a20f9469cfc6c).to_bytes(10, 'little'), 1001  # of the older format
MAGIC_WITHIN = 32  # bytes, which hold the magic number's pickle
LARGEST_PICKLE = 2 ** 22  # bytes; a ResNet-101's has 0.1 MB
ORDERS = {b'little': '<', b'big': '>'}
LOCAL_HEADER = 30  # bytes in front of an entry of a zip archive, without its name
FLOATS = ('DoubleStorage', 'FloatStorage', 'HalfStorage', 'BFloat16Storage')
# Names of kazuto1011's layers, which the names of enclosing modules may precede.
LAYER = re.compile(r'(?:(?:module|base)\.)*(?:'
                   r'(?:layer1\.conv1|layer([2-5])\.block([1-9][0-9]?)\.(shortcut|reduce|conv3x3|increase))\.(conv|bn)|'
                   r'aspp\.c([0-3]))\.([a-z_]+)')
LEAVES = {
    'conv': {'weight': 'weights', 'bias': 'biases'},
    'bn': {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean', 'running_var': 'moving_variance'},
}


class Place(typing.NamedTuple):
    """Where a storage is in the file."""

    start: int
    length: int  # bytes
    crc: int     # checksum of the bytes; None if there is none


class TorchFile(typing.NamedTuple):
    """A .pth that has been opened."""

    content: object  # the saved object, with a Tensor for each tensor
    places: dict     # {key of a storage: Place}, all of them inside the file
    order: str       # '<' or '>', the order of the elements' bytes


# ---- the two formats ----

def is_torch(start):
    """Returns whether a file that starts with these 8 bytes is a zip archive or a pickle of protocol 2 or later."""
    return start.startswith(ZIP_MAGIC) or (start[:1] == b'\x80' and start[1:2] in (b'\2', b'\3', b'\4', b'\5'))


def read_file(path):
    """Returns the TorchFile of a path; only its pickles are read.

    Raises:
      UserError: it was not written by PyTorch, or names a class that is not read.
      ValueError: it is damaged.
    """
    with open(path, 'rb') as file:
        start = file.read(len(ZIP_MAGIC))
        file.seek(0)
        try:
            return read_zip(file, path) if start == ZIP_MAGIC else read_stream(file, path)
        except RefusedGlobal as refused:
            raise UserError("%s holds an object of %s, which is not read because that can run a program: save the "
                            "weights alone, with torch.save(model.state_dict(), 'NAME.pth')." % (
                                quoted(path), quoted(refused, 60)))


def read_zip(file, path):
    """Returns the TorchFile of the format of PyTorch 1.6 and later."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    names = [name for name in entries if ('/' + name).endswith('/data.pkl')]
    if len(names) != 1:
        raise UserError("%s is a zip archive, but not one of PyTorch's, which have one data.pkl: give the file that "
                        'torch.save wrote.' % quoted(path))
    folder = names[0][:-len('data.pkl')]
    places = {name[len(folder):]: find_entry(file, path, entry) for name, entry in entries.items()
              if name.startswith(folder) and not name.endswith('/')}
    unpickler = Unpickler(read_small(file, places['data.pkl']))
    content = unpickler.load()
    order = read_small(file, places['byteorder']) if 'byteorder' in places else b'little'
    if order not in ORDERS:
        raise ValueError('its byteorder is neither little nor big')
    found = {}
    for key, storage in unpickler.storages.items():
        place = places.get('data/' + key)
        if not place or place.length != storage.total * itemsize(storage):
            raise ValueError('it has %s bytes for the %d elements of storage %s' % (
                place.length if place else 'no', storage.total, quoted(key, 20)))
        found[key] = place
    return TorchFile(content, found, ORDERS[order])


def find_entry(file, path, entry):
    """Returns the Place of an entry of a zip archive.

    Raises:
      UserError: it is compressed.
      ValueError: it does not lie in the file.
    """
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise UserError('%s is compressed, which the files of torch.save never are: unpack it and pack it again '
                        'without compression (zip -0 -r).' % quoted(path))
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER)
    start = (entry.header_offset + LOCAL_HEADER + int.from_bytes(header[26:28], 'little')
             + int.from_bytes(header[28:30], 'little'))
    if not header.startswith(ZIP_MAGIC) or start + entry.file_size > size_of(file):
        raise ValueError('%s is not where its table of contents says' % quoted(entry.filename, 40))
    return Place(start, entry.file_size, entry.CRC)


def read_stream(file, path):
    """Returns the TorchFile of the format before PyTorch 1.6.

    Its elements are little-endian whatever its facts about the system say, because other machines swapped the bytes.
    """
    unpickler, size = Unpickler(file.read(LARGEST_PICKLE)), size_of(file)
    if MAGIC not in unpickler.content[:MAGIC_WITHIN]:
        raise UserError("%s is a pickle, but not one of PyTorch's: give the file that torch.save wrote." % quoted(path))
    _, version, _, content, keys = (unpickler.load() for _ in range(5))
    if version != VERSION:
        raise ValueError("it is not of version %d of PyTorch's format" % VERSION)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError('it has no list of its storages')
    places, at = {}, unpickler.at
    for key in keys:
        storage = unpickler.storages.get(key)
        file.seek(at)
        if not storage or int.from_bytes(file.read(8), 'little') != storage.total:
            raise ValueError('storage %s does not have the size that its tensors need' % quoted(key, 20))
        places[key] = Place(at + 8, storage.total * itemsize(storage), None)
        at += 8 + places[key].length
        if at > size:
            raise ValueError('it ends in storage %s' % quoted(key, 20))
    missing = [key for key in unpickler.storages if key not in places]
    if missing:
        raise ValueError('storage %s is missing' % quoted(missing[0], 20))
    return TorchFile(content, places, '<')


def size_of(file):
    """Returns the size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def itemsize(storage):
    """Returns the bytes of one element of a Storage."""
    return np.dtype(ELEMENTS[storage.kind]).itemsize


def read_place(file, place):
    """Returns the bytes of a Place.

    Raises:
      ValueError: they have another checksum, or the file has become shorter.
    """
    file.seek(place.start)
    content = file.read(place.length)
    if len(content) != place.length or (place.crc is not None and zlib.crc32(content) != place.crc):
        raise ValueError('the checksum of its bytes from %d to %d is wrong' % (place.start, place.start + place.length))
    return content


def read_small(file, place):
    """Returns the bytes of a Place that is no storage; raises ValueError if they are too many or damaged."""
    if place.length > LARGEST_PICKLE:
        raise ValueError('it has %d bytes where at most %d are expected' % (place.length, LARGEST_PICKLE))
    return read_place(file, place)


def to_array(content, tensor, order):
    """Returns the float32 array of a Tensor.

    Args:
      content: the bytes of its whole storage.
      tensor: the Tensor, whose elements all lie in them.
      order: '<' or '>'.
    """
    elements = np.frombuffer(content, np.dtype(ELEMENTS[tensor.storage.kind]).newbyteorder(order))
    strides = [stride * elements.itemsize if number > 1 else 0 for number, stride in zip(tensor.shape, tensor.strides)]
    view = as_strided(elements[tensor.offset:], tensor.shape, strides, writeable=False)
    if tensor.storage.kind == 'BFloat16Storage':  # the upper half of a float32
        return np.left_shift(view.astype(np.uint32), 16).view(np.float32)
    return view.astype(np.float32)


# ---- the names ----

def state_dict_of(content):
    """Returns the state dict in a saved object: all of it or its entry state_dict or model; {} if there is none."""
    for name in ('state_dict', 'model', 'state_dict'):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    return content if isinstance(content, dict) else {}


def identify(name):
    """Returns ((stage, unit, index), kind, leaf of our variable) of a name in kazuto1011's state dicts.

    For the ASPP, the first item is the number of a branch. For any other name, the result is None.
    """
    match = LAYER.fullmatch(name) if isinstance(name, str) else None
    if not match:
        return None
    stage, unit, conv, kind, branch, leaf = match.groups()
    leaf = LEAVES[kind or 'conv'].get(leaf)
    if not leaf:
        return None
    if branch:
        return int(branch), 'conv', leaf
    if not stage:
        return (1, 1, 1), kind, leaf
    return (int(stage), int(unit), ('shortcut', 'reduce', 'conv3x3', 'increase').index(conv)), kind, leaf


def find_tensors(content, path, encoder_name):
    """Returns {name of our variable: Tensor} of the object in a .pth.

    Raises:
      UserError: there are no layers of kazuto1011's networks, or some occur twice.
      ValueError: one has no floating-point numbers, or more elements than are in the file.
    """
    found = {}
    for name, tensor in state_dict_of(content).items():
        place = identify(name)
        if not place or not isinstance(tensor, Tensor):
            continue
        if place in found:
            raise UserError('%s holds more than one network (%s twice): give the weights of one.' % (
                quoted(path), quoted(name)))
        if tensor.storage.kind not in FLOATS or tensor.numel() > tensor.storage.length:
            raise ValueError('%s has no floating-point number for each of its elements' % quoted(name))
        found[place] = tensor
    layers = [place for place, _, _ in found if isinstance(place, tuple)]
    if not layers:
        raise UserError("%s is a PyTorch file without the layers of kazuto1011's DeepLab v2 (layer1.conv1.conv.weight "
                        'and so on): give one of his files, or weights of another kind.' % quoted(path))
    encoder_name = weight_names.nearest_encoder([layer[:2] for layer in layers], encoder_name, 'caffe')
    decoder = weight_names.caffe_decoder_scopes(encoder_name)
    tensors = {}
    for (place, kind, leaf), tensor in found.items():
        if isinstance(place, tuple):
            scope = weight_names.conv_scopes(encoder_name, *place)[kind == 'bn']
        else:
            scope = decoder['fc1_voc12_c%d' % place]
        tensors['%s/%s' % (scope, leaf)] = tensor
    return tensors


def read_torch(path, encoder_name=None):
    """Opens a .pth with one of kazuto1011's networks.

    Args:
      path: the file.
      encoder_name: the encoder whose names are used if it has as many units; otherwise the nearest encoder's are.

    Returns:
      {variable name: shape}, and a function from a variable's name to its float32 array. The weights of a convolution,
      [out, in, kh, kw] in PyTorch, become [kh, kw, in, out].

    Raises:
      UserError: the file holds no such network, or names a class that is not read.
      ValueError: it is damaged; the function may raise it too.
    """
    opened = read_file(path)
    tensors = find_tensors(opened.content, path, encoder_name)
    shapes = {name: tensor.shape if len(tensor.shape) < 4 else tuple(tensor.shape[axis] for axis in (2, 3, 1, 0))
              for name, tensor in tensors.items()}

    @functools.lru_cache(maxsize=1)  # all tensors can be in one storage
    def storage(key):
        with open(path, 'rb') as file:
            return read_place(file, opened.places[key])

    def read(name):
        tensor = tensors[name]
        array = to_array(storage(tensor.storage.key), tensor, opened.order)
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array

    return shapes, read
