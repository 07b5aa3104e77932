"""numgeom estimate: how large will the error of the gradient be, and where does it come from?"""

import dataclasses
import json
from typing import Annotated

import typer

from numgeom.cli.errors import clean_errors, say
from numgeom.cli.options import Device, Dtype
from numgeom.cli.steps import loaded, provenance

app = typer.Typer()


@app.command(
    "estimate",
    epilog="Examples:\n\n"
    "  [bold]numgeom estimate example:text-gpt --format bfloat16[/]\n\n"
    "  [bold]numgeom estimate train.py:make_step --format float8_e4m3fn --sources[/]",
)
def _estimate(
    target: Annotated[
        str,
        typer.Argument(
            show_default=False,
            help="file.py:function, package.module:function, or example:NAME.",
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            help="Predict for another format: bfloat16, float16 (as under autocast), tf32, "
            "float8_e4m3fn, float8_e5m2.",
            show_default="as the step runs",
        ),
    ] = None,
    stored_as: Annotated[
        str | None,
        typer.Option(
            help="How values wait for the backward pass: a format (float16, float8_e4m3fn, ...), "
            "int8, or recomputed (checkpointing whose kernels round otherwise).",
            show_default="as they were computed",
        ),
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Also say where the error comes from, as a tree.")
    ] = False,
    bits: Annotated[
        float | None,
        typer.Option(
            metavar="TOLERANCE",
            help="Also find the smallest mantissa of every kind of op and module that keeps this "
            "relative error.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Noisy replays.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="One line of result.")] = False,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Convert model and batch to this format.", show_default="as it comes"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random generators.", min=0)] = 0,
    epochs: Annotated[int, typer.Option(help="Train an example for so long first.", min=0)] = 0,
    device: Annotated[Device, typer.Option(help="Where the step runs.")] = Device.CPU,
    rows: Annotated[int, typer.Option(min=1, help="Most parameters in the table.")] = 40,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Predict the rounding error of a gradient, in the formats as they are or in another.

    The recorded step is replayed with every call rounded as its format does. ESTIMATED: a
    prediction, no bound.
    """
    with clean_errors(debug):
        from numgeom.precision import estimate
        from numgeom.report import console, progress_bar

        with progress_bar(quiet=quiet or as_json) as advance:
            step = loaded(target, dtype, seed, epochs, device, advance)
            advance("estimating", 0, 0)
            found = estimate(
                step.model,
                step.loss_fn,
                step.batch,
                format=format,
                stored_as=stored_as,
                samples=samples,
                seed=seed,
            )
            if sources:
                advance("looking for the sources", 0, 0)
                found.sources()
            parts = {}
            if bits is not None:
                advance("trying bits", 0, 0)
                parts = {by: found.bits(bits, by=by) for by in ("kind", "module")}
        if as_json:
            said = provenance(step, seed=seed, epochs=epochs, device=device)
            document = {**found.to_document(), "provenance": said}
            if sources:
                document["sources"] = found.sources().to_document()
            for by, needs in parts.items():
                document[f"bits_by_{by}"] = [dataclasses.asdict(need) for need in needs.values()]
            say(json.dumps(document, indent=2, allow_nan=False))
            return
        if quiet:
            say(str(found))
            return
        from numgeom.report.estimate import bits_view, estimate_view
        from numgeom.report.sources import sources_view

        console().print(estimate_view(found, rows=rows))
        if sources:
            console().print(sources_view(found.sources().for_certificate()))
            say(str(found.sources()))
        for by, needs in parts.items():
            console().print(bits_view(needs.values(), by=by))
