"""How far can linear interpolation, or its derivative, move and round?

In one dimension, from n entries to m, output o reads at the position p, with s = n / m, or the
inverse of a given factor:

    p = s (o + 1/2) - 1/2, cut off to [0, n - 1],
    p = o (n - 1) / (m - 1) with aligned corners,

and entry i has the weight w_oi = max(0, 1 - |p - i|). In several dimensions weights multiply.

Moving: |W e| <= W r. Rounding: the position is at most n + 1 and takes four roundings, so that it
is off by d = 4 u (n + 2) at most, and so is each weight of an entry within 1 + d of it, since the
hat max(0, 1 - |t|) has slopes of 1; a kernel that thereby takes the next pair of entries gives the
one beyond a weight of d at most. So with V = W + d N, N the zeros and ones of these entries, the
products of the weights are off by the sum over the dimensions of d N in one and V in the others.
The rest are k roundings per term, gamma_k V |x| (Higham 2002, sec. 3.1).

The nearest neighbour is chosen by the kernel from shapes alone: what it chose is the op's meaning.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    gamma_up,
    matmul_up,
    mul_up,
)
from numgeom.ops.accumulation import accumulation
from numgeom.ops.balls import nothing, unknown_unless_finite
from numgeom.ops.drawing import wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.movement import movement
from numgeom.ops.reals import real_only


class _Weights(NamedTuple):
    """Weights of one dimension, rows for what is computed.

    Attributes:
        bound: V, upper bounds of the weights, exact ones and those of a kernel.
        error: d N, upper bounds of what the weights of a kernel are off.
        terms: The largest number of entries in a row.
    """

    bound: Tensor
    error: Tensor
    terms: int


def _weights(n: int, m: int, *, aligned: bool, factor: float | None, transposed: bool) -> _Weights:
    o = torch.arange(m, dtype=torch.float64)
    if aligned:
        position = o * (n - 1) / (m - 1) if m > 1 else torch.zeros(m, dtype=torch.float64)
    else:
        position = (o + 0.5) * (n / m if not factor else 1.0 / factor) - 0.5
    position = position.clamp(0.0, max(0.0, n - 1.0)).unsqueeze(1)
    off = 4.0 * UNIT_ROUNDOFF * (n + 2)
    distance = (position - torch.arange(n, dtype=torch.float64)).abs()
    near = (distance < 1.0 + 2.0 * off).to(torch.float64)
    # Off twice: by the rounding of a kernel, and by that of the position here.
    bound = near * ((1.0 - distance).clamp_min(0.0) + 3.0 * off)
    error = near * off
    if transposed:
        bound, error, near = bound.t(), error.t(), near.t()
    return _Weights(bound, error, int(near.sum(1).max()) if near.numel() else 0)


def _dimensions(call: Evaluation) -> list[_Weights]:
    """The weights of each spatial dimension."""
    backward = call.name.endswith("backward")
    if backward:
        sizes, out, aligned, scales = call.args[2][2:], call.args[1], call.args[3], call.args[4:]
    else:
        sizes, out, aligned, scales = (
            call.args[0].shape[2:],
            call.args[1],
            call.args[2],
            call.args[3:],
        )
    given = [*scales, *[None] * len(sizes)]
    return [
        _weights(int(n), int(m), aligned=bool(aligned), factor=factor, transposed=backward)
        for n, m, factor in zip(sizes, out, given, strict=False)
    ]


def _applied(matrices: list[Tensor], x: Tensor) -> Tensor:
    """Upper bound of nonnegative weights, one dimension after the other, times x."""
    for d, matrix in enumerate(matrices):
        axis = x.dim() - len(matrices) + d
        lines = x.movedim(axis, -1).unsqueeze(-1)
        x = matmul_up(matrix.to(x.device), lines).squeeze(-1).movedim(-1, axis)
    return x


def _rounding(call: Evaluation) -> Bound:
    size = call.args[0].abs()
    weights = _dimensions(call)
    terms = math.prod(w.terms for w in weights)
    total = _applied([w.bound for w in weights], size)
    bound = mul_up(total, gamma_up(terms + 2 * len(weights) + 2, UNIT_ROUNDOFF))
    for d in range(len(weights)):
        parts = [w.error if k == d else w.bound for k, w in enumerate(weights)]
        bound = add_up(bound, _applied(parts, size))
    lost = (total > 0).to(torch.float64) * ((4 * terms + 4) * TINY)
    return unknown_unless_finite(add_up(bound, lost), call.y)


def _spread(call: Evaluation) -> Bound:
    r = call.radius(0)
    return None if r is None else _applied([w.bound for w in _dimensions(call)], r)


def _linear(name: str, *examples: Example) -> Op:
    return Op(
        name=name,
        kind=Kind.REDUCTION,
        rounding=_rounding,
        spread=_spread,
        second_order=nothing,
        doubt=nothing,
        kinks="none",
        source="weighted sum of n terms in any order (Higham 2002, sec. 3.1)",
        examples=examples,
    )


def _nearest(name: str) -> Any:
    sizes = [5, 7, 2]
    n = int(name[-2])
    return (
        movement(name, example(wild(1, 2, *[3] * n), sizes[:n])),
        accumulation(
            f"{name}_backward",
            example(normal(1, 2, *sizes[:n]), sizes[:n], [1, 2, *[3] * n]),
        ),
    )


INTERPOLATION: tuple[Op, ...] = real_only(
    _linear(
        "upsample_linear1d",
        example(normal(1, 2, 4), [7], False),
        # 49 fl(1 / 49) < 1: the last output takes a share of the huge entry.
        example(lambda _: torch.tensor([[[1e20, 1.0]]], dtype=torch.float64), [50], True),
    ),
    _linear(
        "upsample_bilinear2d",
        example(normal(1, 1, 3, 4), [5, 8], False),
        example(normal(1, 1, 3, 4), [4, 9], False, 1.5, 2.3),
        example(wild(1, 1, 3, 3, exponent=30.0), [6, 2], True),
        example(normal(1, 1, 5, 4), [2, 1], False),
    ),
    _linear("upsample_trilinear3d", example(normal(1, 1, 2, 3, 2), [3, 4, 4], False)),
    _linear("upsample_linear1d_backward", example(normal(1, 2, 7), [7], [1, 2, 4], False)),
    _linear(
        "upsample_bilinear2d_backward",
        example(normal(1, 1, 5, 8), [5, 8], [1, 1, 3, 4], False),
        example(normal(1, 1, 2, 2), [2, 2], [1, 1, 4, 3], True),
    ),
    _linear(
        "upsample_trilinear3d_backward",
        example(normal(1, 1, 3, 4, 4), [3, 4, 4], [1, 1, 2, 3, 2], False),
    ),
    *(
        op
        for kind in ("upsample_nearest", "_upsample_nearest_exact")
        for n in (1, 2, 3)
        for op in _nearest(f"{kind}{n}d")
    ),
)
