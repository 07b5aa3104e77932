"""Under which names are the gallery's defects found, and which twins are suspected?"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from numgeom.diagnosis import Diagnosis, Finding, Severity, diagnose
from reproductions.gallery import CASES, Case
from reproductions.outcome import Cell, Table

COLUMNS = (
    "defect", "programs", "right kind and op", "other findings only", "nothing found",
    "worst finding, by kind", "twins with findings",
)  # fmt: skip


def confusion(
    cases: Sequence[Case] = CASES,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda name, i, n: None,
) -> Table:
    """Diagnose the defects and twins of a gallery; one row per kind of defect, and one for all.

    Args:
        cases: The gallery. A case counts under the first of the kinds that it can show itself as.
        seed: Of the random generator, for each program anew.
        progress: Called with the name of each case, its number and their count.
    """
    counts: dict[str, Counter[str]] = {}
    worst: dict[str, Counter[str]] = {}
    for i, case in enumerate(cases):
        progress(case.name, i, len(cases))
        count = counts.setdefault(case.kinds[0], Counter())
        found, twin = _alarms(case.defective, seed), _alarms(case.healthy, seed)
        right = any(is_right(case, finding) for finding in found)
        count["all"] += 1
        count["right"] += right
        count["other"] += bool(found) and not right
        count["nothing"] += not found
        count["twin"] += bool(twin)
        name = found[0].kind.value if found else "nothing"
        worst.setdefault(case.kinds[0], Counter())[name] += 1
    rows = [_row(kind, counts[kind], worst[kind]) for kind in sorted(counts)]
    rows.append(_row("all", sum(counts.values(), Counter()), Counter()))
    return Table("The gallery of defects, and their healthy twins", COLUMNS, tuple(rows))


def is_right(case: Case, finding: Finding) -> bool:
    """Whether a finding has a kind of the case, and its op."""
    named = not case.ops or any(word in finding.op for word in case.ops)
    return named and finding.kind in case.kinds


def _alarms(make: Callable[[], tuple], seed: int) -> list[Finding]:
    """Findings above "info", the worst first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: Diagnosis = diagnose(*make())
    return [f for f in found if f.severity is not Severity.INFO]


def _row(kind: str, count: Counter[str], worst: Counter[str]) -> tuple[Cell, ...]:
    names = ", ".join(f"{name} {n}" for name, n in worst.most_common())
    return (
        kind, count["all"], count["right"], count["other"], count["nothing"], names, count["twin"],
    )  # fmt: skip
