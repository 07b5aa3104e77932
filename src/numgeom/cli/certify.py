"""numgeom certify: how wrong is the gradient of a training step?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from numgeom.cli.errors import clean_errors, say
from numgeom.cli.options import Device, Dtype, Method
from numgeom.cli.steps import loaded, provenance

if TYPE_CHECKING:
    from numgeom.certificate import Certificate

app = typer.Typer()


@app.command(
    "certify",
    epilog="Examples:\n\n"
    "  [bold]numgeom certify example:digits-mlp[/]\n\n"
    "  [bold]numgeom certify example:digits-lenet --dtype bfloat16 --epochs 1[/]\n\n"
    "  [bold]numgeom certify train.py:make_step --seed 1 --save result.json[/]\n\n"
    "  [bold]numgeom certify my.package:make_step --json > result.json[/]",
)
def _certify(
    target: Annotated[
        str,
        typer.Argument(
            show_default=False,
            help="What to certify: file.py:function or package.module:function, a function "
            "without arguments that returns (model, loss_fn, batch) where loss_fn(model, batch) "
            "is the loss; or example:NAME.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar, and one line of result.")
    ] = False,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Convert model and batch to this format.", show_default="as it comes"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random generators.")] = 0,
    epochs: Annotated[int, typer.Option(help="Train that long first; built-in examples only.")] = 0,
    device: Annotated[Device, typer.Option(help="Where the step runs.")] = Device.CPU,
    method: Annotated[
        Method,
        typer.Option(
            help="How the reference's own error is bounded: ball arithmetic (PROVED, shallow "
            "models), Newton-Kantorovich (CERTIFIED, any depth), error functionals (functional: "
            "PROVED, fast, loose for deep models), or not at all (reference, fast)."
        ),
    ] = Method.AUTO,
    save: Annotated[
        Path | None,
        typer.Option(help="Also write the result here, as JSON if the name ends in .json."),
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Also say where the observed error comes from.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="Most parameters in the table.")] = 40,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show how wrong the gradient of a training step is, per parameter and in total.

    The step runs once and is recorded; the recording is replayed in float64 and compared.

    Exit code 1 if the loss or a gradient is NaN or infinite: the result says where from.
    """
    with clean_errors(debug):
        certificate = _make_certificate(
            target,
            method=method,
            dtype=dtype,
            seed=seed,
            epochs=epochs,
            device=device,
            quiet=quiet,
        )
        if sources:
            certificate.sources()
        _show(certificate, as_json=as_json, quiet=quiet, rows=rows, sources=sources)
        if save is not None:
            certificate.save(save)
    if certificate.first_nonfinite is not None:
        raise typer.Exit(1)


def _make_certificate(
    target: str,
    *,
    method: Method,
    dtype: Dtype | None,
    seed: int,
    epochs: int,
    device: Device,
    quiet: bool,
) -> "Certificate":
    from numgeom.certificate import certify
    from numgeom.report import progress_bar

    with progress_bar(quiet=quiet) as advance:
        step = loaded(target, dtype, seed, epochs, device, advance)
        certificate = certify(
            step.model,
            step.loss_fn,
            step.batch,
            method=method.value,
            progress=advance,
            probe_seed=seed,
        )
    facts = provenance(step, seed=seed, epochs=epochs, device=device)
    return certificate.stamped(**facts, dtype="" if dtype is None else dtype.value)


def _show(
    certificate: "Certificate", *, as_json: bool, quiet: bool, rows: int, sources: bool
) -> None:
    from numgeom.report import console, headline, view

    if as_json:
        say(certificate.to_json())
        return
    console().print(headline(certificate) if quiet else view(certificate, rows=rows))
    if sources:
        from numgeom.report.sources import sources_view

        console().print(sources_view(certificate.sources()))
