"""How are the facts of an entry-by-entry op put together?

Rules that all of them share:

- Unknown stays unknown: an infinite radius of an input gives an infinite one, whatever the op.
- An entry whose inputs are all exact has no spread, even where a slope is infinite.
- An infinite midpoint with a finite radius is that infinity exactly; arithmetic with it follows
  the extended reals. An infinite y from finite inputs is an overflow or a pole, hence unknown, but
  for functions with a limit at an end of their domain (log 0). NaN is unknown.
- Integers and booleans are exact unless in doubt; a doubtful boolean may be off by 1, of a
  doubtful integer nothing is known.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import add_up, all_finite, mul_up, next_up
from numgeom.ops.derivatives import ELEMENTARY, Derivatives
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.intervals import Interval, elementary_error
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangents import Key, Slope, elementwise_tangent
from numgeom.ops.traits import NO_TRAITS, Traits

MEASURED = "numgeom.arithmetic.accuracy (measured)"
IEEE = "IEEE 754: correctly rounded"
_LARGEST_EXACT_INTEGER = 2**53


@dataclass(frozen=True, eq=False)
class Operand:
    """One input: midpoints in float64 and their radius; numbers have no dimensions."""

    x: Tensor
    r: Bound
    whole: bool = False  # made of integers or booleans

    def radius(self) -> Tensor:
        """The radius as a tensor."""
        return torch.zeros_like(self.x) if self.r is None else self.r

    def is_single(self) -> bool:
        """Whether it is one number, or made of integers or booleans."""
        return self.x.numel() == 1 or self.whole

    def box(self) -> Interval:
        """All values that the input may take."""
        return Interval.around(self.x, self.r)


def operand(call: Evaluation, position: int, name: str = "", default: Any = None) -> Operand:
    """An argument that is a tensor or a number."""
    value = call.arg(position, name, default)
    key = position if position < len(call.args) else name
    if not isinstance(value, Tensor):
        return Operand(torch.tensor(float(value), dtype=torch.float64), None)
    if value.is_floating_point():
        return Operand(value, call.radius(key))
    if value.is_complex():  # no rule here is about complex numbers
        return Operand(torch.full_like(value.real, math.nan, dtype=torch.float64), None)
    doubt = call.doubt(key)
    wide = value.to(torch.float64)
    if doubt is None:
        return Operand(wide, None, whole=True)
    off_by = 1.0 if value.dtype == torch.bool else math.inf
    return Operand(wide, either(doubt, off_by, 0.0), whole=True)


def is_decision(y: Any) -> bool:
    """Whether an output is made of integers or booleans."""
    return isinstance(y, Tensor) and not y.is_floating_point() and not y.is_complex()


def is_float64(call: Evaluation) -> bool:
    """Whether float64 numbers go in and come out; integers have to be exact in float64."""
    for value in (*call.args, *call.kwargs.values()):
        wide = isinstance(value, Tensor) and value.dtype == torch.int64 and value.numel() > 0
        if wide and max(int(value.max()), -int(value.min())) > _LARGEST_EXACT_INTEGER:
            return False
    return call.y.dtype == torch.float64


def finish_spread(call: Evaluation, bound: Tensor, inputs: tuple[Operand, ...]) -> Tensor:
    """Apply the rules that all entry-by-entry ops share to a spread, or to a remainder."""
    moved: Tensor | None = None  # where an input is not exact: the largest radius
    for item in inputs:
        if item.r is not None:
            r = item.r
            if not all_finite(item.x):
                # An infinity that is off by a finite number is that infinity.
                r = torch.where(torch.isinf(item.x) & torch.isfinite(r), 0.0, r)
            moved = r if moved is None else moved + r
        if not all_finite(item.x) and bool(torch.isnan(item.x).any()):
            lost = either(torch.isnan(item.x), math.inf, 0.0)
            moved = lost if moved is None else moved + lost
    if moved is None:
        return torch.zeros_like(call.y)
    if not (moved.numel() and bool(moved.amin() > 0)):
        bound = torch.where(moved > 0, bound, 0.0)
    if not all_finite(moved):
        bound = torch.where(torch.isinf(moved), math.inf, bound)
    return bound.expand(call.y.shape)


def finish_rounding(call: Evaluation, bound: Tensor, inputs: tuple[Operand, ...]) -> Tensor:
    """Where y is not finite: exact if it comes from an infinity, else unknown."""
    if not is_float64(call):
        return unknown(call)
    if not all_finite(call.y):
        finite = torch.isfinite(call.y)
        infinite = torch.zeros((), dtype=torch.bool)
        for item in inputs:
            infinite = infinite | torch.isinf(item.x)
        limit = torch.where(torch.isinf(call.y) & infinite, 0.0, math.inf)
        bound = torch.where(finite, bound, limit)
    return bound.expand(call.y.shape)


def unknown(call: Evaluation) -> Tensor:
    """Nothing is known of any entry."""
    return torch.full_like(call.y, math.inf, dtype=torch.float64)


def any_doubt(call: Evaluation) -> Tensor | None:
    """Where one of the arguments that are decisions is in doubt; None: nowhere."""
    mask: Tensor | None = None
    for doubt in call.doubts.values():
        if isinstance(doubt, Tensor):
            mask = doubt if mask is None else mask | doubt
    return None if mask is None else mask.expand(call.y.shape)


def doubt_of_integers(call: Evaluation) -> Tensor | None:
    """The doubt of an arithmetic op: about y if y is a decision, never for real numbers."""
    return any_doubt(call) if is_decision(call.y) else None


def repeats(call: Evaluation, *pairs: tuple[int, int]) -> float:
    """Multiplicity of an op whose remainder has terms e_i e_j, for these pairs of arguments.

    Where an argument is broadcast, a product of errors stands in as many entries of y as y is
    larger than the two arguments together: n times its square is the root of n in the 2-norm.
    """
    most = 1.0
    for pair in pairs:
        shapes = [call.args[i].shape for i in pair if _is_real(call.arg(i))]
        if len(shapes) == 2 and call.y.numel():
            joint = math.prod(torch.broadcast_shapes(*shapes))
            most = max(most, call.y.numel() / joint)
    return next_up(math.sqrt(most)) if most > 1.0 else 1.0


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def either(mask: Tensor, there: float, elsewhere: float) -> Tensor:
    """One of two numbers, in float64."""
    one = torch.full((), there, dtype=torch.float64, device=mask.device)
    return torch.where(mask, one, elsewhere)


def slope_bound(slope: Tensor, r: Tensor) -> Tensor:
    """Upper bound of sup|f'| * r, 0 where r is 0."""
    return torch.where(r > 0, mul_up(slope, r), 0.0)


def smooth_unary(
    name: str,
    *,
    derivatives: Callable[[Evaluation, Interval], Derivatives],
    rounding: Callable[[Evaluation], Bound],
    source: str,
    examples: tuple[Example, ...],
    width: float = math.inf,
    domain: str = "the reals",
    traits: Traits = NO_TRAITS,
) -> Op:
    """An op of one tensor whose two derivatives can be enclosed over a box.

    |f(x + e) - f(x)| <= sup|f'| r, or the width of f's range if that is less;
    |f(x + e) - f(x) - f'(x) e| <= sup|f''| r^2 / 2, both over |e| <= r.
    """

    def spread(call: Evaluation) -> Bound:
        x = operand(call, 0)
        if x.r is None:
            return None
        slope = derivatives(call, x.box()).first.magnitude()
        return finish_spread(call, mul_up(slope, x.r).clamp_max(width), (x,))

    def second_order(call: Evaluation) -> Bound:
        x = operand(call, 0)
        if x.r is None:
            return None
        curvature = derivatives(call, x.box()).second.magnitude()
        bound = mul_up(mul_up(curvature, 0.5), mul_up(x.r, x.r))
        return finish_spread(call, bound, (x,))

    def slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
        del moving
        return {0: Slope.enclosed(derivatives(call, operand(call, 0).box()).first)}

    return Op(
        name=name,
        kind=Kind.ELEMENTWISE,
        rounding=rounding,
        spread=spread,
        second_order=second_order,
        doubt=None,
        kinks=NO_KINKS,
        tangent=elementwise_tangent(slopes),
        domain=domain,
        source=source,
        examples=examples,
        traits=traits,
    )


def elementary_rounding(name: str) -> Callable[[Evaluation], Bound]:
    """The measured accuracy of a function, and 0 at points where its value is known exactly."""
    function = ELEMENTARY[name]

    def rounding(call: Evaluation) -> Bound:
        x, y = operand(call, 0).x, call.y
        if not is_float64(call):
            return unknown(call)
        bound = elementary_error(name, y, x)
        if function.above > -math.inf:
            bound = torch.where(x > function.above, bound, math.inf)
        return with_known_points(bound, x, y, function.points)

    return rounding


def with_known_points(
    bound: Tensor, x: Tensor, y: Tensor, points: tuple[tuple[float, float], ...]
) -> Tensor:
    """The bound, 0 at points where y is known; unknown at other infinite arguments."""
    if not all_finite(x) and bool(
        torch.isinf(x).any()
    ):  # accuracies are measured at finite arguments
        bound = torch.where(torch.isinf(x), math.inf, bound)
    for argument, value in points:
        bound = torch.where((x == argument) & (y == value), 0.0, bound)
    return bound


def elementary(name: str, *examples: Example, op: str = "", traits: Traits = NO_TRAITS) -> Op:
    """The entry of an elementary function; `op` is the op's name if it is another one."""
    function = ELEMENTARY[name]
    return smooth_unary(
        op or name,
        derivatives=lambda call, box: function.derivatives(box),
        rounding=elementary_rounding(name),
        source=MEASURED,
        examples=examples,
        width=function.width,
        domain=function.domain,
        traits=traits,
    )


def total(*bounds: Tensor) -> Tensor:
    """Upper bound of a sum of bounds that broadcast against each other."""
    result = bounds[0]
    for bound in bounds[1:]:
        result = add_up(result, bound)
    return result
