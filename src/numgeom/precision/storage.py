"""What does the backward pass lose when activations are stored in fewer bits, or computed again?

The backward pass reads values that the forward pass left. They may be stored in a narrower format
than they were computed in, or not at all: recomputed (checkpointing), with roundings that differ
where kernels differ. Only what depends on the batch is stored; parameters are there anyway, and
statistics (mean and deviation of a norm) are small and kept as they are.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.formats import FORMATS, Format, format_named
from numgeom.precision.errors import PrecisionError
from numgeom.precision.rounding import INT8, quantized, round_operand
from numgeom.recording import Program

RECOMPUTED = "recomputed"
Storage = Callable[[Tensor], Tensor]
"""What becomes of a value between the forward and the backward pass."""


def storage_named(stored_as: str | Format) -> Storage:
    """Look up how values are stored: a format's name, or "int8".

    Raises:
        PrecisionError: for unknown names; lists the known ones.
    """
    if stored_as == INT8:
        return quantized
    known = {fmt.name: fmt for fmt in FORMATS}
    if isinstance(stored_as, str) and stored_as not in known:
        raise PrecisionError(
            f"Activations cannot be stored as {stored_as!r}. Known are {', '.join(known)}, "
            f"{INT8!r} (256 equal steps per tensor) and {RECOMPUTED!r} (not stored)."
        )
    fmt = format_named(stored_as) if isinstance(stored_as, str) else stored_as
    return lambda value: round_operand(value, fmt)


def stored_values(program: Program) -> frozenset[fx.Node]:
    """The values of the forward pass that the backward pass reads and that depend on the batch."""
    fixed = _fixed(program)
    return frozenset(
        source
        for node in program.calls
        if node.meta["call"].phase == "backward"
        for source in node.all_input_nodes
        if source.op == "call_function" and source not in fixed and _is_activation(source)
    )


def _is_activation(node: fx.Node) -> bool:
    """A value of the forward pass; of a call with several results the first."""
    path: tuple[Any, ...] = ()
    while "call" not in node.meta:  # getitem of a call with several results
        if node.op != "call_function":
            return False
        path = (node.args[1], *path)
        node = node.args[0]  # type: ignore[assignment]  # getitem's whole
    meta = node.meta["tensors"].get(path)
    if node.meta["call"].phase != "forward" or meta is None or any(path):
        return False
    real = meta.dtype.is_floating_point and meta.dtype is not torch.float64
    return real and math.prod(meta.shape) > 1


def _fixed(program: Program) -> set[fx.Node]:
    """Values that depend on parameters, buffers and plain numbers alone."""
    fixed: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            if node.meta["role"] in ("parameter", "buffer"):
                fixed.add(node)
        elif node.op == "call_function" and all(n in fixed for n in node.all_input_nodes):
            fixed.add(node)
    return fixed
