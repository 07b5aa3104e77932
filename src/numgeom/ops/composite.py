"""How are the facts of an op put together from its formula?

The formula is written once, on jets; slopes and curvature over the box of errors follow from it.
With g_i = sup |f_i| and h_ij = sup |f_ij| over the box, |f(x + e) - f(x)| <= sum of g_i r_i, and
|f(x + e) - f(x) - f'(x) e| <= sum of h_ij r_i r_j / 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import add_up, mul_up
from numgeom.ops.elementwise import (
    MEASURED,
    Operand,
    finish_rounding,
    finish_spread,
    is_float64,
    operand,
    repeats,
    unknown,
    with_known_points,
)
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.intervals import elementary_error
from numgeom.ops.jets import Jet
from numgeom.ops.kinks import Kinks
from numgeom.ops.tangents import Key, Slope, elementwise_tangent
from numgeom.ops.traits import NO_TRAITS, Traits

Inputs = tuple[Operand, ...]
Rounding = Callable[[Evaluation], Bound]


@dataclass(frozen=True, eq=False)
class Formula:
    """An op over the reals.

    Attributes:
        arguments: Names of its tensor arguments, the first ones of its schema.
        jet: The function, on jets; gets the call for its other arguments.
        doubt: Where the box reaches into another branch; None: there is one branch.
        jump: Upper bound of the height of jumps inside the box; None: f is continuous.
        linear_pieces: Whether every branch is linear, so that there is no remainder.
    """

    arguments: tuple[str, ...]
    jet: Callable[..., Jet]
    doubt: Callable[[Evaluation, Inputs], Tensor] | None = None
    jump: Callable[[Evaluation, Inputs], Tensor] | None = None
    linear_pieces: bool = False


def composite(
    name: str,
    formula: Formula,
    *,
    rounding: Rounding | None,
    kinks: Kinks,
    source: str,
    examples: tuple[Example, ...],
    domain: str = "the reals",
    width: float = math.inf,
    traits: Traits = NO_TRAITS,
) -> Op:
    """An entry-by-entry op that is given by its formula."""

    def inputs_of(call: Evaluation) -> Inputs:
        return tuple(operand(call, i, n) for i, n in enumerate(formula.arguments))

    def jet_of(call: Evaluation, inputs: Inputs, order: int) -> Jet:
        shape = torch.broadcast_shapes(*(item.x.shape for item in inputs))
        boxes = [item.box().expand(shape) for item in inputs]
        count = len(inputs)
        variables = (Jet.variable(box, i, count, order=order) for i, box in enumerate(boxes))
        return formula.jet(call, *variables)

    def spread(call: Evaluation) -> Bound:
        inputs = inputs_of(call)
        if all(item.r is None for item in inputs):
            return None
        bound = torch.zeros((), dtype=torch.float64)
        for item, slope in zip(inputs, jet_of(call, inputs, 1).first, strict=True):
            if item.r is not None and slope is not None:
                bound = add_up(bound, _times(slope.magnitude(), item.r))
        bound = bound.clamp_max(width)
        if formula.jump is not None:
            bound = add_up(bound, formula.jump(call, inputs))
        return finish_spread(call, bound, inputs)

    def second_order(call: Evaluation) -> Bound:
        inputs = inputs_of(call)
        if all(item.r is None for item in inputs):
            return None
        jet = jet_of(call, inputs, 2)
        bound = torch.zeros((), dtype=torch.float64)
        for i, first in enumerate(inputs):
            for j, second in enumerate(inputs[i:], start=i):
                part = jet.second[i][j]
                if part is not None and first.r is not None and second.r is not None:
                    size = part.magnitude() if i < j else mul_up(part.magnitude(), 0.5)
                    bound = add_up(bound, _times(_times(size, first.r), second.r))
        for item, slope in zip(inputs, jet.first, strict=True):
            if item.r is not None and slope is not None:  # the box leaves the domain
                lost = (item.r > 0) & torch.isinf(slope.magnitude())
                bound = torch.where(lost, math.inf, bound)
        return finish_spread(call, bound, inputs)

    def doubt(call: Evaluation) -> Tensor | None:
        inputs = inputs_of(call)
        if all(item.r is None for item in inputs):
            return None
        assert formula.doubt is not None
        return formula.doubt(call, inputs).expand(call.y.shape)

    def slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
        del moving
        first = jet_of(call, inputs_of(call), 1).first
        return {
            i: Slope(0.0) if part is None else Slope.enclosed(part) for i, part in enumerate(first)
        }

    count = len(formula.arguments)
    pairs = tuple((i, j) for i in range(count) for j in range(i, count))

    return Op(
        name=name,
        kind=Kind.ELEMENTWISE,
        rounding=rounding,
        spread=spread,
        second_order=None if formula.linear_pieces else second_order,
        doubt=None if formula.doubt is None else doubt,
        kinks=kinks,
        domain=domain,
        source=source,
        examples=examples,
        traits=traits,
        multiplicity=lambda call: repeats(call, *pairs),
        tangent=elementwise_tangent(slopes),
    )


def measured(
    function: Callable[[Evaluation], str | None] | str,
    *,
    count: int = 1,
    points: tuple[tuple[float, float], ...] = (),
) -> Rounding:
    """The measured accuracy of a function of `count` arguments; unknown where it has no name.

    Args:
        function: Name in the accuracy table, or how it depends on the call.
        count: Number of tensor arguments.
        points: Arguments, of a function of one, at which the value is known exactly.
    """

    def rounding(call: Evaluation) -> Bound:
        name = function if isinstance(function, str) else function(call)
        if name is None or not is_float64(call):
            return unknown(call)
        inputs = tuple(operand(call, i) for i in range(count))
        full = torch.broadcast_tensors(*(item.x for item in inputs))
        bound = elementary_error(name, call.y, *full)
        for x in full:
            bound = with_known_points(bound, x, call.y, points if count == 1 else ())
        return finish_rounding(call, bound, inputs)

    return rounding


def _times(slope: Tensor, r: Tensor) -> Tensor:
    return torch.where(r > 0, mul_up(slope, r), 0.0)


__all__ = ["MEASURED", "Formula", "composite", "measured"]
