"""Where do elementwise ops have kinks, and which slopes meet there?

Listed are ops that are continuous and piecewise smooth. At a kink the choice 0 stands for the
flatter of the two one-sided slopes and 1 for the steeper one (abs excepted: there the choice is the
slope itself). Not listed: ops that jump (sign, round, hardshrink), which have no Clarke derivative,
and kinks that depend on what was drawn (randomised leaky ReLU).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from numgeom.nonsmooth.kinks import Contest, Contests, Corners, KinkRule
from numgeom.ops.selection import OpCall


def _between(mask: Tensor, one: Any, other: Any) -> Corners | None:
    """Corners between two slopes, the flatter one first; None without ties or without a kink."""
    one, other = (torch.as_tensor(slope, dtype=torch.float64) for slope in (one, other))
    mask = mask & (one != other).to(mask.device)
    if not bool(mask.any()):
        return None
    flat = torch.where(one.abs() <= other.abs(), one, other)
    return Corners(mask, flat.to(mask.device), (one + other - flat).to(mask.device))


def _relu(call: OpCall) -> Corners | None:
    return _between(call.arguments["self"] == 0, 0.0, 1.0)


def _threshold(call: OpCall) -> Corners | None:
    at = call.arguments["threshold"]
    if call.arguments["value"] != at:  # a jump
        return None
    return _between(call.arguments["self"] == at, 0.0, 1.0)


def _hardtanh(call: OpCall) -> Corners | None:
    x, low, high = (call.arguments[n] for n in ("self", "min_val", "max_val"))
    return _between((x == low) | (x == high), 0.0, 1.0) if low < high else None


def _leaky_relu(call: OpCall) -> Corners | None:
    return _between(call.arguments["self"] == 0, call.arguments["negative_slope"], 1.0)


def _prelu(call: OpCall) -> Corners | None:
    return _between(call.arguments["self"] == 0, call.arguments["weight"], 1.0)


def _elu(call: OpCall) -> Corners | None:
    alpha, scale, inner = (call.arguments[n] for n in ("alpha", "scale", "input_scale"))
    return _between(call.arguments["self"] == 0, alpha * scale * inner, scale)


def _softshrink(call: OpCall) -> Corners | None:
    at = call.arguments["lambd"]
    return _between(call.arguments["self"].abs() == at, 0.0, 1.0) if at > 0 else None


def _hardsigmoid(call: OpCall) -> Corners | None:
    return _between(call.arguments["self"].abs() == 3, 0.0, 1 / 6)


def _hardswish(call: OpCall) -> Corners | None:
    # x (x + 3) / 6 between -3 and 3: slope (2x + 3) / 6 inside, 0 and 1 outside.
    x = call.arguments["self"]
    inside = torch.where(x < 0, -0.5, 1.5).double()
    outside = torch.where(x < 0, 0.0, 1.0).double()
    return _between(x.abs() == 3, inside, outside)


def _abs(call: OpCall) -> Corners | None:
    x = call.arguments["self"]
    mask = x == 0
    return Corners(mask) if not x.is_complex() and bool(mask.any()) else None


def _clamp(call: OpCall) -> Corners | Contests | None:
    x, low, high = (call.arguments.get(n) for n in ("self", "min", "max"))
    assert isinstance(x, Tensor)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return _clamp_tensors(x, low, high)
    low = float("-inf") if low is None else low
    high = float("inf") if high is None else high
    return _between((x == low) | (x == high), 0.0, 1.0) if low < high else None


def _clamp_tensors(x: Tensor, low: Tensor | None, high: Tensor | None) -> Contests | None:
    """min(max(x, low), high): the bounds may want a gradient as well."""
    given = [t for t in (x, low, high) if t is not None]
    x, *bounds = torch.broadcast_tensors(*given)
    lower = bounds[0] if low is not None else torch.full_like(x, -torch.inf)
    upper = bounds[-1] if high is not None else torch.full_like(x, torch.inf)
    room = lower < upper
    contests, wins = [], [(x >= lower) & (x <= upper)]
    if low is not None:
        contests.append(Contest((x == lower) & room, 0, len(wins)))
        wins.append((x < lower) & room)
    if high is not None:
        contests.append(Contest((x == upper) & room, 0, len(wins)))
        wins.append((x > upper) | (upper < lower))
    tied = any(bool(c.mask.any()) for c in contests)
    return Contests(tuple(contests), tuple(wins)) if tied else None


def _pair(sign: int, ignores_nan: bool) -> Callable[[OpCall], Contests | None]:
    def find(call: OpCall) -> Contests | None:
        a, b = call.arguments["self"], call.arguments["other"]
        tied = a == b
        if not bool(tied.any()):
            return None
        first = a > b if sign > 0 else a < b
        second = a < b if sign > 0 else a > b
        if ignores_nan:
            first, second = first | b.isnan(), second | (a.isnan() & ~b.isnan())
        return Contests((Contest(tied, 0, 1),), (first, second))

    return find


POINTWISE: Mapping[str, tuple[KinkRule, ...]] = {
    "_prelu_kernel": (KinkRule("relu", _prelu),),
    "abs": (KinkRule("abs", _abs),),
    "clamp": (KinkRule("clamp", _clamp),),
    "clamp_max": (KinkRule("clamp", _clamp),),
    "clamp_min": (KinkRule("clamp", _clamp),),
    "elu": (KinkRule("relu", _elu),),
    "fmax": (KinkRule("max", _pair(1, True)),),
    "fmin": (KinkRule("max", _pair(-1, True)),),
    "hardsigmoid": (KinkRule("relu", _hardsigmoid),),
    "hardswish": (KinkRule("relu", _hardswish),),
    "hardtanh": (KinkRule("relu", _hardtanh),),
    "leaky_relu": (KinkRule("relu", _leaky_relu),),
    "maximum": (KinkRule("max", _pair(1, False)),),
    "minimum": (KinkRule("max", _pair(-1, False)),),
    "relu": (KinkRule("relu", _relu),),
    "softshrink": (KinkRule("relu", _softshrink),),
    "threshold": (KinkRule("relu", _threshold),),
}
