"""What is a table or figure of the max-pooling study, and how is one made again?

A *figure* is a row of `figures`: name, title, two sizes, and a function that measures. `reproduce`
is the one runner: it chooses the size, measures, and adds what every result carries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from reproductions.maxpool.problems import Problem, standing
from reproductions.outcome import Outcome, Plot, Settings, Table, circumstances

Size = TypeVar("Size")


@dataclass(frozen=True)
class Findings:
    """What one measurement gave.

    Attributes:
        tables: In the order in which they are printed.
        plots: Figures; the first part of each name is that of the row.
        facts: Single figures; the unit stands in the key.
        notes: Sentences that a reader needs.
        problems: Networks and data that were used.
    """

    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Figure(Generic[Size]):
    """One table or figure of the study.

    Attributes:
        name: What it is called on the command line.
        title: What is shown, in one line.
        measure: Does the work: `measure(settings, name, size)`.
        small: How much is measured so that it ends within minutes on two cores.
        paper: How much the paper measured.
        source: Where it is in Boustany (2024), such as "table 2"; empty for what the paper only
            mentions.
        on_device: Whether the device of the settings is used; a few scalars stay on the CPU.
    """

    name: str
    title: str
    measure: Callable[[Settings, str, Size], Findings]
    small: Size
    paper: Size
    source: str = ""
    on_device: bool = True

    def size(self, settings: Settings) -> Size:
        """The size that the settings ask for."""
        return self.small if settings.is_small else self.paper


def reproduce(figure: Figure[Size], settings: Settings, *, size: Size | None = None) -> Outcome:
    """Make a table or figure of the study again.

    Args:
        figure: A row of the table of figures.
        settings: As for every reproduction.
        size: How much is measured; None: what the scale of the settings says.
    """
    if not figure.on_device:
        settings = replace(settings, device="cpu")
    found = figure.measure(settings, figure.name, size or figure.size(settings))
    return Outcome(
        name=figure.name,
        title=f"{figure.title} (Boustany 2024, {figure.source})" if figure.source else figure.title,
        tables=found.tables,
        plots=found.plots,
        facts=found.facts,
        notes=(*found.notes, *(standing(settings, *found.problems) if found.problems else ())),
        data=tuple({each.dataset.stamp: None for each in found.problems}),
        circumstances=circumstances(settings),
    )
