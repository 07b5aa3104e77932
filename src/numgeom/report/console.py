"""Where is a result printed, and how wide?"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from numgeom.visible import visible_lines

# Output to a file or a pipe has this width, whatever the terminal: equal runs, equal output.
_FILE_WIDTH = 120


class PlainConsole(Console):
    """A console that takes text as text: no markup, no emoji codes, no control characters.

    Renderers escape names themselves, before the layout; what they forget is escaped here.
    """

    def __init__(self, **options: Any) -> None:
        """Take the options of `rich.console.Console`."""
        super().__init__(**{**options, "markup": False, "emoji": False, "highlight": False})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does, and escape what no renderer escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible_lines(segment.text))


def console(**options: Any) -> PlainConsole:
    """A console on standard output; of fixed width where that is a file or a pipe.

    Args:
        **options: Of `rich.console.Console`, such as `file` or `width`.
    """
    found = PlainConsole(**options)
    return found if found.is_terminal else PlainConsole(**{"width": _FILE_WIDTH, **options})
