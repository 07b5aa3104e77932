"""How far can a product over a dimension move and round?

Built up factor by factor, with P = |x_1 ... x_k|, and L and Q bounds of the first-order and of the
second-order part of what errors add to the product:

    P' = P |x|,    L' = L |x| + P r,    Q' = Q (|x| + r) + L r.

L + Q bounds the spread. Rounding: n - 1 multiplications, |error| <= gamma_{n-1} |y|, as long as no
partial product leaves the normal range; every partial product is at least the product of the
factors below 1. Where that may underflow, nothing is claimed, unless a factor is 0.

Multiplicity. With e = r e' and |e'| <= 1, a term of R with the factors e_i, e_j, ... is at most
its bound in Q times |e'_i e'_j| <= |e'|^2 / 2, e' restricted to the slice. So |R / s| is at most
max(Q / s) |e'|^2 / 2 in every slice, and slices are disjoint: 1 will do. In a running product n
outputs share a slice: sqrt(n) will do.
"""

import math
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.formats import float64
from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, add_up, cover_roundings, gamma_up, mul_up
from numgeom.ops.balls import (
    any_doubt,
    doubtful,
    is_decision,
    radius_of,
    unknown_unless_finite,
)
from numgeom.ops.drawing import integers, wild
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import example, normal, uniform
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangents import Moved, Pushed, Stack, require_known
from numgeom.ops.traits import Autocast


def _slices(call: Evaluation) -> tuple[Tensor, Bound, int]:
    """The factors, with the reduced dimension last, and the dimension itself (-1: all)."""
    x, r = call.args[0], radius_of(call, 0)
    dim = call.arg(1, "dim")
    if not isinstance(dim, int):
        return x.reshape(-1), None if r is None else r.reshape(-1), -1
    if x.dim() == 0:
        return x.reshape(1), None if r is None else r.reshape(1), -1
    return x.movedim(dim, -1), None if r is None else r.movedim(dim, -1), dim


def _parts(x: Tensor, r: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Bounds L and Q of every prefix."""
    size = x.abs().to(torch.float64)
    product = torch.ones_like(size[..., 0])
    first, second = torch.zeros_like(product), torch.zeros_like(product)
    found = []
    for k in range(x.shape[-1]):
        s, e = size[..., k], r[..., k]
        exact = e == 0  # then no bound of a product that overflows counts: 0 times it is 0
        second = add_up(
            torch.where(exact & (second == 0), 0.0, mul_up(second, add_up(s, e))),
            torch.where(exact, 0.0, mul_up(first, e)),
        )
        first = add_up(
            torch.where(first == 0, 0.0, mul_up(first, s)),
            torch.where(exact, 0.0, mul_up(product, e)),
        )
        product = mul_up(product, s)
        found.append((first, second))
    return found


def _output(call: Evaluation, running: Tensor, dim: int) -> Tensor:
    """Values of all prefixes, as a running product lays them out, or of the whole slice."""
    if call.name != "cumprod":
        return running[..., -1].reshape(call.y.shape)
    return running.reshape(call.y.shape) if dim == -1 else running.movedim(-1, dim)


def _collect(call: Evaluation, *, second_only: bool) -> Bound:
    if is_decision(call.y):
        return None
    x, r, dim = _slices(call)
    if r is None or x.shape[-1] == 0:
        return None
    parts = _parts(x, r)
    values = [second if second_only else add_up(first, second) for first, second in parts]
    return _output(call, torch.stack(values, -1), dim)


def _spread(call: Evaluation) -> Bound:
    return _collect(call, second_only=False)


def _second_order(call: Evaluation) -> Bound:
    return _collect(call, second_only=True)


def _rounding(call: Evaluation) -> Bound:
    if is_decision(call.y):
        return None
    x, _, dim = _slices(call)
    n = x.shape[-1]
    if n <= 1:
        return None
    size = x.abs().to(torch.float64)
    zero = torch.cumsum(size == 0, -1) > 0
    # Every partial product, in any order, is at least the product of the factors below 1.
    least = torch.cumprod(torch.where(size == 0, 1.0, size.clamp_max(1.0)), -1)
    lost = least < 4.0 * float64.smallest_normal
    bound = mul_up(cover_roundings(call.y.abs(), n - 1), gamma_up(n - 1, UNIT_ROUNDOFF))
    bound = torch.where(_output(call, lost, dim), math.inf, bound)
    bound = torch.where(_output(call, zero, dim), 0.0, bound)
    return unknown_unless_finite(bound, call.y)


def _tangent(call: Evaluation, moved: Moved) -> Pushed | None:
    """The product rule, factor by factor: t' = t x + p t_x, p the product so far.

    Each of its terms meets at most 2n roundings, as long as nothing underflows on the way.
    """
    require_known(call, moved, 0)
    if is_decision(call.y) or 0 not in moved:
        return None
    x, _, dim = _slices(call)
    stack, n = moved[0], x.shape[-1]
    if n == 0:
        return None

    def along(t: Tensor, first: int) -> Tensor:
        lead = t.shape[:first]
        if dim == -1 or t.dim() == first:
            return t.reshape(*lead, -1)
        return t.movedim(dim % (t.dim() - first) + first, -1)

    def walk(factors: Tensor, t: Tensor) -> Tensor:
        found, product = [t[..., 0]], factors[..., 0]
        for k in range(1, n):
            found.append(found[-1] * factors[..., k] + product * t[..., k])
            product = product * factors[..., k]
        running = torch.stack(found, -1)
        if call.name != "cumprod":
            return running[..., -1]
        lead = running.dim() - x.dim()
        return running if dim == -1 else running.movedim(-1, dim % x.dim() + lead)

    lanes = walk(x, along(stack.lanes, 1)).reshape(-1, *call.y.shape)

    def rounding(size: Tensor) -> Tensor:
        del size
        if n == 1:
            return torch.zeros_like(call.y)
        total = walk(x.abs(), along(stack.size, 0)).reshape(call.y.shape)
        bound = cover_roundings(total, 2 * n + 2) * gamma_up(2 * n + 2, UNIT_ROUNDOFF)
        factors = x.abs()
        small = torch.where(factors == 0, 1.0, factors.clamp_max(1.0)).prod(-1).amin()
        least = torch.where(stack.size > 0, stack.size, 1.0).amin().clamp_max(1.0)
        if not float(small * least) > 1e-290:
            return torch.where(total == 0, 0.0, math.inf) if _is_zero(stack) else bound + math.inf
        return cover_roundings(bound, 1)

    return Pushed(lanes, rounding, fresh=True)


def _is_zero(stack: Stack) -> bool:
    return not bool(stack.size.any())


def _multiplicity(call: Evaluation) -> float:
    if call.name != "cumprod":
        return 1.0
    return math.sqrt(_slices(call)[0].shape[-1]) + 1e-9


def _doubt(call: Evaluation) -> Any:
    if not is_decision(call.y):
        return None
    return doubtful(call) if any_doubt(call.doubt(0)) else None


def _product(name: str, *examples: Any) -> Op:
    return Op(
        name=name,
        kind=Kind.REDUCTION,
        rounding=_rounding,
        spread=_spread,
        second_order=_second_order,
        tangent=_tangent,
        multiplicity=_multiplicity,
        doubt=_doubt,
        kinks=NO_KINKS,
        source="n - 1 multiplications in any order (Higham 2002, lemma 3.1)",
        examples=examples,
    )


PRODUCTS: tuple[Op, ...] = (
    _product(
        "prod",
        example(normal(3, 4), 1),
        example(uniform(0.5, 2.0, 3, 2), 0, True),
        example(wild(2, 5), 1),
        example(normal(4)),
        example(integers(-3, 4, 5)),
    ).with_traits(autocast=Autocast.WIDE_ON_CUDA),
    _product("cumprod", example(normal(2, 5), 1), example(wild(4), 0)),
)
