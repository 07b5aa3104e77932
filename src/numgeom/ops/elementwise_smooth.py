"""How do the elementary functions and powers carry an error?

|f(x + e) - f(x)| <= sup|f'| r and |f(x + e) - f(x) - f'(x) e| <= sup|f''| r^2 / 2, with the
suprema over the box of errors itself: no global constants.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from numgeom.arithmetic.accuracy import pow_function
from numgeom.arithmetic.rounding import add_up, mul_up
from numgeom.ops import intervals
from numgeom.ops.derivatives import ELEMENTARY
from numgeom.ops.elementwise import (
    MEASURED,
    Operand,
    doubt_of_integers,
    elementary,
    finish_rounding,
    finish_spread,
    is_decision,
    operand,
    repeats,
    slope_bound,
    smooth_unary,
)
from numgeom.ops.elementwise_arithmetic import correctly_rounded_product
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import NASTY, example, given, normal, unary_examples, uniform, whole
from numgeom.ops.intervals import Interval, elementary_error, reciprocal
from numgeom.ops.kernel_errors import THREE_STEPS
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangents import Key, Slope, elementwise_tangent
from numgeom.ops.traits import NO_TRAITS, Autocast, Poles, Traits

INF = math.inf


# ------------------------------------------------------------------------ squares and reciprocals


def _one_rounding(name: str, traits: Traits = NO_TRAITS) -> Op:
    """The entry of x * x or 1 / x: one IEEE operation if torch computes it so, else as measured."""
    measured = {"square": "pow(2)", "reciprocal": "reciprocal"}[name]
    function = ELEMENTARY[name]

    def rounding(call: Evaluation) -> Bound:
        x, y = operand(call, 0), call.y
        if is_decision(y):
            return None
        plain = x.x * x.x if name == "square" else torch.ones_like(x.x) / x.x
        bound = torch.where(
            y == plain, _of_one_operation(x.x, y), elementary_error(measured, y, x.x)
        )
        bound = torch.where(torch.isinf(x.x) & (y == 0), 0.0, bound)
        return finish_rounding(call, bound, (x,))

    return smooth_unary(
        name,
        derivatives=lambda call, box: function.derivatives(box),
        rounding=rounding,
        source=f"IEEE 754 where one operation gives the same, else {MEASURED}",
        examples=unary_examples(0.3, 3.0, (*NASTY, INF, -INF)),
        domain=function.domain,
        traits=traits,
    )


def _of_one_operation(x: Tensor, y: Tensor) -> Tensor:
    """Rounding error of x * x or 1 / x, y the result."""
    return torch.where((x.abs() == 1) | (x == 0), 0.0, correctly_rounded_product(y))


# ----------------------------------------------------------------------------------------- powers


def _whole_exponent(call: Evaluation) -> int | None:
    """A whole number as the exponent, small enough to multiply powers out."""
    exponent = call.arg(1, "exponent")
    if isinstance(exponent, Tensor) or not float(exponent).is_integer() or abs(exponent) > 64:
        return None
    return int(exponent)


def _bases(call: Evaluation) -> tuple[Operand, Operand]:
    return operand(call, 0, "self"), operand(call, 1, "exponent")


def _power_rounding(call: Evaluation) -> Bound:
    if is_decision(call.y):
        return None
    x, p = _bases(call)
    exponent = call.arg(1, "exponent")
    if not isinstance(exponent, Tensor) and exponent in (0, 1):
        return finish_rounding(call, torch.zeros_like(call.y), (x, p))
    name = "pow" if isinstance(exponent, Tensor) else pow_function(float(exponent))
    full = torch.broadcast_tensors(x.x, p.x)
    bound = elementary_error(name, call.y, *(full if name == "pow" else full[:1]))
    if name == "pow":
        # Measured for x > 0; where x < 0 it holds if the kernel only sets the sign.
        mirrored = torch.pow(full[0].abs(), exponent)
        bound = torch.where((full[0] > 0) | (mirrored == call.y.abs()), bound, INF)
    elif name == "pow(2)":
        bound = torch.where(call.y == x.x * x.x, _of_one_operation(x.x, call.y), bound)
    infinite = torch.isinf(x.x) | torch.isinf(p.x)
    bound = torch.where(infinite & (call.y != 0), INF, bound)
    zero = (infinite | (x.x == 0) & (p.x > 0)) & (call.y == 0)
    known = zero | ((x.x == 1) & (call.y == 1)) | ((p.x == 0) & (call.y == 1))
    return finish_rounding(call, torch.where(known, 0.0, bound), (x, p))


def _power_spread(call: Evaluation) -> Bound:
    x, p = _bases(call)
    if is_decision(call.y) or (x.r is None and p.r is None):
        return None
    n = _whole_exponent(call)
    if n is not None:
        if n == 0:
            return None
        slope = mul_up(_size_of_power(x.box(), n - 1), float(abs(n)))
        return finish_spread(call, slope_bound(slope, x.radius()), (x, p))
    partial = _Partials.over(x, p)
    bound = add_up(
        slope_bound(partial.x.magnitude(), x.radius()),
        slope_bound(partial.p.magnitude(), p.radius()),
    )
    return finish_spread(call, bound, (x, p))


def _power_slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
    x, p = _bases(call)
    n = _whole_exponent(call)
    if n is not None:
        box = Interval.exact(x.x)
        along = {0: Slope(0.0, plain=True), 1: Slope(1.0, plain=True), 2: Slope(2.0 * x.x)}.get(n)
        return {0: Slope.enclosed(float(n) * box.whole_power(n - 1)) if along is None else along}
    partial = _Partials.over(x, p)
    found: dict[Key, Slope] = {}
    if 0 in moving:  # for x < 0 that of |x|^p: an even power falls there
        mirrored = (x.x < 0) & (torch.fmod(p.x, 2.0) == 0)
        slope = Slope.enclosed(partial.x)
        value = torch.where(mirrored, -torch.as_tensor(slope.value), slope.value)
        found[0] = Slope(value, slope.error)
    if not moving <= {0}:
        found[1] = found["exponent"] = Slope.enclosed(partial.p)
    return found


def _power_second_order(call: Evaluation) -> Bound:
    x, p = _bases(call)
    if is_decision(call.y) or (x.r is None and p.r is None):
        return None
    n = _whole_exponent(call)
    if n is not None:
        if n in (0, 1):
            return None
        curvature = mul_up(_size_of_power(x.box(), n - 2), 0.5 * abs(n * (n - 1)))
        bound = _times(curvature, x.radius(), x.radius())
        return finish_spread(call, bound, (x, p))
    partial = _Partials.over(x, p)
    rx, rp = x.radius(), p.radius()
    half = 0.5
    bound = add_up(
        _times(mul_up(partial.xx.magnitude(), half), rx, rx),
        add_up(
            _times(partial.xp.magnitude(), rx, rp),
            _times(mul_up(partial.pp.magnitude(), half), rp, rp),
        ),
    )
    return finish_spread(call, bound, (x, p))


def _times(slope: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Upper bound of slope * a * b, 0 where a or b is."""
    return torch.where((a > 0) & (b > 0), mul_up(mul_up(slope, a), b), 0.0)


def _size_of_power(box: Interval, n: int) -> Tensor:
    """Upper bound of sup |x|^n over the box, n of either sign."""
    size = box.abs()
    end = size.hi if n >= 0 else size.lo
    return Interval(end, end).whole_power(n).magnitude()


class _Partials:
    """Partial derivatives of x^p over a box with x > 0, or of |x|^p for an exact whole p."""

    def __init__(self, x: Interval, p: Interval) -> None:
        log, inverse = intervals.log(x), reciprocal(x)
        value = intervals.exp(p * log)
        ratio = value * inverse
        self.x = p * ratio
        self.p = log * value
        self.xx = p * (p - 1.0) * ratio * inverse
        self.xp = ratio * (1.0 + p * log)
        self.pp = log.square() * value

    @classmethod
    def over(cls, x: Operand, p: Operand) -> "_Partials":
        shape = torch.broadcast_shapes(x.x.shape, p.x.shape)
        base, exponent = x.box().expand(shape), p.box().expand(shape)
        whole_number = (p.radius() == 0) & (p.x == torch.round(p.x))
        size = base.abs()
        mirrored = Interval(
            torch.where(whole_number, size.lo, base.lo),
            torch.where(whole_number, size.hi, base.hi),
        )
        return cls(mirrored, exponent)


_POWERS: tuple[Example, ...] = (
    *(
        example(uniform(0.2, 3.0, 6), exponent, label=f"exponent {exponent}")
        for exponent in (2, 3, 0.5, -0.5, -1, -2, 1.7, 0, 1, 5.0)
    ),
    example(normal(6), 4.0, label="negative bases"),
    example(given(*NASTY), 2, label="nasty"),
    example(given(*NASTY), 3, label="nasty"),
    example(10000.0, uniform(-1.0, 1.0, 6), label="base"),
    example(uniform(0.2, 3.0, 6), normal(6), label="tensors"),
    example(uniform(0.2, 3.0, 2, 1), given(2.0, -1.0, 0.0), label="broadcast"),
    example(given(-2.0, 3.0, -0.5), given(2.0, -1.0, 3.0), label="whole exponents"),
    example(whole(3, -2, 0), 2, label="integers"),
    example(normal(0), 2, label="empty"),
)

_WIDE = Traits(autocast=Autocast.WIDE_ON_CUDA)
_POLES = Traits(poles=Poles())
_AT_ZERO = Traits(poles=Poles(at_zero=True))

SMOOTH: tuple[Op, ...] = (
    elementary(
        "exp", *unary_examples(-30.0, 5.0, (-INF, INF, 800.0, -800.0, -740.0, 700.0)), traits=_WIDE
    ),
    elementary("exp2", *unary_examples(-30.0, 5.0, (-INF, INF, 1.0, -1070.0))),
    elementary("expm1", *unary_examples(-3.0, 3.0, (-INF, INF, 1e-20, -50.0))),
    elementary(
        "log",
        *unary_examples(1e-3, 3.0, (1.0, INF, -1.0, 5e-324, 1e300)),
        traits=replace(_AT_ZERO, autocast=Autocast.WIDE_ON_CUDA),
    ),
    elementary("log2", *unary_examples(1e-3, 3.0, (1.0, 2.0, INF, -1.0, 1e300)), traits=_AT_ZERO),
    elementary("log10", *unary_examples(1e-3, 3.0, (1.0, 10.0, INF, -1.0, 1e300)), traits=_AT_ZERO),
    elementary("log1p", *unary_examples(-0.9, 3.0, (-1.0, 1e-20, -2.0, 1e300)), traits=_POLES),
    elementary(
        "sqrt", *unary_examples(1e-3, 3.0, (1.0, INF, -1.0, 5e-324, 1e300)), traits=_AT_ZERO
    ),
    elementary(
        "rsqrt",
        *unary_examples(1e-3, 3.0, (1.0, INF, -1.0, 1e-300, 1e300)),
        traits=Traits(
            normalizes=True,
            poles=Poles(at_zero=True),
            autocast=Autocast.WIDE_ON_CUDA,
            kernel=THREE_STEPS,
        ),
    ),
    _one_rounding("reciprocal", Traits(poles=Poles(at_zero=True, may_overflow=True))),
    _one_rounding("square"),
    Op(
        name="pow",
        kind=Kind.ELEMENTWISE,
        rounding=_power_rounding,
        spread=_power_spread,
        second_order=_power_second_order,
        tangent=elementwise_tangent(_power_slopes),
        doubt=doubt_of_integers,
        kinks=NO_KINKS,
        domain="x > 0, or a whole exponent",
        traits=Traits(
            poles=Poles(at_zero=True, may_overflow=True),
            autocast=Autocast.WIDE_ON_CUDA,
            kernel=THREE_STEPS,
        ),
        source=MEASURED,
        multiplicity=lambda call: repeats(call, (0, 0), (0, 1), (1, 1)),
        examples=_POWERS,
    ),
    elementary("sin", *unary_examples(-7.0, 7.0, (1e5, 1e22, 3.141592653589793))),
    elementary("cos", *unary_examples(-7.0, 7.0, (1e5, 1e22, 1.5707963267948966))),
    elementary("tan", *unary_examples(-1.4, 1.4, (1e5, 1.5707963267948966)), traits=_POLES),
    elementary("asin", *unary_examples(-0.95, 0.95, (1.0, -1.0, 2.0, 0.9999999)), traits=_POLES),
    elementary("acos", *unary_examples(-0.95, 0.95, (1.0, -1.0, 2.0, 0.9999999)), traits=_POLES),
    elementary("atan", *unary_examples(-3.0, 3.0, (1e10, 1e-200))),
    elementary("sinh", *unary_examples(-3.0, 3.0, (INF, -INF, 700.0, 1e-20, 800.0))),
    elementary("cosh", *unary_examples(-3.0, 3.0, (INF, -INF, 700.0, 1e-20, 800.0))),
    elementary("tanh", *unary_examples(-3.0, 3.0, (INF, -INF, 20.0, -400.0, 1e-20))),
    elementary("asinh", *unary_examples(-3.0, 3.0, (INF, -INF, 1e200, 1e-20))),
    elementary("acosh", *unary_examples(1.1, 4.0, (1.0, INF, 1e200, 1.0000001)), traits=_POLES),
    elementary("atanh", *unary_examples(-0.95, 0.95, (1.0, 2.0, 0.9999999, 1e-20)), traits=_POLES),
    elementary(
        "sigmoid",
        *unary_examples(-4.0, 4.0, (INF, -INF, 40.0, -40.0, -745.0, -720.0)),
        traits=Traits(kernel=THREE_STEPS),
    ),
    elementary("erf", *unary_examples(-3.0, 3.0, (INF, -INF, 6.0, 1e-20, 40.0))),
    elementary("erfc", *unary_examples(-3.0, 3.0, (INF, -INF, 26.0, 1e-20))),
    elementary("erfinv", *unary_examples(-0.95, 0.95, (1.0, 2.0, 0.9999999, 1e-20)), traits=_POLES),
    elementary("lgamma", *unary_examples(0.1, 6.0, (1.0, 2.0, 1e-10, 1e100)), traits=_POLES),
    elementary(
        "digamma", *unary_examples(0.1, 6.0, (1.4616321449683622, 1e-10, 1e100)), traits=_POLES
    ),
    elementary("i0", *unary_examples(-4.0, 4.0, (30.0, 1e-20))),
    elementary("i1", *unary_examples(-4.0, 4.0, (30.0, 1e-20)), op="special_i1"),
)
