"""Which line of the user's code made a call?

While a step runs its stack is only gathered, all frames at once; lines are looked up when
somebody reads them.
"""

from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from torch import nn
from torch._C._profiler import gather_traceback, symbolize_tracebacks

from numgeom.recording.calls import CallInfo, Phase

_TORCH = str(Path(nn.__file__).parent.parent)
_PACKAGE = str(Path(__file__).parent.parent)
_EXAMPLES = str(Path(__file__).parent.parent / "examples")  # counts as user code


class Place(NamedTuple):
    """Where a call comes from, as it is noted: like `CallInfo`, its line not yet looked up.

    Attributes:
        phase: As there.
        module: As there.
        stacks: What `here` returned; the line is that of the first one that has a line of the
            user's.
    """

    phase: Phase
    module: str
    stacks: tuple[Any, ...] = ()


NOWHERE = Place("forward", "")


def here() -> Any:
    """The frames of this thread, for `Sources`."""
    return gather_traceback(True, False, False)


def is_seeding(frame: FrameType | None) -> bool:
    """Whether torch makes, under this frame, the 1 that a backward pass starts from."""
    while frame is not None and is_plumbing(frame.f_code.co_filename):
        if frame.f_code.co_name == "_make_grads":
            return True
        frame = frame.f_back
    return False


class Sources:
    """Look up lines, each stack once."""

    def __init__(self) -> None:
        """Start with none known."""
        self._lines: dict[int, tuple[Any, str]] = {}  # by the id of a stack, which is kept alive
        self._texts: dict[tuple[str, int], str] = {}

    def learn(self, places: Iterable[Place | CallInfo]) -> None:
        """Look up many stacks at once, which is quicker."""
        stacks = {id(s): s for p in places if isinstance(p, Place) for s in p.stacks}
        new = [stack for key, stack in stacks.items() if key not in self._lines]
        for stack, frames in zip(new, symbolize_tracebacks(new) if new else (), strict=True):
            self._lines[id(stack)] = stack, self._line(frames)

    def info(self, place: Place | CallInfo) -> CallInfo:
        """A place with its line."""
        if isinstance(place, CallInfo):
            return place
        if any(id(stack) not in self._lines for stack in place.stacks):
            self.learn([place])
        lines = (self._lines[id(stack)][1] for stack in place.stacks)
        return CallInfo(place.phase, place.module, next(filter(None, lines), ""))

    def _line(self, frames: Any) -> str:
        """The innermost line outside torch; "" where the autograd engine stands before it."""
        for frame in frames:
            file = frame["filename"]
            if not is_plumbing(file):
                key = file, frame["line"]
                if key not in self._texts:
                    self._texts[key] = f"{short_path(file)}:{frame['line']}"
                return self._texts[key]
            if frame["name"] == "_engine_run_backward":
                return ""
        return ""


def is_plumbing(file: str) -> bool:
    """Whether code of this file is torch's, this package's or generated, and not the user's."""
    if file.startswith("<"):  # generated code, unless it was typed in
        return not file.startswith(("<stdin>", "<string>", "<ipython"))
    return file.startswith((_TORCH, _PACKAGE)) and not file.startswith(_EXAMPLES)


def short_path(path: str) -> str:
    """Shorten a path: relative to the working folder or to site-packages, else its name."""
    _, found, rest = path.rpartition("site-packages/")
    if found:
        return rest
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return Path(path).name
