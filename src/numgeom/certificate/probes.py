"""How large can a linear map be that is known only by what it does to vectors?

Let w have independent entries, uniform on [-1, 1]. For a unit vector v the density of <v, w> is
at most 1 / sqrt(2) (Ball 1986: no section of the unit cube by a hyperplane is larger than sqrt(2)),
so that P(|<v, w>| < eps) <= sqrt(2) eps. With v the first right singular vector of B,
||B w|| >= sigma_1 |<v, w>|. The largest of k independent probes, divided by eps, is an upper bound
of the spectral norm sigma_1 that fails with probability at most (sqrt(2) eps)^k. Power steps,
||(B B^T)^q B w|| >= sigma_1^(2q+1) |<v, w>|, sharpen it to the (2q+1)-th root; and so does half of
one, ||B^T B w|| >= <v, B^T B w> = sigma_1^2 <v, w>, to the square root. Nothing is assumed of B (as
for Gaussian vectors, Kuczynski & Wozniakowski 1992; Halko, Martinsson & Tropp 2011, sec.
4.4 and lemma 4.1; uniform ones are cheaper to draw).

Three things that are not exact:

- *Grain*. Entries are drawn from a grid (`draws`): its w is a uniform one minus at most GRAIN in
  each of N entries, so <v, w> is off by at most GRAIN sqrt(N).
- *Forward passes* round, and this is bounded: a pass returns B (w + omega) with ||omega|| <= eps_p
  (`passes`). |<v, w + omega>| >= |<v, w>| - eps_p, so eps_p is subtracted from eps as well. It is
  near 1e-10; where it is not below eps there is no bound. What the tails of a gradient round, tau,
  is added to what was computed.
- *Reverse passes* are guesses. x^ stands for B^T y, whatever it was computed by; fresh vectors
  w_j with B (w_j + omega_j) at hand tell how far it is off: for d = B^T y - x^,

      <d, w_j> = <y, B (w_j + omega_j)> - <x^, w_j> - <x^ + d, omega_j>,

  whose first two terms are computed. For one of the k fresh vectors |<d, w_j>| >= eps' ||d||, but
  with probability (sqrt(2) eps')^k, so ||d|| (eps' - eps_p) <= max_j |difference| + ||x^|| eps_p.
  The vector d must not depend on the w_j: y comes from other vectors.

Power steps with such errors: |<u, y_0>| >= sigma (eps - eps_p), and each further pass multiplies
the component along a singular vector by sigma and takes at most its own error from it.
`largest_norm` solves the inequality that results for sigma.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from numgeom.certificate.draws import GRAIN

_COVER = 1 + 1e-9  # of a few hundred operations on positive numbers


@dataclass(frozen=True)
class ProbePlan:
    """How a norm is bounded.

    Attributes:
        probes: k, independent vectors.
        failure_probability: Of the bound, over the probes.
        dimension: N, the number of entries of a probe.
    """

    probes: int
    failure_probability: float
    dimension: int = 1

    @property
    def least(self) -> float:
        """Eps less grain: one of the probes has |<v, w>| of at least this; may be negative."""
        eps = self.failure_probability ** (1 / self.probes) / math.sqrt(2)
        return (eps - GRAIN * math.sqrt(self.dimension)) * (1 - 1e-12)

    def inflation(self, rounding: float = 0.0) -> float:
        """By what the largest probe is multiplied; may be infinite.

        Args:
            rounding: Eps_p of the passes.
        """
        eps = (self.least - rounding) * (1 - 1e-12)
        return _COVER / eps if eps > 0 else math.inf

    def bound(self, results: list[float], *, rounding: float = 0.0, beside: float = 0.0) -> float:
        """Upper bound of the spectral norm.

        Args:
            results: ||B (w + omega)||, one per probe.
            rounding: Eps_p: at least ||omega||, for each of them.
            beside: What else may be in a result; at least its norm.
        """
        if len(results) != self.probes:
            raise ValueError(f"planned {self.probes} probes, got {len(results)}")
        if not all(map(math.isfinite, results)):  # of NaN and others, max() may return the others
            return math.inf
        largest = (max(results) + beside) * _COVER
        if not math.isfinite(largest):
            return math.inf
        return self.inflation(rounding) * largest if largest else 0.0


@dataclass(frozen=True)
class Step:
    """One pass of a chain of power steps, in terms of the component c along a singular vector.

    It becomes (sigma c - loss) / size at least.

    Attributes:
        loss: How far the pass is off, in the 2-norm.
        size: What the result was divided by before the next pass.
    """

    loss: float
    size: float = 1.0


def largest_norm(start: float, steps: Iterable[Step], final: float) -> float:
    """The largest sigma for which a chain of passes may end with a vector of norm `final`.

    What the chain makes of `start` > 0 grows with sigma wherever it is positive, so the sigmas for
    which it is at most `final` are those up to a largest one.

    Args:
        start: At least the size of the first component, less the rounding of the first pass.
        steps: The passes.
        final: Upper bound of the norm of the last result.
    """
    steps = list(steps)
    numbers = [start, final, *(s.loss for s in steps), *(s.size for s in steps)]
    if not all(map(math.isfinite, numbers)) or not start > 0:
        return math.inf

    def exceeds(sigma: float) -> bool:
        c = start
        for step in steps:
            c = (sigma * c * (1 - 1e-15) - step.loss * _COVER) / step.size * (1 - 1e-15)
            if not c > 0:
                return False
        return c > final * _COVER

    low, high = 0.0, 1e-300
    while not exceeds(high):
        low, high = high, high * 1e6
        if high > 1e300:
            return math.inf
    while high > max(low, 1e-300) * (1 + 1e-9):
        middle = math.sqrt(low * high) if low else high / 2
        low, high = (low, middle) if exceeds(middle) else (middle, high)
    return high * _COVER


def guess_error(
    gap: float, size: float, *, roundoff: float, rounding: float, plan: ProbePlan
) -> float:
    """How far a guess x^ of B^T y is off: a bound of ||B^T y - x^||.

    Args:
        gap: The largest |<y, B w_j> - <x^, w_j>| over the fresh vectors.
        size: Upper bound of ||x^||.
        roundoff: Of computing the two products.
        rounding: Eps_p of the pass that gave B w_j.
        plan: How many fresh vectors there are, and how likely the bound may fail.
    """
    eps = (plan.least - rounding) * (1 - 1e-12)
    if not eps > 0 or not math.isfinite(gap + size + roundoff):
        return math.inf
    return (gap + roundoff + size * rounding) / eps * _COVER
