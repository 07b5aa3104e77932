"""Which published tables and figures can be made again?"""

import difflib
from functools import partial

from reproductions.attention import attention
from reproductions.instabilities import instabilities
from reproductions.maxpool.figure import reproduce
from reproductions.maxpool.figures import FIGURES
from reproductions.outcome import Reproduction, ReproductionError
from reproductions.table1 import table1

_OWN = (
    Reproduction("attention", "Error of attention against sequence length and bits", attention),
    Reproduction("instabilities", "Injected instabilities that are found", instabilities),
    Reproduction("table1", "Tightness of error bounds, by model", table1),
)

REPRODUCTIONS: dict[str, Reproduction] = {each.name: each for each in _OWN} | {
    name: Reproduction(name, row.title, partial(reproduce, row)) for name, row in FIGURES.items()
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
