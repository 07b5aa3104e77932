"""How does long work show what it is doing?

The bar is drawn on standard error and vanishes when the work is done, so that standard output
holds results alone. It stays silent when nobody can see it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from numgeom.visible import visible

# A redraw costs more than a small op of the work: let rich draw on its own clock, and tell it
# of this many calls at once.
_CALLS_PER_UPDATE = 64


@contextmanager
def progress_bar(
    *, quiet: bool = False, console: Console | None = None
) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar while the block runs.

    Yields a callback `advance(what, done, count)`: what is being done now, and how many of how
    many calls are done (a count of 0 means unknown). With `quiet`, or where the console is no
    terminal, the callback does nothing.

    Args:
        quiet: Show nothing.
        console: Where to draw; standard error by default.
    """
    console = Console(file=sys.stderr) if console is None else console
    if quiet or not console.is_terminal:
        yield _silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        current = ""

        def advance(what: str, done: int, count: int) -> None:
            nonlocal current
            if what == current and done % _CALLS_PER_UPDATE and done != count:
                return
            current = what
            # rich reads its markup in descriptions; a name must stay a name
            text = visible(what).replace("[", r"\[")
            progress.update(task, description=text, completed=done, total=count or None)

        yield advance


def _silent(what: str, done: int, count: int) -> None:
    del what, done, count
