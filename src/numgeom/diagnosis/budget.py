"""May this step be looked at, if looking may take a given share of the training time?

Looks are paid for when they are over: one is allowed as long as what all of them took is at most
the share of the time that training itself took since. So the account is overdrawn by one look at
most, and made even before the next. The first look is free: it has lazy set-up in it.

Training time is that of the forward and backward passes alone: pauses, evaluation and the loading
of data between them give no credit.
"""

import math
import time
from collections.abc import Callable

from numgeom.errors import NumgeomError

# By default: time for looking at every turn, in steps, and bounds of the share. With what the
# account does not see, colder caches above all, a run stays below 1.05 and 1.5 times its time.
_STEPS_PER_TURN = 2.0
_LEAST, _MOST = 0.03, 0.4


def default_budget(every: int) -> float:
    """The share that is right for most runs: 3 %, more for a run that is looked at often.

    The time of 2 steps for each turn, but at least 3 % and at most 40 % of all steps.
    """
    return min(_MOST, max(_LEAST, _STEPS_PER_TURN / every))


class Account:
    """What looking took, and what training took.

    Args:
        share: Largest part of the training time that looking may take; infinite for no limit.
        clock: Tells the time, in seconds.

    Raises:
        NumgeomError: The share is negative or no number.
    """

    def __init__(self, share: float, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start with an even account."""
        if not share >= 0.0:
            raise NumgeomError(
                f"Monitor(budget={share!r}): give a part of the training time such as 0.05, "
                "math.inf to diagnose at every turn, or None for a default."
            )
        self._share = share
        self._clock = clock
        self._spent = 0.0
        self._trained = 0.0
        self._is_open = False  # after the first look
        self._began = 0.0
        self._step_seconds = 0.0  # of a step that was not looked at, a running mean

    @property
    def allows(self) -> bool:
        """Whether a look is paid for."""
        return math.isinf(self._share) or self._spent <= self._share * self._trained

    @property
    def spent_share(self) -> float:
        """What looking took since the first look, as a part of what training took."""
        if self._spent == 0.0:
            return 0.0
        return self._spent / self._trained if self._trained > 0.0 else math.inf

    def begin(self) -> None:
        """A step begins."""
        self._began = self._clock()

    def end(self) -> None:
        """A step ended at which nobody looked."""
        took = self._clock() - self._began
        self._step_seconds += (took - self._step_seconds) * (0.1 if self._step_seconds else 1.0)
        if self._is_open:
            self._trained += took

    def charge(self) -> None:
        """A step ended, and the look at it: what it took longer than others is spent."""
        took = self._clock() - self._began
        if not self._is_open:
            self._is_open = True
            return
        self._trained += min(took, self._step_seconds)
        self._spent += max(0.0, took - self._step_seconds)
