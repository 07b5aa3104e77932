"""How far can a sum, a mean or a product over some dimensions move and round?

A sum of n terms meets at most n - 1 additions on the way of each term, whatever the order:
|fl(sum x) - sum x| <= gamma_{n-1} sum |x| (Higham 2002, sec. 4.2). Sums of integers and booleans
are exact.
"""

import math
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    cover_roundings,
    gamma_up,
    mul_up,
    sum_up,
)
from numgeom.ops.balls import (
    any_doubt,
    is_decision,
    radius_of,
    truth_doubt,
    unknown_unless_finite,
)
from numgeom.ops.drawing import booleans, integers, swapped, whole_numbers, wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kernel_errors import MEAN, SUM
from numgeom.ops.kinks import NO_KINKS, Kinks, Where
from numgeom.ops.tangents import linear_tangent, still
from numgeom.ops.traits import NO_TRAITS, Autocast, Traits

_SUM_SOURCE = "sum of n terms in any order (Higham 2002, sec. 4.2)"


def reduced_dims(call: Evaluation, position: int = 1) -> tuple[tuple[int, ...], bool]:
    """The dimensions that a reduction runs over, all of them made nonnegative, and keepdim."""
    x = call.args[0]
    dim = call.arg(position, "dim")
    if dim is None or isinstance(dim, torch.dtype):
        dims: tuple[int, ...] = tuple(range(x.dim()))
    else:
        given = [dim] if isinstance(dim, int) else list(dim)
        dims = tuple(d % x.dim() if x.dim() else 0 for d in given)
        dims = dims if x.dim() else ()
        dims = dims or tuple(range(x.dim()))  # an empty list means all
    return dims, bool(call.arg(position + 1, "keepdim", False))


def count_of(x: Tensor, dims: tuple[int, ...]) -> int:
    """Number of terms in each sum over the dimensions."""
    return math.prod(x.shape[d] for d in dims)


def tiny_where(mask: Tensor, count: int = 1) -> Tensor:
    """Some subnormal spacings where something may have underflowed."""
    return mask.to(torch.float64) * (count * TINY)


def doubt_of_any(call: Evaluation) -> Tensor | None:
    """A decision made from several decisions is in doubt where one of them is."""
    if not is_decision(call.y) or call.doubt(0) is None:
        return None
    dims, keepdim = reduced_dims(call)
    doubt = call.doubt(0)
    return torch.amax(doubt, dims, keepdim=keepdim) if dims else doubt


# -- sums --------------------------------------------------------------------------------


def _sizes(call: Evaluation) -> Tensor:
    return call.args[0].abs().to(torch.float64)


def _sum_rounding(call: Evaluation) -> Bound:
    if is_decision(call.y):
        return None
    x = call.args[0]
    dims, keepdim = reduced_dims(call)
    n = count_of(x, dims)
    if n <= 1 and not is_decision(x):
        return None
    size = sum_up(_sizes(call), dims, keepdim=keepdim)
    if is_decision(x) and bool((size <= 2.0**53).all()):
        return None
    return unknown_unless_finite(mul_up(size, gamma_up(n, UNIT_ROUNDOFF)), call.y)


def _sum_spread(call: Evaluation) -> Bound:
    r = radius_of(call, 0)
    if is_decision(call.y) or r is None:
        return None
    dims, keepdim = reduced_dims(call)
    return sum_up(r, dims, keepdim=keepdim)


def _mean_rounding(call: Evaluation) -> Bound:
    """A sum, divided by n or multiplied by 1 / n: two roundings more."""
    x = call.args[0]
    dims, keepdim = reduced_dims(call)
    n = count_of(x, dims)
    if n == 0:
        return unknown_unless_finite(torch.zeros_like(call.y), call.y)
    if n == 1 and not is_decision(x):
        return None
    size = mean_up(_sizes(call), dims, keepdim=keepdim)
    # One more: an integer may round on its way to float64.
    bound = mul_up(size, gamma_up(n + 2, UNIT_ROUNDOFF))
    return unknown_unless_finite(add_up(bound, tiny_where(size > 0)), call.y)


def mean_up(terms: Tensor, dims: tuple[int, ...], *, keepdim: bool) -> Tensor:
    """Upper bound of a mean of nonnegative terms."""
    total = sum_up(terms, dims, keepdim=keepdim)
    n = torch.full((), float(count_of(terms, dims)), dtype=torch.float64, device=terms.device)
    return add_up(cover_roundings(total / n, 1), tiny_where(total > 0))


def _mean_spread(call: Evaluation) -> Bound:
    r = radius_of(call, 0)
    if r is None:
        return None
    dims, keepdim = reduced_dims(call)
    return mean_up(r, dims, keepdim=keepdim) if count_of(r, dims) else None


def _trace_rounding(call: Evaluation) -> Bound:
    if is_decision(call.y):
        return None
    entries = torch.diagonal(call.args[0]).abs()
    bound = mul_up(sum_up(entries), gamma_up(len(entries), UNIT_ROUNDOFF))
    return unknown_unless_finite(bound, call.y)


def _trace_spread(call: Evaluation) -> Bound:
    r = radius_of(call, 0)
    return None if r is None or is_decision(call.y) else sum_up(torch.diagonal(r))


# -- running sums ------------------------------------------------------------------------


def _cumsum_rounding(call: Evaluation) -> Bound:
    x = call.args[0]
    if is_decision(call.y) or x.dim() == 0 or x.numel() == 0:
        return None
    dim = call.args[1]
    n = x.shape[dim]
    size = cover_roundings(torch.cumsum(_sizes(call), dim), n)
    return unknown_unless_finite(mul_up(size, gamma_up(n, UNIT_ROUNDOFF)), call.y)


def _cumsum_spread(call: Evaluation) -> Bound:
    r = radius_of(call, 0)
    if is_decision(call.y) or r is None or r.dim() == 0:
        return None if is_decision(call.y) else r
    return cover_roundings(torch.cumsum(r, call.args[1]), r.shape[call.args[1]])


def _cumulative_doubt(call: Evaluation) -> Tensor | None:
    doubt = call.doubt(0)
    if not is_decision(call.y) or doubt is None:
        return None
    return torch.cumsum(doubt, call.args[1]) > 0 if doubt.dim() else doubt


# -- truth -------------------------------------------------------------------------------


_NONZERO = Kinks(Where.ZERO, "x = 0, for real x", jumps=True)


def _truth_doubt(call: Evaluation) -> Tensor | None:
    """`any` is certain where one entry is certainly true, or all are certain; `all` likewise."""
    x = call.args[0]
    doubt = truth_doubt(x, call.radius(0), call.doubt(0))
    if not any_doubt(doubt) or doubt is None:
        return None
    truth = x != 0
    decisive = (truth if "any" in call.name else ~truth) & ~doubt
    dims, keepdim = reduced_dims(call)
    if not dims:
        return doubt
    return torch.amax(doubt, dims, keepdim=keepdim) & ~torch.amax(decisive, dims, keepdim=keepdim)


def _stacked_sum(t: Tensor, rest: Any, y: Tensor) -> Tensor:
    """The sum over some dimensions of x, or all of them, for tangents along a first one."""
    del y
    dims = rest[0] if rest and rest[0] else range(t.dim() - 1)
    dims = [dims] if isinstance(dims, int) else dims
    return torch.sum(t, [d % (t.dim() - 1) + 1 for d in dims], keepdim=bool(rest[1:2] and rest[1]))


def _reduction(
    name: str,
    rounding: Any,
    spread: Any,
    *examples: Example,
    doubt: Any = doubt_of_any,
    source: str = _SUM_SOURCE,
    traits: Traits = NO_TRAITS,
    stack: Any = None,
) -> Op:
    return Op(
        name=name,
        kind=Kind.REDUCTION,
        rounding=rounding,
        spread=spread,
        second_order=None,
        tangent=linear_tangent(rounding, stack=stack),
        doubt=doubt,
        kinks=NO_KINKS,
        source=source,
        examples=examples,
        traits=traits,
    )


def _truth(name: str, *examples: Example, kinks: Kinks = _NONZERO) -> Op:
    return Op(
        name=name,
        kind=Kind.REDUCTION,
        rounding=None,
        spread=None,
        second_order=None,
        tangent=still,
        doubt=_truth_doubt,
        kinks=kinks,
        source="exact: a decision",
        traits=Traits(piecewise_constant=True),
        examples=examples,
    )


REDUCTION: tuple[Op, ...] = (
    _reduction(
        "sum",
        _sum_rounding,
        _sum_spread,
        example(normal(3, 5), [1]),
        example(wild(4, 3, 2), [0, -1], True),
        example(swapped(normal(6, 40)), None),
        example(normal(300)),
        example(normal(1, 3), [0]),
        example(normal(0, 3), [0]),
        example(booleans(3, 4), [1]),
        example(integers(-9, 9, 3, 4), None, dtype=torch.float64),
        traits=Traits(
            adds=True, sums=True, linear=(0,), autocast=Autocast.WIDE_ON_CUDA, kernel=SUM
        ),
        stack=_stacked_sum,
    ),
    _reduction(
        "mean",
        _mean_rounding,
        _mean_spread,
        example(normal(3, 5), [1], True),
        example(wild(4, 7), None),
        example(normal(1)),
        example(lambda g: torch.tensor([5e-324, 5e-324, 0.0], dtype=torch.float64)),
        doubt=None,
        traits=Traits(adds=True, sums=True, linear=(0,), kernel=MEAN),
    ),
    _reduction(
        "trace",
        _trace_rounding,
        _trace_spread,
        example(wild(4, 6)),
        example(normal(9, 9)),
        traits=Traits(adds=True, linear=(0,)),
    ),
    _reduction(
        "cumsum",
        _cumsum_rounding,
        _cumsum_spread,
        example(wild(3, 6), 1),
        example(swapped(normal(40, 3)), 0),
        example(integers(-5, 5, 6), 0),
        doubt=_cumulative_doubt,
        traits=Traits(
            adds=True, autocast=Autocast.WIDE_ON_CUDA, linear=(0,), nondeterministic_on_cuda=True
        ),
    ),
    _truth("any", example(booleans(3, 4), 1), example(whole_numbers(-1, 2, 3, 4), 1)),
    _truth("all", example(booleans(3, 4), 1), example(whole_numbers(-1, 2, 3, 4), 0, True)),
    _truth("_is_any_true", example(booleans(3, 4)), example(booleans(0)), kinks=NO_KINKS),
    _truth("_is_all_true", example(booleans(1)), example(booleans(3, 4)), kinks=NO_KINKS),
)
