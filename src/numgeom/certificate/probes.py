"""How large can a linear map be that is known only by what it does to vectors?

For a Gaussian vector w, ||B w|| >= sigma_1 |g| with g standard normal, so that
P(||B w|| < eps sigma_1) <= eps sqrt(2/pi). The largest of k independent probes, divided by eps, is
an upper bound of the spectral norm sigma_1 that fails with probability at most
(eps sqrt(2/pi))^k. Power steps, ||(B B^T)^q B w|| >= sigma_1^(2q+1) |g|, sharpen it to the
(2q+1)-th root. Nothing is assumed of B (Kuczynski & Wozniakowski 1992; Halko, Martinsson & Tropp
2011, sec. 4.4 and lemma 4.1).
"""

import math
from dataclasses import dataclass

# The passes round in float64: each result is off by a relative amount of about 1e-13. The margin
# covers a loss of ten further digits by cancellation inside a pass, and `adjoint_gap` of every
# probe is checked against it, since <B w, y> = <w, B^T y> only if both passes are that accurate.
MARGIN = 1e-3
LARGEST_GAP = 1e-6


@dataclass(frozen=True)
class ProbePlan:
    """How a norm is bounded.

    Attributes:
        probes: k, independent Gaussian vectors.
        power_steps: q, applications of B B^T to each.
        failure_probability: Of the bound, over the probes.
    """

    probes: int
    power_steps: int
    failure_probability: float

    @property
    def inflation(self) -> float:
        """By what the largest probe (its root of order 2q+1) is multiplied, margin included."""
        eps = self.failure_probability ** (1 / self.probes) / math.sqrt(2 / math.pi)
        root = 2 * self.power_steps + 1
        return (1 + MARGIN) * max(1.0, eps ** (-1 / root))

    def bound(self, results: list[float]) -> float:
        """Upper bound of the spectral norm.

        Args:
            results: ||(B B^T)^q B w||^(1 / (2q+1)), one per probe.
        """
        if len(results) != self.probes:
            raise ValueError(f"planned {self.probes} probes, got {len(results)}")
        return self.inflation * max(results)
