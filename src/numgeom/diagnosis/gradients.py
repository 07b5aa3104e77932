"""What do the gradients tell of a step that is not diagnosed, at next to no cost?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from numgeom.diagnosis.trace import FORMATS, norm

_SAMPLE = 256  # entries of each gradient
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class GradientLook:
    """What `.grad` holds after a backward pass.

    Attributes:
        norms: 2-norm of the gradient, by parameter.
        nonfinite: The parameters whose gradient holds a NaN or an infinity.
        headroom_binades: Powers of two between the largest norm and the end of its format: the
            headroom of the largest entry is this, or more.
        subnormal_share: Part of a sample of the entries in float16 that are subnormal, on their
            way to zero. NaN without such: other formats reach much further down.
    """

    norms: Mapping[str, float]
    nonfinite: tuple[str, ...]
    headroom_binades: float
    subnormal_share: float


def look_at_gradients(model: nn.Module) -> GradientLook:
    """Read the gradients of a model once, on the device where they are.

    Those that are no plain tensors (sparse, or spread over processes) are left out.
    """
    names, gradients = [], []
    for name, p in model.named_parameters():
        if type(p.grad) is Tensor and p.grad.layout is torch.strided:
            names.append(name)
            gradients.append(p.grad.detach())
    if not names:
        return GradientLook({}, (), math.nan, math.nan)
    # One transfer for all norms: on a GPU each would wait for the device.
    sizes = [
        torch.linalg.vector_norm(g, dtype=torch.float32 if g.dtype in _HALF else None)
        for g in gradients
    ]
    norms, nonfinite, room = {}, [], math.inf
    for name, g, size in zip(names, gradients, _numbers(sizes), strict=True):
        if not (_SAFE[0] < size < _SAFE[1]):  # squares left the range, or it is not finite
            size = norm(g.abs())
            if not math.isfinite(size):
                nonfinite.append(name)
        norms[name] = size
        if g.dtype in FORMATS and 0.0 < size < math.inf:
            room = min(room, math.log2(FORMATS[g.dtype].largest) - math.log2(size))
    share = _subnormal_share([g for g in gradients if g.dtype is torch.float16])
    return GradientLook(norms, tuple(nonfinite), room if norms else math.nan, share)


_SAFE = (1e-18, 1e18)  # squares of such norms are normal numbers of float32


def _numbers(scalars: list[Tensor]) -> list[float]:
    first = scalars[0]
    if all(s.device == first.device and s.dtype is first.dtype for s in scalars):
        return torch.stack(scalars).tolist()
    return [float(s) for s in scalars]


def _subnormal_share(gradients: list[Tensor]) -> float:
    parts = [g.flatten()[:: g.numel() // _SAMPLE | 1] for g in gradients if g.numel()]
    if not parts:
        return math.nan
    sample = torch.cat([part.to(parts[0].device) for part in parts]).abs()
    small = (sample < FORMATS[torch.float16].smallest_normal) & (sample > 0)
    return float(torch.count_nonzero(small)) / sample.numel()
