"""Which recorded program does a model, a step or a program stand for?"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from numgeom.arithmetic.formats import Format, format_named, format_of
from numgeom.errors import NumgeomError
from numgeom.precision.errors import PrecisionError
from numgeom.precision.regions import formats_applied
from numgeom.recording import Program, program_of, record_step


def as_format(given: str | torch.dtype | Format) -> Format:
    """The format that a name, a dtype or a format stands for.

    Raises:
        FormatError: if there is no such format.
    """
    if isinstance(given, Format):
        return given
    return format_named(given) if isinstance(given, str) else format_of(given)


def program_under(
    subject: Any, loss_fn: Any, batch: Any, run_under: Format | Mapping[str, str] | None
) -> Program:
    """Record what `estimate` was asked about, in the formats that it was asked for.

    Args:
        subject: Model, step, recording or program.
        loss_fn: With a model only.
        batch: With a model only; `MISSING` if there is none.
        run_under: Format of an autocast region around the loss function, or format names by
            module path.

    Raises:
        PrecisionError: if the arguments do not fit together, or the step fails in these formats.
        RecordingError: if the step cannot be recorded.
    """
    if run_under is not None and not isinstance(subject, nn.Module):
        _refuse(subject, run_under)

    def record_model(model: nn.Module, loss_fn: Any, batch: Any) -> Program:
        if run_under is None:
            return record_step(model, loss_fn, batch)
        if isinstance(run_under, Mapping):
            with formats_applied(model, run_under):
                return recorded_step(model, loss_fn, batch)
        device = next((p.device.type for p in model.parameters()), "cpu")
        return recorded_step(model, _under(loss_fn, device, run_under), batch)

    return program_of(
        subject, loss_fn, batch, question="estimate", error=PrecisionError,
        record_model=record_model,
    )  # fmt: skip


def _refuse(subject: Any, run_under: Format | Mapping[str, str]) -> None:
    """Formats that only the modules of a model can be run in."""
    if isinstance(run_under, Mapping):
        raise PrecisionError(
            "Formats by module need the model that has the modules. Call "
            "estimate(model, loss_fn, batch, format={...})."
        )
    if callable(subject):
        raise PrecisionError(
            f"A step given as a function chooses its own formats; enter torch.autocast with "
            f"{run_under} inside of it, or pass a model with a loss function and a batch."
        )


def _under(loss_fn: Any, device: str, fmt: Format | None) -> Any:
    if fmt is None:
        return loss_fn

    def under_autocast(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast(device, dtype=fmt.dtype) if fmt.dtype else nullcontext():
            return loss_fn(model, batch)

    return under_autocast


def recorded_step(model: nn.Module, loss_fn: Any, batch: Any) -> Program:
    """Record one step of a model; failures of the loss function become one clear sentence.

    Raises:
        PrecisionError: if the loss function or its backward pass raises.
        RecordingError: if the step cannot be recorded.
    """
    try:
        return record_step(model, loss_fn, batch)
    except NumgeomError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PrecisionError(
            f"The training step failed before anything could be predicted: {reason}. Check that "
            "loss_fn(model, batch) runs with this batch."
        ) from error
