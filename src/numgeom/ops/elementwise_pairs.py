"""How do smooth functions of two numbers carry an error?

logaddexp, hypot, atan2, xlogy; and what is left of an entry by entry op when nothing is computed:
nan_to_num, and the backward op of randomized leaky relu.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from numgeom.ops.composite import Formula, Inputs, composite, measured
from numgeom.ops.elementwise import (
    IEEE,
    MEASURED,
    finish_spread,
    operand,
)
from numgeom.ops.elementwise_arithmetic import MULTIPLICATION
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import example, given, normal, unary_examples, uniform
from numgeom.ops.intervals import Interval, constant, reciprocal
from numgeom.ops.jets import Jet
from numgeom.ops.kinks import NO_KINKS, Kinks, Where, smooth
from numgeom.ops.tangents import (
    Moved,
    NoTangentRuleError,
    Pushed,
    Slope,
    elementwise_tangent,
    require_known,
)
from numgeom.ops.traits import Poles, Traits


def _logaddexp(call: Evaluation, a: Jet, b: Jet) -> Jet:
    del call
    gap = a - b
    first = a + (-gap).apply("exp").apply("log1p")
    second = b + gap.apply("exp").apply("log1p")
    return first.select(gap.value.lo > 0, second, gap.value.hi <= 0)


def _hypot(call: Evaluation, a: Jet, b: Jet) -> Jet:
    del call
    root = (a.apply("square") + b.apply("square")).apply("sqrt")
    # Its slopes are the cosine and the sine of an angle.
    first = tuple(None if part is None else part.within(-1.0, 1.0) for part in root.first)
    return Jet(root.value, first, root.second, root.order)


def _atan2(call: Evaluation, y: Jet, x: Jet) -> Jet:
    """Its value is not needed; the derivatives are those of the angle of the point (x, y)."""
    del call
    a, b = x.value, y.value
    inverse = reciprocal(a.square() + b.square())
    along, across = a * inverse, -(b * inverse)
    bent = 2.0 * (along * across)
    mixed = (across + along) * (across - along)
    angle = Interval(constant(-math.pi, a).lo, constant(math.pi, a).hi)
    return Jet(angle, (along, across), ((bent, mixed), (None, -bent)), y.order)


def _cut(call: Evaluation, inputs: Inputs) -> Tensor:
    """Where the box meets the negative axis, across which the angle jumps."""
    del call
    y, x = (item.box() for item in inputs)
    moved = (inputs[0].radius() > 0) | (inputs[1].radius() > 0)
    return moved & (x.lo <= 0) & (y.lo <= 0) & (y.hi >= 0)


def _full_turn(call: Evaluation, inputs: Inputs) -> Tensor:
    return torch.where(_cut(call, inputs), torch.full_like(call.y, 6.2831853071795872), 0.0)


def _atan2_rounding(call: Evaluation) -> Bound:
    bound = measured("atan2", count=2)(call)
    y, x = operand(call, 0), operand(call, 1, "other")
    # Over the reals there is no -0, and no angle at the origin.
    lost = (y.x == 0) & (x.x <= 0)
    return torch.where(lost, math.inf, bound) if bound is not None else None


def _xlogy(call: Evaluation, x: Jet, y: Jet) -> Jet:
    del call
    return x * y.apply("log")


def _xlogy_rounding(call: Evaluation) -> Bound:
    bound = measured("xlogy", count=2)(call)
    zero = (operand(call, 0).x == 0) & (call.y == 0)
    return torch.where(zero, 0.0, bound) if bound is not None else None


# ---------------------------------------------------------------------- nothing, or one product


def _passed_on(call: Evaluation) -> Bound:
    x = operand(call, 0)
    return None if x.r is None else finish_spread(call, x.r, (x,))


def _finite_doubt(call: Evaluation) -> Tensor | None:
    r = call.radius(0)
    return None if r is None else torch.isinf(r)


def _as_product(call: Evaluation) -> Evaluation | None:
    """The product of gradient and noise that the op is in training; None elsewhere."""
    lower, upper, training = call.args[3], call.args[4], call.args[5]
    if not training or upper - lower <= 1e-6:
        return None
    radii = {0: call.radius(0), 1: call.radius(2)}
    return replace(call, name="mul", args=(call.args[0], call.args[2]), kwargs={}, radii=radii)


def _noise_rounding(call: Evaluation) -> Bound:
    product = _as_product(call)
    if product is None:
        return torch.full_like(call.y, math.inf)
    return MULTIPLICATION.rounding_of(product)


def _noise_tangent(call: Evaluation, moved: Moved) -> Pushed | None:
    require_known(call, moved, 0, 1, 2)
    product = _as_product(call)
    if product is None or MULTIPLICATION.tangent is None:
        raise NoTangentRuleError(f"{call.name} has a tangent rule in training alone.")
    return MULTIPLICATION.tangent(product, {k: moved[n] for k, n in ((0, 0), (1, 2)) if n in moved})


def _noise_spread(call: Evaluation) -> Bound:
    product = _as_product(call)
    return None if product is None else MULTIPLICATION.spread_of(product)


def _noise_second_order(call: Evaluation) -> Bound:
    product = _as_product(call)
    return None if product is None else MULTIPLICATION.second_order_of(product)


_TWO = ("self", "other")

PAIRS: tuple[Op, ...] = (
    composite(
        "logaddexp",
        Formula(_TWO, _logaddexp),
        rounding=measured("logaddexp", count=2),
        kinks=NO_KINKS,
        source=MEASURED,
        examples=(
            example(normal(12), normal(12)),
            example(normal(3, 1), normal(1, 2), label="broadcast"),
            example(given(1.0, 50.0, -800.0), given(1.0, -3.0, 900.0), label="far apart"),
        ),
    ),
    composite(
        "hypot",
        Formula(_TWO, _hypot),
        rounding=measured("hypot", count=2),
        kinks=Kinks(Where.TIP, "at the origin", inputs=(0, 1)),
        traits=Traits(poles=Poles(of_value=False)),
        source=MEASURED,
        examples=(
            example(normal(12), normal(12)),
            example(normal(3, 1), normal(1, 2), label="broadcast"),
            example(given(0.0, 3.0, 1e200), given(0.0, 4.0, -1e200)),
        ),
    ),
    composite(
        "atan2",
        Formula(_TWO, _atan2, _cut, _full_turn),
        rounding=_atan2_rounding,
        kinks=Kinks(Where.CUT, "on the negative axis, where it jumps", inputs=(0, 1), jumps=True),
        domain="not the origin",
        traits=Traits(poles=Poles(of_value=False)),
        source=MEASURED,
        examples=(
            example(normal(12), normal(12)),
            example(normal(3, 1), normal(1, 2), label="broadcast"),
            example(given(0.0, 0.0, 1e-3, -1e-3), given(1.0, -1.0, -2.0, -2.0), label="axis"),
        ),
    ),
    composite(
        "xlogy",
        Formula(_TWO, _xlogy),
        rounding=_xlogy_rounding,
        kinks=NO_KINKS,
        domain="y > 0, or x = 0",
        traits=Traits(poles=Poles(argument=1)),
        source=MEASURED,
        examples=(
            example(normal(12), uniform(0.1, 3.0, 12)),
            example(normal(3, 1), uniform(0.1, 3.0, 2), label="broadcast"),
            example(given(0.0, 0.0, 1.0), given(0.0, 2.0, 1e-300), label="zeros"),
        ),
    ),
    Op(
        name="nan_to_num",
        kind=Kind.EXACT,
        rounding=None,
        spread=_passed_on,
        second_order=None,
        tangent=elementwise_tangent(lambda call, moving: {0: Slope(1.0, plain=True)}),
        doubt=_finite_doubt,
        kinks=smooth("none: a finite number is passed on"),
        traits=Traits(entrywise=True),
        source=IEEE,
        examples=unary_examples(-1.0, 1.0, (math.inf, -math.inf, 1e300)),
    ),
    Op(
        name="rrelu_with_noise_backward",
        kind=Kind.ELEMENTWISE,
        rounding=_noise_rounding,
        spread=_noise_spread,
        second_order=_noise_second_order,
        doubt=None,
        kinks=smooth("none: the noise holds the slopes"),
        tangent=_noise_tangent,
        source=IEEE,
        examples=(example(normal(6), normal(6), uniform(0.1, 1.0, 6), 0.125, 0.33, True, False),),
    ),
)
