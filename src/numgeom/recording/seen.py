"""What is noted of a tensor while a step runs? How it lies in which memory, none of its numbers.

Everything that a program needs to know of an intermediate tensor is here, so that the step keeps
none of them alive and the program can be made of the notes later.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from numgeom.recording.calls import TensorMeta

_NONE: Any = frozenset()  # most memory is not watched


class Memory:
    """One storage of the step, told apart from all others by its object.

    Attributes:
        device: Where it is.
        external: Whether it came from outside of the step.
        written: Whether the step has written to it after it came.
        watched: Whether its views are noted as they come: what came from outside must be copied
            before it changes, and what was written to holds another value than its views did.
        layouts: The views of it whose value is known, where it is watched.
        first: A note of it whose value is known; most tensors lie as the first one did.
    """

    __slots__ = ("device", "external", "first", "layouts", "watched", "written")

    def __init__(self, device: torch.device, external: bool) -> None:
        """Note a storage when it is first seen."""
        self.device = device
        self.external = external
        self.written = False
        self.watched = external
        self.first: Seen | None = None
        self.layouts: set[Seen] = set() if external else _NONE


class Seen(NamedTuple):
    """How a tensor lay in its memory when it was seen.

    Equal notes of one memory hold equal values, until somebody writes to it. A tuple, since
    several are made for every call; where nested arguments are walked it comes before tuples.
    """

    shape: Any  # torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    negative: bool
    conjugate: bool
    memory: Memory

    @property
    def device(self) -> torch.device:
        """Where the tensor is."""
        return self.memory.device

    def meta(self) -> TensorMeta:
        """Shape, strides, dtype and device alone."""
        return TensorMeta(tuple(self.shape), self.strides, self.dtype, self.memory.device)


def seen_in(tree: Any) -> list[Seen]:
    """List what was seen in (nested) arguments or outputs of an ATen call, in order."""
    if isinstance(tree, Seen):
        return [tree]
    found: list[Seen] = []
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return found
    for item in tree:
        if isinstance(item, (list, tuple, dict)):  # what was seen is a tuple too
            found.extend(seen_in(item))
    return found


def with_paths(tree: Any) -> list[tuple[tuple[int, ...], Seen]]:
    """List what was seen in the outputs of an ATen call with the positions."""
    if isinstance(tree, Seen):
        return [((), tree)]
    found: list[tuple[tuple[int, ...], Seen]] = []
    if isinstance(tree, (list, tuple)):
        for i, item in enumerate(tree):
            found.extend(((i, *path), t) for path, t in with_paths(item))
    return found


def replace_seen(tree: Any, by: Callable[[Seen], Any]) -> Any:
    """Copy (nested) arguments with everything seen replaced."""
    if isinstance(tree, Seen):
        return by(tree)
    if isinstance(tree, list):
        return [replace_seen(item, by) for item in tree]
    if isinstance(tree, tuple):
        return tuple(replace_seen(item, by) for item in tree)
    if isinstance(tree, dict):
        return {key: replace_seen(item, by) for key, item in tree.items()}
    return tree


def mixes_dtypes(args: Any, kwargs: Any) -> bool:
    """Whether tensors of several formats are among the arguments."""
    return len({seen.dtype for seen in seen_in((args, kwargs))}) > 1


def expanded(meta: TensorMeta, shape: tuple[int, ...]) -> TensorMeta:
    """How a tensor lies after it was expanded to a shape."""
    like = torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device="meta")
    return meta._replace(shape=tuple(shape), stride=like.expand(shape).stride())


# -- how memory is filled ------------------------------------------------------------------


def count(shape: tuple[int, ...]) -> int:
    """How many entries a tensor has."""
    n = 1
    for size in shape:
        n *= size
    return n


def span(meta: TensorMeta) -> int:
    """How many entries of memory a tensor reaches over, from its first to its last."""
    if 0 in meta.shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(meta.shape, meta.stride, strict=True))


def memory_order(meta: TensorMeta) -> tuple[int, ...]:
    """The dimensions from the slowest to the fastest in memory."""
    pairs = [
        (-step, -n, i) for i, (n, step) in enumerate(zip(meta.shape, meta.stride, strict=True))
    ]
    return tuple(i for _, _, i in sorted(pairs))


def is_dense(meta: TensorMeta) -> bool:
    """Whether the entries fill one line of memory, each place once."""
    step = 1
    for i in reversed(memory_order(meta)):
        if meta.shape[i] == 1:
            continue
        if meta.stride[i] != step:
            return 0 in meta.shape
        step *= meta.shape[i]
    return True


def overlaps(meta: TensorMeta) -> bool:
    """Whether two entries may lie at the same place."""
    reach = 0
    for i in reversed(memory_order(meta)):
        if meta.shape[i] <= 1:
            continue
        if meta.stride[i] <= reach:
            return True
        reach += (meta.shape[i] - 1) * meta.stride[i]
    return False
