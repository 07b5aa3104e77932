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

Two things are subtracted from eps:

- *Grain*. Entries are drawn from a grid (`draws`): its w is a uniform one minus at most GRAIN in
  each of N entries, so <v, w> is off by at most GRAIN sqrt(N).
- *Rounding of the passes*. A forward pass that rounds is an exact pass in which something more
  arises at every node: it returns B (w + rho) for some rho. |<v, w + rho>| >= |<v, w>| - ||rho||.
  That ||rho|| <= ROUNDING is the assumption `PASSES`, which every certificate states. It is a weak
  one: an entry of w stands for a local error of 1e-16 relative size, and one of rho for the
  rounding, of 1e-16 relative size again, of a first-order change that is itself no larger than
  rho s, so that ||rho|| is expected near 1e-10. It is tested in every run: the passes are linear
  in w up to B rho, and a nonlinearity above LARGEST_GAP voids the certificate.
"""

import math
from dataclasses import dataclass

from numgeom.arithmetic.printing import lower_short, upper_short
from numgeom.certificate.draws import GRAIN

ROUNDING = 1e-3
# Power steps alternate forward and reverse passes. The same assumption, as a relative margin for
# each of them; it is tested by <B x, y> = <x, B^T y>, which holds only if both are accurate.
MARGIN = 1e-3
LARGEST_GAP = 1e-6

PASSES = (
    "Probe passes: first-order changes, as torch's forward and reverse formulas push them through "
    f"the program in float64, are those of the exact derivative but for {lower_short(ROUNDING)} of "
    "a probe (expected near 1e-10; tested in this run by linearity and adjoints, to "
    f"{upper_short(LARGEST_GAP)})."
)


@dataclass(frozen=True)
class ProbePlan:
    """How a norm is bounded.

    Attributes:
        probes: k, independent vectors.
        power_steps: q, applications of B B^T to each; a half is one of B^T.
        failure_probability: Of the bound, over the probes.
        dimension: N, the number of entries of a probe.
        rounding: Bound of ||rho||; see above.
    """

    probes: int
    power_steps: float
    failure_probability: float
    dimension: int = 1
    rounding: float = ROUNDING

    @property
    def inflation(self) -> float:
        """By what the largest probe (its root of order 2q+1) is multiplied; may be infinite."""
        eps = self.failure_probability ** (1 / self.probes) / math.sqrt(2)
        eps = (eps - GRAIN * math.sqrt(self.dimension) - self.rounding) * (1 - 1e-12)
        if not eps > 0:
            return math.inf
        root = round(2 * self.power_steps) + 1
        margin = MARGIN if self.power_steps else 1e-12
        return (1 + margin) * eps ** (-1 / root)

    def bound(self, results: list[float]) -> float:
        """Upper bound of the spectral norm.

        Args:
            results: ||(B B^T)^q B w||^(1 / (2q+1)), one per probe; (B B^T)^(1/2) is B^T here.
        """
        if len(results) != self.probes:
            raise ValueError(f"planned {self.probes} probes, got {len(results)}")
        if not all(map(math.isfinite, results)):  # of NaN and others, max() may return the others
            return math.inf
        return self.inflation * max(results)
