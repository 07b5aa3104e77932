"""numgeom zones: does it matter which derivatives a step takes where it has none?"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from numgeom.cli.errors import clean_errors, say
from numgeom.cli.options import Device, Dtype
from numgeom.cli.steps import loaded, provenance

if TYPE_CHECKING:
    from numgeom.nonsmooth import Survey, Volume

app = typer.Typer()


@app.command(
    "zones",
    epilog="Examples:\n\n"
    "  [bold]numgeom zones example:digits-lenet[/]  ties of equal patches: harmless\n\n"
    "  [bold]numgeom zones example:digits-lenet --dtype bfloat16[/]  ties by accident\n\n"
    "  [bold]numgeom zones example:digits-lenet --volume 20 --batches 3 --workers 2[/]\n\n"
    "  [bold]torchrun --nproc-per-node 4 -m numgeom zones example:digits-lenet --volume 1000 "
    "--state work.jsonl[/]",
)
def _zones(
    target: Annotated[
        str,
        typer.Argument(
            show_default=False,
            help="file.py:function, package.module:function, example:NAME, or a program file that "
            "was saved by Program.save.",
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
    seed: Annotated[int, typer.Option(help="Seed of all random generators.", min=0)] = 0,
    epochs: Annotated[
        int, typer.Option(help="Train that long first; built-in examples only.", min=0)
    ] = 0,
    device: Annotated[Device, typer.Option(help="Where the step runs.")] = Device.CPU,
    rows: Annotated[int, typer.Option(min=1, help="Most lines in each part of the text.")] = 10,
    pullbacks: Annotated[
        int,
        typer.Option(
            min=0,
            help="Most tied units to follow one by one for the width of the set of gradients; "
            "beyond them it is bounded at once, less sharply.",
        ),
    ] = 500,
    volume: Annotated[
        int,
        typer.Option(
            min=0,
            help="In place of one step: which share of so many initialisations (the target made "
            "with seeds 0, 1, ...) lies in which zone, and how it depends on tau.",
        ),
    ] = 0,
    batches: Annotated[
        int,
        typer.Option(
            min=1, help="Mini-batches per initialisation with --volume: those of seeds 0, 1, ..."
        ),
    ] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes for --volume.")] = 0,
    state: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="File that keeps the finished part of --volume; the same command goes on there.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say whether a gradient depends on the derivatives that are taken at kinks, and where.

    ReLU at 0 and a max-pool window with two largest entries have no derivative; torch takes one of
    many. The step runs once; its backward pass is run again in float64 under other choices, on the
    forward pass as it was computed. Three verdicts are possible. [bold]regular[/]: nothing is
    tied. [bold]compensation[/]: every choice gives the same gradient over the reals.
    [bold]bifurcation[/]: choices give different gradients; the tied units and the width of the set
    of gradients are shown per parameter.

    Exit code 1 for a bifurcation of one step.
    """
    with clean_errors(debug):
        if volume:
            sampling = _Source(target, dtype, device)
            measured = _measure(
                sampling, volume, batches, workers=workers, state=state, quiet=quiet or as_json
            )
            _show_volume(measured, target, as_json=as_json)
            return
        found, facts = _survey(
            target,
            dtype=dtype,
            seed=seed,
            epochs=epochs,
            device=device,
            pullbacks=pullbacks,
            quiet=quiet or as_json,
        )
        if as_json:
            say(found.to_json(provenance=facts))
        elif quiet:
            say(str(found.zones).splitlines()[0])
        else:
            say(found.text(rows=rows))
    if found.zones.zone == "bifurcation":
        raise typer.Exit(1)


def _survey(
    target: str,
    *,
    dtype: Dtype | None,
    seed: int,
    epochs: int,
    device: Device,
    pullbacks: int,
    quiet: bool,
) -> "tuple[Survey, dict[str, str]]":
    from numgeom.nonsmooth import survey, survey_of
    from numgeom.recording import Program
    from numgeom.report import progress_bar

    if Path(target).is_file():
        found = survey_of(Program.load(target), max_pullbacks=pullbacks, seed=seed)
        return found, {"target": target, "seed": str(seed)}
    with progress_bar(quiet=quiet) as advance:
        step = loaded(target, dtype, seed, epochs, device, advance)
        advance("looking at kinks", 0, 0)
        found = survey(step.model, step.loss_fn, step.batch, max_pullbacks=pullbacks, seed=seed)
    return found, provenance(step, seed=seed, epochs=epochs, device=device)


@dataclass(frozen=True)
class _Source:
    """Makes a target's model, loss and batch of a seed; travels to other processes."""

    target: str
    dtype: Dtype | None
    device: Device

    def step(self, seed: int) -> Any:
        return loaded(self.target, self.dtype, seed, 0, self.device, _silent)

    def __call__(self, seed: int) -> Any:
        return self.step(seed).model


@dataclass(frozen=True)
class _Loss:
    """A target's loss, looked up once per process: a function of a file cannot travel itself."""

    source: _Source

    def __call__(self, model: Any, batch: Any) -> Any:
        return _loss_of(self.source)(model, batch)


@functools.lru_cache(maxsize=1)
def _loss_of(source: _Source) -> Any:
    return source.step(0).loss_fn


def _measure(
    source: _Source,
    points: int,
    batches: int,
    *,
    workers: int,
    state: Path | None,
    quiet: bool,
) -> "Volume":
    from numgeom.nonsmooth import Sampling, estimate_volume
    from numgeom.nonsmooth.sharing import is_first_process
    from numgeom.report import progress_bar

    steps = [source.step(seed) for seed in range(batches)]
    with progress_bar(quiet=quiet or not is_first_process()) as advance:
        return estimate_volume(
            Sampling(
                make_model=source,
                loss_fn=_Loss(source),
                batches=tuple(step.batch for step in steps),
                zones=True,
            ),
            points=points,
            state=state,
            workers=workers,
            progress=advance,
        )


def _show_volume(measured: "Volume", target: str, *, as_json: bool) -> None:
    from numgeom.nonsmooth.sharing import is_first_process

    if not is_first_process():
        return
    if not as_json:
        say(str(measured))
        return
    shares = measured.zone_shares() or {}
    document = {
        "schema": "numgeom.volume",
        "schema_version": 1,
        "target": target,
        "points": measured.n_points,
        "batches": measured.n_batches,
        "margin_of_pairs": measured.margin(),
        "curve": [
            {"tau": tau, "points": a, "points_interval": measured.interval(tau), "pairs": b}
            for tau, a, b in measured.curve()
        ],
        "zones": {
            zone: {"share": share, "interval": measured.zone_interval(zone)}
            for zone, share in shares.items()
        },
    }
    say(json.dumps(document, indent=2))


def _silent(what: str, done: int, count: int) -> None:
    del what, done, count
