"""What is a reference, and how is the op it stands for found in the installed torch?

Notation of this folder: `x` is an op's input, `dx` the gradient with respect to it, `dy` the
gradient that comes in.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Definition:
    """A reference before its op is looked up.

    Attributes:
        name: Name of the op as torch registers it, such as ``aten::mm.dtype``; the overload
            ``default`` is left out.
        compute: The function that the op computes, in plain ATen. It takes the arguments of the
            op and returns its outputs in the same structure.
        source: Where the definition of the function comes from.
        float64_on_cpu: Whether the op itself runs in float64 on the CPU, as a pure function.
    """

    name: str
    compute: Callable[..., Any]
    source: str
    float64_on_cpu: bool = False


@dataclass(frozen=True)
class Reference:
    """What a fused op computes, in plain ATen.

    Over the real numbers, `compute` and `op` are the same function of the same arguments. `compute`
    runs in every floating dtype, on every device, changes none of its arguments, draws no random
    number, and calls no op that itself has a reference. Where several formats meet (autocast), its
    outputs have the dtypes that the op gives them. Outputs that only the kernel's own backward can
    read (workspaces, random seeds) are empty tensors, or None where the kernel returns none.

    Attributes:
        op: The overload that this reference stands for.
        compute: Same arguments as `op`, same structure of outputs.
        source: Where the definition of the function comes from.
        float64_on_cpu: Whether the op itself runs in float64 on the CPU, as a pure function. Then
            it may stand in for `compute` where all inputs are float64 on the CPU, and is faster.
    """

    op: torch._ops.OpOverload
    compute: Callable[..., Any]
    source: str
    float64_on_cpu: bool


def overload(name: str) -> torch._ops.OpOverload | None:
    """Find the overload called `name`; None if the installed torch has no such op.

    Example:
        >>> overload("aten::mm")
        <OpOverload(op='aten.mm', overload='default')>
        >>> overload("aten::no_such_op") is None
        True
    """
    qualified, _, variant = name.partition(".")
    namespace, _, packet = qualified.partition("::")
    try:
        # torch offers no lookup that answers "absent" other than by raising.
        return getattr(getattr(getattr(torch.ops, namespace), packet), variant or "default")
    except AttributeError:
        return None


def resolve(definitions: Iterable[Definition]) -> Mapping[torch._ops.OpOverload, Reference]:
    """Turn definitions into references, skipping the ops that the installed torch lacks.

    Raises:
        ValueError: if two definitions name the same op.
    """
    table: dict[torch._ops.OpOverload, Reference] = {}
    for definition in definitions:
        op = overload(definition.name)
        if op is None:
            continue
        if op in table:
            raise ValueError(f"Two references are defined for {definition.name}; keep one.")
        compute, source = definition.compute, definition.source
        table[op] = Reference(op, compute, source, definition.float64_on_cpu)
    return MappingProxyType(table)


def widened(dtype: torch.dtype) -> torch.dtype:
    """Return the format in which fused kernels keep intermediate values of `dtype`.

    That is float32 for the narrower formats and the format itself otherwise.
    """
    return torch.float32 if torch.finfo(dtype).bits < 32 else dtype


def widen(x: Tensor) -> Tensor:
    """Cast a half or quarter precision tensor to float32; leave others alone."""
    return x.to(widened(x.dtype))


def widen_optional(x: Tensor | None) -> Tensor | None:
    """Do as `widen` does, where the tensor may be absent."""
    return None if x is None else widen(x)
