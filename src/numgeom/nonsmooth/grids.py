"""Which sums of products are computed without any rounding?

Numbers of few bits lie on coarse grids: a gradient that is 1 at one place and 0 elsewhere, pixels
in sixteenths, weights that were rounded to 24 bits. Sums of their products lie on a grid too, and
as long as they are small against it they are exact in every order.
"""

import torch
from torch import Tensor

from numgeom.ops.entry import Evaluation

# Ops whose results are sums of products of entries of their arguments.
_SUMS = frozenset(("add", "sub", "mul", "sum", "mm", "bmm", "convolution_backward"))

# Ops that send the entries of their first argument to places, and add them there.
_ACCUMULATIONS = frozenset(
    (
        "adaptive_max_pool2d_backward",
        "adaptive_max_pool3d_backward",
        "max_pool2d_with_indices_backward",
        "max_pool3d_with_indices_backward",
    )
)


def common_grid(call: Evaluation, part: int | None = None) -> float:
    """The spacing of a grid on which all terms of a call's sums lie; 0 if none is known.

    If the bound on the call's rounding is below it, the call is exact. For sums of products that
    bound is at least u times the sum of the sizes of all terms, so every partial sum stays below
    2^53 spacings; for a single operation it is u times the size of the result. Multiples of the
    spacing of that size are float64 numbers.

    Args:
        call: The call.
        part: Which of several outputs.
    """
    name = call.name
    if name in _ACCUMULATIONS:
        return spacing(call.args[0])
    if name not in _SUMS:
        return 0.0
    tensors = [a for a in call.args if isinstance(a, Tensor) and a.is_floating_point()]
    if name == "convolution_backward":  # (g, x, w) -> (g*w, g*x, sum g)
        g, x, w = call.args[:3]
        tensors = [[g, w], [g, x], [g]][part or 0]
    spacings = [spacing(t) for t in tensors]
    if name in ("add", "sub"):
        plain = call.kwargs.get("alpha", 1) == 1 and len(tensors) == 2
        return min(spacings) if plain else 0.0
    if name == "mul":
        spacings += [spacing(torch.tensor(float(a))) for a in call.args if isinstance(a, float)]
    total = 1.0
    for s in spacings:
        total *= s
    return total if total >= 2.0**-900 else 0.0


def spacing(x: Tensor) -> float:
    """The largest power of two of which all entries are multiples; 1 for zeros, 0: not known."""
    x = x.detach().to(torch.float64).reshape(-1)
    x = x[x != 0]
    if x.numel() == 0:
        return 1.0
    if not bool(x.isfinite().all()):
        return 0.0
    mantissa, exponent = torch.frexp(x)
    whole = (mantissa * 2.0**53).to(torch.int64).abs()
    lowest = whole & -whole  # the last bit that is set
    last = int((exponent + torch.frexp(lowest.to(torch.float64)).exponent - 54).min())
    return 2.0**last if last > -1000 else 0.0
