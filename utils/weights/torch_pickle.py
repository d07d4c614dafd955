"""Reads the pickles in PyTorch's files without PyTorch, as plain data and descriptions of tensors.

Python's own unpickler calls whatever a pickle names, and a hostile pickle can exhaust its memory or its stack. This one
knows only the opcodes that state dicts need, calls only the functions of GLOBALS, hashes only text and small numbers,
and takes time and memory in proportion to the pickle's length, as it never copies long data repeatedly.
"""

import functools
import operator
import pickle
import struct
import typing

# {class of a storage: numpy's type of its elements}. numpy has no bfloat16: its bits are read as a whole number.
ELEMENTS = {
    'DoubleStorage': 'f8', 'FloatStorage': 'f4', 'HalfStorage': 'f2', 'BFloat16Storage': 'u2',
    'LongStorage': 'i8', 'IntStorage': 'i4', 'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1',
    'BoolStorage': '?', 'ComplexDoubleStorage': 'c16', 'ComplexFloatStorage': 'c8', 'UntypedStorage': 'u1',
}
STORAGE_MODULES = ('torch', 'torch.cuda', 'torch.storage')
LARGEST_KEY = 2 ** 31  # limit on integer keys; without it, a file could choose many keys with the same hash
MOST_DIMENSIONS = 32  # of a tensor, as in numpy
MOST_ARGUMENTS = 10   # of a function


class RefusedGlobal(ValueError):
    """A pickle names a class or function that is not built here; the error's text is the name."""


class Storage(typing.NamedTuple):
    """A part of the file with the elements of one or several tensors, or a view of such a part."""

    key: str     # under which the file has it
    kind: str    # key of ELEMENTS
    total: int   # number of elements of the whole part
    start: int   # first element of the view
    length: int  # number of elements of the view


class Tensor(typing.NamedTuple):
    """A tensor, whose elements are still in the file."""

    storage: Storage
    offset: int     # of the first element in the whole part
    shape: tuple
    strides: tuple  # in elements, none negative

    def numel(self):
        """Returns the number of elements."""
        return functools.reduce(operator.mul, self.shape, 1)


def whole(value):
    """Returns value; raises ValueError unless it is an int in [0, 2^63)."""
    if type(value) is not int or not 0 <= value < 2 ** 63:
        raise ValueError('its pickle lacks a whole number')
    return value


def set_items(target, keys, values):
    """Adds items to a dict.

    Raises:
      ValueError: target is not a dict, or a key is neither text nor a small whole number.
    """
    if not isinstance(target, dict) or len(keys) != len(values):
        raise ValueError('its pickle lacks a dictionary')
    for key, value in zip(keys, values):
        if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < LARGEST_KEY):
            raise ValueError('its pickle has a key that is neither text nor a number')
        target[key] = value


def ordered_dict(pairs=None):
    """Returns a dict of a list of [key, value], as Python 2 gave it to an OrderedDict; Python 3 adds the items later.

    The list is emptied, so that a pickle cannot have it copied again and again.
    """
    made = {}
    for pair in pairs or []:
        key, value = pair
        set_items(made, [key], [value])
    if pairs is not None:
        pairs.clear()
    return made


def size(values):
    """Returns the tuple for a torch.Size."""
    if not isinstance(values, tuple):
        raise TypeError
    return values


def rebuild_tensor(storage, offset, shape, strides, *_):
    """Returns a Tensor, whose elements all lie in its storage.

    Args:
      storage: a Storage.
      offset: its first element in the storage.
      shape: a tuple.
      strides: a tuple, in elements.
      *_: whether it requires a gradient, its hooks and metadata, of _rebuild_tensor_v2.

    Raises:
      ValueError: an argument is of another kind, or elements lie outside the storage.
    """
    if not all(isinstance(given, kind) for given, kind in ((storage, Storage), (shape, tuple), (strides, tuple))):
        raise ValueError('its pickle has a malformed tensor')
    if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise ValueError('a tensor has %d dimensions and %d strides' % (len(shape), len(strides)))
    shape, strides = tuple(map(whole, shape)), tuple(map(whole, strides))
    last = whole(offset) + sum((number - 1) * stride for number, stride in zip(shape, strides))
    if 0 not in shape and last >= storage.length:
        raise ValueError('a tensor reaches beyond its storage')
    return Tensor(storage, storage.start + offset, shape, strides)


def rebuild_parameter(tensor, *_):
    """Returns the Tensor of a torch.nn.Parameter."""
    if not isinstance(tensor, Tensor):
        raise ValueError('its pickle has a parameter without a tensor')
    return tensor


GLOBALS = {
    'collections.OrderedDict': ordered_dict,
    'torch.Size': size,
    'torch._utils._rebuild_tensor': rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': rebuild_tensor,
    'torch._utils._rebuild_parameter': rebuild_parameter,
}


class Unpickler:
    """Reads the pickles that follow one another in some bytes.

    Attributes:
      at: offset of the next one.
      storages: {key: Storage} of all storages that the pickles refer to, each as a whole.
    """

    def __init__(self, content):
        self.content, self.at, self.storages = content, 0, {}

    def load(self):
        """Returns the object of the next pickle.

        Raises:
          RefusedGlobal: it names a class or function that is not built here.
          ValueError: it is damaged, or is not a pickle that PyTorch writes.
        """
        self.stack, self.marks, self.memo = [], [], {}
        try:
            while True:
                opcode = self.take(1)
                if opcode == pickle.STOP:
                    value, = self.stack
                    return value
                OPCODES[opcode](self)
        except (LookupError, TypeError, AttributeError):
            raise ValueError('its pickle is damaged near byte %d' % self.at)

    # the opcodes' actions -------------------------------------------------------------------------------------------

    def take(self, count):
        """Returns the next `count` bytes."""
        taken = self.content[self.at:self.at + count]
        if len(taken) < count:
            raise ValueError('its pickle ends too early or is too large')
        self.at += count
        return taken

    def number(self, count):
        """Returns the next `count` bytes as a whole number, which is not negative."""
        return int.from_bytes(self.take(count), 'little')

    def line(self):
        """Returns the bytes up to the next end of a line."""
        end = self.content.index(b'\n', self.at)
        return self.take(end + 1 - self.at)[:-1]

    def text(self, width):
        """Pushes UTF-8 text, which follows its length, a number of `width` bytes; Python 2 wrote str so too."""
        self.stack.append(self.take(self.number(width)).decode('utf-8', 'surrogatepass'))

    def marked(self):
        """Pops the objects that were pushed since the last mark, and returns them as a list."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def group(self, count):
        """Replaces the last `count` objects by a tuple of them."""
        if len(self.stack) < count:
            raise IndexError
        items = tuple(self.stack[len(self.stack) - count:])
        self.stack[len(self.stack) - count:] = [items]

    def remember(self, index):
        self.memo[index] = self.stack[-1]

    def append(self, items):
        if not isinstance(self.stack[-1], list):
            raise TypeError
        self.stack[-1].extend(items)

    def set_items(self, items):
        set_items(self.stack[-1], items[::2], items[1::2])

    def set_item(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def find_global(self, module, name):
        """Pushes a function of GLOBALS or, for a class of storages, its name."""
        if module in STORAGE_MODULES and name in ELEMENTS:
            self.stack.append(name)
        elif '%s.%s' % (module, name) in GLOBALS:
            self.stack.append(GLOBALS['%s.%s' % (module, name)])
        else:
            raise RefusedGlobal('%s.%s' % (module, name))

    def find_stacked(self):
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self.find_global(module, name)

    def reduce(self):
        """Calls a function of GLOBALS, the only objects on the stack that can be called."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
            raise TypeError
        self.stack.append(function(*arguments))

    def build(self):
        """Discards the attributes of an OrderedDict, which are the version numbers of PyTorch's modules."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise TypeError

    def find_storage(self):
        """Replaces ('storage', class, key, device, number of elements, view or None) by the Storage."""
        entry = self.stack.pop()
        if not isinstance(entry, tuple) or len(entry) > MOST_ARGUMENTS:
            raise TypeError
        tag, kind, key, _, total, *view = entry
        if tag != 'storage' or not isinstance(kind, str) or kind not in ELEMENTS or not isinstance(key, str):
            raise TypeError
        storage = Storage(key, kind, whole(total), 0, total)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError('its pickle gives a storage two types or sizes')
        if view and view[0] is not None:
            _, start, length = view[0]
            if whole(start) + whole(length) > total:
                raise ValueError('a view reaches beyond its storage')
            storage = storage._replace(start=start, length=length)
        self.stack.append(storage)


# The opcodes of protocol 2, which PyTorch uses by default, and those of later protocols that state dicts contain.
OPCODES = {
    pickle.PROTO: lambda self: self.take(1),
    pickle.FRAME: lambda self: self.take(8),
    pickle.NONE: lambda self: self.stack.append(None),
    pickle.NEWTRUE: lambda self: self.stack.append(True),
    pickle.NEWFALSE: lambda self: self.stack.append(False),
    pickle.BININT: lambda self: self.stack.append(int.from_bytes(self.take(4), 'little', signed=True)),
    pickle.BININT1: lambda self: self.stack.append(self.number(1)),
    pickle.BININT2: lambda self: self.stack.append(self.number(2)),
    pickle.LONG1: lambda self: self.stack.append(int.from_bytes(self.take(self.number(1)), 'little', signed=True)),
    pickle.BINFLOAT: lambda self: self.stack.append(struct.unpack('>d', self.take(8))[0]),
    pickle.SHORT_BINSTRING: lambda self: self.text(1),
    pickle.BINSTRING: lambda self: self.text(4),
    pickle.SHORT_BINUNICODE: lambda self: self.text(1),
    pickle.BINUNICODE: lambda self: self.text(4),
    pickle.EMPTY_DICT: lambda self: self.stack.append({}),
    pickle.EMPTY_LIST: lambda self: self.stack.append([]),
    pickle.EMPTY_TUPLE: lambda self: self.stack.append(()),
    pickle.MARK: lambda self: self.marks.append(len(self.stack)),
    pickle.TUPLE: lambda self: self.stack.append(tuple(self.marked())),
    pickle.TUPLE1: lambda self: self.group(1),
    pickle.TUPLE2: lambda self: self.group(2),
    pickle.TUPLE3: lambda self: self.group(3),
    pickle.APPEND: lambda self: self.append([self.stack.pop()]),
    pickle.APPENDS: lambda self: self.append(self.marked()),
    pickle.SETITEM: lambda self: self.set_item(),
    pickle.SETITEMS: lambda self: self.set_items(self.marked()),
    pickle.BINPUT: lambda self: self.remember(self.number(1)),
    pickle.LONG_BINPUT: lambda self: self.remember(self.number(4)),
    pickle.MEMOIZE: lambda self: self.remember(len(self.memo)),
    pickle.BINGET: lambda self: self.stack.append(self.memo[self.number(1)]),
    pickle.LONG_BINGET: lambda self: self.stack.append(self.memo[self.number(4)]),
    pickle.GLOBAL: lambda self: self.find_global(self.line().decode(), self.line().decode()),
    pickle.STACK_GLOBAL: lambda self: self.find_stacked(),
    pickle.REDUCE: lambda self: self.reduce(),
    pickle.BUILD: lambda self: self.build(),
    pickle.BINPERSID: lambda self: self.find_storage(),
}

