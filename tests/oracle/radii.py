"""How much of a Newton-Kantorovich radius does the true error take up?"""

import math

import flint
from flint import arb

from numgeom.certificate.kantorovich import KantorovichResult
from numgeom.recording import Program
from tests.oracle.exact_program import contains, exact_gradients
from tests.oracle.numbers import Numbers


def ratios(
    program: Program, result: KantorovichResult, exact: dict[str, Numbers] | None = None
) -> tuple[float, float, float]:
    """Largest error / radius: by norm per parameter, of the total, entry by entry."""
    exact = exact_gradients(program) if exact is None else exact
    before, flint.ctx.prec = flint.ctx.prec, 200
    try:
        squares = {
            k: sum(
                ((e - arb(m)) ** 2 for e, m in zip(
                    exact[k].reshape(-1), result.midpoints[k].reshape(-1).tolist(), strict=True
                )),
                arb(0),
            )
            for k in exact
        }  # fmt: skip
        norms = max(_ratio(squares[k].sqrt(), result.norm_radii[k]) for k in exact)
        total = _ratio(sum(squares.values(), arb(0)).sqrt(), result.total_radius)
    finally:
        flint.ctx.prec = before
    entries = max(contains(exact[k], result.midpoints[k], result.entry_radii[k]) for k in exact)
    return norms, total, entries


def _ratio(error: arb, radius: float) -> float:
    if radius == 0:
        return 0.0 if error < arb(2) ** -150 else math.inf
    return float((error / arb(radius)).upper())
