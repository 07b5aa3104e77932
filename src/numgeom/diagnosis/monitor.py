"""How is a training run watched, step by step, at little cost?

    monitor = Monitor(model, every=100, history="history.jsonl", keep="bad_steps")
    for x, y in data:
        with monitor():
            loss = criterion(model(x), y)
            loss.backward()
        optimizer.step()

It is the turn of every `every`-th step: it is recorded and diagnosed; the others run as they are.
Each turn is one line of JSON, written and flushed at once, so that the history survives a crash.
The program of a step with findings is kept: it holds the parameters, the batch and all random
draws, so `diagnose(Program.load(path))` finds the same again, anywhere.

A diagnosis takes as long as five steps of a large model, or twenty of a tiny one. Where that comes
to more than `budget`, a part of the time of the steps themselves, a turn gets less: only the
gradients are read as the backward pass left them (norms, non-finite entries, headroom, subnormal
entries), which is nearly free, and the line of the history says so. A gradient that is not finite
there is told, and the next step is recorded whatever the budget.

With `background=True` another process makes the diagnoses while training goes on; what it finds is
told at a later step, or by `wait()`. Training is then held up by the recording alone, so the budget
lasts for more of them.
"""

import atexit
import json
import math
import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from torch import nn

from numgeom.diagnosis.background import Answer, Background, BackgroundError
from numgeom.diagnosis.budget import Account, default_budget
from numgeom.diagnosis.clipping import ClippingRun
from numgeom.diagnosis.gradients import look_at_gradients
from numgeom.diagnosis.kept import RandomState, keep_step, random_state
from numgeom.diagnosis.result import Kind
from numgeom.diagnosis.watched import Look, WatchedStep
from numgeom.diagnosis.worker import look
from numgeom.errors import NumgeomError, RecordingError, ReplayError
from numgeom.files.writing import append_line, write_atomically
from numgeom.recording import Program, Recording, record
from numgeom.visible import visible, visible_lines

Policy = Literal["warn", "raise"] | Callable[["WatchedStep"], None]


class FindingWarning(UserWarning):
    """A watched step has findings."""


class FindingError(NumgeomError):
    """A watched step has findings, and the monitor was told to raise."""

    lists_problems = True


class Monitor:
    """Diagnoses some steps of a training run.

    Where forward and backward do not fit into one block, as in the hooks of a training framework,
    call `begin()` before and `end()` after them; `abandon()` if the step failed.

    Args:
        model: What is trained.
        every: It is the turn of steps 0, every, 2 * every, ...
        budget: Largest part of the time of the steps, forward and backward, that looking may take,
            such as 0.05; math.inf to diagnose at every turn. By default the time of 2 steps for
            each turn, but at least 3 % and at most 40 %. The first look is free: it has lazy
            set-up in it.
        history: File to which one line of JSON is appended for each turn.
        keep: Folder for the programs of steps with findings.
        on_finding: "warn", "raise", or a function that gets the step. A gradient that is not
            finite counts as a finding where there is no diagnosis.
        on_step: Called with the step of every turn, such as `numgeom.training.TensorBoardSteps`.
        background: Diagnose in another process, started with the first step that is looked at; it
            runs this Python again and imports nothing of yours, so notebooks and scripts without a
            main guard are fine. A step whose turn comes while that process is busy is not
            diagnosed; the next one is taken instead. Findings arrive at a later step or in
            `wait()`, which is called by itself when Python ends. If no process can be started the
            monitor says so and waits for diagnoses.

    Attributes:
        last: The last step that was diagnosed, or had a problem; or None.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 100,
        budget: float | None = None,
        history: str | Path | None = None,
        keep: str | Path | None = None,
        on_finding: Policy = "warn",
        on_step: Callable[[WatchedStep], None] | None = None,
        background: bool = False,
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
        self._random_state: RandomState = {}
        self._clipped = ClippingRun()
        self._due = self._turn = self._forced = False
        self._account = Account(default_budget(every) if budget is None else budget)
        self._background = Background() if background else None
        if background:
            atexit.register(_wait_for, weakref.ref(self))
        self._seen_nonfinite = False
        self.last: WatchedStep | None = None

    def __call__(self) -> AbstractContextManager[None]:
        """Run one step, forward and backward, in a block, and look at it if it is its turn.

        Raises:
            FindingError: At the end of the block: the step has findings, and the monitor was told
                to raise.
        """
        return _Block(self)

    def begin(self) -> None:
        """Start a step; it is recorded if it is its turn.

        Raises:
            NumgeomError: The last step has not ended.
        """
        if self._recording is not None:
            raise NumgeomError("A watched step has begun already: call monitor.end() first.")
        self._turn = self._step % self._every == 0
        self._step += 1
        if self._turn:
            self._due = True
        if self._background is not None and self._background.step is not None:
            self._take(self._background.answer(wait=False))
        self._account.begin()
        if self._due and not self._is_busy and (self._forced or self._account.allows):
            self._due = self._forced = False
            self._random_state = random_state()
            self._recording = record(self._model)
            self._recording.__enter__()

    def end(self) -> WatchedStep | None:
        """End the step after its backward pass.

        Returns:
            The step; None if it was not its turn, or if it is diagnosed in the background.

        Raises:
            FindingError: The step has findings, and the monitor was told to raise.
        """
        recording = self._recording
        if recording is None and not self._turn:
            self._account.end()
            return None
        self._recording, self._turn = None, False
        watched = self._skip() if recording is None else self._look(recording)
        self._account.charge()
        if watched is not None:
            self._report(watched)
        return watched

    @property
    def spent_share(self) -> float:
        """What looking took since the first look, as a part of the time of the steps."""
        return self._account.spent_share

    @property
    def _is_busy(self) -> bool:
        return self._background is not None and self._background.step is not None

    def _look(self, recording: Recording) -> WatchedStep | None:
        """Diagnose a step that was recorded; None if that is done in the background."""
        step = self._step - 1
        try:
            recording.__exit__(None, None, None)
            if self._background is not None:
                try:
                    self._background.give(step, recording.program, self._random_state)
                except BackgroundError as error:
                    self._background = None
                    warnings.warn(str(error), FindingWarning, stacklevel=4)
                else:
                    return None
            return self._see(step, look(recording.program), recording.program)
        except (RecordingError, ReplayError) as error:
            return WatchedStep(step, None, math.nan, {}, problem=str(error))

    def _skip(self) -> WatchedStep:
        """Read the gradients of a step that is not diagnosed."""
        seen = look_at_gradients(self._model)
        skipped = "busy" if self._is_busy else "budget"
        self._due = self._is_busy  # the next one is taken instead
        if seen.nonfinite and not self._seen_nonfinite:
            self._due = self._forced = True
        self._seen_nonfinite = bool(seen.nonfinite)
        return WatchedStep.of_gradients(self._step - 1, seen, skipped)

    def abandon(self, error: BaseException | None = None) -> None:
        """Forget the step that has begun: it failed, or the run ends in its middle."""
        recording, self._recording = self._recording, None
        self._turn = False
        if recording is not None:
            error = RuntimeError("abandoned") if error is None else error
            recording.__exit__(type(error), error, error.__traceback__)

    def wait(self) -> WatchedStep | None:
        """Wait for the step that is diagnosed in the background, and end that process.

        Training may go on; the process starts again when it is needed.

        Returns:
            The last step that was looked at, or None.

        Raises:
            FindingError: The step has findings, and the monitor was told to raise.
        """
        if self._background is not None:
            answer = self._background.answer(wait=True)
            try:
                self._take(answer)
            finally:
                self._background.end()
        return self.last

    def _take(self, answer: tuple[int, Answer] | None) -> None:
        """Report what the background process says of a step."""
        if answer is None:
            return
        assert self._background is not None
        step, said = answer
        if "problem" in said:
            watched = WatchedStep(step, None, math.nan, {}, problem=said["problem"])
        else:
            watched = self._see(step, Look.from_document(said), self._background.file)
        self._report(watched)

    def _see(self, step: int, found: Look, held: Program | Path) -> WatchedStep:
        """Count clipped steps, and keep a step with findings."""
        diagnosis = found.diagnosis
        clipped = diagnosis.of(Kind.CLIPPING)
        always = self._clipped.see(diagnosis.clip_factor, clipped[0] if clipped else None)
        if always is not None:
            rest = [f for f in diagnosis.findings if f.kind is not Kind.CLIPPING]
            diagnosis = replace(diagnosis, findings=(always, *rest))
        kept = ""
        if diagnosis and self._keep is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            path = self._keep / f"step_{step}.pt"
            if isinstance(held, Path):
                write_atomically(path, lambda to: to.write(held.read_bytes()))
            else:
                keep_step(path, held, step=step, state=self._random_state)
            kept = str(path)
        return WatchedStep(step, diagnosis, found.loss, found.gradient_norms, program=kept)

    def _report(self, watched: WatchedStep) -> None:
        if not watched.skipped:
            self.last = watched
        if self._history is not None:
            append_line(self._history, json.dumps(watched.to_document(), allow_nan=False))
        if self._on_step is not None:
            self._on_step(watched)
        if watched.problem:
            warnings.warn(
                visible_lines(f"step {watched.step} could not be watched: {watched.problem}"),
                FindingWarning,
                stacklevel=4,
            )
        if not watched.diagnosis and not watched.nonfinite:
            return
        if callable(self._on_finding):
            self._on_finding(watched)
            return
        kept = f"\nThe step is kept in {watched.program}." if watched.program else ""
        text = f"step {watched.step}: {watched.diagnosis}{kept}"
        if watched.nonfinite:
            name = visible(watched.nonfinite[0])
            text = (
                f"step {watched.step}: the gradient of {name} is not finite "
                f"({len(watched.nonfinite)} parameters). The step was not recorded "
                f"({watched.skipped}); the next one will be."
            )
        if self._on_finding == "raise":
            raise FindingError(text)
        warnings.warn(visible_lines(text), FindingWarning, stacklevel=4)


class _Block(AbstractContextManager[None]):
    """One step. A class, since a generator costs more than the rest of a step without a look."""

    __slots__ = ("_monitor",)

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __enter__(self) -> None:
        self._monitor.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._monitor.abandon(error)
        else:
            self._monitor.end()


def _wait_for(monitor: "weakref.ref[Monitor]") -> None:
    """At the end of Python: what is still out belongs into the history."""
    found = monitor()
    if found is not None:
        found.wait()
