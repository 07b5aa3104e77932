"""What is one value of a recorded program, before it becomes a graph?"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import OpOverload

from numgeom.recording.calls import CallInfo, TensorMeta


@dataclass(eq=False, slots=True)
class Constant:
    """A tensor that the program starts from: an input, a parameter, a random draw."""

    tensor: torch.Tensor
    role: str  # "parameter", "buffer", "input", "drawn", "decision"
    name: str = ""


@dataclass(eq=False, slots=True)
class Entry:
    """One functional call: `op(*args, **kwargs)`, in which tensors are replaced by values."""

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    info: CallInfo
    metas: dict[tuple[int, ...], TensorMeta] = field(default_factory=dict)

    def output(self, *path: int) -> "Value":
        """The value at this position of the call's outputs; no position: the output itself."""
        return Value(self, path)


@dataclass(eq=False, slots=True)
class Value:
    """A tensor that flows in the program: made by an entry, or a constant."""

    origin: Entry | Constant
    path: tuple[int, ...] = ()


def meta_of(tensor: torch.Tensor) -> TensorMeta:
    """Describe a tensor without keeping it."""
    return TensorMeta(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """List the tensors in (nested) arguments or outputs of an ATen call, in order.

    ATen knows tensors, lists and tuples of them, and nothing deeper than that.
    """
    if isinstance(tree, torch.Tensor):
        return [tree]
    found: list[torch.Tensor] = []
    if isinstance(tree, (list, tuple)):
        for item in tree:
            if isinstance(item, torch.Tensor):
                found.append(item)
            elif isinstance(item, (list, tuple)):
                found.extend(tensors_in(item))
    elif isinstance(tree, dict):
        for item in tree.values():
            found.extend(tensors_in(item))
    return found
