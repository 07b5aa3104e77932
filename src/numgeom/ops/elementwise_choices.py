"""How do ops that pick one of several linear branches by an entry's value carry an error?

relu, clamp, maximum, abs and their kin are computed exactly. Where every point of the box lies in
one branch, the radius is that branch's; a box that reaches a kink is in doubt, and the spread
covers both branches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from numgeom.arithmetic.lower_bounds import next_down
from numgeom.arithmetic.rounding import TINY, UNIT_ROUNDOFF, add_up, difference_up, mul_up, next_up
from numgeom.ops.elementwise import (
    Operand,
    doubt_of_integers,
    either,
    finish_rounding,
    finish_spread,
    is_decision,
    operand,
)
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import (
    NASTY,
    binary_examples,
    example,
    given,
    normal,
    scalar,
    unary_examples,
    uniform,
    whole,
)
from numgeom.ops.kinks import AT_ZERO, Kinks, Where
from numgeom.ops.tangents import Key, Slope, elementwise_tangent
from numgeom.ops.traits import Traits

_KINK = (1.0, -1.0, 0.5, *NASTY)
_EXACT = "computed exactly: picks one of its arguments"


@dataclass(frozen=True, eq=False)
class Choice:
    """A value that was picked, with its radius, and where the pick is in doubt."""

    picked: Operand
    doubt: Tensor


def larger(a: Operand, b: Operand) -> Choice:
    """max(a, b). The winner's error counts, and the loser's as far as it overtakes the winner."""
    x = torch.maximum(a.x, b.x)
    if a.r is None and b.r is None:
        return Choice(Operand(x, None), torch.zeros(x.shape, dtype=torch.bool))
    ra, rb = a.radius(), b.radius()
    first = a.x >= b.x
    winner, loser = torch.where(first, ra, rb), torch.where(first, rb, ra)
    gap = _gap_down(a, b)
    overtaken = torch.where(loser > gap, next_up(loser - gap), 0.0)
    doubt = ~(gap > add_up(ra, rb)) & ((ra > 0) | (rb > 0))
    return Choice(Operand(x, torch.maximum(winner, overtaken)), doubt)


def smaller(a: Operand, b: Operand) -> Choice:
    """min(a, b) = -max(-a, -b)."""
    choice = larger(Operand(-a.x, a.r), Operand(-b.x, b.r))
    return Choice(Operand(-choice.picked.x, choice.picked.r), choice.doubt)


def _gap_down(a: Operand, b: Operand) -> Tensor:
    """Lower bound of |a - b|; 0 where both are the same, infinities as well."""
    return torch.where(a.x == b.x, 0.0, next_down((a.x - b.x).abs()))


def _certainly_above(a: Operand, b: Operand) -> Tensor:
    """Where every a of its box is larger than every b of its own."""
    return (a.x > b.x) & (_gap_down(a, b) > add_up(a.radius(), b.radius()))


Chooser = Callable[[Evaluation], tuple[Choice, tuple[Operand, ...]]]


def _relu(call: Evaluation) -> tuple[Choice, tuple[Operand, ...]]:
    x = operand(call, 0)
    return larger(x, _number(0.0)), (x,)


def _maximum(call: Evaluation) -> tuple[Choice, tuple[Operand, ...]]:
    a, b = operand(call, 0), operand(call, 1, "other")
    return larger(a, b), (a, b)


def _minimum(call: Evaluation) -> tuple[Choice, tuple[Operand, ...]]:
    a, b = operand(call, 0), operand(call, 1, "other")
    return smaller(a, b), (a, b)


def _clamp(call: Evaluation) -> tuple[Choice, tuple[Operand, ...]]:
    bounds = {"clamp_min": (1, None), "clamp_max": (None, 1)}.get(call.name, (1, 2))
    names = ("min", "max") if call.name.startswith("clamp") else ("min_val", "max_val")
    defaults = (None, None) if call.name.startswith("clamp") else (-1.0, 1.0)
    x = operand(call, 0)
    inputs = [x]
    choice = Choice(x, torch.zeros((), dtype=torch.bool))
    for pick, position, name, default in zip(
        (larger, smaller), bounds, names, defaults, strict=True
    ):
        if position is None or call.arg(position, name, default) is None:
            continue
        bound = operand(call, position, name, default)
        inputs.append(bound)
        after = pick(choice.picked, bound)
        # A doubt about the lower bound does not matter where the upper one is surely taken.
        lost = _certainly_above(choice.picked, bound) if pick is smaller else False
        choice = Choice(after.picked, after.doubt | (choice.doubt & ~torch.as_tensor(lost)))
    return choice, tuple(inputs)


def _number(value: float) -> Operand:
    return Operand(torch.tensor(value, dtype=torch.float64), None)


def _picked(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
    """1 for the argument that was picked, the first of them where several are equal."""
    found: dict[Key, Slope] = {}
    free: Tensor | None = None
    for key, value in (*enumerate(call.args), *call.kwargs.items()):
        if value is None:
            continue
        mine = call.y == value
        if call.name == "relu":
            mine = call.y > 0
        mine = mine if free is None else mine & free
        free = ~mine if free is None else free & ~mine
        if key in moving:
            found[key] = Slope(mine.to(torch.float64), plain=True)
    return found


def _choice_op(
    name: str,
    choose: Chooser,
    kinks: Kinks,
    examples: tuple[Example, ...],
    *,
    chooses: bool = True,
) -> Op:
    def spread(call: Evaluation) -> Bound:
        if is_decision(call.y):
            return None
        choice, inputs = choose(call)
        if choice.picked.r is None:
            return None
        return finish_spread(call, choice.picked.r, inputs)

    def doubt(call: Evaluation) -> Tensor | None:
        if is_decision(call.y):
            return doubt_of_integers(call)
        choice, inputs = choose(call)
        if all(item.r is None for item in inputs):
            return None
        return choice.doubt.expand(call.y.shape)

    return Op(
        name=name,
        kind=Kind.SELECTION,
        rounding=None,
        spread=spread,
        second_order=None,
        tangent=elementwise_tangent(_picked),
        doubt=doubt,
        kinks=kinks,
        source=_EXACT,
        examples=examples,
        traits=Traits(chooses=chooses, entrywise=True),
    )


# ------------------------------------------------------------------ two branches, one threshold


@dataclass(frozen=True, eq=False)
class Sides:
    """Where an entry is certainly above a threshold, certainly not, or in doubt."""

    above: Tensor
    below: Tensor

    @property
    def doubt(self) -> Tensor:
        """Where the box reaches over the threshold."""
        return ~(self.above | self.below)


def sides_of(x: Operand, threshold: float) -> Sides:
    """On which side of a threshold all of the box lies; x = threshold itself is not above."""
    t = _number(threshold)
    at = x.radius() == 0
    above = torch.where(at, x.x > threshold, _certainly_above(x, t))
    below = torch.where(at, x.x <= threshold, _certainly_above(t, x))
    return Sides(above, below)


def _abs_spread(call: Evaluation) -> Bound:
    return None if is_decision(call.y) else call.radius(0)


def _abs_doubt(call: Evaluation) -> Tensor | None:
    if is_decision(call.y) or call.radius(0) is None:
        return doubt_of_integers(call)
    x = operand(call, 0)
    return (x.radius() > 0) & ~(x.x.abs() > x.radius())


def _threshold(call: Evaluation) -> tuple[Operand, Sides, float]:
    x = operand(call, 0)
    return x, sides_of(x, float(call.arg(1, "threshold"))), float(call.arg(2, "value"))


def _threshold_spread(call: Evaluation) -> Bound:
    x, sides, value = _threshold(call)
    if x.r is None:
        return None
    jump = add_up(difference_up(x.x, torch.full_like(x.x, value)), x.r)
    bound = torch.where(sides.above, x.r, torch.where(sides.below, 0.0, jump))
    return finish_spread(call, bound, (x,))


def _threshold_doubt(call: Evaluation) -> Tensor | None:
    x, sides, _ = _threshold(call)
    return None if x.r is None else sides.doubt


def _above(call: Evaluation, threshold: float, below: float) -> Slope:
    """The slope of two branches: 1 above a threshold, another one up to it."""
    value = either(call.args[0] > threshold, 1.0, below)
    return Slope(value, plain=below in (0.0, 1.0, -1.0))


def _leaky(call: Evaluation) -> tuple[Operand, Sides, float]:
    x = operand(call, 0)
    return x, sides_of(x, 0.0), abs(float(call.arg(1, "negative_slope", 0.01)))


def _leaky_rounding(call: Evaluation) -> Bound:
    x = operand(call, 0)
    bound = torch.where(x.x > 0, 0.0, mul_up(call.y.abs(), UNIT_ROUNDOFF))
    bound = torch.where((call.y == 0) & (x.x != 0), TINY, bound)
    return finish_rounding(call, bound, (x,))


def _leaky_spread(call: Evaluation) -> Bound:
    x, sides, slope = _leaky(call)
    if x.r is None:
        return None
    steepest = torch.where(sides.above, 1.0, either(sides.below, slope, max(1.0, slope)))
    return finish_spread(call, mul_up(steepest, x.r), (x,))


def _leaky_doubt(call: Evaluation) -> Tensor | None:
    x, sides, _ = _leaky(call)
    return None if x.r is None else sides.doubt


_CLAMPS = (
    example(normal(12), -0.5, 0.8, label="numbers"),
    example(normal(6), None, 0.3, label="upper"),
    example(normal(6), 0.1, None, label="lower"),
    example(normal(2, 3), normal(3), normal(2, 1), label="tensors, also in the wrong order"),
    example(given(*_KINK), -1.0, 1.0, label="at the bounds"),
    example(given(-math.inf, math.inf), 0.0, 1.0, label="infinite"),
    example(whole(3, -1), 0, 2, label="integers"),
    example(normal(0), 0.0, label="empty"),
)
_TANH_LIKE = (
    example(normal(12)),
    example(given(*_KINK, 6.0), 0.0, 6.0, label="relu6"),
    example(normal(0), label="empty"),
)
_ONE_BOUND = (
    example(normal(12), 0.2),
    example(normal(2, 3), normal(3), label="tensor"),
    example(given(*_KINK), 0.0, label="zeros"),
    example(normal(0), 0.0, label="empty"),
)
_AT_THE_BOUNDS = Kinks(Where.BOUND, "at the bounds")
_AT_THE_BOUND = Kinks(Where.EQUAL, "at the bound", inputs=(0, 1))
CHOICES: tuple[Op, ...] = (
    _choice_op("relu", _relu, AT_ZERO, unary_examples(-1.0, 1.0, _KINK)),
    *(
        _choice_op(
            name,
            pick,
            Kinks(Where.EQUAL, "where both are equal", inputs=(0, 1)),
            (*binary_examples(), *_ties),
        )
        for name, pick in (
            ("maximum", _maximum),
            ("minimum", _minimum),
            ("fmax", _maximum),
            ("fmin", _minimum),
        )
        for _ties in (
            (
                example(given(1.0, 2.0, 0.0), given(1.0, 2.5, -0.0), label="ties"),
                example(given(-math.inf, 3.0), scalar(0.5), label="infinite"),
            ),
        )
    ),
    _choice_op("clamp", _clamp, replace(_AT_THE_BOUNDS, inputs=(0, 1, 2)), _CLAMPS, chooses=False),
    _choice_op("clamp_min", _clamp, _AT_THE_BOUND, _ONE_BOUND, chooses=False),
    _choice_op("clamp_max", _clamp, _AT_THE_BOUND, _ONE_BOUND, chooses=False),
    _choice_op("hardtanh", _clamp, _AT_THE_BOUNDS, _TANH_LIKE, chooses=False),
    Op(
        name="abs",
        kind=Kind.ELEMENTWISE,
        rounding=None,
        spread=_abs_spread,
        second_order=None,
        tangent=elementwise_tangent(
            lambda call, moving: {0: Slope(torch.sign(call.args[0]), plain=True)}
        ),
        doubt=_abs_doubt,
        kinks=AT_ZERO,
        traits=Traits(chooses=True, entrywise=True),
        source="IEEE 754: clears the sign bit",
        examples=(*unary_examples(-1.0, 1.0, _KINK), example(whole(3, -1, 0))),
    ),
    Op(
        name="threshold",
        kind=Kind.SELECTION,
        rounding=None,
        spread=_threshold_spread,
        second_order=None,
        tangent=elementwise_tangent(
            lambda call, moving: {0: _above(call, float(call.arg(1, "threshold")), 0.0)}
        ),
        doubt=_threshold_doubt,
        kinks=Kinks(Where.EQUAL, "at the threshold, where it jumps", inputs=(0, 1), jumps=True),
        traits=Traits(entrywise=True),
        source=_EXACT,
        examples=(
            example(normal(12), 0.1, 20.0),
            example(given(*_KINK), 0.0, 0.0, label="zeros"),
            example(normal(0), 0.0, 0.0, label="empty"),
        ),
    ),
    Op(
        name="leaky_relu",
        kind=Kind.SELECTION,
        rounding=_leaky_rounding,
        spread=_leaky_spread,
        second_order=None,
        tangent=elementwise_tangent(
            lambda call, moving: {0: _above(call, 0.0, float(call.arg(1, "negative_slope", 0.01)))}
        ),
        doubt=_leaky_doubt,
        kinks=AT_ZERO,
        traits=Traits(entrywise=True),
        source="IEEE 754: one product",
        examples=(
            example(normal(12)),
            example(uniform(-1.0, 1.0, 6), 0.3, label="slope"),
            example(given(*_KINK), label="zeros"),
            example(normal(0), label="empty"),
        ),
    ),
)
