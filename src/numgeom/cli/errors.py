"""What does a person see of a result, and when a command fails?"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from numgeom.errors import NumgeomError
from numgeom.visible import visible_lines


@contextmanager
def clean_errors(debug: bool) -> Iterator[None]:
    """Turn an error into one sentence on standard error and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        _complain("Interrupted.")
        raise typer.Exit(130) from None
    except (BrokenPipeError, typer.Exit):
        raise
    except NumgeomError as error:
        if debug:
            raise
        _complain(f"Error: {error}")
        raise typer.Exit(2) from error
    except Exception as error:
        if debug:
            raise
        from numgeom.targets.importing import describe_error

        _complain(f"Error: the step failed{describe_error(error)}. Use --debug for the traceback.")
        raise typer.Exit(2) from error


def _complain(text: str) -> None:
    print(visible_lines(text), file=sys.stderr)  # noqa: T201 - the command line talks to a person


def say(text: str) -> None:
    """Write a text on standard output; what is in it can only be read."""
    typer.echo(visible_lines(text))
