"""Writes PyTorch's files, in both of its formats, without PyTorch."""

import dataclasses
import io
import pickle
import struct
import zipfile

import numpy as np

KINDS = {'f8': 'DoubleStorage', 'f4': 'FloatStorage', 'f2': 'HalfStorage', 'i8': 'LongStorage'}


class Named:
    """A class or function that the pickle names. It can be called because Python's pickler insists on that."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError('called')


class Storage:
    """The elements of a tensor, a one-dimensional array."""

    def __init__(self, elements, kind=None):
        self.elements, self.kind = elements, kind or KINDS[elements.dtype.str[1:]]


@dataclasses.dataclass
class Tensor:
    """A tensor that is a view of a Storage."""

    storage: Storage
    shape: tuple
    strides: tuple
    offset: int = 0
    function: str = '_rebuild_tensor_v2'

    def __reduce_ex__(self, protocol):
        arguments = (self.storage, self.offset, self.shape, self.strides)
        if self.function.endswith('v2'):
            arguments += (False, Called(Named('collections', 'OrderedDict')))
        return Named('torch._utils', self.function), arguments


class Called:
    """The result of a call that the pickle names; `items` or a state may be added to it."""

    def __init__(self, function, *arguments, state=None, items=()):
        self.reduced = (function, arguments, state, None, iter(items) if items else None)

    def __reduce_ex__(self, protocol):
        return self.reduced


def tensor(array, **keywords):
    """Returns a Tensor with its own storage."""
    array = np.array(array, order='C')
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return Tensor(Storage(array.ravel()), array.shape, strides, **keywords)


class Pickler(pickle._Pickler):
    """Pickles Named as names and Storages as references; `storages` lists the Storages."""

    def __init__(self, file, old):
        super().__init__(file, 2)
        self.old, self.storages = old, []

    def save(self, obj, *arguments, **keywords):
        if isinstance(obj, Named):
            self.write(b'c%s\n%s\n' % (obj.module.encode(), obj.name.encode()))
        else:
            super().save(obj, *arguments, **keywords)

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        if all(storage is not obj for storage in self.storages):
            self.storages.append(obj)
        key = [storage is obj for storage in self.storages].index(True)
        entry = ('storage', Named('torch', obj.kind), str(key), 'cuda:0', obj.elements.size)
        return entry + (None,) if self.old else entry


def pickled(content, old):
    """Returns (bytes of the pickle, list of its Storages)."""
    file = io.BytesIO()
    pickler = Pickler(file, old)
    pickler.dump(content)
    return file.getvalue(), pickler.storages


def zip_bytes(content, folder='archive/', order=None, compression=zipfile.ZIP_STORED, pickle_bytes=None):
    """Returns the bytes of a file of PyTorch 1.6 or later."""
    data, storages = pickled(content, False)
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        archive.writestr(folder + 'data.pkl', pickle_bytes or data)
        if order:
            archive.writestr(folder + 'byteorder', order)
        for key, storage in enumerate(storages):
            elements = storage.elements
            if order == 'big':
                elements = elements.astype(elements.dtype.newbyteorder('>'))
            archive.writestr('%sdata/%d' % (folder, key), elements.tobytes())
        archive.writestr(folder + 'version', '3\n')
    return file.getvalue()


def old_bytes(content, pickle_bytes=None, little=True):
    """Returns the bytes of a file of an earlier version."""
    data, storages = pickled(content, True)
    parts = [pickle.dumps(part, 2) for part in (
        0x1950a86a20f9469cfc6c, 1001,
        {'protocol_version': 1001, 'little_endian': little, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}})]
    parts += [pickle_bytes or data, pickle.dumps([str(key) for key in range(len(storages))], 2)]
    for storage in storages:
        parts += [struct.pack('<q', storage.elements.size), storage.elements.tobytes()]
    return b''.join(parts)


FORMATS = {'zip': zip_bytes, 'old': old_bytes}
