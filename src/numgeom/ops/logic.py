"""Which decisions follow from decisions, and which doubts do they inherit?

A result is in doubt where an argument is, unless a certain argument decides: certain False in an
`and`, certain True in an `or`. Real arguments count as true where they are not 0.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from numgeom.ops.balls import (
    any_doubt,
    doubtful,
    lower_end,
    truth_doubt,
    upper_end,
)
from numgeom.ops.drawing import booleans, integers, whole_numbers
from numgeom.ops.entry import Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kinks import NO_KINKS, Kinks, Where
from numgeom.ops.tangents import still
from numgeom.ops.traits import Traits

aten = torch.ops.aten

# The argument that decides the result by itself.
_DECISIVE = {"logical_and": False, "logical_or": True, "bitwise_and": False, "bitwise_or": True}


def _truth(call: Evaluation, position: int) -> tuple[Tensor, Tensor]:
    """Truth of an argument, and the doubt about it."""
    x = call.args[position]
    if not isinstance(x, Tensor):
        x = torch.tensor(bool(x), device=call.y.device)
        return x, torch.zeros_like(x)
    doubt = truth_doubt(x, call.radius(position), call.doubt(position))
    none = torch.zeros((), dtype=torch.bool, device=x.device)
    return x != 0, none if doubt is None else doubt


def _is_bitwise_on_integers(call: Evaluation) -> bool:
    return call.name.startswith("bitwise") and call.y.dtype is not torch.bool


def _doubt(call: Evaluation) -> Any:
    if not any_doubt(list(call.doubts.values())) and not call.radii:
        return None
    arguments = range(1 if call.name.endswith("not") else 2)
    if _is_bitwise_on_integers(call):
        masks = [call.doubt(p) for p in arguments if call.doubt(p) is not None]
        found = torch.zeros_like(call.y, dtype=torch.bool)
        for mask in masks:
            found = found | mask
        return found
    parts = [_truth(call, p) for p in arguments]
    found = torch.zeros_like(call.y, dtype=torch.bool)
    for _, doubt in parts:
        found = found | doubt
    decisive = _DECISIVE.get(call.name)
    if decisive is not None:
        for truth, doubt in parts:
            found = found & ~((truth == decisive) & ~doubt)
    return found


def _search_doubt(call: Evaluation) -> Any:
    """Doubt of bucketize(x, boundaries) and searchsorted(boundaries, x): a boundary in the ball."""
    at, edges = (0, 1) if call.name == "bucketize" else (1, 0)
    x, r = call.args[at], call.radius(at)
    r_edges = call.radius(edges)
    if any_doubt(call.doubt(at)) or any_doubt(call.doubt(edges)):
        return doubtful(call)
    if r_edges is not None and bool((r_edges > 0).any()):
        return doubtful(call)
    if r is None or not isinstance(x, Tensor):
        return None
    op, args = getattr(aten, call.name), list(call.args)
    args[at] = lower_end(x, r)
    low = op(*args, **call.kwargs)
    args[at] = upper_end(x, r)
    return low != op(*args, **call.kwargs)


def _logic(
    name: str,
    *examples: Example,
    doubt: Any = _doubt,
    kinks: Kinks = NO_KINKS,
    kind: Kind = Kind.ELEMENTWISE,
) -> Op:
    return Op(
        name=name,
        kind=kind,
        rounding=None,
        spread=None,
        second_order=None,
        tangent=still,
        doubt=doubt,
        kinks=kinks,
        source="exact: decisions",
        traits=Traits(piecewise_constant=True),
        examples=examples,
    )


_BITS = example(integers(0, 9, 3, 4), integers(0, 9, 4))
_BOOLEANS = example(booleans(3, 4), booleans(4))
_REALS = example(whole_numbers(-1, 2, 3, 4), booleans(4))

_TRUTH = Kinks(Where.ZERO, "0, for real arguments", inputs=(0, 1), jumps=True)
_BOUNDARIES = Kinks(Where.BOUND, "the boundaries", inputs=(0, 1), jumps=True)

LOGIC: tuple[Op, ...] = (
    _logic("logical_and", _BOOLEANS, _REALS, kinks=_TRUTH),
    _logic("logical_or", _BOOLEANS, _REALS, kinks=_TRUTH),
    _logic("logical_xor", _BOOLEANS, _REALS, kinks=_TRUTH),
    _logic(
        "logical_not",
        example(booleans(5)),
        example(whole_numbers(-1, 2, 5)),
        kinks=replace(_TRUTH, inputs=(0,)),
    ),
    _logic("bitwise_and", _BOOLEANS, _BITS, example(booleans(3), True)),
    _logic("bitwise_or", _BOOLEANS, _BITS),
    _logic("bitwise_xor", _BOOLEANS, _BITS),
    _logic("bitwise_not", example(booleans(5)), example(integers(0, 9, 5))),
    _logic("bitwise_left_shift", example(integers(0, 9, 5), integers(0, 3, 5))),
    _logic("bitwise_right_shift", example(integers(0, 99, 5), integers(0, 3, 5))),
    _logic("__lshift__", example(integers(0, 9, 5), 2)),
    _logic("__rshift__", example(integers(0, 99, 5), 2)),
    _logic(
        "bucketize",
        example(normal(5), lambda _: torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)),
        doubt=_search_doubt,
        kind=Kind.SELECTION,
        kinks=_BOUNDARIES,
    ),
    _logic(
        "searchsorted",
        example(lambda _: torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), normal(5)),
        doubt=_search_doubt,
        kind=Kind.SELECTION,
        kinks=_BOUNDARIES,
    ),
)
