"""Which recorded program does a model, a step or a program stand for?"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

from numgeom.arithmetic.formats import Format, format_named, format_of
from numgeom.errors import NumgeomError
from numgeom.precision.errors import PrecisionError
from numgeom.precision.regions import formats_applied
from numgeom.recording import Program, record_callable, record_step


class _Missing:
    """Stands for a batch that was not given; None is a batch."""


MISSING: Final = _Missing()


def as_format(given: str | torch.dtype | Format) -> Format:
    """The format that a name, a dtype or a format stands for.

    Raises:
        FormatError: if there is no such format.
    """
    if isinstance(given, Format):
        return given
    return format_named(given) if isinstance(given, str) else format_of(given)


def program_of(
    subject: Any, loss_fn: Any, batch: Any, run_under: Format | Mapping[str, str] | None
) -> Program:
    """Record what `estimate` was given: a model with loss and batch, a step, or a program.

    Args:
        subject: Model, step or program.
        loss_fn: With a model only.
        batch: With a model only; `MISSING` if there is none.
        run_under: Format of an autocast region around the loss function, or format names by
            module path.

    Raises:
        PrecisionError: if the arguments do not fit together, or the loss function fails.
        RecordingError: if the step cannot be recorded.
    """
    given = loss_fn is not None or batch is not MISSING
    if isinstance(subject, nn.Module):
        if not callable(loss_fn) or batch is MISSING:
            raise PrecisionError(
                f"estimate() got a model ({type(subject).__name__}) but no "
                f"{'loss function' if not callable(loss_fn) else 'batch'}. Call "
                "estimate(model, loss_fn, batch), where loss_fn(model, batch) returns the loss."
            )
        if isinstance(run_under, Mapping):
            with formats_applied(subject, run_under):
                return recorded_step(subject, loss_fn, batch)
        device = next((p.device.type for p in subject.parameters()), "cpu")
        return recorded_step(subject, _under(loss_fn, device, run_under), batch)
    if isinstance(run_under, Mapping):
        raise PrecisionError(
            "Formats by module need the model that has the modules. Call "
            "estimate(model, loss_fn, batch, format={...})."
        )
    if given:
        raise PrecisionError(
            "estimate() takes loss_fn and batch only with a model, not with an object of type "
            f"{type(subject).__name__}. Call estimate(step) or estimate(program) without them."
        )
    if isinstance(subject, Program):
        return subject
    if not callable(subject):
        raise PrecisionError(
            f"estimate() got an object of type {type(subject).__name__}. It takes a model with a "
            "loss function and a batch, a callable that runs one step, or a Program."
        )
    if run_under is not None:
        raise PrecisionError(
            f"A step given as a function chooses its own formats; enter torch.autocast with "
            f"{run_under} inside of it, or pass a model with a loss function and a batch."
        )
    return record_callable(subject)


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
