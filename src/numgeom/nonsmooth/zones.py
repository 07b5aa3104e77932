"""Does the choice of derivatives at kinks change this gradient over the reals, or only by rounding?

Boustany (2024, definition 3) divides parameter space: *regular*, where every elementary program is
differentiable; *compensation*, where some are not but every choice gives the same gradient;
*bifurcation*, where choices give different gradients. In floating point the difference of two
gradients shows both, and a threshold on its size tells them apart only by decree. The test here
needs none: freeze the forward pass as it was computed, and run only the backward pass again, in
float64, under each choice. Over the same activations and active sets a compensation shrinks to
float64's rounding, and a bifurcation stays as it was.

The verdict is about the selections that were compared, at one parameter point and one mini-batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from numgeom.arithmetic.printing import upper_short
from numgeom.failures import answers
from numgeom.nonsmooth.backward import FrozenStep, TiedCall
from numgeom.nonsmooth.choices import Last, Minimal
from numgeom.nonsmooth.kinks import Family
from numgeom.nonsmooth.selection import FAMILIES, Selection
from numgeom.nonsmooth.tangents import Pieces, classify
from numgeom.nonsmooth.variation import Reduction, Variation, compare_gradients
from numgeom.recording import MISSING, Program, Recording, program_of
from numgeom.visible import visible

Zone = Literal["regular", "compensation", "bifurcation"]

NATIVE = Selection()
"""What torch does."""

CONTRAST = Selection(
    relu=1.0, abs=1.0, clamp=0.0, maxpool=Minimal(), max=Last(), amax=Last(), norm=1.0
)
"""A Clarke derivative that differs from torch's in every family."""


@dataclass(frozen=True, eq=False)
class Tie:
    """The tied units of one call that the parameters can move.

    Attributes:
        module: Path of the module that made the call; "" is the model itself.
        source: "file.py:line" of the call.
        op: The op's name.
        family: Which field of a `Selection` decides its derivative.
        indices: Where the units are in the call's output, int64 [T, D].
        identical: Whether all that is tied in a unit is one function of the parameters, as for
            equal input patches; False is a tie by accident. None where it is not known.
    """

    module: str
    source: str
    op: str
    family: Family
    indices: Tensor
    identical: Tensor | None

    def __len__(self) -> int:
        """Number of units."""
        return len(self.indices)

    @property
    def n_accidental(self) -> int | None:
        """Number of units that are tied by accident."""
        return None if self.identical is None else int((~self.identical).sum())

    def __str__(self) -> str:
        """One line."""
        place = " ".join(part for part in (self.module, self.source) if part)
        kind = "" if self.n_accidental is None else f", {self.n_accidental} by accident"
        return visible(f"{self.op} {place}: {len(self)} tied{kind}")


@dataclass(frozen=True, eq=False)
class Zones:
    """Where one parameter point lies, for one mini-batch and two selections.

    Attributes:
        zone: The verdict. "regular" if there are no ties; else "bifurcation" if the replayed
            variation exceeds `rounding`, and "compensation" if not.
        selections: The two derived programs that were compared.
        ties: The calls with tied units, in the families in which the selections differ.
        n_dead: Units that are tied too but that no parameter moves, such as pools over dead ReLUs:
            the gradient cannot see them, and they are not among the ties.
        variation: D between the selections in the recorded formats: the 1-norm over all
            parameters (eq. 12).
        replayed_variation: The same with the backward pass replayed in float64.
        rounding: How far the float64 gradient moves (1-norm) when every value of its backward
            pass moves by one unit in the last place: what rounding alone can do.
        details: All norms of the variation, per parameter as well.
        replayed_details: All norms of the replayed variation.
        unmatched: Calls with kinks whose backward calls were not found, because no gradient flows
            there or because the formula is not known, and calls that stand on a kink that no
            selection reaches, as ties in `sort`: the verdict does not cover them.
    """

    zone: Zone
    selections: tuple[Selection, Selection]
    ties: tuple[Tie, ...]
    n_dead: int
    variation: float
    replayed_variation: float
    rounding: float
    details: Variation
    replayed_details: Variation
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        """The verdict with its evidence, a few lines."""
        first, second = self.selections
        lines = [
            f"{self.zone}: {first} against {second}",
            f"variation {upper_short(self.variation)} as computed, "
            f"{upper_short(self.replayed_variation)} replayed in float64 (rounding there: "
            f"{upper_short(self.rounding, 1)})",
            *(f"  {tie}" for tie in self.ties),
            f"  {self.n_dead} more tied, but no parameter moves them",
        ]
        if self.unmatched:
            lines.append(f"  not covered: {', '.join(self.unmatched)}")
        return "\n".join(map(visible, lines))


@answers("zones")
def zones(
    subject: nn.Module | Program | Recording | Callable[[], Any],
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    batch: Any = MISSING,
    *,
    selections: tuple[Selection, Selection] = (NATIVE, CONTRAST),
    reduction: Reduction = "unknown",
    seed: int = 0,
) -> Zones:
    """Find the zone of a model's parameters for one mini-batch.

    Args:
        subject: A model, with `loss_fn` and `batch`; a function that runs one step; a recording;
            or a program. Left as it was.
        loss_fn: `loss_fn(model, batch)` returns the loss; with a model only.
        batch: Anything that `loss_fn` understands; with a model only.
        selections: The two derived programs to compare.
        reduction: How `loss_fn` reduces over the mini-batch; noted in the variation.
        seed: Seed of the rounding sample and of the direction that classifies ties.

    Raises:
        SubjectError: if the arguments do not fit together.
        RecordingError: if the step cannot be recorded.
        ReplayError: if it cannot be replayed.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.MaxPool1d(2))
        >>> zones(model, lambda m, x: m(x).sum(), torch.ones(1, 1, 4)).zone
        'compensation'
    """
    program = program_of(subject, loss_fn, batch, question="zones")
    return zones_of(program, selections=selections, reduction=reduction, seed=seed)


@answers("zones")
def zones_of(
    program: Program | FrozenStep,
    *,
    selections: tuple[Selection, Selection] = (NATIVE, CONTRAST),
    reduction: Reduction = "unknown",
    seed: int = 0,
) -> Zones:
    """Find the zone of a recorded step; see `zones`."""
    first, second = selections
    step = program if isinstance(program, FrozenStep) else FrozenStep(program)
    families = {f for f in FAMILIES if first.of(f) != second.of(f)}
    calls = [tie for tie in step.ties if tie.family in families]
    pieces = classify(step, seed=seed)
    found = [_tie(tie, None if pieces is None else pieces[tie]) for tie in calls]
    ties = tuple(tie for tie in found if len(tie))
    n_dead = sum(len(tie.kink.units) for tie in calls) - sum(len(tie) for tie in ties)

    def variation(dtype: torch.dtype | None) -> Variation:
        a, b = (step.gradients(s, dtype=dtype) for s in selections)
        return compare_gradients(a, b, reduction=reduction)

    computed, replayed = variation(None), variation(torch.float64)
    noise = torch.Generator().manual_seed(seed)
    moved = compare_gradients(step.gradients(first), step.gradients(first, noise=noise)).l1
    zone: Zone = "regular"
    if ties:  # a NaN is a difference
        zone = "compensation" if replayed.l1 <= moved else "bifurcation"
    return Zones(
        zone,
        selections,
        ties,
        n_dead,
        computed.l1,
        replayed.l1,
        moved,
        computed,
        replayed,
        tuple(_place(node) for node in (*step.sites.unmatched, *step.uncovered)),
    )


def zone_of_point(found: Iterable[Zones]) -> Zone:
    """The zone of a parameter point from those of its mini-batches (definition 3).

    It is regular if all are, in the bifurcation zone if one is, and else in the compensation zone.
    """
    seen = {each.zone for each in found}
    if "bifurcation" in seen:
        return "bifurcation"
    return "compensation" if "compensation" in seen else "regular"


def _tie(tie: TiedCall, pieces: Pieces | None) -> Tie:
    units = tie.kink.units
    moves = torch.ones_like(units, dtype=torch.bool) if pieces is None else pieces.moves
    indices = units[moves][:, None]
    if len(tie.shape) > 1:
        indices = torch.stack(torch.unravel_index(units[moves], tie.shape), dim=1)
    info = tie.node.meta["call"]
    return Tie(
        module=info.module,
        source=info.source,
        op=tie.op,
        family=tie.family,
        indices=indices,
        identical=None if pieces is None else pieces.identical[moves],
    )


def _place(node: Any) -> str:
    info = node.meta["call"]
    return " ".join(part for part in (str(node.target), info.module, info.source) if part)
