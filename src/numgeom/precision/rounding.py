"""How are operands rounded to a format that the step was not recorded in?

Formats of 8 bits are scaled to their range first, by a power of two per tensor, so that scaling
itself is exact (Micikevicius et al. 2022, sec. 3). For float32 tensors the fast ways are taken:
torch's casts, which round once from float32, and a splitting for TF32.
"""

from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.formats import Format, round_to

INT8 = "int8"
"""Storage of 8 bits with 256 equal steps between a tensor's smallest and largest entry."""


def round_operand(value: Any, fmt: Format) -> Any:
    """Round an operand as hardware takes it in; anything but floating tensors is left alone."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    scale = _scale(value, fmt) if fmt.precision < 8 else 1.0
    if value.dtype is not torch.float32:
        return round_to((value * scale).to(torch.float64), fmt).to(value.dtype) / scale
    if scale != 1.0:
        return _round_float32(value * scale, fmt) / scale
    return _round_float32(value, fmt)


def _round_float32(value: Tensor, fmt: Format) -> Tensor:
    if fmt.name == "tf32":
        return _split_to_tf32(value)
    if fmt.dtype is None or fmt.dtype in (torch.float32, torch.float64):
        return round_to(value, fmt)
    return value.to(fmt.dtype).to(torch.float32)


def _split_to_tf32(value: Tensor) -> Tensor:
    """Round to 11 significant bits by arithmetic alone, ties either way (Dekker 1971, sec. 5).

    Nothing here reads bits, so a step that does this can be recorded.
    """
    multiple = value * (2.0**13 + 1.0)
    rounded = multiple - (multiple - value)
    return torch.where(multiple.isfinite(), rounded, value)


def _scale(value: Tensor, fmt: Format) -> float:
    if not value.numel():
        return 1.0
    largest = float(value.abs().max())
    if not 0.0 < largest < torch.inf:
        return 1.0
    return 2.0 ** float(torch.tensor(fmt.largest / largest).log2().floor())


def quantized(value: Tensor) -> Tensor:
    """Round to 256 equal steps between the smallest and the largest entry, both kept."""
    if not value.numel():
        return value
    low, high = value.amin(), value.amax()
    step = (high - low) / 255.0
    if not 0.0 < float(step) < torch.inf:
        return value
    return ((value - low) / step).round_().mul_(step).add_(low)
