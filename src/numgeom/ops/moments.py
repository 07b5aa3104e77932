"""How far can a variance or a standard deviation move and round?

Moving. With m the mean of x, S(x) = sum (x - m)^2 is a quadratic form, so exactly

    S(x + e) - S(x) = 2 sum (x - m) e + sum (e - mean e)^2,    sum (e - mean e)^2 <= sum e^2.

The roots of S(x) and of sum x^2 are norms of x, hence move by at most the norm of e.

Rounding is measured, since a kernel may take one of several algorithms (two passes, or those of
Welford 1962 and of Chan, Golub and LeVeque 1983): |y - f(x)| <= |y - z| + |z - f(x)|, with z what
the two-pass algorithm gives here and a bound on its own error. With d >= |fl(m) - m|,

    |z - sum (x - fl(m))^2| <= gamma_{n+2} sum (x - fl(m))^2,    and the latter sum is S + n d^2.

Multiplicity. R_o / s_o is at most a sum over the entries t that o is made of, of
(s_t^2 / s_o) e'_t^2 <= (Q_o / s_o) e'_t^2, and these groups of entries are disjoint: the 2-norm
over all o is at most max(Q / s) |e'|^2. It is 1.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.lower_bounds import sqrt_down, sub_down
from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    cover_roundings,
    difference_up,
    div_up,
    gamma_up,
    mul_up,
    norm_up,
    sqrt_up,
    sum_up,
)
from numgeom.ops.balls import unknown_unless_finite
from numgeom.ops.drawing import swapped, wild
from numgeom.ops.entry import Evaluation, Example, Fact, Kind, Op
from numgeom.ops.examples import Maker, example, normal
from numgeom.ops.kernel_errors import THREE_STEPS
from numgeom.ops.kinks import NO_KINKS, Kinks, Where
from numgeom.ops.reduction import count_of, mean_up, reduced_dims, tiny_where
from numgeom.ops.tangents import Moved, NoTangentRuleError, Pushed, require_known
from numgeom.ops.traits import Poles, Traits
from numgeom.ops.vector_norms import norm_remainder

# -- variance ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _TwoPass:
    """A variance by two passes, with bounds of its own errors; dimensions are kept.

    Attributes:
        mean: fl(m).
        mean_error: Upper bound of |fl(m) - m|.
        variance: z.
        variance_error: Upper bound of |z - S / (n - c)|.
        centred: Upper bound of |x - m|.
    """

    mean: Tensor
    mean_error: Tensor
    variance: Tensor
    variance_error: Tensor
    centred: Tensor


@dataclass(frozen=True, eq=False)
class _Layout:
    """Which entries make up one variance: dimensions, their count n, and n - c."""

    dims: tuple[int, ...]
    keepdim: bool
    count: int
    divisor: float

    def shaped(self, bound: Tensor) -> Tensor:
        """Drop the dimensions that were kept, unless y keeps them."""
        return bound if self.keepdim else bound.squeeze(self.dims) if self.dims else bound


def _layout(call: Evaluation) -> _Layout:
    x = call.args[0]
    unbiased = call.arg(1, "unbiased")
    if isinstance(unbiased, bool):  # var(x, unbiased), var(x, dim, unbiased, keepdim)
        dims, correction = tuple(range(x.dim())), float(unbiased)
        keepdim = False
    else:
        dims, _ = reduced_dims(call)
        third = call.arg(2, "unbiased")
        if isinstance(third, bool):
            correction, keepdim = float(third), bool(call.arg(3, "keepdim", False))
        else:
            given = call.kwargs.get("correction")
            correction = 1.0 if given is None else float(given)
            keepdim = bool(call.kwargs.get("keepdim", False))
    n = count_of(x, dims)
    return _Layout(dims, keepdim, n, max(0.0, n - correction))


def _two_pass(x: Tensor, layout: _Layout) -> _TwoPass:
    n, dims = layout.count, layout.dims
    mean = torch.sum(x, dims, keepdim=True) / n if dims else x.clone()
    size = mean_up(x.abs(), dims, keepdim=True)
    mean_error = add_up(mul_up(size, gamma_up(n + 1, UNIT_ROUNDOFF)), tiny_where(size > 0))
    if n == 1:
        mean_error = torch.zeros_like(mean)
    centred = x - mean
    squares = centred * centred
    total = torch.sum(squares, dims, keepdim=True) if dims else squares
    # sum (x - fl(m))^2, with n + 2 roundings per term, and one underflow.
    exact_total = add_up(cover_roundings(total, n + 2), tiny_where(total > 0, n))
    error = mul_up(exact_total, gamma_up(n + 2, UNIT_ROUNDOFF))
    error = add_up(error, mul_up(mul_up(mean_error, mean_error), float(n)))
    # Squares that underflowed: |x - fl(m)| below 2^-536.
    small = ((centred != 0) & (centred.abs() < 2.0**-510)).any()
    error = add_up(error, float(small) * n * TINY)
    variance = total / layout.divisor
    # A division by a number may be a product with its rounded reciprocal.
    rounded = add_up(mul_up(variance, gamma_up(3, UNIT_ROUNDOFF)), tiny_where(total > 0))
    divided = div_up(error, torch.full_like(error, layout.divisor))
    magnitude = add_up(mul_up(centred.abs(), 1.0 + 4.0 * UNIT_ROUNDOFF), mean_error)
    return _TwoPass(mean, mean_error, variance, add_up(divided, rounded), magnitude)


def _is_defined(call: Evaluation, layout: _Layout) -> bool:
    return layout.divisor > 0 and call.args[0].is_floating_point()


def _like_outputs(call: Evaluation, *bounds: Any) -> Any:
    """One bound, or the pair (for the variance, for the mean)."""
    return bounds if isinstance(call.y, (tuple, list)) else bounds[0]


def _unknown(call: Evaluation) -> Any:
    ys = call.y if isinstance(call.y, (tuple, list)) else (call.y,)
    return _like_outputs(call, *(torch.full_like(y, math.inf) for y in ys))


def _variance_rounding(call: Evaluation) -> Any:
    layout = _layout(call)
    if not _is_defined(call, layout):
        return _unknown(call)
    z = _two_pass(call.args[0], layout)
    ys = call.y if isinstance(call.y, (tuple, list)) else (call.y,)
    reference, error = z.variance, z.variance_error
    if call.name.startswith("std"):
        reference, error = _root(reference, error)
    found = [_measured(ys[0], layout.shaped(reference), layout.shaped(error))]
    if len(ys) > 1:
        found.append(_measured(ys[1], layout.shaped(z.mean), layout.shaped(z.mean_error)))
    return _like_outputs(call, *found)


def _root(z: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """fl(sqrt(z)), and the distance to the root of what lies within the error of z.

    |sqrt(a) - sqrt(z)| is at most the root of |a - z|, and at most |a - z| / sqrt(z).
    """
    root = torch.sqrt(z)
    distance = torch.minimum(sqrt_up(error), div_up(error, sqrt_down(z)))
    return root, add_up(distance, mul_up(root, 2.0 * UNIT_ROUNDOFF))


def _measured(y: Tensor, reference: Tensor, error: Tensor) -> Tensor:
    return unknown_unless_finite(add_up(difference_up(y, reference), error), y)


def _variance_spread(call: Evaluation) -> Any:
    r = call.radius(0)
    if r is None:
        return None
    layout = _layout(call)
    if not _is_defined(call, layout):
        return _unknown(call)
    mean = layout.shaped(mean_up(r, layout.dims, keepdim=True))
    if call.name.startswith("std"):
        return _like_outputs(call, _deviation_spread(r, layout), mean)
    z = _two_pass(call.args[0], layout)
    # n = 1: x - m is 0 whatever x is, and so is the variance.
    first = mul_up(sum_up(mul_up(z.centred, r), layout.dims, keepdim=True), 2.0)
    second = _sum_of_squares(r, layout)
    moved = div_up(add_up(first, second), torch.full_like(second, layout.divisor))
    return _like_outputs(call, layout.shaped(moved), mean)


def _sum_of_squares(r: Tensor, layout: _Layout) -> Tensor:
    return sum_up(mul_up(r, r), layout.dims, keepdim=True)


def _deviation_spread(r: Tensor, layout: _Layout) -> Tensor:
    length = norm_up(r, layout.dims, keepdim=True)
    root = torch.full_like(length, sqrt_down(layout.divisor))
    return layout.shaped(div_up(length, root))


def _variance_second_order(call: Evaluation) -> Any:
    r = call.radius(0)
    if r is None:
        return None
    layout = _layout(call)
    if not _is_defined(call, layout):
        return _unknown(call)
    squares = _sum_of_squares(r, layout)
    if not call.name.startswith("std"):
        found = div_up(squares, torch.full_like(squares, layout.divisor))
        return _like_outputs(call, layout.shaped(found), None)
    z = _two_pass(call.args[0], layout)
    spread = div_up(norm_up(r, layout.dims, keepdim=True), sqrt_down(layout.divisor))
    root = sqrt_down(sub_down(z.variance, z.variance_error))
    curved = norm_remainder(spread, root)
    return _like_outputs(call, layout.shaped(curved), None)


def _variance_tangent(call: Evaluation, moved: Moved) -> Any:
    """The sum of 2 (x - m) t over n - c; for its root, over 2 y besides; the mean of t."""
    require_known(call, moved, 0)
    layout, stack, x = _layout(call), moved[0], call.args[0]
    if not _is_defined(call, layout):
        raise NoTangentRuleError(f"{call.name} of too few entries has no derivative.")
    z = _two_pass(x, layout)
    weights = x - z.mean
    dims = [d + 1 for d in layout.dims]
    n, root = layout.count, call.name.startswith("std")
    ys = call.y if isinstance(call.y, (tuple, list)) else (call.y,)

    products = stack.lanes * weights
    total = products.sum(dims, keepdim=layout.keepdim) if dims else products
    divisor = ys[0] * layout.divisor if root else torch.full_like(ys[0], 0.5 * layout.divisor)
    lanes = total / divisor

    def rounding(size: Tensor) -> Tensor:
        sizes = mul_up(z.centred, stack.size)
        off = mul_up(z.mean_error, stack.size)
        terms = mul_up(sum_up(sizes, layout.dims, keepdim=True), gamma_up(n + 4, UNIT_ROUNDOFF))
        terms = add_up(terms, sum_up(off, layout.dims, keepdim=True))
        terms = layout.shaped(add_up(terms, tiny_where(terms > 0, n + 1)))
        found = div_up(terms, divisor * (1.0 - 8.0 * UNIT_ROUNDOFF))
        found = add_up(found, mul_up(size, 4.0 * UNIT_ROUNDOFF))
        if root:
            own = _variance_rounding(call)
            own = own[0] if isinstance(own, tuple) else own
            # |1/y - 1/s| <= |y - s| / (y s), s at least y less its rounding
            share = div_up(own, sub_down(ys[0], own).clamp_min(0.0))
            found = add_up(mul_up(found, add_up(share, 1.0)), mul_up(size, share))
        return torch.where(terms > 0, add_up(found, TINY), 0.0)

    first = Pushed(lanes, rounding, fresh=True)
    if len(ys) == 1:
        return first

    def mean_rounding(size: Tensor) -> Tensor:
        del size
        mean = mean_up(stack.size, layout.dims, keepdim=True)
        bound = mul_up(mean, gamma_up(n + 2, UNIT_ROUNDOFF))
        return layout.shaped(add_up(bound, tiny_where(mean > 0)))

    means = stack.lanes.mean(dims, keepdim=layout.keepdim) if dims else stack.lanes
    return first, Pushed(means, mean_rounding if dims else None, fresh=bool(dims))


def _deviation_doubt(call: Evaluation) -> Any:
    """The kink of a standard deviation is 0: all entries equal."""
    r = call.radius(0)
    if r is None:
        return None
    layout = _layout(call)
    if not _is_defined(call, layout):
        return None
    z = _two_pass(call.args[0], layout)
    low = sqrt_down(sub_down(z.variance, z.variance_error))
    reach = div_up(norm_up(r, layout.dims, keepdim=True), sqrt_down(layout.divisor))
    mask = layout.shaped((reach > 0) & ~(low > reach))
    return _like_outputs(call, mask, None)


def _moment(name: str, kinks: Kinks, doubt: Fact | None, traits: Traits, *examples: Example) -> Op:
    return Op(
        name=name,
        kind=Kind.REDUCTION,
        rounding=_variance_rounding,
        spread=_variance_spread,
        second_order=_variance_second_order,
        doubt=doubt,
        tangent=_variance_tangent,
        kinks=kinks,
        source="measured against two passes with a proved bound",
        domain="n > correction",
        traits=traits,
        examples=examples,
    )


def _variance_examples(**kwargs: Any) -> tuple[Example, ...]:
    def shifted(size: float, by: float) -> Maker:
        return lambda g: normal(2, 9, scale=size)(g) + by

    return (
        example(normal(3, 7), [1], correction=0, keepdim=True, **kwargs),
        example(swapped(normal(2, 40)), [0], correction=1, **kwargs),
        example(shifted(1.0, 1e4), [1], correction=0, **kwargs),
        example(shifted(1e-7, 1e9), [1], correction=0, **kwargs),
        example(wild(3, 6, exponent=60.0), [0, 1], correction=1, **kwargs),
        example(normal(5, scale=1e-170), [0], correction=1, **kwargs),
        example(normal(1, 3), [0], correction=0, **kwargs),
    )


_ALL_EQUAL = Kinks(Where.TIP, "all entries equal")

_FLAT = Poles(of_value=False, entrywise=False)

MOMENTS: tuple[Op, ...] = (
    _moment(
        "var",
        NO_KINKS,
        None,
        Traits(adds=True, normalizes=True, kernel=THREE_STEPS),
        *_variance_examples(),
    ),
    _moment("var_mean", NO_KINKS, None, Traits(adds=True, normalizes=True), *_variance_examples()),
    _moment(
        "std",
        _ALL_EQUAL,
        _deviation_doubt,
        Traits(adds=True, poles=_FLAT, kernel=THREE_STEPS),
        *_variance_examples(),
    ),
    _moment(
        "std_mean",
        _ALL_EQUAL,
        _deviation_doubt,
        Traits(adds=True, poles=_FLAT),
        *_variance_examples(),
    ),
)
