"""Which entries of the input does each window of a pooling see?

A table of flat positions over the spatial dimensions, [windows, entries per window], with -1 where
a window reaches beyond the input or is shorter than others. It depends on shapes alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def regular_windows(
    size: Sequence[int],
    out: Sequence[int],
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Windows of a pooling with a kernel.

    Args:
        size: Spatial size of the input.
        out: Spatial size of the output.
        kernel: Entries of a window, per dimension; this and the rest may be a single number.
        stride: Steps between windows; empty for that of the kernel.
        padding: Steps by which the first window reaches beyond the input.
        dilation: Steps between the entries of a window.
    """
    stride = stride or kernel
    return _joined(
        size,
        [
            torch.arange(out[d]).unsqueeze(1) * _at(stride, d)
            - _at(padding, d)
            + torch.arange(_at(kernel, d)) * _at(dilation, d)
            for d in range(len(size))
        ],
    )


def adaptive_windows(size: Sequence[int], out: Sequence[int]) -> Tensor:
    """Windows of an adaptive pooling: from floor(o n / m) to ceil((o + 1) n / m)."""
    parts = []
    for n, m in zip(size, out, strict=True):
        o = torch.arange(m)
        start = o * n // m
        end = -(-(o + 1) * n // m)
        longest = int((end - start).max()) if m else 0
        positions = start.unsqueeze(1) + torch.arange(longest)
        parts.append(torch.where(positions < end.unsqueeze(1), positions, -1))
    return _joined(size, parts)


def _at(values: Sequence[int], d: int) -> int:
    return values[d] if len(values) > 1 else values[0]


def _joined(size: Sequence[int], parts: list[Tensor]) -> Tensor:
    """Flat positions from those per dimension, [windows, entries] each."""
    flat = torch.zeros(1, 1, dtype=torch.int64)
    inside = torch.ones(1, 1, dtype=torch.bool)
    for n, part in zip(size, parts, strict=True):
        here = (part >= 0) & (part < n)
        flat = (flat[:, None, :, None] * n + part[None, :, None, :]).flatten(2).flatten(0, 1)
        inside = (inside[:, None, :, None] & here[None, :, None, :]).flatten(2).flatten(0, 1)
    return torch.where(inside, flat, -1)
