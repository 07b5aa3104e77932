"""Which format for which module puts the most work into cheap formats within an error budget?

A multiple-choice knapsack problem: one format per module, the sum of squared errors at most the
square of the tolerance, as much work saved as possible. Solved exactly as an integer program.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numgeom.arithmetic.printing import lower, nearest
from numgeom.precision.errors import NoAssignmentError, PrecisionError


def choose_formats(
    squared_errors: Mapping[str, Mapping[str, float]],
    savings: Mapping[str, Mapping[str, float]],
    budget: float,
) -> dict[str, str]:
    """Choose one format for every module.

    Args:
        squared_errors: By module and format, the squared error that it adds; infinite or NaN where
            the format must not be taken.
        savings: By module and format, the work that it saves, in any unit.
        budget: What the squared errors of the chosen formats may add up to.

    Returns:
        Format by module, within the budget. No other choice saves more by over 1e-6 of the
        largest single saving; among choices that save the same, one with a small error.

    Raises:
        NoAssignmentError: if no choice is within the budget; says what can be had.
        PrecisionError: if SciPy is not installed.
    """
    pairs = [(m, f) for m, row in squared_errors.items() for f in row if np.isfinite(row[f])]
    least = {m: min(e for e in row.values()) for m, row in _finite(squared_errors).items()}
    without = [m for m in squared_errors if m not in least]
    if without:
        raise NoAssignmentError(
            f"No given format can be used in {', '.join(without)}: each of them overflows there. "
            "Add float32 to the formats."
        )
    if sum(least.values()) > budget:
        raise NoAssignmentError(
            "No assignment of the given formats meets the tolerance: the best has a predicted "
            f"error of {nearest(sum(least.values()) ** 0.5)}, and {lower(max(budget, 0.0) ** 0.5)} "
            "is left for it. Raise the tolerance, or add a wider format."
        )
    if not pairs:
        return {}
    chosen = _solve(pairs, squared_errors, savings, budget)
    return {pairs[i][0]: pairs[i][1] for i in chosen}


def _finite(table: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    found = {m: {f: e for f, e in row.items() if np.isfinite(e)} for m, row in table.items()}
    return {m: row for m, row in found.items() if row}


def _solve(
    pairs: Sequence[tuple[str, str]],
    squared_errors: Mapping[str, Mapping[str, float]],
    savings: Mapping[str, Mapping[str, float]],
    budget: float,
) -> list[int]:
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise PrecisionError(
            "Planning needs SciPy, which is not installed: pip install 'numgeom[precision]'"
        ) from error

    saved = np.array([savings[m][f] for m, f in pairs])
    errors = np.array([squared_errors[m][f] for m, f in pairs])
    # Both rows in units of order one: the solver's tolerances are absolute. What it may exceed
    # the budget by is taken off beforehand.
    scale = max(float(np.abs(saved).max()), 1e-300)
    cost = -saved / scale
    if budget > 0.0:
        errors = errors / budget
        cost = cost + 1e-7 * np.minimum(errors, 1.0)
    limit = 1.0 - 1e-5 if budget > 0.0 else 0.0
    upper: Any = (errors <= limit).astype(float)  # SciPy's stubs know scalar bounds only
    modules = list(dict.fromkeys(m for m, _ in pairs))
    one_each = np.array([[float(m == other) for m, _ in pairs] for other in modules])
    result = milp(
        cost,
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0.0, upper),
        constraints=[
            LinearConstraint(np.minimum(errors, 2.0)[None], -np.inf, limit),
            LinearConstraint(one_each, 1.0, 1.0),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise NoAssignmentError(
            "The solver found no assignment within the tolerance, although one exists; raise the "
            f"tolerance a little. It said: {result.message}"
        )
    return [i for i, x in enumerate(result.x) if x > 0.5]
