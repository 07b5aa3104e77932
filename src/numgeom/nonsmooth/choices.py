"""Which weights does a derivative of max give to the entries that attain the maximum?

A window has k active entries, those equal to its maximum (-0 equals +0). Every derivative here is a
vector of weights on the window that is zero off the active entries. The weights of a Clarke
derivative are nonnegative and sum to 1; the formulas are those of Boustany (2024, definition 6)
and their relatives. The forward pass never depends on a choice.

Shapes: T tied windows, K places per window.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.ops.selection import SelectionError


class AbstractChoice(ABC):
    """A rule that spreads a maximum's derivative over the entries that attain it."""

    @property
    @abstractmethod
    def is_clarke(self) -> bool:
        """Whether the weights always form an element of Clarke's Jacobian."""

    @abstractmethod
    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """Give each place of each window its weight.

        Args:
            active: Which places attain the maximum, bool [T, K]; at least one per window.
            generator: Source of random numbers, on the CPU.

        Returns:
            Weights [T, K] in float64, zero where not active.
        """


@dataclass(frozen=True)
class Native(AbstractChoice):
    """Whatever torch does: the gradient is left alone, bit by bit.

    Pools and `max(dim)` take the first entry, `maximum`, `amax` and the full `max` split evenly.
    """

    @property
    def is_clarke(self) -> bool:
        """Torch's choices at a maximum are Clarke derivatives, all of them."""
        return True

    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """There are none: what torch does differs from op to op."""
        raise SelectionError("Native() leaves torch's gradient alone; it has no weights")


@dataclass(frozen=True)
class First(AbstractChoice):
    """The first active entry in row-major order."""

    @property
    def is_clarke(self) -> bool:
        """A unit vector on an active entry is in Clarke's Jacobian."""
        return True

    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """1 at the first active place."""
        del generator
        return _unit(active.int().argmax(dim=1), active)


@dataclass(frozen=True)
class Last(AbstractChoice):
    """The last active entry in row-major order."""

    @property
    def is_clarke(self) -> bool:
        """A unit vector on an active entry is in Clarke's Jacobian."""
        return True

    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """1 at the last active place."""
        del generator
        places = active.shape[1]
        return _unit(places - 1 - active.flip(1).int().argmax(dim=1), active)


@dataclass(frozen=True)
class Minimal(AbstractChoice):
    """1/k on each of the k active entries: the element of least norm."""

    @property
    def is_clarke(self) -> bool:
        """A mean of elements of a convex set is in it."""
        return True

    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """The mean of the active places."""
        del generator
        mask = active.double()
        return mask / mask.sum(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Hybrid(AbstractChoice):
    """(1 - beta) · first + beta · minimal.

    The weights are 1 - beta + beta/k on the first active entry and beta/k on the others: they sum
    to 1 for every beta. For beta outside [0, 1] the result is no Clarke derivative but still
    a conservative one (Boustany 2024, remark 5); its norm grows like beta.

    Attributes:
        beta: 0 is `First`, 1 is `Minimal`.
    """

    beta: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.beta):
            raise SelectionError(f"Hybrid(beta={self.beta}): beta must be a finite number")

    @property
    def is_clarke(self) -> bool:
        """Whether 0 <= beta <= 1."""
        return 0 <= self.beta <= 1

    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """Blend first and minimal."""
        first = First().weights(active, generator)
        return (1 - self.beta) * first + self.beta * Minimal().weights(active, generator)


@dataclass(frozen=True)
class Random(AbstractChoice):
    """One active entry per window, drawn evenly with the selection's seed."""

    @property
    def is_clarke(self) -> bool:
        """A unit vector on an active entry is in Clarke's Jacobian."""
        return True

    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """1 at the active place with the largest of K independent draws."""
        draws = torch.rand(active.shape, generator=generator, dtype=torch.float64)
        return _unit(draws.to(active.device).masked_fill(~active, -1).argmax(dim=1), active)


@dataclass(frozen=True)
class Uniform(AbstractChoice):
    """A point drawn evenly from the simplex of the active entries, with the selection's seed."""

    @property
    def is_clarke(self) -> bool:
        """Clarke's Jacobian of a maximum is that simplex."""
        return True

    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """Exponential draws, normalised: the flat Dirichlet distribution."""
        draws = torch.rand(active.shape, generator=generator, dtype=torch.float64)
        draws = (-torch.log1p(-draws)).clamp_min(torch.finfo(torch.float64).tiny)
        draws = draws.to(active.device).masked_fill(~active, 0)
        return draws / draws.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class AllOnes(AbstractChoice):
    """1 on every active entry, as some frameworks do; no Clarke derivative, for they sum to k."""

    @property
    def is_clarke(self) -> bool:
        """False: a window with two active entries has weights that sum to 2."""
        return False

    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """1 at every active place."""
        del generator
        return active.double()


@dataclass(frozen=True)
class Custom(AbstractChoice):
    """Weights of your own.

    Attributes:
        function: Gets `active`, bool [T, K], and returns weights [T, K], zero where not active.
        clarke: Your word that the weights are nonnegative and sum to 1.
    """

    function: Callable[[Tensor], Tensor]
    clarke: bool = False

    @property
    def is_clarke(self) -> bool:
        """What you said."""
        return self.clarke

    def weights(self, active: Tensor, generator: torch.Generator) -> Tensor:
        """Ask the function, and check what it returned."""
        del generator
        found = self.function(active)
        if not isinstance(found, Tensor) or found.shape != active.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SelectionError(
                f"Custom: the function returned {shape} for windows of shape "
                f"{tuple(active.shape)}; return one weight per place"
            )
        found = found.double()
        if bool((found[~active] != 0).any()):
            raise SelectionError(
                "Custom: the function gave weight to a place that does not attain the maximum; "
                "multiply its weights by `active`"
            )
        return found


def _unit(place: Tensor, active: Tensor) -> Tensor:
    weights = torch.zeros(active.shape, dtype=torch.float64, device=active.device)
    return weights.scatter_(1, place[:, None], 1.0)
