"""Which precision does each module need, so that the gradient stays within a tolerance?

A plan is a format for every module that does work. `numgeom.precision.planning` searches for it on
replays of recorded steps; `PrecisionPlan.apply` runs it, and `PrecisionPlan.verify` measures it.
"""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from numgeom.arithmetic.formats import FormatError, float16, format_named
from numgeom.arithmetic.printing import nearest, percent
from numgeom.errors import FileFormatError
from numgeom.failures import answers
from numgeom.files.writing import write_text
from numgeom.precision.errors import PrecisionError
from numgeom.precision.loss_scale import ExponentCount, LossScale, loss_scale_for
from numgeom.precision.measuring import Measurer, varied
from numgeom.precision.planning import search
from numgeom.precision.regions import RUNNABLE, formats_applied
from numgeom.precision.sampling import Asked, sampled
from numgeom.precision.step import recorded_step
from numgeom.precision.work import flops_by_module
from numgeom.recording import Program
from numgeom.results import store
from numgeom.results.accuracy import combined_norm, norm, relative
from numgeom.results.codec import decode, encode
from numgeom.results.origins import origin_of, remember

SCHEMA = "numgeom.plan"
VERSION = 2
_SEALED_FROM = 2  # documents of version 1 had no checksum
LossFunction = Callable[[nn.Module, Any], Tensor]

# Predicted errors are kept this factor below the tolerance: other batches differ.
MARGIN = 1.4
# An error of the step itself below this share of the limit hardly counts: a prediction will do.
_SMALL = 0.1


@dataclass(frozen=True)
class Verification:
    """What a plan did when it was run for real.

    Attributes:
        measured_error: Relative error of the gradient, 2-norm, against a float64 replay.
        predicted_error: What the plan had predicted.
        tolerance: What was asked for.
    """

    measured_error: float
    predicted_error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the measured error is within the tolerance."""
        return self.measured_error <= self.tolerance


@dataclass(frozen=True)
class PrecisionPlan:
    """A format for every module that does work.

    Attributes:
        formats: Format name by module path; "" is the model itself.
        tolerance: The relative error of the whole gradient that was asked for.
        predicted_error: Expected relative error. ESTIMATED.
        low_precision_share: Share of the floating-point operations, forward and backward, that
            run in a format narrower than float32 (TF32 included).
        loss_scale: By which factor to multiply the loss; 1 where float16 is not used.
        module_errors: Relative error of the whole gradient with only that module in that format,
            by module and format; infinite where it overflows, empty where the cheapest format
            will do everywhere.
        flops: Floating-point operations by module, forward and backward.
        underflow: Share of the nonzero numbers that a format makes zero, by module and format, as
            far as it was measured; formats that range as far as float32 are left out.
        scaling: What the backward pass loses in float16 at every loss scale, and how to set up
            `torch.amp.GradScaler`; None where float16 was not to choose from.
    """

    formats: Mapping[str, str]
    tolerance: float
    predicted_error: float
    low_precision_share: float
    loss_scale: float
    module_errors: Mapping[str, Mapping[str, float]]
    flops: Mapping[str, int]
    underflow: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scaling: LossScale | None = None

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"PrecisionPlan({percent(self.low_precision_share, 0)} of the work in low precision, "
            f"predicted error {nearest(self.predicted_error)}, tolerance {nearest(self.tolerance)})"
        )

    def apply(self, model: nn.Module) -> AbstractContextManager[None]:
        """Run the model's modules in their formats inside a `with` block.

        Multiply the loss by `loss_scale` and divide the gradients by it (`torch.amp.GradScaler`).

        Raises:
            PrecisionError: on entering, if the model lacks a module of the plan.
        """
        return formats_applied(model, self.formats)

    @overload
    def verify(self, model: nn.Module, loss_fn: LossFunction, batch: Any, /) -> Verification: ...
    @overload
    def verify(
        self, batch: Any, /, *, model: nn.Module | None = None, loss_fn: LossFunction | None = None
    ) -> Verification: ...
    @answers("PrecisionPlan.verify")
    def verify(
        self, *given: Any, model: nn.Module | None = None, loss_fn: LossFunction | None = None
    ) -> Verification:
        """Run the plan on a batch and measure the gradient's error.

        `plan.verify(model, loss_fn, batch)`, or `plan.verify(batch)` in the process that made the
        plan, as long as its model lives: a plan holds no model.

        Args:
            given: Model, loss and batch, or the batch alone; it is handed to the loss function.
            model: The model; by default the one that was planned for.
            loss_fn: The loss; by default the one that was planned for.

        Raises:
            PrecisionError: if no model or loss is given, and none is at hand.
        """
        if len(given) == 3:
            model, loss_fn, batch = given
        elif len(given) == 1:
            (batch,) = given
        else:
            raise PrecisionError("Call plan.verify(model, loss_fn, batch).")
        known = origin_of(self)
        if known is not None:
            model, loss_fn = model or known.model(), loss_fn or known.loss_fn
        if model is None or loss_fn is None:
            raise PrecisionError(
                "A plan holds neither model nor loss, and those that it was made for are not at "
                "hand (it was read from a file or copied, or the model is gone): call "
                "plan.verify(model, loss_fn, batch)."
            )
        reference = recorded_step(model, loss_fn, batch).replay(torch.float64).gradients
        error = _measure(model, loss_fn, batch, reference, self.formats, self.loss_scale)
        return Verification(error, self.predicted_error, self.tolerance)

    def check(self) -> None:
        """Raise ValueError where it says what no plan can say."""
        for name in (
            *self.formats.values(),
            *(f for row in self.module_errors.values() for f in row),
        ):
            try:
                format_named(name)
            except FormatError as error:
                raise ValueError(str(error)) from error
        for name in ("tolerance", "predicted_error", "loss_scale"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} of a plan is {getattr(self, name)}")
        if not 0.0 <= self.low_precision_share <= 1.0:
            raise ValueError("low_precision_share of a plan is no share")
        if any(count < 0 for count in self.flops.values()):
            raise ValueError("flops of a plan are negative")

    def to_document(self) -> dict[str, Any]:
        """Return everything as plain JSON values, without the checksum."""
        return {"schema": SCHEMA, "version": VERSION, **encode(self)}

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file that `load` reads.

        Raises:
            FileFormatError: if the file cannot be written.
        """
        write_text(path, store.to_text(store.sealed(self.to_document())) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "PrecisionPlan":
        """Read a plan that `save` wrote.

        Raises:
            FileFormatError: if the file is missing, damaged, foreign, or of a later version.
        """
        document, _ = store.read(path, schema=SCHEMA, version=VERSION, sealed_from=_SEALED_FROM)
        around = ("schema", "version", store.CHECKSUM)
        plain = {key: value for key, value in document.items() if key not in around}
        if document["version"] == 1:
            plain = _infinite(plain)
        try:
            return decode(cls, plain, "the plan")
        except ValueError as error:
            raise FileFormatError(
                f"{path} cannot be read as a precision plan ({error}). Make it again with "
                "plan.save(path)."
            ) from error


@dataclass(frozen=True, eq=False)
class _Origin:
    """What a plan was made for; the model is not kept alive."""

    model: Callable[[], nn.Module | None]
    loss_fn: LossFunction


def _infinite(document: dict[str, Any]) -> dict[str, Any]:
    """Version 1 wrote an infinite error as null."""
    errors = document.get("module_errors")
    if not isinstance(errors, dict):
        return document
    rows = {
        module: {f: "Infinity" if e is None else e for f, e in row.items()}
        if isinstance(row, dict)
        else row
        for module, row in errors.items()
    }
    return {**document, "module_errors": rows}


@answers("plan_precision")
def plan_precision(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    tolerance: float,
    formats: Sequence[str] = ("bfloat16", "float32"),
    more_batches: Sequence[Any] = (),
) -> PrecisionPlan:
    """Choose a format for every module that does work.

    Takes about one plain step per batch, module and format, and ten more; with many modules one
    per role of modules (`blocks.*.mlp.0`). Where the cheapest format will do, about five steps are
    enough. A network with kinks is measured seven times as often, and with at most ten modules
    further assignments are tried, as many as a few seconds allow.

    Args:
        model: A model in float32; left as it was.
        loss_fn: Takes model and batch, returns the loss.
        batch: What to plan on.
        tolerance: Relative error, 2-norm, that the whole gradient may have.
        formats: Formats to choose from: "float32", "tf32", "bfloat16", "float16",
            "float8_e4m3fn", "float8_e5m2".
        more_batches: Further batches; squared errors are averaged.

    Returns:
        The plan with the most work in narrow formats. Guarantee: ESTIMATED.

    Raises:
        PrecisionError: if the arguments make no sense, or no assignment meets the tolerance.
        FormatError: if no format has such a name; lists the known ones.
        RecordingError: if the model has no parameters, or the step cannot be recorded.
    """
    _check(tolerance, formats)
    batches = [batch, *more_batches]
    programs = [recorded_step(model, loss_fn, each) for each in batches]
    _check_model(programs[0])
    flops = flops_by_module(programs[0])
    known = dict(model.named_modules())
    units = [m for m in flops if m in known]
    if not units:
        raise PrecisionError(
            "No module of the model runs a matrix product, a convolution or attention, so there "
            "is no work to plan."
        )
    limit = tolerance / MARGIN
    if "float16" in formats:
        scaling, base = _in_float64(programs)
    else:
        scaling, base = None, _base_error(programs[0], limit)
    scale = 1.0 if scaling is None else scaling.scale
    measurer = Measurer(programs, base, scale, varied(programs[0]))
    found = search(measurer, flops, units, formats, tolerance=tolerance, limit=limit)
    low = sum(flops[m] for m, f in found.formats.items() if f != "float32")
    plan = PrecisionPlan(
        formats=found.formats,
        tolerance=tolerance,
        predicted_error=found.predicted_error,
        low_precision_share=low / max(sum(flops.values()), 1),
        loss_scale=scale if "float16" in found.formats.values() else 1.0,
        module_errors=found.module_errors,
        flops=dict(flops),
        underflow=measurer.underflow,
        scaling=scaling,
    )
    remember(plan, _Origin(weakref.ref(model), loss_fn))
    return plan


def _in_float64(programs: Sequence[Program]) -> tuple[LossScale, float]:
    """What the loss scale should be on all steps, and the error of the first one as it ran."""
    count = ExponentCount()
    base = math.inf
    for i, program in enumerate(programs):
        reference = program.replay(torch.float64, on_call=count).gradients
        base = base if i else _recorded_error(program, reference)
    return loss_scale_for(count.found, float16), base


def _base_error(program: Program, limit: float) -> float:
    """The error of a step as it ran: predicted where it is small, else measured."""
    predicted = sampled(program, Asked(), samples=1, seed=0).mean()
    if predicted <= _SMALL * limit:
        return predicted
    return _recorded_error(program, program.replay(torch.float64).gradients)


def _measure(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    reference: Mapping[str, Tensor],
    formats: Mapping[str, str],
    scale: float,
) -> float:
    """Run one step in the given formats and compare its gradient with the reference."""
    used = scale if "float16" in formats.values() else 1.0

    def scaled(model: nn.Module, batch: Any) -> Tensor:
        return loss_fn(model, batch) * used

    with formats_applied(model, formats):
        program = recorded_step(model, scaled if used != 1.0 else loss_fn, batch)
    return _recorded_error(program, reference, used)


def _recorded_error(program: Program, reference: Mapping[str, Tensor], scale: float = 1.0) -> float:
    """Relative error of the recorded gradients; infinite where one of them is not finite."""
    recorded = program.recorded.gradients
    parts = [norm(recorded[n].to(torch.float64) / scale - g) for n, g in reference.items()]
    error = relative(combined_norm(parts), combined_norm(norm(g) for g in reference.values()))
    return error if math.isfinite(error) else math.inf


def _check(tolerance: float, formats: Sequence[str]) -> None:
    if not (math.isfinite(tolerance) and tolerance > 0.0):
        raise PrecisionError(f"The tolerance is {tolerance}; give a positive number such as 1e-2.")
    if isinstance(formats, str):
        raise PrecisionError(
            f"formats is {formats!r}; give a sequence of names, such as ({formats!r}, 'float32')."
        )
    for name in formats:
        format_named(name)
    unrunnable = [name for name in formats if name not in RUNNABLE]
    if unrunnable or not formats:
        raise PrecisionError(
            f"A plan cannot run {', '.join(unrunnable) or 'no format at all'}; choose among "
            f"{', '.join(RUNNABLE)}. estimate(..., format=...) predicts the others."
        )


def _check_model(program: Program) -> None:
    """Formats are emulated on float32 numbers: others would seem to lose nothing."""
    other = {n: g.dtype for n, g in program.recorded.gradients.items() if g.dtype != torch.float32}
    if other:
        name, dtype = next(iter(other.items()))
        raise PrecisionError(
            f"A plan needs a model in float32, but {len(other)} of its gradients are not ({name}: "
            f"{str(dtype).removeprefix('torch.')}). Convert the model: "
            "plan_precision(model.float(), ...)."
        )
