"""How far can a weighted mean with fixed nonnegative weights move and round?

Average pooling and its derivative: y_o = sum_t w_ot x_t, where the weights depend on shapes alone.
Applied to radii the op bounds the spread, applied to |x| the sizes; k roundings of each term on its
way give gamma_k sum w |x| (Higham 2002, sec. 3.1). Interpolation, whose weights round as well, has
its own file.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    cover_roundings,
    gamma_up,
    mul_up,
)
from numgeom.ops.accumulation import with_data
from numgeom.ops.balls import unknown_unless_finite
from numgeom.ops.drawing import wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.pooling import as_list
from numgeom.ops.tangents import linear_tangent
from numgeom.ops.traits import Traits
from numgeom.ops.windows import adaptive_windows

Count = Callable[[Evaluation], int]


def _apply(call: Evaluation, values: Tensor) -> Tensor:
    """The op with the weights it has, up to their sign."""
    return with_data(call, (0,), [values]).abs()


def _weighted(call: Evaluation, values: Tensor, roundings: int) -> Tensor:
    """Upper bound of sum w |values|, less what the weights themselves are off."""
    bound = cover_roundings(_apply(call, values), roundings)
    support = _apply(call, (values > 0).to(torch.float64)) > 0
    return add_up(bound, support.to(torch.float64) * (roundings * TINY))


def _mean_rounding(call: Evaluation, *, roundings: Count) -> Bound:
    k = roundings(call)
    bound = mul_up(_weighted(call, call.args[0].abs(), k), gamma_up(k, UNIT_ROUNDOFF))
    support = _apply(call, (call.args[0] != 0).to(torch.float64)) > 0
    bound = add_up(bound, support.to(torch.float64) * (k * TINY))
    return unknown_unless_finite(bound, call.y)


def _mean_spread(call: Evaluation, *, roundings: Count) -> Bound:
    r = call.radius(0)
    return None if r is None else _weighted(call, r, roundings(call))


def _average(name: str, roundings: Count, *examples: Example) -> Op:
    return Op(
        name=name,
        kind=Kind.REDUCTION,
        rounding=partial(_mean_rounding, roundings=roundings),
        spread=partial(_mean_spread, roundings=roundings),
        second_order=None,
        doubt=None,
        kinks=NO_KINKS,
        traits=Traits(adds=True),
        source="weighted sum of n terms in any order (Higham 2002, sec. 3.1)",
        examples=examples,
        tangent=linear_tangent(partial(_mean_rounding, roundings=roundings), fixed=(1,)),
    )


# -- average pooling ---------------------------------------------------------------------


def _pool_terms(call: Evaluation) -> int:
    """Terms of a window, or windows that an entry is in, and a division in up to three steps."""
    dims = 3 if "pool3d" in call.name else 1 if "pool1d" in call.name else 2
    backward = call.name.endswith("backward")
    kernel = as_list(call.args[2 if backward else 1])
    return math.prod(kernel) ** (dims if len(kernel) == 1 else 1) + 4


def _adaptive_terms(call: Evaluation) -> int:
    """Terms of the longest window, or windows that an entry is in, and three divisions."""
    dims = 3 if "3d" in call.name else 2
    backward = call.name.endswith("backward")
    long, short = (call.y, call.args[0]) if backward else (call.args[0], call.y)
    table = adaptive_windows(long.shape[-dims:], short.shape[-dims:])
    if not backward or not table.numel():
        return table.shape[1] + 3
    return int(torch.bincount(table[table >= 0]).max()) + 3


_ADAPTIVE = example(wild(1, 2, 5, 4, exponent=30.0), [3, 2])

AVERAGING: tuple[Op, ...] = (
    _average("avg_pool1d", _pool_terms, example(normal(1, 2, 7), [3], [2], [1])),
    _average(
        "avg_pool2d",
        _pool_terms,
        example(normal(1, 2, 5, 4), [2, 2]),
        example(wild(1, 1, 5, 5), [3, 3], [2, 2], [1, 1], True, False),
        example(normal(1, 1, 4, 4), [2, 2], [1, 1], [0, 0], False, True, 3),
    ),
    _average("avg_pool3d", _pool_terms, example(normal(1, 1, 3, 4, 4), [2, 2, 2], [1, 2, 2])),
    _average(
        "avg_pool2d_backward",
        _pool_terms,
        example(normal(1, 1, 3, 3), normal(1, 1, 5, 5), [3, 3], [2, 2], [1, 1], False, True, None),
    ),
    _average(
        "avg_pool3d_backward",
        _pool_terms,
        example(
            normal(1, 1, 2, 2, 2),
            normal(1, 1, 3, 3, 3),
            [2, 2, 2],
            [1, 1, 1],
            [0, 0, 0],
            False,
            True,
            None,
        ),
    ).with_traits(nondeterministic_on_cuda=True),
    _average(
        "_adaptive_avg_pool2d", _adaptive_terms, _ADAPTIVE, example(normal(1, 1, 3, 3), [1, 1])
    ),
    _average("_adaptive_avg_pool3d", _adaptive_terms, example(normal(1, 1, 3, 4, 5), [2, 2, 2])),
    _average(
        "_adaptive_avg_pool2d_backward",
        _adaptive_terms,
        example(normal(1, 1, 3, 2), normal(1, 1, 5, 4)),
    ).with_traits(nondeterministic_on_cuda=True),
    _average(
        "_adaptive_avg_pool3d_backward",
        _adaptive_terms,
        example(normal(1, 1, 2, 2, 2), normal(1, 1, 3, 4, 3)),
    ).with_traits(nondeterministic_on_cuda=True),
)
