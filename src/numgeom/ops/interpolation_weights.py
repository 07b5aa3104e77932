"""Which weights does interpolation give to the entries of one dimension, and how far are they off?

Both kinds of weights are a function w(p - i) of the distance between the position p of an output
and an entry i. A position takes four roundings and is at most P + 1 in size, so it is off by
d = 4 u (P + 2) at most; a weight then by s d, s the steepest slope of w, and by what its own
evaluation rounds. A kernel that takes the next entries because of that gives the one beyond the
reach of w a weight of s d at most, since w is continuous and 0 there.

    linear   w(t) = max(0, 1 - |t|), s = 1,
    cubic    w(t) = 1.25 |t|^3 - 2.25 |t|^2 + 1                  for |t| <= 1,
             w(t) = -0.75 (|t|^3 - 5 |t|^2 + 8 |t| - 4)          for 1 <= |t| <= 2,

the latter with s = 1.35, at |t| = 0.6 (Keys 1981, eq. 15 with a = -3/4). Entries beyond the ends
are the ends, for the cubic one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF

_CUBIC_SLOPE = 1.35
# Horner's scheme has no more than seven roundings of numbers up to 6, and doubles them twice.
_CUBIC_EVALUATION = 64.0 * UNIT_ROUNDOFF


class Weights(NamedTuple):
    """Weights of one dimension, rows for what is computed.

    Attributes:
        bound: V, upper bounds of the sizes of the weights, exact ones and those of a kernel.
        error: Upper bounds of what the weights of a kernel are off.
        terms: The largest number of products in a row.
    """

    bound: Tensor
    error: Tensor
    terms: int

    def transposed(self, terms: int) -> "Weights":
        """The weights of the derivative."""
        return Weights(self.bound.t(), self.error.t(), terms)


def _positions(n: int, m: int, *, aligned: bool, factor: float | None) -> Tensor:
    o = torch.arange(m, dtype=torch.float64)
    if aligned:
        return o * (n - 1) / (m - 1) if m > 1 else torch.zeros(m, dtype=torch.float64)
    return (o + 0.5) * (n / m if not factor else 1.0 / factor) - 0.5


def linear_weights(
    n: int, m: int, *, aligned: bool, factor: float | None, transposed: bool
) -> Weights:
    """Weights of linear interpolation from n entries to m."""
    position = _positions(n, m, aligned=aligned, factor=factor)
    position = position.clamp(0.0, max(0.0, n - 1.0)).unsqueeze(1)
    off = 4.0 * UNIT_ROUNDOFF * (n + 2)
    distance = (position - torch.arange(n, dtype=torch.float64)).abs()
    near = (distance < 1.0 + 2.0 * off).to(torch.float64)
    # Off twice: by the rounding of a kernel, and by that of the position here.
    bound = near * ((1.0 - distance).clamp_min(0.0) + 3.0 * off)
    error = near * off
    return _oriented(bound, error, near, transposed=transposed)


def cubic_weights(
    n: int, m: int, *, aligned: bool, factor: float | None, transposed: bool
) -> Weights:
    """Weights of cubic interpolation from n entries to m, the ends repeated."""
    position = _positions(n, m, aligned=aligned, factor=factor).unsqueeze(1)
    largest = max(float(n), float(position.abs().max())) if m else float(n)
    off = 4.0 * UNIT_ROUNDOFF * (largest + 2)
    entries = torch.floor(position) + torch.arange(-2.0, 4.0, dtype=torch.float64)
    distance = (position - entries).abs()
    near = (distance < 2.0 + 2.0 * off).to(torch.float64)
    error = near * (_CUBIC_SLOPE * off + _CUBIC_EVALUATION)
    bound = near * _cubic(distance).abs() + 3.0 * error
    places = entries.clamp(0, max(0, n - 1)).to(torch.int64)

    def gathered(values: Tensor) -> Tensor:
        return torch.zeros(m, n, dtype=torch.float64).scatter_add(1, places, values)

    # Up to six sizes are added here.
    enlarged = gathered(bound) * (1.0 + 16.0 * UNIT_ROUNDOFF)
    return _oriented(enlarged, gathered(error), gathered(near), transposed=transposed)


def _cubic(distance: Tensor) -> Tensor:
    t = distance
    inner = (1.25 * t - 2.25) * t * t + 1.0
    outer = ((-0.75 * t + 3.75) * t - 6.0) * t + 3.0
    return torch.where(t <= 1.0, inner, torch.where(t < 2.0, outer, 0.0))


def _oriented(bound: Tensor, error: Tensor, near: Tensor, *, transposed: bool) -> Weights:
    found = Weights(bound, error, _most(near.sum(1)))
    return found.transposed(_most(near.sum(0))) if transposed else found


def _most(counts: Tensor) -> int:
    return int(counts.max()) if counts.numel() else 0
