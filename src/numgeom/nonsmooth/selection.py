"""Which derivative does the backward pass take at each kind of kink?

with select(relu=0.5, maxpool=Hybrid(beta=10.0)):
    loss = loss_fn(model, batch)
    loss.backward()
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import torch

from numgeom.nonsmooth.choices import AbstractChoice, AllOnes, Native
from numgeom.nonsmooth.kinks import AbstractKink, Choice, Family, KinkRule
from numgeom.nonsmooth.maxima import MAXIMA
from numgeom.nonsmooth.pointwise import POINTWISE
from numgeom.ops.selection import Derivative, Gradients, OpCall, SelectionError, Substitution

KINKS: Mapping[str, tuple[KinkRule, ...]] = {**POINTWISE, **MAXIMA}
"""How the tied units of each op are found, by the op's name."""

# Numbers that are Clarke derivatives, by family.
_CLARKE: Mapping[str, tuple[float, float]] = {
    "relu": (0.0, 1.0),
    "abs": (-1.0, 1.0),
    "clamp": (0.0, 1.0),
    "norm": (-1.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """One derivative for each family of kinks; None is what torch does.

    Attributes:
        relu: ReLU'(0) = s. For every activation with a corner: s = 0 is the flatter of the two
            slopes that meet (torch's for ReLU), s = 1 the steeper one. In leaky ReLU, ReLU6,
            hardtanh, threshold, PReLU, ELU, SELU, CELU, softshrink, hardsigmoid, hardswish.
        abs: The derivative of |x| at 0; torch's is 0. Also in l1_loss.
        clamp: The derivative of clamp at its bounds; torch's is 1. The bound, where it is a
            tensor, gets what is left to 1.
        maxpool: Choice in the tied windows of max_pool1d, 2d, 3d and their adaptive forms.
        max: Choice in torch.max and min (full, along a dimension), maximum, minimum, fmax, fmin.
        amax: Choice in amax and amin, and among the largest |x| of the maximum norm.
        norm: The derivative of a norm at 0: s is the vector with equal entries whose dual norm is
            |s| (for the 2-norm of four entries and s = 1: one half each); torch's is 0.
            `AllOnes()` is the vector of ones. In the 1-norm s is the derivative of each |x_i| at 0.
        seed: Seed of the choices that draw.
    """

    relu: float | None = None
    abs: float | None = None
    clamp: float | None = None
    maxpool: AbstractChoice | None = None
    max: AbstractChoice | None = None
    amax: AbstractChoice | None = None
    norm: float | AllOnes | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for family in FAMILIES:
            choice = self.of(family)
            if choice is None:
                continue
            takes_number = family in _CLARKE
            if isinstance(choice, AbstractChoice):
                if takes_number and not (family == "norm" and isinstance(choice, AllOnes)):
                    raise SelectionError(f"select({family}=...) takes a number, not {choice!r}")
            elif not takes_number:
                raise SelectionError(
                    f"select({family}=...) takes a choice such as Minimal() or Hybrid(beta=2.0), "
                    f"not {choice!r}"
                )
            elif isinstance(choice, bool) or not math.isfinite(choice):
                raise SelectionError(f"select({family}={choice}) must be a finite number")

    def of(self, family: Family) -> Choice:
        """The choice for one family."""
        return getattr(self, family)

    @property
    def is_native(self) -> bool:
        """Whether nothing is replaced."""
        return all(_is_native(self.of(family)) for family in FAMILIES)

    @property
    def is_clarke(self) -> bool:
        """Whether every choice is an element of Clarke's Jacobian of its op."""
        return all(_is_clarke(family, self.of(family)) for family in FAMILIES)

    def __str__(self) -> str:
        """The choices that differ from torch's, as they are written in a call."""
        given = [f.name for f in fields(self) if f.name != "seed"]
        chosen = [f"{n}={self.of(n)}" for n in given if self.of(n) is not None]  # type: ignore[arg-type]  # field names are families
        return ", ".join(chosen) or "native"


FAMILIES: tuple[Family, ...] = ("relu", "abs", "clamp", "maxpool", "max", "amax", "norm")
"""The families of kinks, in the order of `Selection`'s fields."""


@dataclass(frozen=True)
class Applied:
    """What a selection met.

    Attributes:
        selection: The selection.
        calls: Calls whose derivative was replaced, by family.
        units: Tied units in them, by family.
    """

    selection: Selection
    calls: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)


@contextmanager
def select(
    selection: Selection | None = None,
    *,
    relu: float | None = None,
    abs: float | None = None,
    clamp: float | None = None,
    maxpool: AbstractChoice | None = None,
    max: AbstractChoice | None = None,
    amax: AbstractChoice | None = None,
    norm: float | AllOnes | None = None,
    seed: int = 0,
) -> Iterator[Applied]:
    """Take chosen derivatives at kinks, in the code of the block as it is.

    The forward pass is bit-identical for every selection. So are the gradients, except where a
    tied unit touches them. A forward pass that ran inside the block keeps the selection in its
    backward pass, wherever that runs; one that ran outside keeps torch's. Of nested blocks the
    innermost alone decides. Derivatives in forward mode (jvp) are torch's.

    Args:
        selection: A selection, in place of the keywords.
        relu: As in `Selection`, like all that follow.
        abs: The derivative of |x| at 0.
        clamp: The derivative of clamp at its bounds.
        maxpool: Choice in tied pool windows.
        max: Choice in max, min, maximum, minimum.
        amax: Choice in amax, amin and the maximum norm.
        norm: The derivative of a norm at 0.
        seed: Seed of the choices that draw.

    Yields:
        Counts of the tied units that were met, growing while the block runs; a forward pass that
        checkpointing runs again counts again.

    Raises:
        SelectionError: if a choice does not fit its family; in the block, if a kink's derivative
            cannot be replaced (in-place writes into views, torch.func transforms).

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> with select(relu=0.5):
        ...     torch.relu(x).sum().backward()
        >>> x.grad
        tensor([0.5000, 0.5000])
    """
    keywords = Selection(
        relu=relu, abs=abs, clamp=clamp, maxpool=maxpool, max=max, amax=amax, norm=norm, seed=seed
    )
    if selection is not None and keywords != Selection(seed=seed):
        raise SelectionError("give select() a selection or keywords, not both")
    chosen = selection or keywords
    applied = Applied(chosen)
    generator = torch.Generator().manual_seed(chosen.seed)

    def answer(call: OpCall) -> Derivative | None:
        steps = []
        for rule in KINKS[call.name]:
            choice = chosen.of(rule.family)
            kink = None if _is_native(choice) else rule.find(call)
            numbers = None if kink is None else kink.choose(choice, generator)
            if kink is None or numbers is None:
                continue
            applied.calls[rule.family] += 1
            applied.units[rule.family] += len(kink.units)
            steps.append((kink, numbers))
        return _derivative(steps) if steps else None

    active = {f for f in FAMILIES if not _is_native(chosen.of(f))}
    names = frozenset(n for n, rules in KINKS.items() if any(r.family in active for r in rules))
    with Substitution(answer, names):
        yield applied


def _derivative(steps: list[tuple[AbstractKink, torch.Tensor]]) -> Derivative:
    def derivative(native: Gradients, upstream: Gradients) -> Gradients:
        for kink, numbers in steps:
            native = kink.redo(numbers, native, upstream)
        return native

    return derivative


def _is_native(choice: Choice) -> bool:
    return choice is None or isinstance(choice, Native)


def _is_clarke(family: Family, choice: Choice) -> bool:
    if choice is None:
        return True
    if isinstance(choice, AbstractChoice):
        return choice.is_clarke
    low, high = _CLARKE[family]
    return low <= choice <= high
