"""Does a remedy cure, as far as a trial of it showed?"""

_HALF = 0.5  # of the error may remain, at most
_LARGEST = 0.1  # relative error that a cured step may still have; a digit must be right


def cures(before: float, after: float) -> bool:
    """Whether the error with a remedy is clearly smaller than without, and small.

    Args:
        before: Relative error without the remedy; infinite where the step was not finite.
        after: Relative error with it. NaN, unknown, cures nothing.
    """
    return after <= _HALF * before and after <= _LARGEST and after != before
