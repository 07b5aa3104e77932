"""Why can a step not be recorded, where, and how is that told?"""

from collections.abc import Iterable

from numgeom.recording.calls import CallInfo
from numgeom.visible import visible

_MOST_SHOWN = 8


class Problem:
    """Why a step cannot be recorded: what, where, and how often."""

    def __init__(self, text: str, op: str, info: CallInfo) -> None:
        """Note a first occurrence."""
        self.text, self.op, self.info, self.count = text, op, info, 1

    def __str__(self) -> str:
        """One line: the op, the place, the reason."""
        where = [self.info.phase]
        if self.info.module:
            where.append(f"in {self.info.module}")
        if self.info.source:
            where.append(f"at {self.info.source}")
        times = f" ({self.count} times)" if self.count > 1 else ""
        return visible(f"{self.op}, {' '.join(where)}{times}: {self.text}")


def describe(problems: Iterable[Problem]) -> str:
    """One text for all problems of a step."""
    found = list(problems)
    lines = [f"  {problem}" for problem in found[:_MOST_SHOWN]]
    if len(found) > _MOST_SHOWN:
        lines.append(f"  and {len(found) - _MOST_SHOWN} more")
    return "the step cannot be recorded:\n" + "\n".join(lines)
