"""numgeom reproduce: make a published table or figure again.

The reproductions are no part of the installed package: they are in the folder `reproductions` of
the source code, and this command hands its arguments to them where that folder is at hand.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from numgeom.cli.errors import clean_errors
from numgeom.errors import NumgeomError

app = typer.Typer()


class ReproductionsMissing(NumgeomError):
    """The folder with the reproductions is not at hand."""


@app.command(
    "reproduce",
    add_help_option=False,  # the reproductions have a help text of their own
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def _reproduce(context: typer.Context) -> None:
    """Make a published table or figure again, with the numbers of this machine."""
    with clean_errors(debug="--debug" in context.args):
        _find_folder()
        from reproductions.command import app as reproductions

        reproductions(context.args, prog_name="numgeom reproduce")


def _find_folder() -> None:
    """Make the folder importable that stands beside the package's source code.

    The current folder is not searched: what happens to lie there is not to be run unasked.

    Raises:
        ReproductionsMissing: if there is none.
    """
    if find_spec("reproductions") is not None:
        return
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / "reproductions" / "catalogue.py").is_file():
        raise ReproductionsMissing(
            "The reproductions of published tables and figures are in the source code of numgeom, "
            "not in the installed package. Get the source code and run "
            "`python -m reproductions` in its folder."
        )
    sys.path.append(str(checkout))
