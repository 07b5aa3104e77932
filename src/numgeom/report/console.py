"""Where is a result printed, and how wide?"""

from rich.console import Console

# Output to a file or a pipe has this width, whatever the terminal: equal runs, equal output.
_FILE_WIDTH = 120


def console() -> Console:
    """A console on standard output; of fixed width where that is a file or a pipe."""
    found = Console()
    return found if found.is_terminal else Console(width=_FILE_WIDTH)
