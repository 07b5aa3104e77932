"""What can go wrong when an error is predicted or a precision is planned?"""

from numgeom.errors import NumgeomError


class PrecisionError(NumgeomError):
    """A prediction or a plan was asked for that cannot be made."""


class NoAssignmentError(PrecisionError):
    """No choice of formats is within the budget."""
