"""Which published tables and figures can be made again? The list behind `numgeom reproduce`.

A module with the work behind a name is imported when the name is asked for.
"""

import difflib
from collections.abc import Callable
from importlib import import_module

from numgeom.experiments.reproduction import Outcome, Reproduction, ReproductionError, Settings


def _lazy(module: str, function: str) -> Callable[[Settings], Outcome]:
    def run(settings: Settings) -> Outcome:
        return getattr(import_module(f"numgeom.experiments.{module}"), function)(settings)

    return run


# One line per table or figure: name, title, the module below numgeom.experiments, its function.
_ENTRIES: tuple[tuple[str, str, str, str], ...] = (
    ("attention", "Error of attention against sequence length and bits", "attention", "attention"),
    ("instabilities", "Injected instabilities that are found", "instabilities", "instabilities"),
    ("table1", "Tightness of error bounds, by model", "table1", "table1"),
)

REPRODUCTIONS: dict[str, Reproduction] = {
    name: Reproduction(name=name, title=title, run=_lazy(module, function))
    for name, title, module, function in _ENTRIES
}


def find_reproduction(name: str) -> Reproduction:
    """Look a reproduction up by its name.

    Raises:
        ReproductionError: If there is none of that name; the message lists close names or all.
    """
    if name in REPRODUCTIONS:
        return REPRODUCTIONS[name]
    close = difflib.get_close_matches(name, REPRODUCTIONS)
    hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(REPRODUCTIONS)}."
    raise ReproductionError(f"There is no reproduction named {name!r}; {hint}")
