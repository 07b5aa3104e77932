"""Solutions of linear systems, inverses, factors and determinants, each matrix of a batch alone."""

from collections.abc import Callable
from typing import Any

from flint import arb, arb_mat

from tests.oracle.numbers import ZERO, Numbers, UnsupportedError, array, filled, numbers, total


def _matrix(a: Numbers) -> arb_mat:
    return arb_mat(a.shape[0], a.shape[1], list(a.reshape(-1)))


def _entries(a: arb_mat) -> Numbers:
    return array(a.entries(), (a.nrows(), a.ncols()))


def _single(a: Any, *more: Any) -> None:
    if any(numbers(x).ndim != 2 for x in (a, *more)):
        raise UnsupportedError("batches of matrices")


class Factored:
    """Stands for the LU factors of a matrix: what is solved with them is the matrix itself."""

    def __init__(self, a: Numbers) -> None:
        self.matrix = a


def solve(a: Numbers, b: Numbers) -> Numbers:
    return _entries(_matrix(a).solve(_matrix(b)))


def solve_ex(
    a: Any, b: Any, *, left: bool = True, check_errors: bool = False
) -> tuple[Numbers, Factored, None, None]:
    del check_errors
    _single(a)
    vector = b.ndim == 1
    columns = b[:, None] if vector else b
    x = solve(a, columns) if left else solve(a.T, columns.T).T
    return x.reshape(b.shape), Factored(a if left else a.T), None, None


def lu_solve(
    factors: Any, pivots: Any, b: Numbers, *, left: bool = True, adjoint: bool = False
) -> Numbers:
    del pivots
    if not isinstance(factors, Factored):
        raise UnsupportedError("lu_solve with factors of its own")
    a = factors.matrix.T if adjoint else factors.matrix
    return solve(a, b) if left else solve(a.T, b.T).T


def inverse(a: Numbers, *, check_errors: bool = False) -> tuple[Numbers, None]:
    del check_errors
    _single(a)
    return _entries(_matrix(a).inv()), None


def cholesky(
    a: Numbers, *, upper: bool = False, check_errors: bool = False
) -> tuple[Numbers, None]:
    del check_errors
    _single(a)
    a = a.T if upper else a
    factor = filled(a.shape, 0)
    for j in range(len(a)):
        factor[j, j] = (a[j, j] - total(factor[j, k] ** 2 for k in range(j))).sqrt()
        for i in range(j + 1, len(a)):
            rest = a[i, j] - total(factor[i, k] * factor[j, k] for k in range(j))
            factor[i, j] = rest / factor[j, j]
    return factor.T if upper else factor, None


def triangular(
    a: Numbers, b: Numbers, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Numbers:
    _single(a, b)
    if not left:
        a, b, upper = a.T, b.T, not upper
    x = filled(b.shape, 0)
    order = range(len(a) - 1, -1, -1) if upper else range(len(a))
    for j in range(b.shape[1]):
        for i in order:
            known = range(i + 1, len(a)) if upper else range(i)
            rest: arb = b[i, j] - total(a[i, k] * x[k, j] for k in known)
            x[i, j] = rest if unitriangular else rest / a[i, i]
    return x if left else x.T


def determinant(a: Numbers) -> tuple[Numbers, Factored, None]:
    _single(a)
    return array([_matrix(a).det()], ()), Factored(a.T), None


def slogdet(a: Numbers) -> tuple[Numbers, Numbers, Factored, None]:
    _single(a)
    value = _matrix(a).det()
    size = abs(value)
    if not size > ZERO:
        raise UnsupportedError("a determinant of about zero")
    return array([value / size], ()), array([size.log()], ()), Factored(a.T), None


LINEAR_SYSTEMS: dict[str, Callable[..., Any]] = {
    "_linalg_solve_ex": solve_ex,
    "linalg_lu_solve": lu_solve,
    "linalg_inv_ex": inverse,
    "linalg_cholesky_ex": cholesky,
    "linalg_solve_triangular": triangular,
    "_linalg_det": determinant,
    "_linalg_slogdet": slogdet,
}
