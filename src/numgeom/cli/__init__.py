"""What can be asked from the command line? One file per command.

Everything heavy is imported inside the commands, so that `--help` answers at once. Exit codes:
0 fine, 1 findings (values that are not finite), 2 bad usage or a step that fails, 130 Ctrl-C.
"""

from typing import Annotated

import typer

from numgeom.cli import certify, diagnose, estimate, examples, plan, reproduce, verify, zones
from numgeom.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="numgeom",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# In the order in which `numgeom --help` lists them.
_COMMANDS = (
    certify,
    verify,
    diagnose,
    estimate,
    plan,
    examples,
    reproduce,
    zones,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"numgeom {__version__}")
        raise typer.Exit


@app.callback(
    epilog="First steps:  [bold]numgeom examples[/]  lists training steps that are built in;  "
    "[bold]numgeom certify example:digits-mlp[/]  shows how wrong the gradient of one is;  "
    "[bold]numgeom certify --help[/]  says how to name a step of your own."
)
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """How far can you trust the gradient of a PyTorch training step?

    Exit codes: 0 fine, 1 findings (NaN or Inf), 2 bad usage or a failing step.
    """
    del version


def main() -> None:
    """Run the command line; the entry point of the `numgeom` script."""
    app()


for _command in _COMMANDS:
    app.add_typer(_command.app)
