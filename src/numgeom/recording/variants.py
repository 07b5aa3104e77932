"""Which functional op computes what a mutating op writes?

ATen pairs its mutating ops with functional ones by name: `add_` with `add`, `add.out` with
`add.Tensor`, `_native_batch_norm_legit` with `_native_batch_norm_legit_functional`. The functional
op returns the op's own fresh results first and then what would have been written, in the order of
the arguments (see the schemas that torchgen generates).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket


@dataclass(frozen=True, slots=True)
class Variant:
    """A functional op that stands for a mutating one.

    Attributes:
        op: The functional op.
        written: Positions in the mutating op's schema of the arguments it writes to.
        dropped: Names of arguments that the functional op does not take (`out=`).
        n_fresh: How many results of the mutating op are fresh tensors.
    """

    op: OpOverload
    written: tuple[int, ...]
    dropped: tuple[str, ...]
    n_fresh: int


def written_arguments(op: OpOverload) -> tuple[int, ...]:
    """Positions of the arguments that an op writes to, by its schema."""
    return _written(op)


@cache
def _written(op: OpOverload) -> tuple[int, ...]:
    arguments = op._schema.arguments
    return tuple(
        i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write
    )


@cache
def functional_variant(op: OpOverload) -> Variant | None:
    """The functional op for a mutating one, or None where ATen has none."""
    written = _written(op)
    dropped = tuple(a.name for a in op._schema.arguments if a.is_out)
    namespace, _, name = op._schema.name.partition("::")
    n_fresh = sum(r.alias_info is None for r in op._schema.returns)
    for candidate in _candidate_names(name, bool(dropped)):
        packet = getattr(getattr(torch.ops, namespace), candidate, None)
        if not isinstance(packet, OpOverloadPacket):
            continue
        found = _matching_overload(packet, op, dropped)
        if found is not None:
            return Variant(found, written, dropped, n_fresh)
    return None


def _candidate_names(name: str, has_out: bool) -> list[str]:
    if has_out:
        return [name]
    if name.startswith("__i") and name.endswith("__"):  # __iand__ -> __and__
        return ["__" + name[3:]]
    if name.endswith("_"):
        return [name[:-1], name + "functional"]
    return [name + "_functional"]


def _matching_overload(
    packet: OpOverloadPacket, op: OpOverload, dropped: tuple[str, ...]
) -> OpOverload | None:
    """The overload without mutation that takes the same arguments, the same name first."""
    wanted = [(a.name, str(a.type)) for a in op._schema.arguments if a.name not in dropped]
    n_results = sum(r.alias_info is None for r in op._schema.returns) + len(_written(op))
    names = sorted(packet.overloads(), key=lambda n: n != op._overloadname)
    for name in names:
        found = getattr(packet, name)
        if found._schema.is_mutable or len(found._schema.returns) != n_results:
            continue
        if [(a.name, str(a.type)) for a in found._schema.arguments] == wanted:
            return found
    return None


def argument_at(op: OpOverload, args: Any, kwargs: Any, position: int) -> Any:
    """The argument at a position of the schema, given by place, by name or by default."""
    if position < len(args):
        return args[position]
    argument = op._schema.arguments[position]
    return kwargs.get(argument.name, argument.default_value)
