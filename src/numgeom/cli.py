"""What can be asked from the command line?

Everything heavy is imported inside the commands, so that `--help` answers at once. Exit codes:
0 fine, 1 findings (values that are not finite), 2 bad usage or a step that fails, 130 Ctrl-C.
"""

import copy
import dataclasses
import enum
import random
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from numgeom.errors import NumgeomError
from numgeom.version import __version__

if TYPE_CHECKING:
    from numgeom.certificate import Certificate
    from numgeom.diagnosis import Diagnosis
    from numgeom.targets import TrainingStep

# Output to a file or a pipe has this width, whatever the terminal: equal runs, equal output.
_FILE_WIDTH = 120

app = typer.Typer(
    name="numgeom",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Dtype(enum.StrEnum):
    """Formats that a step can be converted to."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


class Device(enum.StrEnum):
    """Devices that a step can run on."""

    CPU = "cpu"
    CUDA = "cuda"


class Method(enum.StrEnum):
    """Ways to obtain an error."""

    AUTO = "auto"
    BALL = "ball"
    KANTOROVICH = "kantorovich"
    REFERENCE = "reference"


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
            "models), Newton-Kantorovich (CERTIFIED, any depth), or not at all (reference, fast)."
        ),
    ] = Method.AUTO,
    save: Annotated[
        Path | None,
        typer.Option(help="Also write the result here, as JSON if the name ends in .json."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Most parameters in the table.")] = 40,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show how wrong the gradient of a training step is, per parameter and in total.

    The step runs once and is recorded; the recording is replayed in float64 and compared.

    Exit code 1 if the loss or a gradient is NaN or infinite: the result says where from.
    """
    with _clean_errors(debug):
        certificate = _make_certificate(
            target,
            method=method,
            dtype=dtype,
            seed=seed,
            epochs=epochs,
            device=device,
            quiet=quiet,
        )
        _show(certificate, as_json=as_json, quiet=quiet, rows=rows)
        if save is not None:
            certificate.save(save)
    if certificate.first_nonfinite is not None:
        raise typer.Exit(1)


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
    with _clean_errors(debug):
        found = _make_diagnosis(
            target, dtype=dtype, seed=seed, epochs=epochs, device=device, quiet=quiet or as_json
        )
        typer.echo(found.to_json() if as_json else str(found))
    if found:
        raise typer.Exit(1)


@app.command("examples")
def _examples(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the built-in training steps. They need scikit-learn, and no download."""
    with _clean_errors(debug):
        from numgeom.experiments import EXAMPLES

        summaries = {f"example:{name}": each.summary for name, each in EXAMPLES.items()}
        if as_json:
            import json

            typer.echo(json.dumps(summaries, indent=2))
            return
        width = max(map(len, summaries), default=0)
        for name, summary in summaries.items():
            typer.echo(f"{name:<{width}}  {summary}")


def main() -> None:
    """Run the command line; the entry point of the `numgeom` script."""
    app()


# -- the work ------------------------------------------------------------------------------


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
        step = _loaded(target, dtype, seed, epochs, device, advance)
        certificate = certify(
            step.model,
            step.loss_fn,
            step.batch,
            method=method.value,
            progress=advance,
            probe_seed=seed,
        )
    return certificate.stamped(**_provenance(step, seed=seed, epochs=epochs, device=device))


def _make_diagnosis(
    target: str, *, dtype: Dtype | None, seed: int, epochs: int, device: Device, quiet: bool
) -> "Diagnosis":
    from numgeom.diagnosis import diagnose
    from numgeom.recording import Program
    from numgeom.report import progress_bar

    if Path(target).is_file():
        return diagnose(Program.load(target))
    with progress_bar(quiet=quiet) as advance:
        step = _loaded(target, dtype, seed, epochs, device, advance)
        advance("diagnosing", 0, 0)
        return diagnose(step.model, step.loss_fn, step.batch)


def _loaded(
    target: str,
    dtype: Dtype | None,
    seed: int,
    epochs: int,
    device: Device,
    advance: Callable[[str, int, int], None],
) -> "TrainingStep":
    """Load a target, train it if asked for, move it, and seed what the step itself draws."""
    import numpy as np
    import torch

    from numgeom.experiments import EpochReport
    from numgeom.targets import load_target

    if device is Device.CUDA and not torch.cuda.is_available():
        raise NumgeomError(
            "There is no CUDA device that this torch can use. Leave --device away to run on the "
            "CPU, or install a torch built for your GPU."
        )

    def trained(epoch: EpochReport) -> None:
        advance("training", epoch.epoch, epoch.epochs)

    advance(f"loading {target}", 0, 0)
    chosen = None if dtype is None else getattr(torch, dtype.value)
    step = load_target(target, seed=seed, epochs=epochs, dtype=chosen, progress=trained)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if device is Device.CPU:
        return step
    moved = _moved(step.batch, torch.device(device.value))
    return dataclasses.replace(step, model=step.model.to(device.value), batch=moved)


def _provenance(step: "TrainingStep", *, seed: int, epochs: int, device: Device) -> dict[str, str]:
    from numgeom.experiments import EXAMPLES

    facts = {"target": step.name, "seed": str(seed), "device": device.value}
    example = EXAMPLES.get(step.name.removeprefix("example:"))
    if example is not None:
        stamp = example.load_data().stamp
        facts |= {"epochs": str(epochs), "data": f"{stamp.source}, sha256 {stamp.sha256[:12]}"}
    return facts


def _moved(batch: Any, device: Any) -> Any:
    """Move the tensors of a batch made of tuples, lists and mappings."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, tuple) and type(batch) is not tuple:  # a named tuple takes its fields
        return type(batch)(*(_moved(item, device) for item in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_moved(item, device) for item in batch)
    if isinstance(batch, MutableMapping):
        moved = copy.copy(batch)  # of the same type: its items may be read as attributes
        for key, value in batch.items():
            moved[key] = _moved(value, device)
        return moved
    return batch


def _show(certificate: "Certificate", *, as_json: bool, quiet: bool, rows: int) -> None:
    from rich.console import Console

    from numgeom.report import headline, view

    if as_json:
        typer.echo(certificate.to_json())
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    console.print(headline(certificate) if quiet else view(certificate, rows=rows))


@contextmanager
def _clean_errors(debug: bool) -> Iterator[None]:
    """Turn an error into one sentence on standard error and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        _complain("Interrupted.")
        raise typer.Exit(130) from None
    except (BrokenPipeError, typer.Exit):
        raise
    except NumgeomError as error:
        if debug:
            raise
        _complain(f"Error: {error}")
        raise typer.Exit(2) from error
    except Exception as error:
        if debug:
            raise
        from numgeom.targets.importing import describe_error

        _complain(f"Error: the step failed{describe_error(error)}. Use --debug for the traceback.")
        raise typer.Exit(2) from error


def _complain(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - the command line talks to a person
