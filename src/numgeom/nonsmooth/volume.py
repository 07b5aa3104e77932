"""Which share of parameter space shows a backprop variation above tau, and how sure is that?

Monte Carlo over M initialisations theta_m and R mini-batches: D_mr is the variation between two
selections (eq. 12). With the indices of the paper put right,

    eq. 18:  (1/M) sum_m 1[max_r D_mr > tau]           the share of parameter points,
    eq. 19:  (1/(MR)) sum_mr 1[D_mr > tau]             the share of (point, mini-batch) pairs.

Points are independent: the first share has the exact interval of Clopper and Pearson. Pairs share
their point and their mini-batch: the second has McDiarmid's margin. Beside both stands the share by
zone, which needs no tau (`numgeom.nonsmooth.zones`).

The points can be drawn by several processes, on several machines (`torchrun`), and in several
sittings (`numgeom.nonsmooth.ledger`); each point depends on its number and nothing else.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from numgeom.arithmetic.printing import nearest, percent, percent_lower, percent_upper, upper_short
from numgeom.errors import NumgeomError
from numgeom.nonsmooth.ledger import Ledger
from numgeom.nonsmooth.margins import (
    DEFAULT_ALPHA,
    MarginError,
    clopper_pearson,
    hoeffding_sample_size,
    mcdiarmid_margin,
)
from numgeom.nonsmooth.selection import Selection
from numgeom.nonsmooth.sharing import Share, spread_over
from numgeom.nonsmooth.thresholds import tau_curve
from numgeom.nonsmooth.variation import backprop_variation
from numgeom.nonsmooth.zones import CONTRAST, NATIVE, Zone, zones
from numgeom.recording.digest import bytes_of

Progress = Callable[[str, int, int], None]
_ZONES: tuple[Zone, ...] = ("regular", "compensation", "bifurcation")


class VolumeError(NumgeomError):
    """A volume cannot be estimated as asked."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is sampled. For work in several processes all fields must be picklable.

    Attributes:
        make_model: Makes the model of a parameter point from its number, drawing its initial
            values from that number alone.
        loss_fn: `loss_fn(model, batch)` returns the loss.
        batches: The R mini-batches, the same for every point.
        selections: The two derived programs.
        zones: Whether to find the zone of each pair as well, by float64 replays; several times the
            work of the variation alone.
    """

    make_model: Callable[[int], nn.Module]
    loss_fn: Callable[[nn.Module, Any], Tensor]
    batches: Sequence[Any]
    selections: tuple[Selection, Selection] = (NATIVE, CONTRAST)
    zones: bool = False

    def __post_init__(self) -> None:
        if not self.batches:
            raise VolumeError("a volume needs at least one mini-batch")

    def task(self) -> dict[str, Any]:
        """What tells the state of this work from that of other work."""
        model = self.make_model(0)
        return {
            "points": _fingerprint(list(model.named_parameters())),
            "batches": _fingerprint(list(self.batches)),
            "selections": [str(s) for s in self.selections],
            "seeds": [s.seed for s in self.selections],
            "zones": self.zones,
        }

    def point(self, number: int) -> dict[str, Any]:
        """Measure one parameter point on every mini-batch; plain JSON values."""
        model = self.make_model(number)
        if not self.zones:
            found = [
                backprop_variation(model, self.loss_fn, b, selections=self.selections).l1
                for b in self.batches
            ]
            return {"variations": found}
        seen = [zones(model, self.loss_fn, b, selections=self.selections) for b in self.batches]
        return {
            "variations": [z.variation for z in seen],
            "zones": [z.zone for z in seen],
            "replayed": [z.replayed_variation for z in seen],
        }


@dataclass(frozen=True)
class Volume:
    """Variations of M parameter points on R mini-batches.

    Attributes:
        variations: D_mr, float64 [M, R].
        zones: The zone of each pair, M tuples of R; None if they were not asked for.
        replayed: The variations with the backward pass replayed in float64, [M, R]; None likewise.
    """

    variations: Tensor
    zones: tuple[tuple[Zone, ...], ...] | None = None
    replayed: Tensor | None = None

    @property
    def n_points(self) -> int:
        """M."""
        return self.variations.shape[0]

    @property
    def n_batches(self) -> int:
        """R."""
        return self.variations.shape[1]

    def share_of_points(self, tau: float) -> float:
        """Equation 18: the share of points with a variation above tau on some mini-batch."""
        return float(self._above(tau).any(dim=1).double().mean())

    def share_of_pairs(self, tau: float) -> float:
        """Equation 19: the share of (point, mini-batch) pairs with a variation above tau."""
        return float(self._above(tau).double().mean())

    def interval(self, tau: float, *, alpha: float = DEFAULT_ALPHA) -> tuple[float, float]:
        """Clopper and Pearson's interval for `share_of_points`."""
        return clopper_pearson(int(self._above(tau).any(dim=1).sum()), self.n_points, alpha=alpha)

    def margin(self, *, alpha: float = DEFAULT_ALPHA) -> float | None:
        """McDiarmid's margin for `share_of_pairs`; None where it would say nothing."""
        try:
            return mcdiarmid_margin(self.n_points, self.n_batches, alpha=alpha)
        except MarginError:
            return None

    def curve(self, taus: Iterable[float] | None = None) -> tuple[tuple[float, float, float], ...]:
        """Rows (tau, share of points, share of pairs) by growing tau."""
        found = tau_curve(self.variations.flatten().tolist(), taus)
        return tuple((tau, self.share_of_points(tau), share) for tau, share in found)

    def zone_shares(self) -> dict[Zone, float] | None:
        """The share of points in each zone (definition 3); None if zones were not asked for."""
        if self.zones is None:
            return None
        worst = [_worst(row) for row in self.zones]
        return {zone: worst.count(zone) / len(worst) for zone in _ZONES}

    def zone_interval(
        self, zone: Zone, *, alpha: float = DEFAULT_ALPHA
    ) -> tuple[float, float] | None:
        """Clopper and Pearson's interval for the share of points in a zone."""
        if self.zones is None:
            return None
        count = sum(_worst(row) == zone for row in self.zones)
        return clopper_pearson(count, self.n_points, alpha=alpha)

    def __str__(self) -> str:
        """The curve with its margins."""
        margin = self.margin()
        said = f"margin {upper_short(margin)}" if margin is not None else "too few for a margin"
        lines = [f"{self.n_points} points, {self.n_batches} mini-batches; pairs: {said}"]
        for tau, points, pairs in self.curve():
            lines.append(
                f"  D > {nearest(tau, 1)}: {percent(points, 2):>7} of points "
                f"{_shown(self.interval(tau))}, "
                f"{percent(pairs, 2):>7} of pairs"
            )
        for zone, share in (self.zone_shares() or {}).items():
            interval = _shown(self.zone_interval(zone) or (0.0, 1.0))
            lines.append(f"  {zone}: {percent(share, 2)} of points {interval}")
        return "\n".join(lines)

    def _above(self, tau: float) -> Tensor:
        return ~(self.variations <= tau)  # a NaN is a difference


def _shown(interval: tuple[float, float]) -> str:
    return f"[{percent_lower(interval[0], 2)}, {percent_upper(interval[1], 2)}]"


def estimate_volume(
    sampling: Sampling,
    *,
    points: int | None = None,
    margin: float | None = None,
    alpha: float = DEFAULT_ALPHA,
    state: Path | None = None,
    workers: int = 0,
    share: Share | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Estimate the volume of the parameters with a variation.

    Args:
        sampling: What is sampled.
        points: The number M of parameter points.
        margin: In place of `points`: as many as make the share of points certain to that margin
            (Hoeffding), whatever it is.
        alpha: Risk that the margin fails.
        state: File that keeps finished points; with it an interrupted run goes on.
        workers: Processes besides this one that do the work; 0: this one does.
        share: This process's part of the work; None: all of it, or what `torchrun` says where it
            started this process (`numgeom.nonsmooth.sharing`). Every process gets the whole result.
        progress: Called as `progress(what, done, count)`.

    Raises:
        VolumeError: if neither or both of `points` and `margin` are given.
        FileFormatError: if `state` belongs to other work.
    """
    if (points is None) == (margin is None):
        raise VolumeError("give the number of points, or the margin that they have to reach")
    if margin is not None:
        points = hoeffding_sample_size(margin, alpha=alpha)
    assert points is not None
    if points < 1:
        raise VolumeError(f"points = {points}: at least one is needed")
    report = progress or _silent
    with Share.of_torchrun() if share is None else share as mine:
        ledger = None if state is None else Ledger(state, sampling.task(), writer=mine.rank)
        kept = {} if ledger is None else ledger.pieces
        done = {m: found for m, found in kept.items() if m < points}
        wanted = [m for m in range(points) if m not in done]
        # Another process may still be writing what this one has read: agree on what is missing.
        todo = mine.part(mine.agreed(wanted))
        for number, found in spread_over(sampling.point, todo, workers=workers):
            done[number] = found
            if ledger is not None:
                ledger.add(number, found)
            report("points", len(done), points)
        done = mine.joined(done)
    rows = [done[m] for m in range(points)]
    variations = torch.tensor([row["variations"] for row in rows], dtype=torch.float64)
    if not sampling.zones:
        return Volume(variations)
    replayed = torch.tensor([row["replayed"] for row in rows], dtype=torch.float64)
    return Volume(variations, tuple(tuple(row["zones"]) for row in rows), replayed)


def _worst(row: Sequence[Zone]) -> Zone:
    if "bifurcation" in row:
        return "bifurcation"
    return "compensation" if "compensation" in row else "regular"


def _fingerprint(tree: Any) -> str:
    """A hash of all tensors and numbers of a tree."""
    digest = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, Tensor):
            flat = item.detach().cpu().contiguous()
            digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
            digest.update(bytes_of(flat))
        elif isinstance(item, (tuple, list)):
            for part in item:
                feed(part)
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                digest.update(str(key).encode())
                feed(item[key])
        else:
            digest.update(repr(item).encode())

    feed(tree)
    return digest.hexdigest()[:16]


def _silent(what: str, done: int, count: int) -> None:
    del what, done, count
