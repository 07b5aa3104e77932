"""How far can interpolation, or its derivative, move and round?

Output o is a sum of entries times weights, which in several dimensions are products of those of
each dimension, w_oi (`interpolation_weights`).

Moving: |W e| <= |W| r. Rounding: with V >= |W| for exact weights and for those of a kernel, and N
what the latter are off, the products of the weights are off by the sum over the dimensions of N in
one and V in the others. The rest are k roundings per term, gamma_k V |x| (Higham 2002, sec. 3.1).

The nearest neighbour is chosen by the kernel from shapes alone: what it chose is the op's meaning.
"""

import math
from typing import Any

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
from numgeom.ops.balls import unknown_unless_finite
from numgeom.ops.drawing import wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.interpolation_weights import Weights, cubic_weights, linear_weights
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.movement import movement
from numgeom.ops.tangents import linear_tangent
from numgeom.ops.traits import REPEATS, Traits


def _dimensions(call: Evaluation) -> list[Weights]:
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
    weights = cubic_weights if "cubic" in call.name else linear_weights
    return [
        weights(int(n), int(m), aligned=bool(aligned), factor=factor, transposed=backward)
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
        second_order=None,
        doubt=None,
        kinks=NO_KINKS,
        traits=Traits(adds=True),
        tangent=linear_tangent(_rounding),
        source="weighted sum of n terms in any order (Higham 2002, sec. 3.1)",
        examples=examples,
    )


def _nearest(name: str) -> Any:
    sizes = [5, 7, 2]
    n = int(name[-2])
    return (
        movement(name, example(wild(1, 2, *[3] * n), sizes[:n]), moves=REPEATS),
        accumulation(
            f"{name}_backward",
            example(normal(1, 2, *sizes[:n]), sizes[:n], [1, 2, *[3] * n]),
            reals_alone=True,
        ),
    )


INTERPOLATION: tuple[Op, ...] = (
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
    _linear(
        "upsample_linear1d_backward", example(normal(1, 2, 7), [7], [1, 2, 4], False)
    ).with_traits(nondeterministic_on_cuda=True),
    _linear(
        "upsample_bilinear2d_backward",
        example(normal(1, 1, 5, 8), [5, 8], [1, 1, 3, 4], False),
        example(normal(1, 1, 2, 2), [2, 2], [1, 1, 4, 3], True),
    ).with_traits(nondeterministic_on_cuda=True),
    _linear(
        "upsample_trilinear3d_backward",
        example(normal(1, 1, 3, 4, 4), [3, 4, 4], [1, 1, 2, 3, 2], False),
    ).with_traits(nondeterministic_on_cuda=True),
    _linear(
        "upsample_bicubic2d",
        example(normal(1, 2, 4, 5), [7, 3], False),
        example(normal(1, 1, 3, 4), [4, 9], True),
        example(normal(1, 1, 3, 4), [5, 9], False, 1.7, 2.3),
        example(wild(1, 1, 2, 1, exponent=30.0), [3, 2], False),
    ),
    _linear(
        "upsample_bicubic2d_backward",
        example(normal(1, 1, 5, 8), [5, 8], [1, 1, 3, 4], False),
        example(normal(1, 1, 2, 2), [2, 2], [1, 1, 4, 3], True),
    ).with_traits(nondeterministic_on_cuda=True),
    *(
        op
        for kind in ("upsample_nearest", "_upsample_nearest_exact")
        for n in (1, 2, 3)
        for op in _nearest(f"{kind}{n}d")
    ),
)
