"""How is a training run watched, step by step, at little cost?

    monitor = Monitor(model, every=100, history="history.jsonl", keep="bad_steps")
    for x, y in data:
        with monitor():
            loss = criterion(model(x), y)
            loss.backward()
        optimizer.step()

Every `every`-th step is recorded and diagnosed; the others run as they are. Each diagnosis is one
line of JSON, written and flushed at once, so that the history survives a crash. The program of a
step with findings is kept: it holds the parameters, the batch and all random draws, so
`diagnose(Program.load(path))` finds the same again, anywhere.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from numgeom.diagnosis.diagnose import diagnose_program
from numgeom.diagnosis.result import Diagnosis
from numgeom.diagnosis.trace import norm
from numgeom.errors import NumgeomError, RecordingError, ReplayError
from numgeom.recording import Program, Recording, record

Policy = Literal["warn", "raise"] | Callable[["WatchedStep"], None]


class FindingWarning(UserWarning):
    """A watched step has findings."""


class FindingError(NumgeomError):
    """A watched step has findings, and the monitor was told to raise."""


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
    """

    step: int
    diagnosis: Diagnosis | None
    loss: float
    gradient_norms: Mapping[str, float]
    problem: str = ""
    program: str = ""

    def to_document(self) -> dict[str, Any]:
        """Return the step as it is written to the history."""
        norms = {name: _plain(size) for name, size in self.gradient_norms.items()}
        found = None if self.diagnosis is None else self.diagnosis.to_document()
        return {
            "step": self.step,
            "loss": _plain(self.loss),
            "gradient_norms": norms,
            "diagnosis": found,
            "problem": self.problem,
            "program": self.program,
        }


class Monitor:
    """Diagnoses some steps of a training run.

    Where forward and backward do not fit into one block, as in the hooks of a training framework,
    call `begin()` before and `end()` after them; `abandon()` if the step failed.

    Args:
        model: What is trained.
        every: Look at steps 0, every, 2 * every, ...
        history: File to which one line of JSON is appended for each step looked at.
        keep: Folder for the programs of steps with findings.
        on_finding: "warn", "raise", or a function that gets the step.
        on_step: Called with every step that was looked at, such as
            `numgeom.training.TensorBoardSteps`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 100,
        history: str | Path | None = None,
        keep: str | Path | None = None,
        on_finding: Policy = "warn",
        on_step: Callable[[WatchedStep], None] | None = None,
    ) -> None:
        """Prepare to watch; nothing is written before the first step."""
        if every < 1:
            raise NumgeomError(f"Monitor(every={every}): give a whole number from 1 on.")
        if not callable(on_finding) and on_finding not in ("warn", "raise"):
            raise NumgeomError(
                f'Monitor(on_finding={on_finding!r}): give "warn", "raise" or a function.'
            )
        self._model = model
        self._every = every
        self._history = None if history is None else Path(history)
        self._keep = None if keep is None else Path(keep)
        self._on_finding = on_finding
        self._on_step = on_step
        self._step = 0
        self._recording: Recording | None = None
        self.last: WatchedStep | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run one step, forward and backward, and look at it if it is its turn.

        Raises:
            FindingError: The step has findings, and the monitor was told to raise.
        """
        self.begin()
        try:
            yield
        except BaseException as error:
            self.abandon(error)
            raise
        self.end()

    def begin(self) -> None:
        """Start a step; it is recorded if it is its turn.

        Raises:
            NumgeomError: The last step has not ended.
        """
        if self._recording is not None:
            raise NumgeomError("A watched step has begun already: call monitor.end() first.")
        step, self._step = self._step, self._step + 1
        if step % self._every == 0:
            self._recording = record(self._model)
            self._recording.__enter__()

    def end(self) -> WatchedStep | None:
        """End the step after its backward pass; None if it was not its turn.

        Raises:
            FindingError: The step has findings, and the monitor was told to raise.
        """
        recording, self._recording = self._recording, None
        if recording is None:
            return None
        step = self._step - 1
        try:
            recording.__exit__(None, None, None)
            watched = self._look(step, recording.program)
        except (RecordingError, ReplayError) as error:
            watched = WatchedStep(step, None, math.nan, {}, problem=str(error))
        self._report(watched)
        return watched

    def abandon(self, error: BaseException | None = None) -> None:
        """Forget the step that has begun: it failed, or the run ends in its middle."""
        recording, self._recording = self._recording, None
        if recording is not None:
            error = RuntimeError("abandoned") if error is None else error
            recording.__exit__(type(error), error, error.__traceback__)

    def _look(self, step: int, program: Program) -> WatchedStep:
        with torch.random.fork_rng():
            diagnosis = diagnose_program(program)
        run = program.recorded
        kept = ""
        if diagnosis and self._keep is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            path = self._keep / f"step_{step}.numgeom"
            program.save(path)
            kept = str(path)
        return WatchedStep(
            step,
            diagnosis,
            math.nan if run.loss is None else float(run.loss),
            {name: norm(gradient) for name, gradient in run.gradients.items()},
            program=kept,
        )

    def _report(self, watched: WatchedStep) -> None:
        self.last = watched
        if self._history is not None:
            with self._history.open("a", encoding="utf-8") as file:
                file.write(json.dumps(watched.to_document(), allow_nan=False) + "\n")
        if self._on_step is not None:
            self._on_step(watched)
        if watched.problem:
            warnings.warn(
                f"step {watched.step} could not be watched: {watched.problem}",
                FindingWarning,
                stacklevel=4,
            )
        if not watched.diagnosis:
            return
        if callable(self._on_finding):
            self._on_finding(watched)
            return
        kept = f"\nThe step is kept in {watched.program}." if watched.program else ""
        text = f"step {watched.step}: {watched.diagnosis}{kept}"
        if self._on_finding == "raise":
            raise FindingError(text)
        warnings.warn(text, FindingWarning, stacklevel=4)


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
