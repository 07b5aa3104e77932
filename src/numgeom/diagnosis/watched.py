"""What does a monitor say of one step?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numgeom.diagnosis.gradients import GradientLook
from numgeom.diagnosis.result import Diagnosis, as_number
from numgeom.diagnosis.trace import norm
from numgeom.recording import Program


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
        return {
            "diagnosis": self.diagnosis.to_document(),
            "loss": plain(self.loss),
            "gradient_norms": {name: plain(size) for name, size in self.gradient_norms.items()},
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Look":
        """Read what `to_document` gave."""
        norms = {name: as_number(size) for name, size in document["gradient_norms"].items()}
        return cls(
            Diagnosis.from_document(document["diagnosis"]), as_number(document["loss"]), norms
        )


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
        norms = {name: plain(size) for name, size in self.gradient_norms.items()}
        found = None if self.diagnosis is None else self.diagnosis.to_document()
        document = {
            "step": self.step,
            "loss": plain(self.loss),
            "gradient_norms": norms,
            "layer_gradient_norms": {k: plain(v) for k, v in self.layer_gradient_norms.items()},
            "diagnosis": found,
            "problem": self.problem,
            "program": self.program,
            "skipped": self.skipped,
        }
        if self.skipped:
            document |= {
                "nonfinite": list(self.nonfinite),
                "headroom_binades": plain(self.headroom_binades),
                "subnormal_share": plain(self.subnormal_share),
            }
        return document


def plain(value: float) -> float | str:
    """A number for JSON, which knows neither infinities nor NaN."""
    return value if math.isfinite(value) else str(value)
