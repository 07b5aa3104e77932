"""Many random programs, and what they showed: how near to its bound did any error come?

`python -m tests.fuzz.campaign FIRST COUNT [FILE]` runs seeds FIRST, FIRST + 1, ..., prints a
summary and writes it as JSON. Failures are printed as recipes, shrunk.
"""

import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.check import METHODS, Outcome, check, shrunk
from tests.fuzz.losses import LOSSES
from tests.fuzz.recipe import BLOCKS, Recipe, random_recipe
from tests.fuzz.steps import FORMATS, STRUCTURES

KINDS = len(BLOCKS) + len(LOSSES) + len(STRUCTURES)


@dataclass
class Summary:
    """What a campaign showed.

    Attributes:
        statuses: Programs by status; see `Outcome`.
        words: Certificates by method asked, method that gave the bound, and guarantee.
        whys: Reasons why a program was not decided, or not as recorded.
        largest: Largest error/bound of the computed gradient and of the reference, by method,
            family of blocks, loss, structure, format and scale.
        entries: Entries that were compared with a bound.
        failures: Recipes that failed, with the simplest that fails, too.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    whys: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    largest: dict[str, tuple[float, float]] = field(default_factory=dict)
    entries: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one program."""
        self.statuses[outcome.status] += 1
        if outcome.why:
            self.whys[f"{outcome.status}: {outcome.why[:120]}"] += 1
        if outcome.status == "decided":
            self.kinds.update(outcome.recipe.kinds)
        for judged in outcome.judged:
            self.words[f"{judged.method} -> {judged.by}, {judged.guarantee}"] += 1
            self.entries += judged.entries
            if judged.entries:
                for family in (f"method: {judged.by}", *outcome.recipe.families):
                    error, radius = self.largest.get(family, (0.0, 0.0))
                    found = max(error, judged.error.ratio), max(radius, judged.radius.ratio)
                    self.largest[family] = found

    @property
    def programs(self) -> int:
        """Programs that torch could run and the package could record."""
        return sum(self.statuses.values()) - self.statuses["cannot run"]

    @property
    def decided_share(self) -> float:
        return self.statuses["decided"] / max(self.programs, 1)

    def text(self) -> str:
        """The summary for a terminal."""
        lines = [
            f"{self.programs} programs of {KINDS} kinds, {self.statuses['decided']} decided "
            f"({self.decided_share:.1%}); {sum(self.words.values())} certificates, {self.entries} "
            f"entries compared; {len(self.failures)} failures",
            f"status: {dict(self.statuses)}",
            *(f"  {count:6d}  {word}" for word, count in sorted(self.words.items())),
            "largest error/bound (computed gradient, reference):",
            *(f"  {error:8.4f} {radius:8.4f}  {family}"
              for family, (error, radius) in sorted(self.largest.items())),
            "not decided, or not as recorded:",
            *(f"  {count:6d}  {why}" for why, count in self.whys.most_common(25)),
            *self.failures,
        ]  # fmt: skip
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """The summary as JSON."""
        return {
            "kinds": KINDS,
            "kinds decided": len(self.kinds),
            "formats": len(FORMATS),
            "programs": self.programs,
            "decided share": self.decided_share,
            "statuses": dict(self.statuses),
            "certificates": dict(self.words),
            "entries": self.entries,
            "largest error/bound": {k: list(v) for k, v in sorted(self.largest.items())},
            "failures": self.failures,
        }


def run(recipes: Iterable[Recipe], methods: tuple[str, ...] | None = None) -> Summary:
    """Check each recipe by some methods; by all in turn where none are named."""
    summary = Summary()
    for i, recipe in enumerate(recipes):
        chosen = methods or (METHODS[i % len(METHODS)],)
        outcome = check(recipe, chosen)
        summary.add(outcome)
        if outcome.failed:
            small = shrunk(recipe, chosen)
            summary.failures.append(f"{_described(outcome)}\n  simplest: {small!r}")
            print(summary.failures[-1], flush=True)
    return summary


def _described(outcome: Outcome) -> str:
    found = [
        f"{j.method} ({j.by}, {j.guarantee}): error/bound {j.error.ratio:.6g} at {j.error.where}, "
        f"reference {j.radius.ratio:.6g} at {j.radius.where}"
        for j in outcome.violations
    ]
    return "\n  ".join([repr(outcome.recipe), *([outcome.why] if outcome.why else []), *found])


def main() -> None:
    """Run a range of seeds."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    first, count = int(sys.argv[1]), int(sys.argv[2])
    summary = run((random_recipe(seed) for seed in range(first, first + count)), METHODS[:3])
    print(summary.text())
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(json.dumps(summary.document(), indent=1))


if __name__ == "__main__":
    main()
