"""What is a tied unit, and how does a new derivative there change a gradient?

An op has a kink at its input where Clarke's Jacobian is more than one matrix. What a call has of
such units is found from its forward values alone, and is one of four things:

- `Corners`: entries of the input between two one-sided slopes (relu, abs, clamp at their kinks);
- `Windows`: sets of entries that share a maximum (max-pool, max, amax);
- `Contests`: entries of two tensors that are equal (maximum, clamp with tensor bounds);
- `Apexes`: vectors that are zero under a norm.

Each knows how to write a chosen derivative into the gradient that torch computed, entry by entry:
what no tied unit touches keeps its bits.

Shapes: T tied units, K places per window. Gradients: `native` are those of the call's
differentiable inputs as torch computed them, `upstream` those of its outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from numgeom.nonsmooth.choices import AbstractChoice, AllOnes, Native
from numgeom.nonsmooth.rewriting import added, places, put, put_flat, scaled
from numgeom.ops.selection import Gradients, OpCall, SelectionError

Family = Literal["relu", "abs", "clamp", "maxpool", "max", "amax", "norm"]

# What a selection says about one family: a number, weights, or nothing (torch's own derivative).
Choice = float | AbstractChoice | None


class AbstractKink(ABC):
    """The tied units of one call."""

    @property
    @abstractmethod
    def units(self) -> Tensor:
        """Where the tied units are: flat row-major indices into the first output, int64 [T]."""

    @abstractmethod
    def choose(self, choice: Choice, generator: torch.Generator) -> Tensor | None:
        """Turn a choice into numbers for these units; None keeps torch's gradient."""

    @abstractmethod
    def redo(self, chosen: Tensor, native: Gradients, upstream: Gradients) -> Gradients:
        """Write the chosen derivative into the gradients of the inputs.

        Only entries that a tied unit touches change.
        """

    @abstractmethod
    def pieces(self, tangents: Gradients) -> Tensor:
        """How each of the smooth pieces that meet at each unit moves: [T, P].

        Args:
            tangents: Directional derivatives of the call's tensor arguments; None for zero.
        """


@dataclass(frozen=True, eq=False)
class KinkRule:
    """How the tied units of one op are found.

    Attributes:
        family: Which field of a `Selection` decides them.
        find: Gets the call, returns its tied units, or None if it has none.
    """

    family: Family
    find: Callable[[OpCall], AbstractKink | None]


@dataclass(frozen=True, eq=False)
class Corners(AbstractKink):
    """Entries of the first argument that lie on a kink between two slopes.

    Attributes:
        mask: Which entries, bool, shape of the input.
        low: Slope that the choice 0 stands for: a number, or one per entry of the input.
        high: Slope that the choice 1 stands for.
    """

    mask: Tensor
    low: Tensor | float = 0.0
    high: Tensor | float = 1.0

    @property
    def units(self) -> Tensor:
        """Flat indices of the entries on a kink."""
        return self.mask.reshape(-1).nonzero()[:, 0]

    def choose(self, choice: Choice, generator: torch.Generator) -> Tensor | None:
        """The slope low + choice · (high - low) at each unit, [T]."""
        del generator
        if choice is None:
            return None
        slope = self.low + _number(choice) * (self.high - self.low)
        slope = torch.as_tensor(slope, dtype=torch.float64, device=self.mask.device)
        return slope.expand(self.mask.shape)[self.mask]

    def redo(self, chosen: Tensor, native: Gradients, upstream: Gradients) -> Gradients:
        """Put slope · g at the kinks."""
        first, *others = native
        given = upstream[0]
        if first is None or given is None:
            return native
        at = places(self.mask)
        return (put(first, at, scaled(chosen, given[at])), *others)

    def pieces(self, tangents: Gradients) -> Tensor:
        """Each of the two slopes times the input's tangent."""
        t = _tangent(tangents, 0, self.mask)[self.mask]
        slopes = [
            torch.as_tensor(s, device=t.device).expand(self.mask.shape)
            for s in (self.low, self.high)
        ]
        return torch.stack([slope[self.mask] * t for slope in slopes], dim=1)


@dataclass(frozen=True, eq=False)
class Windows(AbstractKink):
    """Sets of entries of the first argument that share one maximum.

    Attributes:
        output: Flat index of each window's output entry, int64 [T].
        positions: Flat index of each place in the input, int64 [T, K]. A place that is not active
            repeats the first active one.
        active: Which places attain the maximum, bool [T, K].
        first: The first active place, int64 [T, 1].
        signs: Factor of each place's derivative (|x| has sign(x)), [T, K]; None for 1.
        taken: Where windows overlap: the flat input index that each output entry took, int64,
            one per output entry. None where no two windows share an entry.
    """

    output: Tensor
    positions: Tensor
    active: Tensor
    first: Tensor
    signs: Tensor | None
    taken: Tensor | None

    @classmethod
    def of(
        cls,
        output: Tensor,
        positions: Tensor,
        active: Tensor,
        *,
        signs: Tensor | None = None,
        taken: Tensor | None = None,
    ) -> "Windows":
        """Windows from the positions of all their places."""
        first = active.int().argmax(dim=1, keepdim=True)
        positions = torch.where(active, positions, positions.gather(1, first))
        return cls(output, positions, active, first, signs, taken)

    @property
    def units(self) -> Tensor:
        """Flat indices of the output entries whose windows are tied."""
        return self.output

    def choose(self, choice: Choice, generator: torch.Generator) -> Tensor | None:
        """Weights [T, K]."""
        if choice is None or isinstance(choice, Native):
            return None
        weights = _rule(choice).weights(self.active, generator)
        return weights if self.signs is None else weights * self.signs

    def redo(self, chosen: Tensor, native: Gradients, upstream: Gradients) -> Gradients:
        """Put weight · g at the active entries of tied windows."""
        first, *others = native
        given = upstream[0]
        if first is None or given is None:
            return native
        flat = given.reshape(-1)
        values = scaled(chosen, flat[self.output][:, None])
        if self.taken is None:
            # The copies are written too; detached, they count once in a double backward pass.
            copies = values.gather(1, self.first).detach()
            values = torch.where(self.active, values, copies).reshape(-1)
            into = self.positions.reshape(-1)
        else:
            into, values = self.positions[self.active], values[self.active]
            into, values = self._with_overlaps(into, values, flat)
        return (put_flat(first, into, values), *others)

    def pieces(self, tangents: Gradients) -> Tensor:
        """The tangents of the active entries; other places repeat the first active one."""
        if tangents[0] is None:
            return torch.zeros(self.active.shape, dtype=torch.float64, device=self.active.device)
        t = tangents[0].reshape(-1)[self.positions]
        if self.signs is None:
            return t
        return t * torch.where(self.active, self.signs, self.signs.gather(1, self.first))

    def _with_overlaps(self, into: Tensor, values: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Add what untied windows give to the entries that tied windows touch."""
        assert self.taken is not None
        untied = torch.ones(flat.shape, dtype=torch.bool, device=flat.device)
        untied[self.output] = False
        touched = into.unique()
        taken, given = self.taken[untied], flat[untied].to(values.dtype)
        hits = torch.isin(taken, touched)
        into = torch.cat([into, taken[hits]])
        return touched, added(torch.searchsorted(touched, into), torch.cat([values, given[hits]]))


@dataclass(frozen=True, eq=False)
class Contest:
    """Entries at which two arguments are equal and both may be the output.

    Attributes:
        mask: Which entries of the output, bool.
        first: Position of the one argument among the differentiable ones.
        second: Position of the other.
    """

    mask: Tensor
    first: int
    second: int


@dataclass(frozen=True, eq=False)
class Contests(AbstractKink):
    """Ties between broadcast arguments.

    Attributes:
        contests: Where they are, disjoint.
        wins: Where each argument alone is the output, bool, by position.
    """

    contests: tuple[Contest, ...]
    wins: tuple[Tensor, ...]

    @property
    def units(self) -> Tensor:
        """Flat indices of the tied output entries, contest after contest."""
        return torch.cat([c.mask.reshape(-1).nonzero()[:, 0] for c in self.contests])

    def choose(self, choice: Choice, generator: torch.Generator) -> Tensor | None:
        """Weights [T, 2] of the two arguments. A number s means (s, 1 - s)."""
        if choice is None or isinstance(choice, Native):
            return None
        active = torch.ones(len(self.units), 2, dtype=torch.bool, device=self.wins[0].device)
        if isinstance(choice, AbstractChoice):
            return choice.weights(active, generator)
        return active * torch.tensor([choice, 1 - choice], device=active.device).double()

    def redo(self, chosen: Tensor, native: Gradients, upstream: Gradients) -> Gradients:
        """Put weight · g where two arguments are equal, summed over broadcast dimensions."""
        given = upstream[0]
        if given is None:
            return native
        sizes = [int(c.mask.sum()) for c in self.contests]
        changed: list[Tensor | None] = list(native)
        for slot, gradient in enumerate(native):
            if gradient is None:
                continue
            parts = [
                (c.mask, weights[:, 0 if c.first == slot else 1])
                for c, weights in zip(self.contests, chosen.split(sizes), strict=True)
                if slot in (c.first, c.second) and bool(c.mask.any())
            ]
            changed[slot] = self._argument(slot, parts, gradient, given)
        return tuple(changed)

    def pieces(self, tangents: Gradients) -> Tensor:
        """The tangents of the two equal arguments."""
        found = []
        for c in self.contests:
            pair = [
                _tangent(tangents, i, c.mask).expand(c.mask.shape)[c.mask]
                for i in (c.first, c.second)
            ]
            found.append(torch.stack(pair, dim=1))
        return torch.cat(found)

    def _argument(
        self, slot: int, parts: list[tuple[Tensor, Tensor]], native: Tensor, given: Tensor
    ) -> Tensor:
        full = native
        if native.shape != given.shape:
            full = torch.where(self.wins[slot], given, 0)
        for mask, weights in parts:
            at = places(mask)
            full = put(full, at, scaled(weights, given[at]))
        if native.shape == given.shape or not parts:
            return full if parts else native
        touched = sum(mask.to(torch.int32).sum_to_size(native.shape) for mask, _ in parts)
        return torch.where(torch.as_tensor(touched) > 0, full.sum_to_size(native.shape), native)


@dataclass(frozen=True, eq=False)
class Apexes(AbstractKink):
    """Vectors that are zero under a norm.

    Clarke's subdifferential there is the unit ball of the dual norm. The choice s stands for the
    vector with equal entries whose dual norm is |s|; 0 is torch's.

    Attributes:
        output: Flat index of each norm in the output, int64 [T].
        positions: Flat indices of each vector's entries in the input, int64 [T, K].
        order: The norm's p.
    """

    output: Tensor
    positions: Tensor
    order: float

    @property
    def units(self) -> Tensor:
        """Flat indices of the output entries that are norms of zero."""
        return self.output

    def choose(self, choice: Choice, generator: torch.Generator) -> Tensor | None:
        """Vectors [T, K]."""
        del generator
        if choice is None or isinstance(choice, Native):
            return None
        length = self.positions.shape[1]
        # ||(c, ..., c)||_q = c · n^(1/q), and 1/q = 1 - 1/p.
        entry = (
            1.0 if isinstance(choice, AllOnes) else _number(choice) / length ** (1 - 1 / self.order)
        )
        return torch.full_like(self.positions, entry, dtype=torch.float64)

    def redo(self, chosen: Tensor, native: Gradients, upstream: Gradients) -> Gradients:
        """Put v · g at the zero vectors."""
        first, *others = native
        given = upstream[0]
        if first is None or given is None:
            return native
        values = scaled(chosen, given.reshape(-1)[self.output][:, None])
        return (put_flat(first, self.positions.reshape(-1), values.reshape(-1)), *others)

    def pieces(self, tangents: Gradients) -> Tensor:
        """The norm's one-sided derivatives along the tangent: ±|t|."""
        if tangents[0] is None:
            return torch.zeros(len(self.output), 2, dtype=torch.float64, device=self.output.device)
        size = tangents[0].reshape(-1)[self.positions].abs().amax(dim=1)
        return torch.stack([-size, size], dim=1)


def _number(choice: Choice) -> float:
    if isinstance(choice, AbstractChoice) or choice is None:
        raise SelectionError(f"this kink lies between two slopes: choose a number, not {choice!r}")
    return float(choice)


def _rule(choice: Choice) -> AbstractChoice:
    if not isinstance(choice, AbstractChoice):
        raise SelectionError(f"a maximum needs a choice such as Minimal(), not {choice!r}")
    return choice


def _tangent(tangents: Gradients, slot: int, like: Tensor) -> Tensor:
    found = tangents[slot] if slot < len(tangents) else None
    return (
        torch.zeros(like.shape, dtype=torch.float64, device=like.device) if found is None else found
    )
