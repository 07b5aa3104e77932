"""numgeom diagnose: what is numerically wrong with a training step?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from numgeom.cli.errors import clean_errors, say
from numgeom.cli.options import Device, Dtype
from numgeom.cli.steps import loaded

if TYPE_CHECKING:
    from numgeom.diagnosis import Diagnosis

app = typer.Typer()


@app.command("diagnose")
def _diagnose(
    target: Annotated[
        str,
        typer.Argument(
            show_default=False,
            help="file.py:function, package.module:function, example:NAME, or a program file that "
            "was saved by Program.save or by a Monitor.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Convert model and batch to this format first.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random generators.")] = 0,
    epochs: Annotated[int, typer.Option(help="Train an example for so long first.", min=0)] = 0,
    device: Annotated[Device, typer.Option(help="Where the step runs.")] = Device.CPU,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Name what is numerically wrong with a training step, where, and what cures it.

    Exit code 1 if there are findings above "info".
    """
    with clean_errors(debug):
        found = _make_diagnosis(
            target, dtype=dtype, seed=seed, epochs=epochs, device=device, quiet=quiet or as_json
        )
        say(found.to_json() if as_json else str(found))
    if found:
        raise typer.Exit(1)


def _make_diagnosis(
    target: str, *, dtype: Dtype | None, seed: int, epochs: int, device: Device, quiet: bool
) -> "Diagnosis":
    from numgeom.diagnosis import diagnose
    from numgeom.recording import Program
    from numgeom.report import progress_bar

    if Path(target).is_file():
        return diagnose(Program.load(target))
    with progress_bar(quiet=quiet) as advance:
        step = loaded(target, dtype, seed, epochs, device, advance)
        advance("diagnosing", 0, 0)
        return diagnose(step.model, step.loss_fn, step.batch)
