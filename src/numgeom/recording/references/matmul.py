"""What do the matrix products compute that exist in a few formats only?

The ops named `*.dtype` multiply narrow matrices into a wider result. `_scaled_mm` multiplies
matrices that were divided by scales to fit a narrow format, and multiplies the scales back in.
`_grouped_mm` is one product per group, with the groups laid side by side along one dimension;
`offs` tells where each ends.
"""

import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from numgeom.recording.references.entry import Definition, widened

_MM = "torch.mm, torch.bmm, torch.addmm and torch.baddbmm documentation"
_GROUPED = "torch.nn.functional.grouped_mm documentation"
_SCALED = "torch.nn.functional.scaled_mm documentation; Micikevicius et al. 2022, FP8 formats"


def _mm(self: Tensor, mat2: Tensor, out_dtype: torch.dtype) -> Tensor:
    return self.to(out_dtype) @ mat2.to(out_dtype)


def _addmm(
    self: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    out_dtype: torch.dtype,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    product = _mm(mat1, mat2, out_dtype)
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product.expand(torch.broadcast_shapes(self.shape, product.shape))
    addend = self.to(out_dtype)
    return (addend if beta == 1 else addend * beta) + product


def _grouped_mm(
    self: Tensor,
    mat2: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply group by group.

    The ends of the groups are read as numbers: they shape the computation, as a Python `if` does.
    """
    if bias is not None:
        raise UnsupportedOpError("_grouped_mm has no reference for its argument bias; add it after")
    dtype = out_dtype or self.dtype
    wide = widened(dtype)
    a, b = self.to(wide), mat2.to(wide)
    if offs is None:
        return (a @ b).to(dtype)
    ends: list[int] = offs.tolist()
    groups = list(zip([0, *ends[:-1]], ends, strict=True))
    if a.dim() == 2 and b.dim() == 2:  # groups along the summed dimension
        products = [a[:, start:end] @ b[start:end] for start, end in groups]
        return torch.stack(products).to(dtype)
    if a.dim() == 2:  # groups of rows
        products = [a[start:end] @ b[group] for group, (start, end) in enumerate(groups)]
        return _padded(torch.cat(products), (a.size(0), b.size(-1))).to(dtype)
    products = [a[group] @ b[:, start:end] for group, (start, end) in enumerate(groups)]
    return _padded(torch.cat(products, dim=-1), (a.size(-2), b.size(-1))).to(dtype)


def _padded(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Append zeros where no group reaches; there the kernels leave memory as it was."""
    rows, columns = shape[0] - x.size(0), shape[1] - x.size(1)
    return torch.constant_pad_nd(x, [0, columns, 0, rows]) if rows or columns else x


def _scaled_mm(
    self: Tensor,
    mat2: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    del use_fast_accum  # how to round, not what to compute
    rows, columns = self.size(0), mat2.size(1)
    per_tensor = scale_a.numel() == 1 and scale_b.numel() == 1
    per_row = scale_a.shape == (rows, 1) and scale_b.shape == (1, columns)
    if scale_result is not None or not (per_tensor or per_row):
        raise UnsupportedOpError(
            f"_scaled_mm has no reference for scales of shapes {list(scale_a.shape)} and "
            f"{list(scale_b.shape)}, scale_result={'given' if scale_result is not None else None}. "
            f"Use one scale per matrix, or scales of shapes [{rows}, 1] and [1, {columns}], "
            "without scale_result."
        )
    dtype = out_dtype or self.dtype
    wide = widened(dtype)
    product = (self.to(wide) @ mat2.to(wide)) * scale_a.to(wide) * scale_b.to(wide)
    product = product if bias is None else product + bias.to(wide)
    return product.to(dtype)


def _addmm_activation(
    self: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    use_gelu: bool = False,
) -> Tensor:
    if use_gelu:
        raise UnsupportedOpError(
            "_addmm_activation has no reference for use_gelu=True: which of the two GELUs it "
            "computes depends on the device. Call addmm and gelu instead."
        )
    return torch.addmm(self, mat1, mat2, beta=beta, alpha=alpha).relu()


DEFINITIONS: tuple[Definition, ...] = (
    Definition("aten::mm.dtype", _mm, _MM),
    Definition("aten::bmm.dtype", _mm, _MM),
    Definition("aten::addmm.dtype", _addmm, _MM),
    Definition("aten::baddbmm.dtype", _addmm, _MM),
    Definition("aten::_addmm_activation", _addmm_activation, _MM, True),
    Definition("aten::_grouped_mm", _grouped_mm, _GROUPED),
    Definition("aten::_scaled_mm", _scaled_mm, _SCALED),
)
