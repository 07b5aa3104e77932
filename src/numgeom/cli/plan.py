"""numgeom plan: which format may each module run in?"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from numgeom.cli.errors import clean_errors, say
from numgeom.cli.options import Device
from numgeom.cli.steps import loaded, provenance

app = typer.Typer()


@app.command(
    "plan",
    epilog="Examples:\n\n"
    "  [bold]numgeom plan example:digits-lenet --tolerance 1e-2[/]\n\n"
    "  [bold]numgeom plan train.py:make_step --tolerance 3e-2 "
    "--formats float8_e4m3fn,bfloat16,float32 --save plan.json[/]",
)
def _plan(
    target: Annotated[
        str,
        typer.Argument(
            show_default=False,
            help="file.py:function, package.module:function, or example:NAME.",
        ),
    ],
    tolerance: Annotated[
        float, typer.Option(help="Relative error, 2-norm, that the whole gradient may have.")
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--formats",
            "--format",
            help="Formats to choose from, separated by commas, or the option once per format: "
            "float32, tf32, bfloat16, float16, float8_e4m3fn, float8_e5m2.",
            show_default="bfloat16,float32",
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the plan here, for PrecisionPlan.load.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Also run the plan for real and measure the error.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="One line of result.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of all random generators.", min=0)] = 0,
    epochs: Annotated[int, typer.Option(help="Train an example for so long first.", min=0)] = 0,
    device: Annotated[Device, typer.Option(help="Where the step runs.")] = Device.CPU,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Choose a format per module: the most work in cheap formats within an error tolerance.

    Exit code 1 if the plan, run for real, does not keep the tolerance.
    """
    given = formats or ["bfloat16,float32"]
    with clean_errors(debug):
        from numgeom.precision import plan_precision
        from numgeom.report import console, progress_bar
        from numgeom.report.estimate import plan_view

        with progress_bar(quiet=quiet or as_json) as advance:
            step = loaded(target, None, seed, epochs, device, advance)
            advance("measuring modules", 0, 0)
            plan = plan_precision(
                step.model,
                step.loss_fn,
                step.batch,
                tolerance=tolerance,
                formats=[f.strip() for each in given for f in each.split(",") if f.strip()],
            )
            advance("running the plan", 0, 0)
            checked = plan.verify(step.model, step.loss_fn, step.batch) if verify else None
        if save is not None:
            plan.save(save)
        if as_json:
            document: dict[str, Any] = {
                **plan.to_document(),
                "provenance": provenance(step, seed=seed, epochs=epochs, device=device),
            }
            if checked is not None:
                document["measured_error"] = checked.measured_error
                document["holds"] = checked.holds
            say(json.dumps(document, indent=2, allow_nan=False))
        elif quiet:
            say(str(plan))
        else:
            console().print(plan_view(plan, checked))
    if checked is not None and not checked.holds:
        raise typer.Exit(1)
