"""Which ops carry entries to other places, and how do radii and doubts travel with them?

Exact: an entry of y is an entry of x, or a constant. `expand` and `constant_pad_nd` yes; `mean` no.
The radius of y is then the op itself applied to the radii, with zeros in place of the constants,
and so are the doubts where entries are decisions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from numgeom.ops.balls import doubtful, real_radius, unknown
from numgeom.ops.entry import Evaluation, Example, Kind, Op
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangents import Moved, linear_tangent, stacked, still
from numgeom.ops.traits import Moves, Traits

aten = torch.ops.aten


def _reshaped(t: Tensor, rest: Any, y: Tensor) -> Tensor:
    del rest
    return t.reshape(len(t), *y.shape)


# The commonest ops, written for stacked tangents (for speed: the others are applied lane by lane).
_STACKED: dict[str, Callable[[Tensor, Any, Tensor], Tensor]] = {
    "view": _reshaped,
    "_unsafe_view": _reshaped,
    "squeeze": _reshaped,
    "unsqueeze": _reshaped,
    "expand": lambda t, rest, y: stacked(t, y).expand(len(t), *y.shape),
    "permute": lambda t, rest, y: t.permute(0, *(d % y.dim() + 1 for d in rest[0])),
    "transpose": lambda t, rest, y: t.transpose(*(d % y.dim() + 1 for d in rest)),
    "t": lambda t, rest, y: t.transpose(1, 2) if y.dim() == 2 else t,
    "clone": lambda t, rest, y: t,
    "alias": lambda t, rest, y: t,
    "detach": lambda t, rest, y: t,
}


def movement(
    name: str,
    *examples: Example,
    moves: Moves,
    constants: tuple[tuple[int, str], ...] = (),
) -> Op:
    """Describe an op that moves entries.

    Args:
        name: Functional name.
        *examples: What the laws are tried on.
        moves: Which arguments' entries are moved, and how.
        constants: Positions and names of the numbers that y is filled up with.
    """
    data = moves.data
    along = linear_tangent(data=data, constants=constants, stack=_STACKED.get(name))

    def tangent(call: Evaluation, moved: Moved) -> Any:
        return still(call, moved) if _reads_bits(call) else along(call, moved)

    return Op(
        name=name,
        kind=Kind.EXACT,
        rounding=None,
        spread=partial(moved_radii, data=data, constants=constants),
        second_order=None,
        doubt=partial(moved_doubts, data=data, constants=constants),
        kinks=NO_KINKS,
        source="exact: entries are copied",
        complex_too=True,
        traits=Traits(moves=moves),
        examples=examples,
        tangent=tangent,
    )


def moved_radii(
    call: Evaluation, *, data: tuple[int, ...], constants: tuple[tuple[int, str], ...] = ()
) -> Any:
    """Radii of y: those of x, moved."""
    if _reads_bits(call):
        return unknown(call) if _is_inexact(call, data) else None
    found = [_each(real_radius, call, p) for p in data]
    if all(_is_none(f) for f in found):
        return None
    moved = _apply(call, data, constants, found)
    return _per_output(call, moved, lambda y, m: None if _has_doubts(y) else m)


def moved_doubts(
    call: Evaluation, *, data: tuple[int, ...], constants: tuple[tuple[int, str], ...] = ()
) -> Any:
    """Doubts of y, where it holds decisions: those of x, moved."""
    if _reads_bits(call):
        return doubtful(call) if _is_inexact(call, data) else None
    found = [_each(lambda x, r, d: d if _has_doubts(x) else None, call, p) for p in data]
    if all(_is_none(f) for f in found):
        return None
    moved = _apply(call, data, constants, [_as_numbers(f) for f in found])
    return _per_output(call, moved, lambda y, m: m != 0 if _has_doubts(y) else None)


def _has_doubts(x: Any) -> bool:
    """Whether a value carries doubts: a decision, or complex numbers (certain or unknown)."""
    return isinstance(x, Tensor) and not x.is_floating_point()


def _is_inexact(call: Evaluation, data: tuple[int, ...]) -> bool:
    return any(call.radius(p) is not None or call.doubt(p) is not None for p in data)


def _reads_bits(call: Evaluation) -> bool:
    """Whether `view(dtype)` reads the same bits as other numbers."""
    return call.name == "view" and isinstance(call.arg(1, "dtype"), torch.dtype)


def _each(read: Callable[..., Any], call: Evaluation, position: int) -> Any:
    """What `read` finds in an argument, or in each member of a list."""
    x = call.args[position]
    radius, doubt = call.radius(position), call.doubt(position)
    if not isinstance(x, (list, tuple)):
        return read(x, radius, doubt)
    radii = radius or [None] * len(x)
    doubts = doubt or [None] * len(x)
    return [read(*parts) for parts in zip(x, radii, doubts, strict=True)]


def _is_none(found: Any) -> bool:
    return all(f is None for f in found) if isinstance(found, list) else found is None


def _as_numbers(found: Any) -> Any:
    if isinstance(found, list):
        return [_as_numbers(f) for f in found]
    return None if found is None else found.to(torch.float64)


def _apply(
    call: Evaluation,
    data: tuple[int, ...],
    constants: tuple[tuple[int, str], ...],
    values: list[Any],
) -> Any:
    """The op with other values in place of its data, and zeros in place of constants."""
    args, kwargs = list(call.args), dict(call.kwargs)
    for position, value in zip(data, values, strict=True):
        x = args[position]
        if isinstance(x, (list, tuple)):
            members = value if isinstance(value, list) else [value] * len(x)
            args[position] = [_or_zeros(v, m) for v, m in zip(members, x, strict=True)]
        else:
            args[position] = _or_zeros(value, x)
    for position, name in constants:
        if position < len(args):
            args[position] = 0.0
        elif name in kwargs:
            kwargs[name] = 0.0
    if call.name in ("view", "_unsafe_view"):  # a radius may lie otherwise in memory than x
        return torch.reshape(args[0], args[1])
    if call.name in ("as_strided", "as_strided_scatter"):  # x is one line of memory
        args[0] = args[0].contiguous()
        args[0] = args[0].clone() if args[0].storage_offset() else args[0]
    return getattr(aten, call.name)(*args, **kwargs)


def _or_zeros(value: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.float64) if value is None else value


def _per_output(call: Evaluation, moved: Any, keep: Callable[[Any, Any], Any]) -> Any:
    if isinstance(call.y, (tuple, list)):
        return tuple(keep(y, m) for y, m in zip(call.y, moved, strict=True))
    return keep(call.y, moved)
