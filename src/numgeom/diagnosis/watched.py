"""What does a monitor say of one step?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from numgeom.diagnosis.gradients import GradientLook
from numgeom.diagnosis.result import Diagnosis
from numgeom.diagnosis.trace import norm
from numgeom.errors import FileFormatError
from numgeom.recording import Program
from numgeom.results.codec import decode, encode


@dataclass(frozen=True)
class Look:
    """What was seen in a recorded step, without its tensors.

    Attributes:
        diagnosis: What was found.
        loss: The loss, NaN if unknown.
        gradient_norms: 2-norm of the gradient, by parameter.
    """

    diagnosis: Diagnosis
    loss: float
    gradient_norms: Mapping[str, float]

    @classmethod
    def of(cls, program: Program, diagnosis: Diagnosis) -> "Look":
        """The numbers that belong to a diagnosis."""
        run = program.recorded
        loss = math.nan if run.loss is None else float(run.loss)
        return cls(diagnosis, loss, {name: norm(g) for name, g in run.gradients.items()})

    def to_document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return encode(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Look":
        """Read what `to_document` gave.

        Raises:
            ValueError: if it is something else.
        """
        return decode(cls, document)


@dataclass(frozen=True)
class WatchedStep:
    """One step that a monitor looked at.

    Attributes:
        step: Number of the step, from 0.
        diagnosis: What was found; None if the step could not be recorded or replayed.
        loss: The loss, NaN if unknown.
        gradient_norms: 2-norm of the gradient, by parameter.
        problem: Why there is no diagnosis, or "".
        program: File that holds the step, or "".
        skipped: Why only the gradients were looked at: "budget", "busy" (the background process
            had another step), or "".
        nonfinite: Of such a step, the parameters whose gradient holds a NaN or an infinity.
        headroom_binades: Of such a step, powers of two between the largest norm of a gradient
            and the end of its format.
        subnormal_share: Of such a step, the part of the gradients' entries in float16 that are
            subnormal, by a sample; NaN without such.
    """

    DERIVED: ClassVar = ("layer_gradient_norms",)

    step: int
    diagnosis: Diagnosis | None
    loss: float
    gradient_norms: Mapping[str, float]
    problem: str = ""
    program: str = ""
    skipped: str = ""
    nonfinite: tuple[str, ...] = ()
    headroom_binades: float = math.nan
    subnormal_share: float = math.nan

    @classmethod
    def of_gradients(cls, step: int, seen: GradientLook, skipped: str) -> "WatchedStep":
        """A step of which only the gradients were looked at."""
        return cls(
            step, None, math.nan, seen.norms, skipped=skipped, nonfinite=seen.nonfinite,
            headroom_binades=seen.headroom_binades, subnormal_share=seen.subnormal_share,
        )  # fmt: skip

    @property
    def layer_gradient_norms(self) -> dict[str, float]:
        """2-norm of the gradient, by the module that holds the parameters."""
        layers: dict[str, float] = {}
        for name, size in self.gradient_norms.items():
            layer = name.rpartition(".")[0]
            layers[layer] = math.hypot(layers.get(layer, 0.0), size)
        return layers

    def to_document(self) -> dict[str, Any]:
        """Return the step as it is written to the history."""
        found = None if self.diagnosis is None else self.diagnosis.to_document()
        return {**encode(self), "diagnosis": found}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "WatchedStep":
        """Read a line of a history, as `to_document` gave it.

        Raises:
            FileFormatError: if it is something else.
        """
        found = document.get("diagnosis")
        diagnosis = None if found is None else Diagnosis.from_document(found)
        try:
            step = decode(cls, {**document, "diagnosis": None}, "the watched step")
        except ValueError as error:
            raise FileFormatError(f"this line of a history is damaged ({error})") from error
        return replace(step, diagnosis=diagnosis)
