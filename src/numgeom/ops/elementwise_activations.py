"""How do activation functions and their likes carry an error?

Each is a formula over the reals, as torch documents it; see `composite`. Their rounding is
measured where the accuracy table has them, and otherwise bounded for every order of evaluation.
"""

import math

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    difference_up,
    gamma_up,
    mul_up,
)
from numgeom.ops import intervals
from numgeom.ops.composite import Formula, Inputs, composite, measured
from numgeom.ops.elementwise import MEASURED, Operand, either, finish_rounding, operand, total
from numgeom.ops.elementwise_choices import sides_of
from numgeom.ops.entry import Bound, Evaluation, Op
from numgeom.ops.examples import example, given, normal, unary_examples, uniform
from numgeom.ops.intervals import Interval
from numgeom.ops.jets import Jet
from numgeom.ops.kernel_errors import THREE_STEPS
from numgeom.ops.kinks import AT_ZERO, NO_KINKS, Kinks, Where
from numgeom.ops.traits import Autocast, Traits

INF = math.inf
SQRT_HALF = 0.70710678118654752440084436210485
SQRT_TWO_OVER_PI = 0.79788456080286535587989211986876
# The constants of selu as its documentation states them.
SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
_RUNNING = "IEEE 754, running error analysis of every order of evaluation"


def _option(call: Evaluation, position: int, name: str, default: float) -> float:
    return float(call.arg(position, name, default))


# --------------------------------------------------------------------------------- smooth formulas


def _gelu(call: Evaluation, x: Jet) -> Jet:
    if _gelu_name(call) == "gelu":
        return 0.5 * (x * (-x).scaled(SQRT_HALF).apply("erfc"))
    inner = (x + 0.044715 * (x * x.apply("square"))).scaled(SQRT_TWO_OVER_PI)
    return x * (2.0 * inner).apply("sigmoid")  # 1 + tanh(t) = 2 s(2t)


def _gelu_name(call: Evaluation) -> str:
    return "gelu" if call.arg(1, "approximate", "none") == "none" else "gelu_tanh"


def _silu(call: Evaluation, x: Jet) -> Jet:
    del call
    return x * x.apply("sigmoid")


def _mish(call: Evaluation, x: Jet) -> Jet:
    """The product of x and tanh(log(1 + e^x)), written with e^x where x <= 0, else with e^-x."""
    del call
    small, large = x.apply("exp"), (-x).apply("exp")
    rise = small * (small + 2.0)
    below = rise / (rise + 2.0)
    above = (1.0 + 2.0 * large) / (1.0 + 2.0 * large + 2.0 * (large * large))
    return x * above.select(x.value.lo > 0, below, x.value.hi <= 0)


def _log_sigmoid(call: Evaluation, x: Jet) -> Jet:
    del call
    above = -(-x).apply("exp").apply("log1p")
    below = x - x.apply("exp").apply("log1p")
    return above.select(x.value.lo > 0, below, x.value.hi <= 0)


def _tanh_backward(call: Evaluation, g: Jet, y: Jet) -> Jet:
    del call
    return g * ((1.0 - y) * (1.0 + y))


def _sigmoid_backward(call: Evaluation, g: Jet, y: Jet) -> Jet:
    del call
    return g * ((1.0 - y) * y)


def _tanh_backward_rounding(call: Evaluation) -> Bound:
    # y^2, 1 - y^2 and the product, any of them fused.
    g, y = operand(call, 0), operand(call, 1, "output")
    square = mul_up(y.x, y.x)
    inner = add_up(square, difference_up(torch.ones_like(square), square))
    relative = mul_up(mul_up(g.x.abs(), inner), gamma_up(3, UNIT_ROUNDOFF))
    lost = mul_up(add_up(g.x.abs(), 2.0), TINY)
    return finish_rounding(call, torch.where(g.x == 0, 0.0, add_up(relative, lost)), (g, y))


def _sigmoid_backward_rounding(call: Evaluation) -> Bound:
    g, y = operand(call, 0), operand(call, 1, "output")
    rest = difference_up(torch.ones_like(y.x), y.x)
    product = mul_up(mul_up(g.x.abs(), rest), y.x.abs())
    relative = mul_up(product, gamma_up(3, UNIT_ROUNDOFF))
    lost = mul_up(total(g.x.abs(), y.x.abs(), rest, torch.ones_like(rest)), TINY)
    zero = (g.x == 0) | (y.x == 0) | (y.x == 1)
    return finish_rounding(call, torch.where(zero, 0.0, add_up(relative, lost)), (g, y))


# ----------------------------------------------------------------------------- formulas with pieces


def _softplus(call: Evaluation, x: Jet) -> Jet:
    beta = _option(call, 1, "beta", 1.0)
    curved = (x * beta).apply("exp").apply("log1p").over(beta)
    above, below = _softplus_sides(call, x.value)
    return x.select(above, curved, below)


def _softplus_sides(call: Evaluation, x: Interval) -> tuple[Tensor, Tensor]:
    scaled = x * _option(call, 1, "beta", 1.0)
    threshold = _option(call, 2, "threshold", 20.0)
    exact = (x.lo == x.hi) & torch.full_like(x.lo, _option(call, 1, "beta", 1.0) == 1.0).bool()
    lo, hi = torch.where(exact, x.lo, scaled.lo), torch.where(exact, x.hi, scaled.hi)
    return lo > threshold, hi <= threshold


def _softplus_doubt(call: Evaluation, inputs: Inputs) -> Tensor:
    above, below = _softplus_sides(call, inputs[0].box())
    return (inputs[0].radius() > 0) & ~(above | below)


def _softplus_jump(call: Evaluation, inputs: Inputs) -> Tensor:
    """At the threshold t softplus falls from t + log1p(e^-t) to t, over beta."""
    threshold = torch.full((), -_option(call, 2, "threshold", 20.0), dtype=torch.float64)
    height = intervals.exp(Interval.exact(threshold)) / _option(call, 1, "beta", 1.0)
    return torch.where(_softplus_doubt(call, inputs), height.magnitude(), 0.0)


def _softplus_name(call: Evaluation) -> str | None:
    plain = _option(call, 1, "beta", 1.0) == 1.0 and _option(call, 2, "threshold", 20.0) == 20.0
    return "softplus" if plain else None


def _at_zero(x: Jet, above: Jet, below: Jet) -> Jet:
    """A function with two pieces that meet at 0; 0 belongs to the lower one."""
    return above.select(x.value.lo > 0, below, x.value.hi <= 0)


def _elu(call: Evaluation, x: Jet) -> Jet:
    alpha, scale, inner = (
        _option(call, i, name, 1.0) for i, name in ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    )
    below = (x * inner).apply("expm1") * alpha * scale
    return _at_zero(x, x * scale, below)


def _elu_name(call: Evaluation) -> str | None:
    options = tuple(call.arg(i, n, 1) for i, n in ((1, "alpha"), (2, "scale"), (3, "input_scale")))
    return {(1, 1, 1): "elu", (*SELU, 1): "selu"}.get(options)


def _celu(call: Evaluation, x: Jet) -> Jet:
    alpha = _option(call, 1, "alpha", 1.0)
    return _at_zero(x, x, x.over(alpha).apply("expm1") * alpha)


def _celu_name(call: Evaluation) -> str | None:
    return "elu" if _option(call, 1, "alpha", 1.0) == 1.0 else None


def _zero_doubt(call: Evaluation, inputs: Inputs) -> Tensor:
    del call
    return sides_of(inputs[0], 0.0).doubt


def _prelu(call: Evaluation, x: Jet, weight: Jet) -> Jet:
    del call
    return _at_zero(x, x, weight * x)


def _prelu_rounding(call: Evaluation) -> Bound:
    x, w = operand(call, 0), operand(call, 1, "weight")
    bound = mul_up(call.y.abs(), UNIT_ROUNDOFF)
    bound = torch.where((call.y == 0) & (x.x != 0) & (w.x != 0), TINY, bound)
    return finish_rounding(call, torch.where(x.x > 0, 0.0, bound), (x, w))


def _hard_sigmoid_of(x: Jet) -> Jet:
    """0 up to -3, 1 from 3 on, and x/6 + 1/2 between."""
    zero = x * 0.0
    middle = (x + 3.0).over(6.0)
    lower = middle.select(x.value.lo > -3, zero, x.value.hi <= -3)
    return (zero + 1.0).select(x.value.lo >= 3, lower, x.value.hi < 3)


def _hard_sigmoid(call: Evaluation, x: Jet) -> Jet:
    del call
    return _hard_sigmoid_of(x)


def _hard_swish(call: Evaluation, x: Jet) -> Jet:
    del call
    return x * _hard_sigmoid_of(x)


def _hard_doubt(call: Evaluation, inputs: Inputs) -> Tensor:
    del call
    x = inputs[0]
    mirrored = Operand(-x.x, x.r)
    return sides_of(x, -3.0).doubt | sides_of(mirrored, -3.0).doubt


def _hard_rounding(call: Evaluation) -> Bound:
    # x + 3 and a product with 1/6, rounded or not, or a quotient; hard-swish one product more.
    x = operand(call, 0)
    outside = x.x.abs() > 3
    size = torch.where(outside, call.y.abs(), add_up(mul_up(x.x.abs(), 1.0 / 6.0), 0.5))
    if call.name == "hardswish":
        size = torch.where(outside, call.y.abs(), mul_up(size, x.x.abs()))
    bound = add_up(mul_up(size, gamma_up(5, UNIT_ROUNDOFF)), 4.0 * TINY)
    return finish_rounding(call, torch.where(x.x <= -3, 0.0, bound), (x,))


def _shrink(call: Evaluation, x: Jet) -> Jet:
    bound = _option(call, 1, "lambd", 0.5)
    shift = bound if call.name == "softshrink" else 0.0
    zero = x * 0.0
    lower = (x + shift).select(x.value.hi < -bound, zero, x.value.lo >= -bound)
    return (x - shift).select(x.value.lo > bound, lower, x.value.hi <= bound)


def _shrink_doubt(call: Evaluation, inputs: Inputs) -> Tensor:
    x, bound = inputs[0], _option(call, 1, "lambd", 0.5)
    mirrored = Operand(-x.x, x.r)
    return sides_of(x, bound).doubt | sides_of(mirrored, bound).doubt


def _shrink_jump(call: Evaluation, inputs: Inputs) -> Tensor:
    height = 2.0 * abs(_option(call, 1, "lambd", 0.5)) if call.name == "hardshrink" else 0.0
    return either(_shrink_doubt(call, inputs), height, 0.0)


def _shrink_rounding(call: Evaluation) -> Bound:
    return finish_rounding(call, mul_up(call.y.abs(), UNIT_ROUNDOFF), (operand(call, 0),))


_X = ("self",)
_ZERO = ((0.0, 0.0),)

_STEPS = Traits(kernel=THREE_STEPS)

ACTIVATIONS: tuple[Op, ...] = (
    composite(
        "gelu",
        Formula(_X, _gelu),
        rounding=measured(_gelu_name, points=(*_ZERO, (INF, INF))),
        kinks=NO_KINKS,
        traits=_STEPS,
        source=MEASURED,
        examples=(
            *unary_examples(-4.0, 4.0, (20.0, -30.0, 1e-20)),
            *unary_examples(-4.0, 4.0, (20.0, -30.0, 1e-20), approximate="tanh"),
        ),
    ),
    composite(
        "silu",
        Formula(_X, _silu),
        rounding=measured("silu", points=(*_ZERO, (INF, INF))),
        kinks=NO_KINKS,
        traits=_STEPS,
        source=MEASURED,
        examples=unary_examples(-4.0, 4.0, (40.0, -40.0, 1e-20, -700.0)),
    ),
    composite(
        "mish",
        Formula(_X, _mish),
        rounding=measured("mish", points=_ZERO),
        kinks=NO_KINKS,
        traits=_STEPS,
        source=MEASURED,
        examples=unary_examples(-4.0, 4.0, (40.0, -40.0, 1e-20)),
    ),
    composite(
        "softplus",
        Formula(_X, _softplus, _softplus_doubt, _softplus_jump),
        rounding=measured(_softplus_name, points=((-INF, 0.0), (INF, INF))),
        kinks=Kinks(Where.BOUND, "at the threshold, where it jumps", jumps=True, slight=True),
        traits=Traits(kernel=THREE_STEPS, autocast=Autocast.WIDE_ON_CUDA),
        source=MEASURED,
        examples=(
            *unary_examples(-4.0, 4.0, (20.0, 20.000001, 30.0, -40.0)),
            example(normal(6), 2.0, 1.0, label="beta and threshold"),
        ),
    ),
    composite(
        "elu",
        Formula(_X, _elu, _zero_doubt),
        rounding=measured(_elu_name, points=_ZERO),
        kinks=Kinks(
            Where.ZERO, "at 0, of the second derivative; of the first one unless alpha = 1"
        ),
        traits=_STEPS,
        source=MEASURED,
        examples=(
            *unary_examples(-3.0, 3.0, (-40.0, 1e-20, -1e-20)),
            example(normal(8), *SELU, label="selu"),
            example(normal(6), 0.7, label="alpha"),
        ),
    ),
    composite(
        "celu",
        Formula(_X, _celu, _zero_doubt),
        rounding=measured(_celu_name, points=_ZERO),
        kinks=Kinks(Where.ZERO, "at 0, of the second derivative", order=2),
        source=MEASURED,
        examples=(
            *unary_examples(-3.0, 3.0, (-40.0, 1e-20, -1e-20)),
            example(normal(6), 0.7, label="alpha"),
        ),
    ),
    composite(
        "_prelu_kernel",
        Formula(("self", "weight"), _prelu, _zero_doubt),
        rounding=_prelu_rounding,
        kinks=AT_ZERO,
        source="IEEE 754: one product",
        examples=(
            example(normal(3, 4), given([0.3], [-0.7], [0.0])),
            example(given(0.0, -0.0, 5e-324, -1e-300), given(0.25)),
        ),
    ),
    composite(
        "hardsigmoid",
        Formula(_X, _hard_sigmoid, _hard_doubt, linear_pieces=True),
        rounding=_hard_rounding,
        kinks=Kinks(Where.BOUND, "at -3 and 3"),
        source=_RUNNING,
        examples=unary_examples(-4.0, 4.0, (3.0, -3.0, 2.999999, -2.9999999, 1e-300, 9.0)),
    ),
    composite(
        "hardswish",
        Formula(_X, _hard_swish, _hard_doubt),
        rounding=_hard_rounding,
        kinks=Kinks(Where.BOUND, "at -3 and 3"),
        source=_RUNNING,
        examples=unary_examples(-4.0, 4.0, (3.0, -3.0, 2.999999, -2.9999999, 1e-300, 9.0)),
    ),
    *(
        composite(
            name,
            Formula(_X, _shrink, _shrink_doubt, _shrink_jump, linear_pieces=True),
            rounding=_shrink_rounding if name == "softshrink" else None,
            kinks=Kinks(Where.BOUND, "where |x| is the bound", jumps=name == "hardshrink"),
            source="IEEE 754: at most one sum",
            traits=Traits(chooses=name == "hardshrink"),
            examples=(
                *unary_examples(-1.0, 1.0, (0.5, -0.5, 0.25, 1e300)),
                example(normal(6), 0.1, label="bound"),
            ),
        )
        for name in ("hardshrink", "softshrink")
    ),
    composite(
        "tanh_backward",
        Formula(("grad_output", "output"), _tanh_backward),
        rounding=_tanh_backward_rounding,
        kinks=NO_KINKS,
        traits=Traits(activation_backward=True, kernel=THREE_STEPS),
        source=_RUNNING,
        examples=(
            example(normal(12), uniform(-1.0, 1.0, 12)),
            example(given(0.0, 1.0, 1e-310, 1e300), given(0.5, 1.0, -0.3, 1e-200)),
        ),
    ),
    composite(
        "sigmoid_backward",
        Formula(("grad_output", "output"), _sigmoid_backward),
        rounding=_sigmoid_backward_rounding,
        kinks=NO_KINKS,
        traits=Traits(activation_backward=True, kernel=THREE_STEPS),
        source=_RUNNING,
        examples=(
            example(normal(12), uniform(0.0, 1.0, 12)),
            example(given(0.0, 1.0, 1e-310, 1e300, 2.0), given(0.5, 1.0, 0.3, 1e-200, 0.0)),
        ),
    ),
)
