"""numgeom verify: is a certificate true, and is it one of this step?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from numgeom.cli.errors import clean_errors, say
from numgeom.cli.options import Device, Dtype
from numgeom.cli.steps import loaded
from numgeom.errors import NumgeomError

app = typer.Typer()


@app.command(
    "verify",
    epilog="Example:\n\n"
    "  [bold]numgeom certify example:digits-mlp --save result.json[/]\n\n"
    "  [bold]numgeom verify result.json[/]\n\n"
    "  [bold]numgeom verify result.json --target train.py:make_step[/]",
)
def _verify(
    file: Annotated[
        Path, typer.Argument(show_default=False, help="A file written by numgeom certify --save.")
    ],
    target: Annotated[
        str | None,
        typer.Option(
            show_default="the one that the certificate names",
            help="The step that it is said to be about: file.py:function, "
            "package.module:function, or example:NAME.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make a certificate again, from the step and the seeds that it names, and compare.

    It is compared bit for bit. Where bits differ, the answer says whether the file was changed
    after it was written, is about another step, or was made elsewhere, where other bits may be
    right.

    Exit code 0 if verified, 1 if not, 2 if there is nothing to verify: no certificate, no step.
    """
    with clean_errors(debug):
        from numgeom.certificate import Certificate
        from numgeom.certificate.verify import verify
        from numgeom.report import progress_bar

        certificate = Certificate.load(file)
        said = certificate.provenance
        name = target or said.get("target")
        if name is None:
            raise NumgeomError(f"{file} names no target; say which step it is about with --target.")
        try:
            seed, epochs = int(said.get("seed", "0")), int(said.get("epochs", "0"))
            dtype = Dtype(said["dtype"]) if said.get("dtype", "") else None
            device = Device(said.get("device", "cpu").partition(":")[0])
        except ValueError as error:
            raise NumgeomError(f"{file} is damaged: {error} in its provenance.") from error
        with progress_bar(quiet=quiet or as_json) as advance:
            step = loaded(name, dtype, seed, epochs, device, advance)
            found = verify(file, step.model, step.loss_fn, step.batch, progress=advance)
        if as_json:
            document = {
                "schema": "numgeom.verification",
                "version": 1,
                "verified": found.verified,
                "target": name,
                "named_target": said.get("target"),
                "verdict": found.verdict.value,
                "same_step": found.same_step,
                "differences": list(found.differences),
                "circumstances": list(found.circumstances),
            }
            typer.echo(json.dumps(document, indent=2))
        else:
            say(str(found))
            if target is not None and said.get("target") not in (None, target):
                typer.echo(f"The certificate itself names the target {said['target']}.")
    if not found:
        raise typer.Exit(1)
