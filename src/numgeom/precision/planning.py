"""Which assignment of formats to modules saves the most work within a limit of the error?

The error of each module in each format is measured alone; a model with many modules is measured by
roles (`blocks.*.mlp.0`), modules of one role sharing their error evenly. Taken as independent,
squares add up, and the best assignment is an integer program (`numgeom.precision.assignment`). It
is then measured as a whole, and where modules work on each other the budget shrinks by what was
seen and the program is solved again.

Squares do not add up where units cross kinks: errors of two modules may undo each other. So the
search goes on from there by measurements: with few modules over all assignments that save more
and are not hopeless, most savings first; with many over the changes of one or two modules.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from numgeom.arithmetic.printing import nearest, upper
from numgeom.precision.assignment import choose_formats
from numgeom.precision.errors import NoAssignmentError, PrecisionError
from numgeom.precision.measuring import Measurer
from numgeom.precision.operations import COST

# More modules than this are measured by roles, so that a plan costs less than twenty steps.
MOST_MEASURED_ALONE = 12
# Tables with more entries than this, or of large steps, are measured on the recorded steps alone;
# what comes out is measured on the variants too.
_MOST_VARIED = 24
_ROUNDS = 8
# Up to so many modules, and so many assignments of them, all are looked at.
MOST_TRIED_ALL = 10
_MOST_ASSIGNMENTS = 1 << 16
# Predictions further above the limit than this factor are not measured. Seen: 2 for LeNet.
_HOPELESS = 4.0
# So many assignments are measured as a whole. With few modules more: so many that their replays do
# this much work, in operations, where a call counts as much as so many operations.
_LEAST_MEASURED = 4
_MOST_MEASURED = 4096
_WORK = 2e11
_WORK_OF_A_CALL = 2e6
# What saves less than this times what was found is not looked at.
_WORTH = 1.02
# Changes of two modules are looked at where there are at most so many of one.
_MOST_PAIRED = 100


@dataclass(frozen=True)
class Found:
    """The best assignment that was found, its predicted error, and the table behind it."""

    formats: dict[str, str]
    predicted_error: float
    module_errors: dict[str, dict[str, float]]


def search(
    measurer: Measurer,
    flops: Mapping[str, int],
    units: Sequence[str],
    formats: Sequence[str],
    *,
    tolerance: float,
    limit: float,
) -> Found:
    """Find the assignment with the most work saved.

    Args:
        measurer: Measures assignments.
        flops: Work by module.
        units: The modules.
        formats: Formats to choose from.
        tolerance: What the user asked for; said in messages.
        limit: Relative error that predictions must keep.

    Raises:
        PrecisionError: if no assignment keeps the limit; says what can be had.
    """
    base = measurer.base
    if base > limit and "float32" in formats:
        raise PrecisionError(
            f"No assignment meets the tolerance of {nearest(tolerance)}: as the step runs now, "
            f"its gradient already has an error of {nearest(base)}, and that is the best that can "
            f"be had. Tolerances from {upper(1.01 * base * tolerance / limit)} on are in reach."
        )
    uniform = _cheapest(measurer, units, formats, limit)
    if uniform is not None:  # nothing saves more
        predicted = math.hypot(base, measurer.error(uniform))
        return Found(uniform, predicted, {m: {} for m in units})
    errors = _table(measurer, flops, units, formats)
    found = _Search(measurer, flops, errors, limit).best()
    if found is None:
        raise _nothing(measurer, errors, tolerance, limit)
    return Found(found, math.hypot(base, measurer.error(found)), errors)


def _cheapest(
    measurer: Measurer, units: Sequence[str], formats: Sequence[str], limit: float
) -> dict[str, str] | None:
    """Everything in one of the cheapest formats, if that keeps the limit; the most exact one."""
    least = min(COST[f] for f in formats)
    candidates = [dict.fromkeys(units, f) for f in formats if COST[f] == least]
    kept = [c for c in candidates if measurer.keeps(c, limit)]
    return min(kept, key=measurer.error, default=None)


def _nothing(
    measurer: Measurer,
    errors: Mapping[str, Mapping[str, float]],
    tolerance: float,
    limit: float,
) -> PrecisionError:
    """What to say where no assignment keeps the limit."""
    without = [m for m, row in errors.items() if not any(map(math.isfinite, row.values()))]
    if without:
        return PrecisionError(
            f"No given format can be used in {', '.join(without)}: each of them overflows there. "
            "Add float32 to the formats."
        )
    exact = {m: min(row, key=row.__getitem__) for m, row in errors.items()}
    best = measurer.worst(exact)
    return PrecisionError(
        f"No assignment of the given formats meets the tolerance of {nearest(tolerance)}: the "
        f"best has a predicted error of {nearest(best)}, so tolerances from "
        f"{upper(1.01 * best * tolerance / limit)} on are in reach. Raise the tolerance, or "
        "add a wider format."
    )


class _Search:
    """The search for one limit, with the table of errors at hand."""

    def __init__(
        self,
        measurer: Measurer,
        flops: Mapping[str, int],
        errors: Mapping[str, Mapping[str, float]],
        limit: float,
    ) -> None:
        self._measurer = measurer
        self._limit = limit
        self._budget = limit**2 - measurer.base**2
        self._squared = {m: {f: e * e for f, e in row.items()} for m, row in errors.items()}
        self._savings = {m: {f: flops[m] * (1.0 - COST[f]) for f in errors[m]} for m in errors}
        # Every choice that no other one of the same module beats in error and savings.
        self._choices = {m: self._undominated(m) for m in errors}
        self._left = _LEAST_MEASURED
        if len(errors) <= MOST_TRIED_ALL:
            affordable = int(_WORK / _work(measurer, flops))
            self._left = max(_LEAST_MEASURED, min(_MOST_MEASURED, affordable))

    def best(self) -> dict[str, str] | None:
        """The assignment with the most savings that keeps the limit, as far as it was found."""
        if not all(self._choices.values()):
            return None
        found = self._uniform(self._solved() or self._most_exact())
        units = len(self._choices)
        assignments = math.prod(map(len, self._choices.values()))
        every: list[dict[str, str]] = []
        if units <= MOST_TRIED_ALL and assignments <= _MOST_ASSIGNMENTS:
            every = self._all()
            if sum(self._is_worth(c, found) for c in every) <= self._left:
                return self._improved(found, every)
            every.sort(key=self._added)  # not all can be measured: the likeliest first
        while every or found is not None:
            better = self._improved(found, every or self._changes(found or {}))
            if better is found:
                break
            found = better
        return found

    def _undominated(self, module: str) -> list[str]:
        row, saved = self._squared[module], self._savings[module]
        ranked = sorted(
            (f for f in row if math.isfinite(row[f])), key=lambda f: (row[f], -saved[f])
        )
        kept: list[str] = []
        for f in ranked:
            if all(saved[f] > saved[other] for other in kept):
                kept.append(f)
        return kept

    def _saved(self, formats: Mapping[str, str]) -> float:
        return sum(self._savings[m][f] for m, f in formats.items())

    def _added(self, formats: Mapping[str, str]) -> float:
        return sum(self._squared[m][f] for m, f in formats.items())

    def _solved(self) -> dict[str, str] | None:
        """Solve the integer program, again and again until what it says is what is measured."""
        interaction = 1.0
        for _ in range(_ROUNDS):
            try:
                chosen = choose_formats(self._squared, self._savings, self._budget / interaction)
            except NoAssignmentError:
                return None
            if self._keeps(chosen):
                return chosen
            if self._left <= 0:
                return None
            added = math.hypot(self._measurer.base, math.sqrt(interaction * self._added(chosen)))
            ratio = self._measurer.worst(chosen) / added if added > 0.0 else math.inf
            # Where only one measurement is left, it must not fail by a little again.
            interaction *= 16.0 if self._left == 1 else max(min(ratio, 4.0) ** 2, 1.1)
        return None

    def _uniform(self, found: dict[str, str] | None) -> dict[str, str] | None:
        """Everything in one format, if that keeps the limit and saves more; else what was found."""
        shared = set.intersection(*(set(choices) for choices in self._choices.values()))
        for fmt in sorted(shared, key=COST.__getitem__):
            formats = {m: fmt for m in self._choices}  # noqa: C420 - pyright loses the type
            likely = self._added(formats) <= self._budget and self._is_worth(formats, found)
            if likely and self._measurer.keeps(formats, self._limit):
                return formats
        return found

    def _keeps(self, formats: dict[str, str]) -> bool:
        self._left -= 1
        return self._measurer.keeps(formats, self._limit)

    def _most_exact(self) -> dict[str, str] | None:
        exact = {m: choices[0] for m, choices in self._choices.items()}
        return exact if self._measurer.keeps(exact, self._limit) else None

    def _improved(
        self, found: dict[str, str] | None, candidates: Iterable[dict[str, str]]
    ) -> dict[str, str] | None:
        """The first of the candidates that keeps the limit and saves more; else what was found."""
        for candidate in candidates:
            if self._left <= 0:
                break
            if self._is_worth(candidate, found) and self._keeps(candidate):
                return candidate
        return found

    def _is_worth(self, candidate: dict[str, str], found: dict[str, str] | None) -> bool:
        """Whether an assignment is not hopeless, and saves more than what was found."""
        if found is not None and self._saved(candidate) <= _WORTH * self._saved(found):
            return False
        return self._added(candidate) <= _HOPELESS**2 * self._budget

    def _all(self) -> list[dict[str, str]]:
        """All assignments, most savings first."""
        found = [
            dict(zip(self._choices, chosen, strict=True))
            for chosen in itertools.product(*self._choices.values())
        ]
        return sorted(found, key=lambda c: (-self._saved(c), self._added(c)))

    def _changes(self, found: Mapping[str, str]) -> list[dict[str, str]]:
        """Assignments that differ in one or two modules, smallest predicted error first."""
        single = [(m, f) for m, row in self._choices.items() for f in row if f != found[m]]
        changes = [dict([change]) for change in single]
        if len(single) <= _MOST_PAIRED:
            changes += [{a[0]: a[1], b[0]: b[1]} for a, b in itertools.combinations(single, 2)]
        return sorted(({**found, **change} for change in changes), key=self._added)


def _work(measurer: Measurer, flops: Mapping[str, int]) -> float:
    """What it takes to measure one assignment on all steps."""
    steps = [*measurer.programs, *measurer.variants]
    return len(steps) * (sum(flops.values()) + _WORK_OF_A_CALL * len(steps[0]))


def _table(
    measurer: Measurer, flops: Mapping[str, int], units: Sequence[str], formats: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Error of the whole gradient with one module in one format, by module and format."""
    found: dict[str, dict[str, float]] = {m: {} for m in units}
    together = groups(units)
    chosen = _worth_measuring(measurer, units, formats)
    entries = len(together) * sum(f != "float32" for f in chosen)
    varied = entries <= _MOST_VARIED and entries * _work(measurer, flops) <= _WORK
    for fmt in chosen:
        for group in together:
            error = measurer.error(dict.fromkeys(group, fmt), varied=varied)
            for m in group:
                alone = len(group) == 1 or math.isfinite(error)
                found[m][fmt] = (
                    error / math.sqrt(len(group))
                    if alone
                    else measurer.error({m: fmt}, varied=varied)
                )
    return found


def _worth_measuring(measurer: Measurer, units: Sequence[str], formats: Sequence[str]) -> list[str]:
    """The formats without those that cost as much as a more exact one, and save nothing beside it.

    Where one of them overflows somewhere, all are kept.
    """
    found = []
    for price in sorted({COST[f] for f in formats}):
        rivals = [f for f in formats if COST[f] == price]
        errors = {
            f: measurer.error(dict.fromkeys(units, f), varied=False)
            for f in rivals
            if len(rivals) > 1
        }
        if errors and all(map(math.isfinite, errors.values())):
            rivals = [min(rivals, key=errors.__getitem__)]
        found += rivals
    return found


def groups(units: Sequence[str]) -> list[list[str]]:
    """The modules that are measured together: each alone, or by role where there are many."""
    if len(units) <= MOST_MEASURED_ALONE:
        return [[m] for m in units]
    roles: dict[str, list[str]] = {}
    for m in units:
        roles.setdefault(re.sub(r"(?<![^.])\d+(?=\.)", "*", m, count=1), []).append(m)
    return list(roles.values())
