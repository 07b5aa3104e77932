"""Where are copies kept when the same model is recorded again and again?

A step that is recorded copies parameters and gradients. In fresh memory every page of a copy is
a fault, here and in the kernels that then find the memory of the step before given away: for a
small GPT that cost a seventh of the step. So the copies of a model's second recording and later
ones lie in memory that is used again once nobody holds the copy before.
"""

import sys
import threading
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Below this a copy costs less than the search for its place; torch has small blocks at hand.
_SMALL = 1 << 16
_LARGEST_SUM = 1 << 26  # bytes that one model may keep; beyond this copies take fresh memory

# A storage that nobody else uses is held by the tensor and by its object in Python; that object by
# the storage, by the list, and by the two names of those who count.
_FREE, _FREE_OBJECT = 2, 4

_Kind = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Buffers:
    """Memory for copies; a copy is given back by dropping it."""

    def __init__(self) -> None:
        """Keep nothing."""
        # The storage's own object is held: with it and the tensor, two hold a buffer that is free.
        self._kept: dict[_Kind, list[tuple[Tensor, torch.UntypedStorage]]] = {}
        self._lock = threading.Lock()

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor; of one that requires a gradient only where none is recorded."""
        size = tensor.numel() * tensor.element_size()
        if size < _SMALL or tensor.device.type != "cpu" or not tensor.is_contiguous():
            return tensor.clone()
        with self._lock:
            buffer = self._free(tensor, size)
        return tensor.clone() if buffer is None else buffer.copy_(tensor)

    def _free(self, like: Tensor, size: int) -> Tensor | None:
        kind = like.shape, like.stride(), like.dtype
        for i, (buffer, memory) in enumerate(self._kept.get(kind, ())):
            if memory.is_shared() or memory.nbytes() != size:  # another process may read it
                del self._kept[kind][i]
                return None
            uses = torch._C._storage_Use_Count(memory._cdata)
            if uses == _FREE and sys.getrefcount(memory) == _FREE_OBJECT:
                return buffer.detach()
        if size + self._size() > _LARGEST_SUM:
            return None
        buffer = torch.empty_like(like)
        self._kept.setdefault(kind, []).append((buffer, buffer.untyped_storage()))
        return buffer.detach()

    def _size(self) -> int:
        return sum(memory.nbytes() for kept in self._kept.values() for _, memory in kept)


_BUFFERS: WeakKeyDictionary[nn.Module, Buffers | None] = WeakKeyDictionary()


def buffers_of(model: nn.Module | None) -> Buffers | None:
    """Where copies for a recording of this model go; None in the first one, and without a model."""
    if model is None:
        return None
    try:
        if model not in _BUFFERS:
            _BUFFERS[model] = None
            return None
        found = _BUFFERS[model]
        if found is None:
            found = _BUFFERS[model] = Buffers()
    except TypeError:  # a model that has no hash
        return None
    return found
