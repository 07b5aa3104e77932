"""Which errors does the package raise?

Every error says what happened, where, why it is likely to have happened, and what to do.
"""

from typing import ClassVar

from numgeom.visible import visible, visible_lines


class NumgeomError(Exception):
    """Base of every error that the package raises on purpose.

    Its message can be printed: control characters, which names and paths may hold, are escaped;
    line feeds, too, but for errors that list several problems.
    """

    lists_problems: ClassVar[bool] = False

    def __str__(self) -> str:
        """Return the message."""
        text = super().__str__()
        return visible_lines(text) if self.lists_problems else visible(text)


class RecordingError(NumgeomError):
    """A step could not be recorded."""

    lists_problems = True


class UnsupportedOpError(RecordingError):
    """A step met an operation that a recording cannot represent."""


class ReplayError(NumgeomError):
    """A recorded program could not be run again."""


class FileFormatError(NumgeomError):
    """A file is damaged, foreign, or of another version."""


class TargetError(NumgeomError):
    """A TARGET of the command line does not name a usable training step."""
