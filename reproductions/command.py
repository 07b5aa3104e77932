"""The command line: `python -m reproductions NAME`, or `numgeom reproduce NAME`."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from numgeom.cli.errors import clean_errors, say
from numgeom.cli.options import Device

if TYPE_CHECKING:
    from reproductions.outcome import Outcome

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


class Scale(enum.StrEnum):
    """How large a reproduction is."""

    SMALL = "small"
    PAPER = "paper"


@app.command(
    epilog="Examples:\n\n"
    "  [bold]numgeom reproduce[/]  lists what there is\n\n"
    "  [bold]numgeom reproduce table1 --out results[/]\n\n"
    "  [bold]torchrun --nproc-per-node 4 -m numgeom reproduce maxpool-table2 --scale paper "
    "--data DIR --out results[/]",
)
def _reproduce(
    name: Annotated[
        str | None,
        typer.Argument(show_default=False, help="Which table or figure; without it: the list."),
    ] = None,
    scale: Annotated[
        Scale,
        typer.Option(help="small: minutes on two cores; paper: the published sizes."),
    ] = Scale.SMALL,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with MNIST, CIFAR or SVHN files. Nothing is ever downloaded.",
            show_default="data inside scikit-learn",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write JSON and SVG files into this folder; long work resumes there."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.", min=0)] = 0,
    device: Annotated[Device, typer.Option(help="Where the models run.")] = Device.CPU,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make a published table or figure again, with the numbers of this machine."""
    with clean_errors(debug):
        if name is None:
            _list(as_json=as_json)
            return
        from numgeom.cli.steps import check_device
        from numgeom.nonsmooth.sharing import is_first_process
        from numgeom.report import progress_bar
        from reproductions.catalogue import find_reproduction
        from reproductions.outcome import ReproductionError, Settings

        found = find_reproduction(name)
        check_device(device)
        if data is not None and not data.is_dir():
            raise ReproductionError(f"--data must name a folder with data files; {data} is none.")
        first = is_first_process()  # of those that torchrun started
        with progress_bar(quiet=quiet or as_json or not first) as advance:
            outcome = found.run(
                Settings(
                    scale=scale.value,
                    data=data,
                    seed=seed,
                    device=device.value,
                    out=out,
                    progress=advance,
                )
            )
        if not first:
            return
        paths = () if out is None else outcome.save(out)
        if as_json:
            say(outcome.to_json())
            return
        _show(outcome)
        for path in paths:
            say(f"written: {path}")


def _list(*, as_json: bool) -> None:
    import json

    from reproductions.catalogue import REPRODUCTIONS

    titles = {name: each.title for name, each in REPRODUCTIONS.items()}
    if as_json:
        say(json.dumps(titles, indent=2))
        return
    width = max(map(len, titles), default=0)
    for name, title in titles.items():
        say(f"{name:<{width}}  {title}")


def _show(outcome: "Outcome") -> None:
    from numgeom.report import console
    from reproductions.view import outcome_view

    console().print(outcome_view(outcome))
