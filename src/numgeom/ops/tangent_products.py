"""How do products of two tensors pass small changes of their factors on?

The product rule, (da) b + a (db), with a bound of what it rounds; see `tangents`.
"""

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import TINY, UNIT_ROUNDOFF, cover_roundings, gamma_up
from numgeom.ops.bilinear import Multiply, bilinear_rounding
from numgeom.ops.entry import Bound
from numgeom.ops.tangents import Key, Moved, Pushed, Stack, times

_NORMAL = 1e-270  # u times this is far above any number of smallest subnormal ones


def bilinear_lanes(
    multiply: Multiply, a: Tensor, b: Tensor, da: Stack | None, db: Stack | None
) -> Tensor:
    """The product rule, (da) b + a (db), for all lanes."""
    if multiply is torch.mm or multiply is torch.bmm:
        return _matrix_lanes(a, b, da, db)
    total: Tensor | None = None
    if da is not None:
        total = torch.vmap(lambda t: multiply(t, b))(da.lanes)
    if db is not None:
        part = torch.vmap(lambda t: multiply(a, t))(db.lanes)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _matrix_lanes(a: Tensor, b: Tensor, da: Stack | None, db: Stack | None) -> Tensor:
    """Matrices (or batches of them): a single product where possible, and in place."""
    total: Tensor | None = None
    if da is not None:
        t = da.lanes
        if t.dim() == 4:
            total = torch.matmul(t, b)
        else:
            total = torch.mm(t.flatten(0, 1), b).unflatten(0, t.shape[:2])
    if db is not None:
        t = db.lanes
        each = a.expand(len(t), *a.shape)
        if t.dim() == 4:
            part = torch.matmul(a, t)
            total = part if total is None else total.add_(part)
        else:
            total = torch.bmm(each, t) if total is None else total.baddbmm_(each, t)
    assert total is not None
    return total


def product_rounding(
    multiply: Multiply, a: Tensor, b: Tensor, da: Stack | None, db: Stack | None, terms: int
) -> Tensor:
    """Rounding of the product rule, whose terms may be added up in one sum of 2n products.

    Where every sum of sizes is a normal number, what underflows is far below the rest.
    """
    size: Tensor | None = None
    if da is not None:
        size = multiply(da.size, b.abs())
    if db is not None:
        part = multiply(a.abs(), db.size)
        size = part if size is None else size + part
    assert size is not None
    if size.numel() and bool(size.amin() > _NORMAL):
        relative = gamma_up(2 * terms + 4, UNIT_ROUNDOFF) * (1.0 + 1e-9)
        return cover_roundings(size, 2 * terms + 6) * relative
    bound: Tensor | None = None
    for left, right in ((None if da is None else da.size, b), (a, None if db is None else db.size)):
        if left is not None and right is not None:
            part = bilinear_rounding(multiply, left, right, terms)
            bound = part if bound is None else bound + part
    assert bound is not None
    # gamma_{2m} <= 3 gamma_m as long as m u < 1/4, which holds for every sum that fits in memory.
    return bound if da is None or db is None else cover_roundings(bound, 1) * 3.0


def bilinear_pushed(
    multiply: Multiply,
    factors: tuple[Tensor, Tensor],
    moved: Moved,
    keys: tuple[Key, Key],
    terms: int,
) -> Pushed:
    """The product rule, with its rounding.

    Args:
        multiply: The op, evaluated in float64.
        factors: Both factors.
        moved: The tangents.
        keys: Where those of the factors are found among them.
        terms: The largest number of products in one entry.
    """
    a, b = factors
    da, db = moved.get(keys[0]), moved.get(keys[1])
    lanes = bilinear_lanes(multiply, a, b, da, db)

    def rounding(size: Tensor) -> Tensor:
        del size
        return product_rounding(multiply, a, b, da, db, terms)

    return Pushed(lanes, rounding, fresh=True)


def scaled_pushed(pushed: Pushed, factor: float) -> Pushed:
    """Tangents times an exact number."""
    if factor == 1.0:
        return pushed
    lanes = pushed.lanes * factor

    def rounding(size: Tensor) -> Bound:
        before = Stack(pushed.lanes).size
        own = size * UNIT_ROUNDOFF + (before != 0).to(torch.float64) * TINY
        inner = None if pushed.rounding is None else pushed.rounding(before)
        if inner is not None:
            own = own + times(inner, torch.full_like(inner, abs(factor)))
        return cover_roundings(own, 4)

    return Pushed(lanes, rounding, fresh=True)


def added_pushed(parts: list[Pushed]) -> Pushed | None:
    """The sum of tangents of the same result."""
    if len(parts) < 2:
        return parts[0] if parts else None
    first, second = parts
    lanes = first.lanes + second.lanes

    def rounding(size: Tensor) -> Bound:
        bound = size * UNIT_ROUNDOFF
        for part in parts:
            inner = None if part.rounding is None else part.rounding(Stack(part.lanes).size)
            bound = bound if inner is None else bound + inner
        return cover_roundings(bound, 3)

    return Pushed(lanes, rounding, fresh=True)
