"""Which errors does the package raise?

Every error says what happened, where, why it is likely to have happened, and what to do.
"""

from numgeom.visible import visible_lines


class NumgeomError(Exception):
    """Base of every error that the package raises on purpose.

    Its message can be printed: control characters, which names and paths may hold, are escaped.
    """

    def __str__(self) -> str:
        """Return the message."""
        return visible_lines(super().__str__())


class RecordingError(NumgeomError):
    """A step could not be recorded."""


class UnsupportedOpError(RecordingError):
    """A step met an operation that a recording cannot represent."""


class ReplayError(NumgeomError):
    """A recorded program could not be run again."""


class FileFormatError(NumgeomError):
    """A file is damaged, foreign, or of another version."""


class TargetError(NumgeomError):
    """A TARGET of the command line does not name a usable training step."""
