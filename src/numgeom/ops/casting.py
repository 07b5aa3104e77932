"""What does a change of format do, in a replay where every real number is a float64?

Between float64 and itself a cast is the identity; into a shorter format its error is measured
entry by entry. A cast from real numbers to integers or booleans is a decision (rounding towards
zero, or x != 0), and is in doubt where the ball of x holds a number that is decided otherwise.
Integers beyond 2^53 round on their way to float64.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, difference_up, mul_up
from numgeom.ops.balls import is_decision, lower_end, real_radius, truth_doubt, upper_end
from numgeom.ops.drawing import booleans, integers, whole_numbers, wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kinks import Kinks, Where
from numgeom.ops.tangents import Moved, Pushed, require_known
from numgeom.ops.traits import Moves, Places, Traits


def cast_rounding(x: Tensor, y: Tensor) -> Bound:
    """|y - x| where both are real numbers or integers; None for decisions and for float64."""
    if is_decision(y):
        return None
    if is_decision(x):
        if x.dtype is not torch.int64 or y.dtype is not torch.float64:
            exact = x.dtype in _SHORT and y.dtype is torch.float64
            return None if exact else difference_up(x.to(torch.float64), y)
        if not bool(((x > 2**53) | (x < -(2**53))).any()):
            return None
        return torch.where(x.abs() <= 2**53, 0.0, mul_up(y.abs(), UNIT_ROUNDOFF))
    return None if x.dtype is y.dtype else difference_up(x, y)


_SHORT = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32})


def cast_doubt(x: Tensor, y: Tensor, radius: Bound, doubt: Tensor | None) -> Tensor | None:
    """Where the decision y about x may come out otherwise."""
    if not is_decision(y):
        return None
    if is_decision(x):
        return doubt
    if y.dtype is torch.bool:
        return truth_doubt(x, radius, doubt)
    undefined = ~_is_representable(x, y.dtype)
    if radius is None:
        return undefined if bool(undefined.any()) else None
    same = torch.trunc(lower_end(x, radius)) == torch.trunc(upper_end(x, radius))
    return undefined | ~same


def _is_representable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Where the integer part of x is a number of the type; what a cast gives elsewhere is open."""
    limits = torch.iinfo(dtype)
    whole = torch.trunc(x)
    # The largest number may round up, to the next power of two.
    return (whole >= float(limits.min)) & (whole < float(limits.max) + 1.0)


def _source(call: Evaluation) -> tuple[Tensor, Bound, Tensor | None]:
    position = 1 if call.name == "copy" else 0
    return call.args[position], call.radius(position), call.doubt(position)


def _rounding(call: Evaluation) -> Bound:
    x = _source(call)[0]
    return cast_rounding(x.expand(call.y.shape), call.y)


def _spread(call: Evaluation) -> Bound:
    x, radius, doubt = _source(call)
    found = real_radius(x, radius, doubt)
    if is_decision(call.y) or found is None:
        return None
    return found.expand(call.y.shape)


def _doubt(call: Evaluation) -> Tensor | None:
    x, radius, doubt = _source(call)
    found = cast_doubt(x, call.y, radius, doubt)
    return None if found is None else found.expand(call.y.shape)


def _tangent(call: Evaluation, moved: Moved) -> Pushed | None:
    """Real numbers pass as they are; in a replay all of them are float64 numbers."""
    source = 1 if call.name == "copy" else 0
    require_known(call, moved, source, *((0,) if source else ()))
    if source not in moved or is_decision(call.y):
        return None
    lanes = moved[source].beside(call.y)
    return Pushed(lanes.expand(len(lanes), *call.y.shape))


def _makes_decisions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    del args
    dtype = kwargs.get("dtype")
    return not (isinstance(dtype, torch.dtype) and dtype.is_floating_point)


def _cast(name: str, *examples: Example, kinks: Kinks, traits: Traits) -> Op:
    return Op(
        name=name,
        kind=Kind.CAST,
        rounding=_rounding,
        spread=_spread,
        second_order=None,
        doubt=_doubt,
        kinks=kinks,
        source="IEEE 754: integers up to 2^53 are float64 numbers",
        examples=examples,
        traits=traits,
        tangent=_tangent,
    )


def _to(dtype: torch.dtype, *draws: Any) -> tuple[Example, ...]:
    return tuple(example(draw, dtype=dtype) for draw in draws)


_TO_DECISIONS = Kinks(
    Where.WHOLE,
    "integers, in a cast from real numbers to integers; 0, in a cast to booleans",
    jumps=True,
    occurs=_makes_decisions,
)

CASTING: tuple[Op, ...] = (
    _cast(
        "_to_copy",
        *_to(torch.float64, wild(3, 2), integers(-5, 5, 4), booleans(4), integers(2**60, 2**61, 4)),
        *_to(torch.int64, whole_numbers(-3, 4, 5), normal(6, scale=4.0)),
        *_to(torch.bool, whole_numbers(-1, 2, 6), integers(-1, 2, 6)),
        *_to(torch.float32, wild(4, exponent=20.0)),
        kinks=_TO_DECISIONS,
        traits=Traits(moves=Moves(Places.ONCE, in_order=True, casts=True), entrywise=True),
    ),
    _cast(
        "copy",
        example(wild(3, 2), wild(2)),
        example(wild(4), integers(2**60, 2**61, 4)),
        example(integers(0, 5, 2), whole_numbers(-3, 4, 2)),
        kinks=replace(_TO_DECISIONS, inputs=(1,)),
        traits=Traits(moves=Moves(Places.ANY, data=(1,), casts=True), entrywise=True),
    ),
)
