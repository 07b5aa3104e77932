"""numgeom verify: is a certificate true, and is it one of this step?"""

import json
from collections.abc import Mapping
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
    "  [bold]numgeom verify result.json train.py:make_step[/]",
)
def _verify(
    file: Annotated[
        Path, typer.Argument(show_default=False, help="A file written by numgeom certify --save.")
    ],
    step: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]",
            show_default=False,
            help="The step that it is said to be about: file.py:function, "
            "package.module:function, or example:NAME. Only a built-in example may be left away: "
            "code that a file names is never run.",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(show_default=False, help="The same as TARGET.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make a certificate again, from the step and the seeds that it names, and compare.

    It is compared bit for bit. Where bits differ, the answer says whether the certificate is about
    another step, or was made elsewhere, where other bits may be right. Of a file that was changed
    after it was written that alone is said, and nothing is run.

    Exit code 0 if verified, 1 if not, 2 if there is nothing to verify: no certificate, no step.
    """
    with clean_errors(debug):
        from numgeom.certificate import Certificate
        from numgeom.certificate.verify import verify
        from numgeom.report import progress_bar
        from numgeom.results.store import ChecksumError

        if step is not None and target is not None and step != target:
            raise NumgeomError(
                f"Two targets are given, {step!r} and {target!r}: name the step once."
            )
        asked = step or target
        try:
            said = Certificate.load(file).provenance
        except ChecksumError:
            said, name = {}, asked
            found = verify(file, None)
        else:
            name = _target(file, asked, said.get("target"))
            seed, epochs, dtype, device = _settings(file, said)
            with progress_bar(quiet=quiet or as_json) as advance:
                made = loaded(name, dtype, seed, epochs, device, advance)
                found = verify(file, made.model, made.loss_fn, made.batch, progress=advance)
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
                "not_compared": list(found.not_compared),
            }
            say(json.dumps(document, indent=2))
        else:
            say(str(found))
            if asked is not None and said.get("target") not in (None, asked):
                say(f"The certificate itself names the target {said['target']!r}.")
    if not found:
        raise typer.Exit(1)


def _target(file: Path, asked: str | None, named: str | None) -> str:
    """The step to run: the one that was asked for, or a built-in example that the file names."""
    from numgeom.examples import EXAMPLES

    if asked is not None:
        return asked
    place, _, example = (named or "").partition(":")
    if place == "example" and example in EXAMPLES:
        return f"example:{example}"
    if named is None:
        raise NumgeomError(
            f"{file} names no target. Say which step it is about: numgeom verify {file} TARGET, "
            "where TARGET is file.py:function, package.module:function or example:NAME."
        )
    raise NumgeomError(
        f"{file} says that it is about {named!r}. Code that a file names is not run, since whoever "
        "wrote the file would decide what runs here. If that is a step of yours, name it yourself: "
        f"numgeom verify {file} TARGET, where TARGET is file.py:function or "
        "package.module:function."
    )


def _settings(file: Path, said: Mapping[str, str]) -> tuple[int, int, Dtype | None, Device]:
    """Seed, epochs, format and device that a certificate was made with."""
    try:
        seed, epochs = int(said.get("seed", "0")), int(said.get("epochs", "0"))
        if not 0 <= epochs <= _MOST_EPOCHS:
            raise ValueError(f"{epochs} epochs")
        dtype = Dtype(said["dtype"]) if said.get("dtype", "") else None
        return seed, epochs, dtype, Device(said.get("device", "cpu").partition(":")[0])
    except ValueError as error:
        raise NumgeomError(f"{file} is damaged: {str(error)[:100]} in its provenance.") from error


_MOST_EPOCHS = 10_000  # a file does not decide that a command never ends
