"""How is a file of version 0.1 read, which torch.save wrote?

Such a file is a zip archive: a pickle that describes dictionaries and tensors, and one member of
bytes per storage. A pickle is a program for a small machine. The machine here knows the few
instructions that dictionaries, lists, numbers, texts and plain tensors need, and stops at whatever
else it meets. It imports nothing and calls nothing by name.
"""

import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from numgeom.files.layout import (
    DTYPES,
    LARGEST,
    MOST_DIMENSIONS,
    available,
    check_sizes,
    device_from,
    span,
)
from numgeom.files.members import content_of

_MOST_PICKLE = 1 << 28  # bytes
_MARK = object()

# torch's names of storages, which a pickle uses for formats.
_STORAGES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}


@dataclass(frozen=True)
class _Name:
    """Something that a pickle names; never looked up anywhere but in this file."""

    text: str


@dataclass(frozen=True)
class _Storage:
    content: Tensor  # bytes
    dtype: torch.dtype | None  # None: the tensor says
    device: torch.device


def read_torch_archive(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> dict[str, Any]:
    """Read the dictionary in a file of torch.save.

    Raises:
        ValueError: if it holds anything but plain values and dense tensors; other plain Python
            errors if it is damaged.
    """
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("the archive holds no document")
    root = pickles[0].removesuffix("data.pkl")
    order = members.get(f"{root}byteorder")
    if order is not None and archive.read(order) != b"little":
        raise ValueError("its tensors are big-endian")
    if members[pickles[0]].file_size > _MOST_PICKLE:
        raise ValueError(f"its description has more than {_MOST_PICKLE} bytes")
    storages: dict[str, Tensor] = {}

    def storage_of(key: str) -> Tensor:
        if key not in storages:
            storages[key] = content_of(archive, members[f"{root}data/{key}"])
        return storages[key]

    found = _Machine(storage_of).run(archive.read(pickles[0]))
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError("it is a torch file, but not one of ours")
    return found


class _Machine:
    """Runs a pickle, as far as it only makes data."""

    def __init__(self, storage_of: Callable[[str], Tensor]) -> None:
        self._storage_of = storage_of
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        """What the pickle leaves on the stack."""
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("its description is cut off")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _PUSH:
            stack.append(_PUSH[name]())
        elif name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            items = self._pop(n)
            stack.append(tuple(items))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name == "APPEND":
            (item,) = self._pop(1)
            _list(stack[-1]).append(item)
        elif name == "APPENDS":
            items = self._pop_to_mark()
            _list(stack[-1]).extend(items)
        elif name == "SETITEM":
            key, value = self._pop(2)
            _dict(stack[-1])[key] = value
        elif name == "SETITEMS":
            items = self._pop_to_mark()
            _dict(stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        elif name == "BINPERSID":
            (what,) = self._pop(1)
            stack.append(self._storage(what))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(_made(function, arguments))
        else:
            raise ValueError(f"its description does more than describe data ({name})")

    def _pop(self, n: int) -> list[Any]:
        items = self._stack[-n:]
        if len(items) < n or _MARK in [i for i in items if i is _MARK]:
            raise ValueError("its description is damaged")
        del self._stack[-n:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _storage(self, what: Any) -> _Storage:
        kind, named, key, place, _ = what
        if kind != "storage" or not isinstance(named, _Name) or not isinstance(key, str):
            raise ValueError("its description refers to something that is no storage")
        module, _, storage = named.text.rpartition(".")
        dtype = _STORAGES.get(storage) if module == "torch" else None
        if dtype is None and named.text != "torch.storage.UntypedStorage":
            raise ValueError(f"its tensors are kept as {named.text[:60]}, which is not known")
        return _Storage(self._storage_of(key), dtype, device_from(place))


_PUSH: Mapping[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_PUSH_ARGUMENT = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"})


def _made(function: Any, arguments: Any) -> Any:
    """What one of the few functions makes that a description of tensors calls."""
    name = function.text if isinstance(function, _Name) else ""
    if name == "collections.OrderedDict" and arguments == ():
        return OrderedDict()
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, stride, _, _, *more = arguments
        return _tensor(storage, offset, shape, stride, storage.dtype, more)
    if name == "torch._utils._rebuild_tensor_v3":
        storage, offset, shape, stride, _, _, dtype, *more = arguments
        known = dtype.text.removeprefix("torch.") if isinstance(dtype, _Name) else ""
        return _tensor(storage, offset, shape, stride, DTYPES.get(known), more)
    raise ValueError(
        f"its description calls {name[:60] or 'something unknown'}, which is never done"
    )


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None, more: list[Any]
) -> Tensor:
    if not isinstance(storage, _Storage) or dtype is None:
        raise ValueError("a tensor of it is described wrongly")
    for sizes in (shape, stride, (offset,)):
        if not isinstance(sizes, tuple) or len(sizes) > MOST_DIMENSIONS:
            raise ValueError("a tensor of it is described wrongly")
        if any(type(n) is not int or not 0 <= n < LARGEST for n in sizes):
            raise ValueError("a tensor of it has a size that no tensor has")
    check_sizes(shape)
    if len(shape) != len(stride):
        raise ValueError("a tensor of it is described wrongly")
    content = storage.content
    end = (offset + span(shape, stride)) * dtype.itemsize
    if end > content.numel():
        raise ValueError("a tensor of it reaches beyond its storage")
    bits = dict(more[0]) if more else {}
    if not bits.keys() <= {"conj", "neg"}:
        raise ValueError("a tensor of it is described wrongly")
    if dtype is torch.bool:
        line = content != 0
    else:
        whole = content.numel() - content.numel() % dtype.itemsize
        line = content[:whole].view(dtype)
    tensor = line.as_strided(shape, stride, offset) if 0 not in shape else line[:0].view(shape)
    if bits.get("conj"):
        tensor = tensor.conj().resolve_conj()
    if bits.get("neg"):
        tensor = -tensor
    return tensor.to(available(storage.device))


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError("its description is damaged")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) not in (dict, OrderedDict):
        raise ValueError("its description is damaged")
    return value
