"""What do the factorisations and solutions of linear systems compute, step by step?

Gaussian elimination of the rows in the order that the kernel chose, P A = L U: in step k,

    l_ik = a_ik / a_kk,    a_ij <- a_ij - l_ik a_kj    for i, j > k,

Cholesky A = L L^T the same with l_kk = sqrt(a_kk), substitution column by column. (Golub and Van
Loan 2013, alg. 3.1.1, 3.2.1, 4.2.1.) Over the reals solutions, inverses and determinants do not
depend on the order of the rows. So there the order that the kernel chose is an exact constant, and
equal pivots are no tie; and so it is where factors and pivots go together into the solution of a
system. Factors and pivots that go elsewhere depend on the order: the pivot of each column is its
largest entry, which is compared with the others, entry by entry.

Orthogonal factors Q R = A by modified Gram-Schmidt taken twice (Giraud and others 2005). The signs
of the diagonal of R are those of LAPACK's Householder reflections (Anderson and others 1999,
dlarfg): r_kk has the sign opposite to that of the entry that it replaces, and is that entry where
all entries below are 0. These entries are computed, and compared with 0.
"""

import math
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from numgeom.errors import UnsupportedOpError
from numgeom.recording.references.entry import Definition
from numgeom.recording.references.freedom import declared, free, is_recorded, unless

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


def _eliminate(a: Tensor, beaten: list[Tensor] | None = None) -> Tensor:
    """L and U of a matrix whose rows lie in the order of the pivots, in one square.

    Args:
        a: The matrix.
        beaten: Gets for each column whether some other entry is larger than its pivot.
    """
    n = a.size(-1)
    rest = a
    above: list[Tensor] = []  # row k of U, with the zeros left of the diagonal
    columns: list[Tensor] = []  # column k of L, with zeros above
    for k in range(n):
        row, pivot = rest[..., :1, :], rest[..., :1, :1]
        if beaten is not None and k + 1 < n:
            beaten.append((rest[..., 1:, 0].abs() > pivot[..., 0].abs()).any(-1))
        above.append(torch.nn.functional.pad(row, (k, 0)))
        factors = rest[..., 1:, :1] / pivot
        columns.append(torch.nn.functional.pad(factors, (0, 0, k + 1, 0)))
        rest = rest[..., 1:, 1:] - factors * row[..., :, 1:]
    if not above:
        return a.clone()
    return torch.cat(above, -2) + torch.cat(columns, -1)


def _order(pivots: Tensor, n: int) -> Tensor:
    """The row that comes to each place, of the swaps that LAPACK's pivots name; a constant.

    Free: whoever uses it for more than a solution looks at the pivots as well.
    """
    with free():
        flat = pivots.reshape(math.prod(pivots.shape[:-1]), pivots.size(-1))
        orders = []
        for swaps in flat.tolist():
            order = list(range(n))
            for k, with_row in enumerate(swaps):
                order[k], order[with_row - 1] = order[with_row - 1], order[k]
            orders.append(order)
        shape = (*pivots.shape[:-1], n)
        order = torch.tensor(orders, device=pivots.device, dtype=torch.int64).reshape(shape)
    return declared(order)


def _ordered(a: Tensor, order: Tensor) -> Tensor:
    """The rows of a matrix, or of a batch of them, in an order."""
    places = order.unsqueeze(-1).expand(*order.shape, a.size(-1))
    return a.expand(*order.shape[:-1], *a.shape[-2:]).gather(-2, places)


def _restored(order: Tensor) -> Tensor:
    """The order that undoes another one; a constant."""
    with free():
        restored = order.argsort(-1)
    return declared(restored)


# Factors that have left a reference -> the same as they were before the order was put in doubt, and
# the pivots that left with them.
_plain_factors: Any = WeakTensorKeyDictionary()


def _leaving(own: Tensor, pivots: Tensor, beaten: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Factors and pivots as they leave an op: none where another order may be the right one."""
    if not beaten:
        return own, pivots
    wrong = torch.stack(beaten).any(0)
    found = unless(wrong[..., None, None], own), unless(wrong[..., None], pivots)
    _plain_factors[found[0]] = own, weakref.ref(found[1])
    return found


def _leaving_info(info: Tensor, stops: Tensor) -> Tensor:
    """The number of the column at which the factorisation stopped; 0 if it went through.

    It decides nothing here, but may decide something elsewhere.

    Args:
        info: As the kernel found it.
        stops: For each column, whether its pivot ends the factorisation, in the last dimension.
    """
    if not is_recorded() or not stops.numel():
        return info
    return unless(stops.any(-1) | (info > 0), info)  # of what follows a stop nothing is known


def _watched() -> list[Tensor] | None:
    """Where to note pivots that may be others; nowhere if nobody would look at them."""
    return [] if is_recorded() else None


def _lu_solve(
    LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False
) -> Tensor:
    own, partner = _plain_factors.get(LU, (LU, None))
    if partner is not None and partner() is pivots:
        return _solve_by_factors(own, pivots, B, left=left, adjoint=adjoint)
    found = _solve_by_factors(LU, pivots, B, left=left, adjoint=adjoint)
    if not is_recorded() or not pivots.numel():
        return found
    with free():
        taken = declared(pivots.clone())
    return unless((pivots != taken).any(), found)


def _solve_by_factors(
    LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False
) -> Tensor:
    if not left:
        flipped = _solve_by_factors(LU, pivots, B.mT, adjoint=not adjoint)
        return flipped.mT.contiguous()
    order = _order(pivots, LU.size(-1))
    if not adjoint:
        b = _ordered(B, order) if B.dim() >= order.dim() + 1 else B[order]
        return _substitute(LU, _substitute(LU, b, upper=False, unit=True), upper=True, unit=False)
    first = _substitute(LU.mT, B, upper=False, unit=False)
    return _ordered(_substitute(LU.mT, first, upper=True, unit=True), _restored(order))


def _kernel(op: Any, *args: Any, **kwargs: Any) -> Any:
    """What the op itself gives, as constants: its pivots and errors, and signs to compare with."""
    with free():
        found = op(*args, **kwargs)
    return tuple(declared(x) for x in found)


def _factors_as_kernel(a: Tensor, pivots: Tensor, beaten: list[Tensor] | None) -> Tensor:
    """L and U as the kernels of determinants leave them: of a contiguous matrix those of A^T."""
    turned = a.is_contiguous() and not a.is_complex()
    return _eliminate(_ordered(a.mT if turned else a, _order(pivots, a.size(-1))), beaten)


def _square(A: Tensor) -> None:
    if A.size(-1) != A.size(-2):
        raise UnsupportedOpError(
            f"linalg_lu_factor_ex has no reference for a matrix of shape {list(A.shape)}, only for "
            "square ones."
        )


def _lu_factor(
    A: Tensor, *, pivot: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    _square(A)
    op = aten.linalg_lu_factor_ex.default
    _, pivots, info = _kernel(op, A, pivot=pivot, check_errors=check_errors)
    beaten = _watched() if pivot else None
    own = _eliminate(_ordered(A, _order(pivots, A.size(-1))), beaten)
    return *_leaving(own, pivots, beaten or []), _leaving_info(info, _zeros(own))


def _zeros(factors: Tensor) -> Tensor:
    return factors.diagonal(0, -2, -1) == 0


def _solve(
    A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = aten._linalg_solve_ex.default
    _, _, pivots, info = _kernel(op, A, B, left=left, check_errors=check_errors)
    _square(A)
    beaten = _watched()
    own = _eliminate(_ordered(A, _order(pivots, A.size(-1))), beaten)
    is_vector = B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1])
    b = B.unsqueeze(-1) if is_vector else B
    x = _solve_by_factors(own, pivots, b, left=left)
    x = x.squeeze(-1) if is_vector else x
    return x, *_leaving(own, pivots, beaten or []), _leaving_info(info, _zeros(own))


def _own_factors(A: Tensor) -> tuple[Tensor, Tensor]:
    """Factors and pivots that stay together."""
    _square(A)
    _, pivots, _ = _kernel(aten.linalg_lu_factor_ex.default, A)
    return _eliminate(_ordered(A, _order(pivots, A.size(-1)))), pivots


def _inverse(A: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    _, info = _kernel(aten.linalg_inv_ex.default, A, check_errors=check_errors)
    own, pivots = _own_factors(A)
    ones = torch.eye(A.size(-1), dtype=A.dtype, device=A.device)
    x = _solve_by_factors(own, pivots, ones.expand(A.shape))
    return x, _leaving_info(info, _zeros(own))


def _parity(pivots: Tensor) -> Tensor:
    """1 or -1: the sign of the order of the rows; a constant.

    Free: the determinant does not depend on the order.
    """
    with free():
        places = torch.arange(1, pivots.size(-1) + 1, device=pivots.device)
        sign = 1.0 - 2.0 * ((pivots != places).sum(-1) % 2).to(torch.float64)
    return declared(sign)


def _determinant(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, _, pivots = _kernel(aten._linalg_det.default, A)
    beaten = _watched()
    own = _factors_as_kernel(A, pivots, beaten)
    value = own.diagonal(0, -2, -1).prod(-1) * _parity(pivots).to(A.dtype)
    return value, *_leaving(own, pivots, beaten or [])


def _sign_and_log(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, _, _, pivots = _kernel(aten._linalg_slogdet.default, A)
    beaten = _watched()
    own = _factors_as_kernel(A, pivots, beaten)
    diagonal = own.diagonal(0, -2, -1)
    sign = torch.sign(diagonal).prod(-1) * _parity(pivots).to(A.dtype)
    return sign, torch.log(diagonal.abs()).sum(-1), *_leaving(own, pivots, beaten or [])


# -- Cholesky and QR ---------------------------------------------------------------------


def _cholesky(
    self: Tensor, *, upper: bool = False, check_errors: bool = False
) -> tuple[Tensor, Tensor]:
    op = aten.linalg_cholesky_ex.default
    _, info = _kernel(op, self, upper=upper, check_errors=check_errors)
    rest = self.mT if upper else self
    columns: list[Tensor] = []
    pivots: list[Tensor] = []
    for k in range(self.size(-1)):
        pivots.append(rest[..., 0, 0])
        corner = torch.sqrt(rest[..., :1, :1])
        below = rest[..., 1:, :1] / corner
        column = torch.cat([corner, below], -2)
        columns.append(torch.nn.functional.pad(column, (0, 0, k, 0)))
        rest = rest[..., 1:, 1:] - below * below.mT
    if not columns:
        return self.clone(), info
    factor = torch.cat(columns, -1)
    info = _leaving_info(info, ~(torch.stack(pivots, -1) > 0))
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
    with free():  # compared with what decides them, below
        signs = torch.where(kernel_r.diagonal(0, -2, -1) < 0, -1.0, 1.0).to(A.dtype)
    declared(signs)
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
    found = torch.cat(columns, -1), torch.cat(rows, -1)
    if not is_recorded() or not A.numel():
        return found
    wrong = _other_signs(A, signs)[..., None, None]
    return unless(wrong, found[0]), unless(wrong, found[1])


def _other_signs(A: Tensor, signs: Tensor) -> Tensor:
    """Whether Householder's reflections give R a diagonal of other signs, for each matrix."""
    found: list[Tensor] = []
    rest = A
    for k in range(A.size(-1)):
        x, sign = rest[..., :, :1], signs[..., k, None, None]
        first = x[..., :1, :]
        below = (x[..., 1:, :] * x[..., 1:, :]).sum(-2, keepdim=True)
        nothing = below == 0
        turned = first * sign  # of opposite sign, unless there is nothing to reflect
        wrong = torch.where(nothing, turned < 0, (turned > 0) | ((first == 0) & (sign > 0)))
        found.append(wrong[..., 0, 0])
        length = torch.sqrt(first * first + below) * sign
        v = torch.cat([first - length, x[..., 1:, :]], -2)
        size = torch.where(nothing, 1.0, (v * v).sum(-2, keepdim=True))
        share = torch.where(nothing, 0.0, (v * rest).sum(-2, keepdim=True) / size)
        rest = (rest - v * (2.0 * share))[..., 1:, 1:]
    return torch.stack(found).any(0)


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
