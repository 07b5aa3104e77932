"""What is known of a softmax as a whole, that is lost when it is opened?

exp(s) / sum exp(s) and s - log sum exp(s) depend on s through a map that stretches no error much,
but the single exp and log do. Over the reals, for a row s of n entries moved by at most r_i:

- log-softmax: log sum exp moves by at most rho = max r, so |e_i| <= r_i + rho; its derivative
  I - 1 p^T has 2-norm at most 1 + sqrt(n).
- softmax: |e_i| <= y_i (exp(2 rho) - 1), and |e_i| <= 1; its derivative diag(p) - p p^T has 2-norm
  at most 1/2 (Gershgorin: p_i (1 - p_i) + p_i (1 - p_i) <= 1/2).

Rounding in float64, from s: exp is off by u |s| and a few u, relatively; the sum by gamma_n more;
log is 1-Lipschitz in the relative error of the sum; one division or subtraction is left.
8 u (R + n + 256), with R the largest |s| of a finite entry, is more than all of it, for exp and log
within 16 ulps. Entries that underflow add less than n 2^-1021.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, add_up, mul_up, norm_up, sqrt_up


@dataclass(frozen=True)
class Shifted:
    """The argument of an exp that a softmax may consist of: midpoint, radius, error's 2-norm."""

    value: Tensor
    radius: Tensor | None
    error: float


@dataclass(frozen=True)
class Composite:
    """A softmax or log-softmax found in an opened program, at its last call.

    Attributes:
        power: The call of exp.
        dim: Where it is normalised.
        log: Whether it is a log-softmax.
        inner: The calls between its argument and its result.
    """

    power: fx.Node
    dim: int
    log: bool
    inner: tuple[fx.Node, ...]


def find_softmax(node: fx.Node) -> Composite | None:
    """Whether a call is the last one of an opened softmax or log-softmax."""
    if node.op != "call_function" or len(node.args) < 2:
        return None
    first, second = node.args[0], node.args[1]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    if _is(node, "aten.div.Tensor") and _is(first, "aten.exp.default"):
        dim = _summed(second, first)
        return None if dim is None else Composite(first, dim, False, (first, second))
    if _is(node, "aten.sub.Tensor") and _is(second, "aten.log.default") and not node.kwargs:
        total = second.args[0]
        if isinstance(total, fx.Node) and total.args and isinstance(total.args[0], fx.Node):
            power = total.args[0]
            dim = _summed(total, power)
            if dim is not None and _is(power, "aten.exp.default") and power.args[0] is first:
                return Composite(power, dim, True, (power, total, second))
    return None


def bound_softmax(composite: Composite, s: Shifted, y: Tensor) -> tuple[Tensor, float, float]:
    """Bound the error of a softmax or log-softmax as a whole.

    Args:
        composite: Which of the two, and along which dimension.
        s: The argument of its exp, which may be shifted by a constant per row.
        y: The result, evaluated in float64 from `s.value`.

    Returns:
        The radius, the stretch in the 2-norm, and the 2-norm of the rounding. The radius holds the
        rounding. Infinite where nothing is known.
    """
    dim = composite.dim if s.value.dim() else 0
    n = s.value.shape[dim] if s.value.dim() else 1
    finite = torch.where(torch.isfinite(s.value), s.value.abs(), 0.0)
    largest = float(finite.max()) if finite.numel() else 0.0
    # The shift must be the row's maximum, up to the rounding of other formats. Rows of -inf alone,
    # with +inf, or with NaN have no softmax.
    usable = not s.value.numel() or bool((s.value.amax(dim).abs() <= 1.0).all())
    rounding = 8.0 * UNIT_ROUNDOFF * (largest + n + 256.0) if usable else math.inf
    roundings = torch.full_like(y, rounding)
    if composite.log:
        roundings = torch.where(torch.isneginf(s.value), 0.0, roundings)
    if s.radius is None:
        return roundings, 0.0, float(norm_up(roundings))
    most = s.radius.amax(dim, keepdim=True) if s.radius.dim() else s.radius
    if composite.log:
        radius = add_up(s.radius, most)
        stretch = add_up(1.0, sqrt_up(float(n)))
    else:
        wide = mul_up(torch.expm1(mul_up(most, 2.0)), 1.0 + 64.0 * UNIT_ROUNDOFF)
        radius = mul_up(add_up(y.abs(), rounding), wide).nan_to_num(nan=math.inf)
        radius = torch.minimum(radius, torch.clamp_min(y.abs(), 1.0))
        stretch = 0.5
    return add_up(radius, roundings), stretch, float(norm_up(roundings))


def _is(node: fx.Node, name: str) -> bool:
    return str(node.target) == name


def _summed(total: fx.Node, power: fx.Node) -> int | None:
    """The one dimension over which `total` sums `power`, keeping it."""
    if not _is(total, "aten.sum.dim_IntList") or len(total.args) != 3 or total.args[0] is not power:
        return None
    dims, keep = total.args[1], total.args[2]
    if not keep or not isinstance(dims, list | tuple) or len(dims) != 1:
        return None
    (dim,) = dims
    return dim if isinstance(dim, int) else None
