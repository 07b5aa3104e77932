"""Which recorded step is a question asked about?

Every question (`certify`, `diagnose`, `estimate`, `zones`, ...) takes the same subjects: a model
with a loss function and a batch, a function that runs one step, a recording, or a program.
"""

from collections.abc import Callable
from typing import Any, Final

from torch import nn

from numgeom.errors import NumgeomError
from numgeom.recording.program import Program
from numgeom.recording.record import Recording, record_callable, record_step


class SubjectError(NumgeomError):
    """A question was asked about something that is no training step."""


class _Missing:
    """Stands for a batch that was not passed; None is a batch."""

    def __repr__(self) -> str:
        """Shown in the signatures of the questions."""
        return "<no batch>"


MISSING: Final = _Missing()
"""The batch of a question that was asked without one."""

Record = Callable[[nn.Module, Callable[[nn.Module, Any], Any], Any], Program]


def program_of(
    subject: Any,
    loss_fn: Any = None,
    batch: Any = MISSING,
    *,
    question: str,
    error: type[NumgeomError] = SubjectError,
    record_model: Record = record_step,
) -> Program:
    """The recorded step that a question is about; recorded now if it was not before.

    An exception of the person's own code (the loss function, the step) is passed on as it is, with
    a note that says what was being done.

    Args:
        subject: A model; a function that runs forward and backward on parameters that it owns; a
            `Recording` whose block has ended; or a program.
        loss_fn: `loss_fn(model, batch)` returns the loss; with a model only.
        batch: Handed to `loss_fn`; with a model only. None is a batch.
        question: The function that was called, such as "certify", for messages.
        error: What is raised where the arguments do not fit together.
        record_model: Records a step of a model.

    Raises:
        NumgeomError: `error`, if the arguments do not fit together.
        RecordingError: if the step cannot be recorded.
    """
    if isinstance(subject, nn.Module):
        _check_complete(subject, loss_fn, batch, question, error)
        return _noted(lambda: record_model(subject, loss_fn, batch), question)
    if loss_fn is not None or batch is not MISSING:
        raise error(
            f"{question}() takes loss_fn and batch only with a model, not with an object of type "
            f"{type(subject).__name__}. Call {question}(step) or {question}(program) without them."
        )
    if isinstance(subject, Program):
        return subject
    if isinstance(subject, Recording):
        return subject.program
    if callable(subject):
        return _noted(lambda: record_callable(subject), question)
    raise error(
        f"{question}() got an object of type {type(subject).__name__}. It takes a model with a "
        "loss function and a batch, a callable that runs one step, a recording, or a Program."
    )


def _check_complete(
    model: nn.Module, loss_fn: Any, batch: Any, question: str, error: type[NumgeomError]
) -> None:
    if loss_fn is None or batch is MISSING:
        raise error(
            f"{question}() got a model ({type(model).__name__}) but no "
            f"{'loss function' if loss_fn is None else 'batch'}. Call "
            f"{question}(model, loss_fn, batch), where loss_fn(model, batch) returns the loss as a "
            f"scalar tensor; or {question}(step) with a function that runs forward and backward "
            "itself."
        )
    if not callable(loss_fn):
        raise error(
            f"{question}() got a loss_fn of type {type(loss_fn).__name__}, which cannot be called. "
            "Give a function with loss_fn(model, batch) -> scalar tensor."
        )


def _noted(run: Callable[[], Program], question: str) -> Program:
    try:
        return run()
    except NumgeomError:
        raise
    except Exception as error:
        error.add_note(f"numgeom.{question} was running this training step in order to record it.")
        raise
