"""How does one tensor lie in a file: format, shape, strides, device, and its bytes?"""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from numgeom.errors import FileFormatError

MOST_DIMENSIONS = 64
LARGEST = 1 << 62
"""No size, stride or offset of a tensor reaches this."""

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        name: dtype
        for name in dir(torch)
        if isinstance(dtype := getattr(torch, name), torch.dtype)
        and str(dtype) == f"torch.{name}"
        and (
            dtype.is_floating_point
            or dtype.is_complex
            or dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
            or name in ("uint16", "uint32", "uint64")
        )
    }
)
"""The formats that a tensor in a file may have, by name. No quantized ones."""


@dataclass(frozen=True)
class Layout:
    """Where a tensor's entries are in its bytes.

    Attributes:
        name: Its name in the file.
        dtype: Its format.
        shape: Its sizes.
        stride: Its strides, in entries; the first entry comes first.
        device: "cpu", "cuda:0" and the like.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: torch.device

    @property
    def n_stored(self) -> int:
        """Number of entries of the memory that it spans."""
        return span(self.shape, self.stride)

    def to_row(self) -> list[Any]:
        """Return the layout as JSON values."""
        dtype = str(self.dtype).removeprefix("torch.")
        return [self.name, dtype, list(self.shape), list(self.stride), str(self.device)]

    @classmethod
    def from_row(cls, row: Any) -> "Layout":
        """Read what `to_row` wrote.

        Raises:
            ValueError: if it is something else.
        """
        if not isinstance(row, list) or len(row) != 5 or not isinstance(row[0], str):
            raise ValueError("a tensor of it is not described as it should be")
        name, dtype, shape, stride, device = row
        shape, stride = sizes_from(shape), sizes_from(stride)
        check_sizes(shape)
        if len(shape) != len(stride):
            raise ValueError(
                f"the tensor {name[:60]!r} has {len(shape)} sizes, {len(stride)} strides"
            )
        return cls(name, dtype_from(dtype), shape, stride, device_from(device))


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Number of entries from the first to the last in memory; 0 for a tensor without entries."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def sizes_from(value: Any) -> tuple[int, ...]:
    """Read sizes or strides.

    Raises:
        ValueError: if it is no list of a few integers that are not negative.
    """
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS:
        raise ValueError("the shape of a tensor is no short list")
    for n in value:
        if type(n) is not int or not 0 <= n < LARGEST:
            raise ValueError(f"{str(n)[:30]!r} is no size of a tensor")
    return tuple(value)


def check_sizes(shape: tuple[int, ...]) -> None:
    """Raise where sizes are too large to be multiplied in 64 bits.

    Raises:
        ValueError: names the shape.
    """
    if math.prod(n for n in shape if n) >= LARGEST:
        raise ValueError(f"no tensor has the shape {shape}")


def check_expansion(tensors: Iterable[Tensor], most: int = 1 << 28) -> None:
    """Raise where tensors that repeat stored entries have many times more of them than are stored.

    Args:
        tensors: What a file holds.
        most: So many entries all of them together may have in any case.

    Raises:
        ValueError: if they have more than that, and more than 64 times what is stored.
    """
    given = list(tensors)
    stored = sum(span(tuple(t.shape), t.stride()) for t in given)
    entries = sum(t.numel() for t in given)
    if entries > max(most, 64 * stored):
        raise ValueError(f"its tensors have {entries} entries, of which {stored} are stored")


def dtype_from(name: Any) -> torch.dtype:
    """The format of a name.

    Raises:
        ValueError: if a tensor cannot have it, or this torch does not know it.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"unknown dtype {str(name)[:60]!r}")
    return DTYPES[name]


def device_from(name: Any) -> torch.device:
    """The device of a name, which need not be at hand.

    Raises:
        ValueError: if tensors of a recorded step cannot be there.
    """
    kind, colon, number = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in _DEVICES or (colon and not (number.isascii() and number.isdigit())):
        raise ValueError(f"unknown device {str(name)[:60]!r}")
    if colon and int(number[:4]) >= _MOST_DEVICES:
        raise ValueError(f"unknown device {name[:60]!r}")
    return torch.device(name)


_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch keeps values; "meta" has none
_MOST_DEVICES = 128  # torch counts devices in eight bits


def plain_tensor(name: str, tensor: Tensor) -> Tensor:
    """The numbers of a tensor, without gradient, and without bits that conjugate or negate them.

    Raises:
        FileFormatError: if no file holds tensors of its kind.
    """
    plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested)
    if not plain or str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise FileFormatError(
            f"The tensor {name!r} ({tensor.dtype}, {tensor.layout}, {tensor.device}) cannot be "
            "saved: a file holds dense tensors of plain numbers. Convert it first."
        )
    return tensor.detach().resolve_conj().resolve_neg()


def layout_of(name: str, tensor: Tensor) -> Layout:
    """Describe a tensor that `plain_tensor` gave."""
    return Layout(name, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory that a tensor spans, little-endian."""
    n = span(tuple(tensor.shape), tensor.stride())
    line = tensor.as_strided((n,), (1,), tensor.storage_offset()).cpu().contiguous()
    if sys.byteorder == "big":
        raise FileFormatError("Tensors cannot be saved on a big-endian machine.")
    return line.view(torch.uint8).numpy().data


def tensor_from(layout: Layout, content: Tensor) -> Tensor:
    """The tensor that lies in the given bytes, on its device if that is here, else on the CPU.

    Raises:
        ValueError: if the bytes are too few or too many.
    """
    n = layout.n_stored
    if n * layout.dtype.itemsize != content.numel():
        raise ValueError(
            f"the tensor {layout.name[:60]!r} needs {n * layout.dtype.itemsize} bytes, and "
            f"{content.numel()} are there"
        )
    line = (content != 0) if layout.dtype is torch.bool else content.view(layout.dtype)
    tensor = line.as_strided(layout.shape, layout.stride) if n else line.view(layout.shape)
    return tensor.to(available(layout.device))


def available(device: torch.device) -> torch.device:
    """The device itself where this machine has it, else the CPU."""
    if device.type == "cuda" and torch.cuda.is_available():
        here = device.index is None or device.index < torch.cuda.device_count()
    else:
        here = device.type == "mps" and torch.backends.mps.is_available()
    return device if here else torch.device("cpu")
