"""Which values does sampling of an image at given places read, and what are its gradients?

A place g in [-1, 1] lies at p = ((g + 1) n - 1) / 2 of n entries, with aligned corners at
p = (g + 1) (n - 1) / 2. In each dimension the entries floor p and floor p + 1 have the weights
1 - (p - floor p) and p - floor p; weights multiply. "Nearest" reads the entry at round p. What lies
outside is 0 ("zeros"), or p is cut off to [0, n - 1] first ("border").
(Jaderberg and others 2015, eq. 5 to 7; the documentation of torch.nn.functional.grid_sample.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from numgeom.recording.references.entry import Definition, widen

_SOURCE = "torch.nn.functional.grid_sample documentation; Jaderberg and others 2015"
_BILINEAR, _NEAREST = 0, 1
_ZEROS, _BORDER = 0, 1


@dataclass(frozen=True)
class _Axis:
    """Where one coordinate of each place lies among n entries.

    Attributes:
        n: The number of entries.
        position: p, after cutting it off.
        slope: The derivative of p with respect to g.
    """

    n: int
    position: Tensor
    slope: Tensor


def _axis(g: Tensor, n: int, *, padding: int, aligned: bool) -> _Axis:
    half = (n - 1) / 2 if aligned else n / 2
    p = (g + 1) * half if aligned else ((g + 1) * n - 1) / 2
    slope = torch.full_like(g, half)
    if padding == _BORDER:
        slope = torch.where((p > 0) & (p < n - 1), slope, 0.0)
        p = p.clamp(0, n - 1)
    return _Axis(n, p, slope)


def _axes(grid: Tensor, size: torch.Size, padding: int, aligned: bool) -> tuple[_Axis, _Axis]:
    """The axes of the height and of the width."""
    return (
        _axis(grid[..., 1], size[2], padding=padding, aligned=aligned),
        _axis(grid[..., 0], size[3], padding=padding, aligned=aligned),
    )


@dataclass(frozen=True)
class _Corner:
    """One of the entries that a place reads, of shape [batch, places].

    Attributes:
        index: Its number in the flattened image, 0 where it lies outside.
        inside: Whether it lies inside.
        weight: Its weight.
        slopes: The derivatives of the weight for both coordinates of g: height, width.
    """

    index: Tensor
    inside: Tensor
    weight: Tensor
    slopes: tuple[Tensor, Tensor]


def _corners(axes: tuple[_Axis, _Axis], mode: int) -> list[_Corner]:
    high, wide = axes
    if mode == _NEAREST:
        one, zero = torch.ones_like(high.position), torch.zeros_like(high.position)
        at = _number(torch.round(high.position)), _number(torch.round(wide.position))
        return [_corner(axes, at, one, (zero, zero))]
    found = []
    rows, columns = torch.floor(high.position), torch.floor(wide.position)
    for down in (0, 1):
        for right in (0, 1):
            a = high.position - rows if down else 1 - (high.position - rows)
            b = wide.position - columns if right else 1 - (wide.position - columns)
            slopes = (b if down else -b) * high.slope, (a if right else -a) * wide.slope
            at = _number(rows) + down, _number(columns) + right
            found.append(_corner(axes, at, a * b, slopes))
    return found


def _number(whole: Tensor) -> Tensor:
    """An integer, so that what is reckoned with it stays exact."""
    return whole.to(torch.int64)


def _corner(
    axes: tuple[_Axis, _Axis],
    at: tuple[Tensor, Tensor],
    weight: Tensor,
    slopes: tuple[Tensor, Tensor],
) -> _Corner:
    (row, column), (high, wide) = at, axes
    inside = (row >= 0) & (row <= high.n - 1) & (column >= 0) & (column <= wide.n - 1)
    place = row.clamp(0, high.n - 1) * wide.n + column.clamp(0, wide.n - 1)
    flat = [x.flatten(1) for x in (inside, weight, *slopes)]
    return _Corner(place.flatten(1), flat[0], flat[1], (flat[2], flat[3]))


def _check(mode: int, padding: int) -> None:
    if mode not in (_BILINEAR, _NEAREST) or padding not in (_ZEROS, _BORDER):
        raise UnsupportedOpError(
            "grid_sampler_2d has a reference for mode 'bilinear' and 'nearest' with padding "
            "'zeros' and 'border' alone; sample with one of these."
        )


def _read(image: Tensor, corner: _Corner) -> Tensor:
    """The entries of a corner in every channel, [batch, channels, places]; 0 outside."""
    places = corner.index.unsqueeze(1).expand(-1, image.size(1), -1)
    return torch.where(corner.inside.unsqueeze(1), image.flatten(2).gather(2, places), 0.0)


def _forward(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    _check(interpolation_mode, padding_mode)
    image, wide_grid = widen(input), widen(grid)
    axes = _axes(wide_grid, input.shape, padding_mode, align_corners)
    corners = _corners(axes, interpolation_mode)
    parts = [_read(image, corner) * corner.weight.unsqueeze(1) for corner in corners]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.reshape(*input.shape[:2], *grid.shape[1:3]).to(input.dtype)


def _backward(
    grad_output: Tensor,
    input: Tensor,
    grid: Tensor,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    _check(interpolation_mode, padding_mode)
    image, wide_grid = widen(input), widen(grid)
    dy = widen(grad_output).flatten(2)
    axes = _axes(wide_grid, input.shape, padding_mode, align_corners)
    dx = torch.zeros_like(image.flatten(2))
    zeros = torch.zeros_like(dy[:, 0])
    d_high, d_wide = zeros, zeros
    for corner in _corners(axes, interpolation_mode):
        share = torch.where(corner.inside.unsqueeze(1), dy * corner.weight.unsqueeze(1), 0.0)
        places = corner.index.unsqueeze(1).expand(-1, image.size(1), -1)
        dx = dx.scatter_add(2, places, share)
        pull = (dy * _read(image, corner)).sum(1)
        d_high = d_high + pull * corner.slopes[0]
        d_wide = d_wide + pull * corner.slopes[1]
    d_grid = torch.stack([d_wide, d_high], -1).reshape(grid.shape)
    return (
        dx.reshape(input.shape).to(input.dtype) if output_mask[0] else None,
        d_grid.to(grid.dtype) if len(output_mask) < 2 or output_mask[1] else None,
    )


DEFINITIONS: tuple[Definition, ...] = (
    Definition("aten::grid_sampler_2d", _forward, _SOURCE, True),
    Definition("aten::grid_sampler_2d_backward", _backward, _SOURCE, True),
)
