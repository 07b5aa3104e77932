"""How far may a Monte Carlo share be from the true one?

A share is the mean of M indicators (one per parameter point) or of M·R indicators (point times
mini-batch). The first are independent; the second are not, since cells share their point and their
mini-batch, so Hoeffding's inequality with n = M·R does not hold and McDiarmid's is used.

Boustany (2024, appendix A.6.3); Hoeffding (1963); McDiarmid (1989); Clopper and Pearson (1934).
"""

import math

import torch

from numgeom.arithmetic.printing import nearest_short, upper_short
from numgeom.errors import NumgeomError

DEFAULT_ALPHA = 0.05
"""Risk that a margin fails, as in the paper."""


class MarginError(NumgeomError):
    """A margin is asked for that means nothing, or that no sample size can reach."""


def hoeffding_margin(n: int, *, alpha: float = DEFAULT_ALPHA) -> float:
    """Margin of the mean of n independent indicators: sqrt(ln(2/alpha) / (2n)).

    Args:
        n: Number of independent indicators, for equation 18 the number M of parameter points.
        alpha: Risk that the true share lies further away.

    Raises:
        MarginError: if the margin is 1 or more, which says nothing about a share.

    Example:
        >>> round(hoeffding_margin(1000), 6)
        0.042947
    """
    _check(alpha, n=n)
    return _meaningful(_hoeffding(n, alpha), f"{n} independent samples")


def mcdiarmid_margin(points: int, batches: int, *, alpha: float = DEFAULT_ALPHA) -> float:
    """Margin of the mean over a grid: sqrt((1/M + 1/R) ln(2/alpha) / 2).

    Args:
        points: Number M of parameter points.
        batches: Number R of mini-batches, the same for every point.
        alpha: Risk that the true share lies further away.

    Raises:
        MarginError: if the margin is 1 or more.

    Example:
        >>> round(mcdiarmid_margin(1000, 391), 6)
        0.081004
    """
    _check(alpha, points=points, batches=batches)
    margin = _mcdiarmid(points, batches, alpha)
    return _meaningful(margin, f"{points} points and {batches} mini-batches")


def clopper_pearson(successes: int, n: int, *, alpha: float = DEFAULT_ALPHA) -> tuple[float, float]:
    """Exact confidence interval of the share behind `successes` out of n independent indicators.

    Args:
        successes: How many indicators were 1.
        n: How many indicators there were.
        alpha: Risk that the true share lies outside.

    Raises:
        MarginError: if the counts do not make sense.

    Example:
        >>> low, high = clopper_pearson(0, 1000)
        >>> low, round(high, 6)
        (0.0, 0.003682)
    """
    _check(alpha, n=n)
    if not 0 <= successes <= n:
        raise MarginError(f"{successes} successes out of {n} are impossible")
    return _lowest_share(successes, n, alpha / 2), 1 - _lowest_share(n - successes, n, alpha / 2)


def hoeffding_sample_size(margin: float, *, alpha: float = DEFAULT_ALPHA) -> int:
    """Smallest n whose Hoeffding margin is at most `margin`.

    Raises:
        MarginError: if the margin is not between 0 and 1.

    Example:
        >>> hoeffding_sample_size(0.05)
        738
    """
    _check(alpha)
    _check_margin(margin)
    n = math.ceil(math.log(2 / alpha) / (2 * margin**2))
    while n > 1 and _hoeffding(n - 1, alpha) <= margin:
        n -= 1
    while _hoeffding(n, alpha) > margin:
        n += 1
    return n


def mcdiarmid_sample_size(margin: float, *, batches: int, alpha: float = DEFAULT_ALPHA) -> int:
    """Smallest number M of parameter points whose McDiarmid margin is at most `margin`.

    Args:
        margin: The margin to reach.
        batches: Number R of mini-batches.
        alpha: Risk that the margin fails.

    Raises:
        MarginError: if no M reaches it with so few mini-batches; says how many are needed.

    Example:
        >>> mcdiarmid_sample_size(0.1, batches=391)
        350
    """
    _check(alpha, batches=batches)
    _check_margin(margin)
    room = margin**2 / (0.5 * math.log(2 / alpha)) - 1 / batches
    if room <= 0:
        needed = math.floor(0.5 * math.log(2 / alpha) / margin**2) + 1
        least = math.sqrt(0.5 * math.log(2 / alpha) / batches)
        raise MarginError(
            f"a margin of {nearest_short(margin)} cannot be reached with {batches} mini-batches, "
            f"however many points are drawn: use at least {needed} mini-batches, or a margin above "
            f"{upper_short(least)}"
        )
    n = math.ceil(1 / room)
    while n > 1 and _mcdiarmid(n - 1, batches, alpha) <= margin:
        n -= 1
    while _mcdiarmid(n, batches, alpha) > margin:
        n += 1
    return n


def _lowest_share(successes: int, n: int, risk: float) -> float:
    """The p at which so many successes or more have the probability `risk`, by bisection."""
    if successes == 0:
        return 0.0
    j = torch.arange(successes, n + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(j + 1) - torch.lgamma(n - j + 1)
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        terms = ways + j * math.log(middle) + (n - j) * math.log1p(-middle)
        if float(torch.logsumexp(terms, 0)) < math.log(risk):
            low = middle
        else:
            high = middle
    return middle


def _hoeffding(n: int, alpha: float) -> float:
    return math.sqrt(math.log(2 / alpha) / (2 * n))


def _mcdiarmid(points: int, batches: int, alpha: float) -> float:
    return math.sqrt(0.5 * (1 / points + 1 / batches) * math.log(2 / alpha))


def _meaningful(margin: float, samples: str) -> float:
    if margin >= 1:
        raise MarginError(
            f"{samples} give a margin of {upper_short(margin)}: every share is within 1 of every "
            "other, so it says nothing. Draw more, or report the count without a margin"
        )
    return margin


def _check(alpha: float, **counts: int) -> None:
    if not 0 < alpha < 1:
        raise MarginError(f"alpha = {alpha}: the risk must lie between 0 and 1")
    for name, count in counts.items():
        if count < 1:
            raise MarginError(f"{name} = {count}: at least one sample is needed")


def _check_margin(margin: float) -> None:
    if not 0 < margin < 1:
        raise MarginError(f"a margin must lie between 0 and 1, not at {margin}")
