"""What becomes of an exception that nobody foresaw?

A question about a step runs a lot of code on values that no test has seen. An exception there is a
fault of this package, and a user can do nothing with a bare KeyError. So every question has one
boundary, `answers`: what the user's own code raises passes it unchanged, and so do the errors that
the package raises on purpose; anything else becomes an `UnforeseenError`, which says what failed,
at which call of the step, and where in the package. Where an answer without a bound is of use, the
question catches the exception itself (`is_our_fault`) and gives `reason` with that answer.

Tests run within `loud`, where exceptions pass every boundary unchanged.
"""

import functools
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from numgeom.errors import NumgeomError

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = str(Path(__file__).parent)
_OTHERS = (
    str(Path(torch.__file__).parent),
    str(Path(torch.__file__).parent.parent / "numpy"),
)
_STANDARD = sysconfig.get_paths()["stdlib"]

# Whoever debugs the package wants the exception itself. Seen by this thread alone.
_loud: ContextVar[bool] = ContextVar("exceptions pass", default=False)


class UnforeseenError(NumgeomError):
    """The package failed in a way that it did not foresee; the cause is chained."""


@contextmanager
def loud() -> Iterator[None]:
    """Let unforeseen exceptions pass unchanged, for tests and debuggers."""
    token = _loud.set(True)
    try:
        yield
    finally:
        _loud.reset(token)


@contextmanager
def guarded() -> Iterator[None]:
    """Undo `loud` inside of it: what users see."""
    token = _loud.set(False)
    try:
        yield
    finally:
        _loud.reset(token)


def run_users(function: Callable[..., Any], *args: Any) -> Any:
    """Call what the user gave. What it raises is the user's, also where it is a function of torch.

    Returns:
        What the function returns.
    """
    return function(*args)


def is_our_fault(error: BaseException) -> bool:
    """Whether an exception was raised by mistake of this package.

    Not so for its own errors, for what the user's code raised, for lack of memory, and within
    `loud`. Whose code raised it is told by the innermost frame that is neither torch's nor of the
    standard library.
    """
    if _loud.get() or isinstance(error, NumgeomError | MemoryError | torch.OutOfMemoryError):
        return False
    if not isinstance(error, Exception):
        return False
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if code is run_users.__code__:
            return False
        # Torch calls it around each call of the user's, and an op may refuse what it is given.
        if code.co_name in ("__torch_dispatch__", "__torch_function__"):
            continue
        if _is_package(code.co_filename):
            return True
        if not _is_background(code.co_filename):
            return False
    return True


def _is_package(file: str) -> bool:
    return file.startswith(_PACKAGE)


def _is_background(file: str) -> bool:
    if file.startswith((*_OTHERS, "<")):
        return True
    return file.startswith(_STANDARD) and "site-packages" not in file


def reason(error: BaseException) -> str:
    """What was raised, at which call of the step, and where in the package; one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    at = "".join(f", {note}" for note in getattr(error, "__notes__", ())[:1])
    inside = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(_PACKAGE)
    ]
    where = ""
    if inside:
        file = Path(inside[-1].filename).relative_to(_PACKAGE).as_posix()
        where = f" (numgeom/{file}, line {inside[-1].lineno})"
    return f"{what}{at}{where}"


def note_place(error: Exception, place: str) -> None:
    """Note on an exception at which call of the step it was raised; the innermost call counts."""
    if not isinstance(error, NumgeomError) and not getattr(error, "__notes__", ()):
        error.add_note(f"at {place}")


def answers(question: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as the boundary of a question.

    Args:
        question: Its public name, for the message.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def bounded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if not is_our_fault(error):
                    raise
                raise UnforeseenError(
                    f"{question} failed on this step: {reason(error)}. This is a fault of numgeom "
                    "and not of your step; please report it with this line. The other questions "
                    "do not depend on it."
                ) from error

        return bounded

    return decorate
