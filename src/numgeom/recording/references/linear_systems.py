"""What do the factorisations and solutions of linear systems compute, step by step?

Gaussian elimination of the rows in the order that the kernel chose, P A = L U: in step k,

    l_ik = a_ik / a_kk,    a_ij <- a_ij - l_ik a_kj    for i, j > k,

Cholesky A = L L^T the same with l_kk = sqrt(a_kk), substitution column by column. (Golub and Van
Loan 2013, alg. 3.1.1, 3.2.1, 4.2.1.) Over the reals solutions, inverses and determinants do not
depend on the order of the rows, and factors and order are only used together; so the order that
the kernel chose is an exact constant, and equal pivots are no tie.

Orthogonal factors Q R = A, with a positive diagonal of R, by modified Gram-Schmidt taken twice
(Giraud and others 2005); the kernel's signs of the diagonal are a choice of the same kind.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from numgeom.errors import UnsupportedOpError
from numgeom.recording.references.entry import Definition

aten = torch.ops.aten
_SOURCE = "Golub and Van Loan 2013, sec. 3.2, 4.2 and 5.2"


# -- triangles ---------------------------------------------------------------------------


def _substitute(a: Tensor, b: Tensor, *, upper: bool, unit: bool) -> Tensor:
    """X with A X = B, A triangular; only that triangle is read."""
    n = a.size(-1)
    found: list[Tensor] = []
    rest = b.expand(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + b.shape[-2:])
    for step in range(n):
        k = n - 1 - step if upper else step
        at = rest.size(-2) - 1 if upper else 0
        row = rest.narrow(-2, at, 1)
        x = row if unit else row / a[..., k : k + 1, k : k + 1]
        found.append(x)
        others = n - 1 - step
        if others:
            column = a[..., :k, k : k + 1] if upper else a[..., k + 1 :, k : k + 1]
            rest = rest.narrow(-2, 0 if upper else 1, others) - column * x
    if not found:
        return rest.clone()
    return torch.cat(found[::-1] if upper else found, -2)


def _solve_triangular(
    self: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    if left:
        return _substitute(self, B, upper=upper, unit=unitriangular)
    return _substitute(self.mT, B.mT, upper=not upper, unit=unitriangular).mT.contiguous()


# -- elimination -------------------------------------------------------------------------


def _eliminate(a: Tensor) -> Tensor:
    """L and U of a matrix whose rows lie in the order of the pivots, in one square."""
    n = a.size(-1)
    rest = a
    above: list[Tensor] = []  # row k of U, with the zeros left of the diagonal
    columns: list[Tensor] = []  # column k of L, with zeros above
    for k in range(n):
        row, pivot = rest[..., :1, :], rest[..., :1, :1]
        above.append(torch.nn.functional.pad(row, (k, 0)))
        factors = rest[..., 1:, :1] / pivot
        columns.append(torch.nn.functional.pad(factors, (0, 0, k + 1, 0)))
        rest = rest[..., 1:, 1:] - factors * row[..., :, 1:]
    if not above:
        return a.clone()
    return torch.cat(above, -2) + torch.cat(columns, -1)


def _order(pivots: Tensor, n: int) -> Tensor:
    """The row that comes to each place, of the swaps that LAPACK's pivots name; a constant."""
    with _disable_current_modes():
        flat = pivots.reshape(-1, pivots.size(-1))
        orders = []
        for swaps in flat.tolist():
            order = list(range(n))
            for k, with_row in enumerate(swaps):
                order[k], order[with_row - 1] = order[with_row - 1], order[k]
            orders.append(order)
        shape = (*pivots.shape[:-1], n)
        return torch.tensor(orders, device=pivots.device, dtype=torch.int64).reshape(shape)


def _ordered(a: Tensor, order: Tensor) -> Tensor:
    """The rows of a matrix, or of a batch of them, in an order."""
    places = order.unsqueeze(-1).expand(*order.shape, a.size(-1))
    return a.expand(*order.shape[:-1], *a.shape[-2:]).gather(-2, places)


def _restored(order: Tensor) -> Tensor:
    """The order that undoes another one; a constant."""
    with _disable_current_modes():
        return order.argsort(-1)


def _lu_solve(
    LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False
) -> Tensor:
    if not left:
        flipped = _lu_solve(LU, pivots, B.mT, adjoint=not adjoint)
        return flipped.mT.contiguous()
    order = _order(pivots, LU.size(-1))
    if not adjoint:
        b = _ordered(B, order) if B.dim() >= order.dim() + 1 else B[order]
        return _substitute(LU, _substitute(LU, b, upper=False, unit=True), upper=True, unit=False)
    first = _substitute(LU.mT, B, upper=False, unit=False)
    return _ordered(_substitute(LU.mT, first, upper=True, unit=True), _restored(order))


def _kernel(op: Any, *args: Any, **kwargs: Any) -> Any:
    """What the op itself gives: its pivots and signs are taken as constants."""
    with _disable_current_modes():
        return op(*args, **kwargs)


def _factors_as_kernel(a: Tensor, lu: Tensor, pivots: Tensor) -> Tensor:
    """L and U in the layout of a kernel, which may have factorised the transposed matrix."""
    order = _order(pivots, a.size(-1))
    with _disable_current_modes():
        product = (lu.tril(-1) + torch.eye(a.size(-1)).to(lu)) @ lu.triu()
        plain, turned = ((_ordered(x, order) - product).abs().sum() for x in (a, a.mT))
        transposed = bool(turned < plain)
    return _eliminate(_ordered(a.mT if transposed else a, order))


def _lu_factor(
    A: Tensor, *, pivot: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    if A.size(-1) != A.size(-2):
        raise UnsupportedOpError(
            f"linalg_lu_factor_ex has no reference for a matrix of shape {list(A.shape)}, only for "
            "square ones."
        )
    _, pivots, info = _kernel(
        aten.linalg_lu_factor_ex.default, A, pivot=pivot, check_errors=check_errors
    )
    return _eliminate(_ordered(A, _order(pivots, A.size(-1)))), pivots, info


def _solve(
    A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = aten._linalg_solve_ex.default
    _, lu, pivots, info = _kernel(op, A, B, left=left, check_errors=check_errors)
    own, chosen, _ = _lu_factor(A)
    is_vector = B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1])
    b = B.unsqueeze(-1) if is_vector else B
    x = _lu_solve(own, chosen, b, left=left)
    return x.squeeze(-1) if is_vector else x, _factors_as_kernel(A, lu, pivots), pivots, info


def _inverse(A: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    _, info = _kernel(aten.linalg_inv_ex.default, A, check_errors=check_errors)
    own, pivots, _ = _lu_factor(A)
    ones = torch.eye(A.size(-1), dtype=A.dtype, device=A.device)
    return _lu_solve(own, pivots, ones.expand(A.shape)), info


def _parity(pivots: Tensor) -> Tensor:
    """1 or -1: the sign of the order of the rows; a constant."""
    with _disable_current_modes():
        places = torch.arange(1, pivots.size(-1) + 1, device=pivots.device)
        return 1.0 - 2.0 * ((pivots != places).sum(-1) % 2).to(torch.float64)


def _determinant(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, lu, pivots = _kernel(aten._linalg_det.default, A)
    own = _factors_as_kernel(A, lu, pivots)
    value = own.diagonal(0, -2, -1).prod(-1) * _parity(pivots).to(A.dtype)
    return value, own, pivots


def _sign_and_log(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, _, lu, pivots = _kernel(aten._linalg_slogdet.default, A)
    own = _factors_as_kernel(A, lu, pivots)
    diagonal = own.diagonal(0, -2, -1)
    sign = torch.sign(diagonal).prod(-1) * _parity(pivots).to(A.dtype)
    return sign, torch.log(diagonal.abs()).sum(-1), own, pivots


# -- Cholesky and QR ---------------------------------------------------------------------


def _cholesky(
    self: Tensor, *, upper: bool = False, check_errors: bool = False
) -> tuple[Tensor, Tensor]:
    op = aten.linalg_cholesky_ex.default
    _, info = _kernel(op, self, upper=upper, check_errors=check_errors)
    rest = self.mT if upper else self
    columns: list[Tensor] = []
    for k in range(self.size(-1)):
        corner = torch.sqrt(rest[..., :1, :1])
        below = rest[..., 1:, :1] / corner
        column = torch.cat([corner, below], -2)
        columns.append(torch.nn.functional.pad(column, (0, 0, k, 0)))
        rest = rest[..., 1:, 1:] - below * below.mT
    factor = torch.cat(columns, -1) if columns else self.clone()
    return factor.mT.contiguous() if upper else factor, info


def _cholesky_solve(self: Tensor, input2: Tensor, upper: bool = False) -> Tensor:
    lower = input2.mT if upper else input2
    first = _substitute(lower, self, upper=False, unit=False)
    return _substitute(lower.mT, first, upper=True, unit=False)


def _qr(A: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    n, m = A.shape[-2:]
    if mode != "reduced" and (mode != "complete" or n > m) or n < m:
        raise UnsupportedOpError(
            f"linalg_qr has no reference for mode={mode!r} and a matrix of shape {list(A.shape)}: "
            "only for mode='reduced' with at least as many rows as columns."
        )
    kernel_r = _kernel(aten.linalg_qr.default, A, mode)[1]
    with _disable_current_modes():
        signs = torch.where(kernel_r.diagonal(0, -2, -1) < 0, -1.0, 1.0).to(A.dtype)
    columns: list[Tensor] = []
    rows: list[Tensor] = []  # column k of R
    for k in range(m):
        v = A[..., :, k : k + 1]
        shares = []
        for q in columns:
            share = (q * v).sum(-2, keepdim=True)
            v = v - q * share
            shares.append(share)
        for j, q in enumerate(columns):
            share = (q * v).sum(-2, keepdim=True)
            v = v - q * share
            shares[j] = shares[j] + share
        length = torch.linalg.vector_norm(v, 2, [-2], keepdim=True) * signs[..., k, None, None]
        columns.append(v / length)
        whole = torch.cat([*shares, length], -2)
        rows.append(torch.nn.functional.pad(whole, (0, 0, 0, m - 1 - k)))
    return torch.cat(columns, -1), torch.cat(rows, -1)


DEFINITIONS: tuple[Definition, ...] = (
    Definition("aten::linalg_solve_triangular", _solve_triangular, _SOURCE, True),
    Definition("aten::linalg_lu_factor_ex", _lu_factor, _SOURCE, True),
    Definition("aten::linalg_lu_solve", _lu_solve, _SOURCE, True),
    Definition("aten::_linalg_solve_ex", _solve, _SOURCE, True),
    Definition("aten::linalg_inv_ex", _inverse, _SOURCE, True),
    Definition("aten::_linalg_det", _determinant, _SOURCE, True),
    Definition("aten::_linalg_slogdet", _sign_and_log, _SOURCE, True),
    Definition("aten::linalg_cholesky_ex", _cholesky, _SOURCE, True),
    Definition("aten::cholesky_solve", _cholesky_solve, _SOURCE, True),
    Definition("aten::linalg_qr", _qr, _SOURCE, True),
)
