"""Where may an exact entry lie, given its midpoint and its radius?

A ball is the set |entry - x| <= r. Its ends are computed outward, so that two balls whose ends do
not overlap are certainly ordered. An end of an exact entry (r = 0) is the entry itself; an end of
an inexact one lies strictly outside of the ball, so that touching balls overlap.
"""

import math
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.lower_bounds import next_down
from numgeom.arithmetic.rounding import difference_up, next_up
from numgeom.ops.entry import Bound, Evaluation


def is_decision(x: Any) -> bool:
    """Whether a value is a tensor of integers or booleans, that has doubts instead of radii."""
    return isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex()


def radius_of(call: Evaluation, position: int | str) -> Bound:
    """Radius of an argument, read as a tensor of real numbers whatever its dtype is.

    A doubtful boolean may differ by one, a doubtful integer by anything.
    """
    x = call.args[position] if isinstance(position, int) else call.kwargs[position]
    return real_radius(x, call.radius(position), call.doubt(position))


def real_radius(x: Any, radius: Bound, doubt: Tensor | None) -> Bound:
    """Radius of a value that is either real or a decision."""
    if not is_decision(x):
        return radius
    if doubt is None:
        return None
    change = 1.0 if x.dtype is torch.bool else math.inf
    return torch.where(doubt, change, 0.0).to(torch.float64)


def filled(radius: Bound, x: Tensor) -> Tensor:
    """A radius as a tensor, zeros for None."""
    return torch.zeros_like(x, dtype=torch.float64) if radius is None else radius


def upper_end(x: Tensor, radius: Bound) -> Tensor:
    """At least x + r; above it where r > 0, x itself where r = 0. NaN reads as inf."""
    if radius is None:
        return x
    return torch.where(radius == 0, x, next_up(x + radius))


def lower_end(x: Tensor, radius: Bound) -> Tensor:
    """At most x - r; below it where r > 0, x itself where r = 0. NaN reads as -inf."""
    if radius is None:
        return x
    return torch.where(radius == 0, x, next_down(x - radius))


def gap_up(a: Tensor, b: Tensor) -> Tensor:
    """Upper bound of |a - b|; zero between equal infinities, else infinite where one is."""
    return torch.where(a == b, 0.0, difference_up(a, b))


def enclosing_radius(y: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Radius of the smallest ball about y that holds everything from `lower` to `upper`."""
    return torch.maximum(gap_up(upper, y), gap_up(y, lower))


def unknown_unless_finite(bound: Tensor, y: Tensor) -> Tensor:
    """Infinite where the computed value is not finite."""
    return torch.where(torch.isfinite(y), bound, math.inf)


def truth_doubt(x: Tensor, radius: Bound, doubt: Tensor | None) -> Tensor | None:
    """Where `x != 0` may come out otherwise."""
    if is_decision(x):
        return doubt
    if radius is None:
        return None
    return (radius > 0) & ~(x.abs() > radius)


def any_doubt(doubt: Any) -> bool:
    """Whether there is a doubt in a mask, or in one of a list of masks."""
    if isinstance(doubt, (list, tuple)):
        return any(any_doubt(part) for part in doubt)
    return doubt is not None and bool(doubt.any())


def unknown(call: Evaluation) -> Any:
    """Nothing is known: every real output has an infinite radius, decisions have none."""
    if isinstance(call.y, (tuple, list)):
        return tuple(_unknown_part(y) for y in call.y)
    return _unknown_part(call.y)


def doubtful(call: Evaluation) -> Any:
    """Everything may be otherwise: every decision of the output is in doubt."""
    if isinstance(call.y, (tuple, list)):
        return tuple(_doubtful_part(y) for y in call.y)
    return _doubtful_part(call.y)


def _unknown_part(y: Any) -> Bound:
    if not isinstance(y, Tensor) or is_decision(y):
        return None
    return torch.full_like(y, math.inf, dtype=torch.float64)


def _doubtful_part(y: Any) -> Tensor | None:
    return torch.ones_like(y, dtype=torch.bool) if is_decision(y) else None
