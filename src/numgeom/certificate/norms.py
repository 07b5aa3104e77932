"""How large is the linearised program in units of its scale?

B = S^-1 P A J T maps what arises at the columns to the errors at the rows (`kantorovich`). It is
known by what it does to vectors; `probes` says what follows from that.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import div_up, norm_up
from numgeom.certificate.draws import Draws
from numgeom.certificate.facts import Facts
from numgeom.certificate.probes import ProbePlan
from numgeom.certificate.scale import Scale
from numgeom.recording import Program
from numgeom.semantics.sensitivity import Linearization
from numgeom.semantics.tangents import push

_PUSHED = 20  # probes that are pushed at once
_BATCH = 8  # those of power steps, which are kept meanwhile
KEPT = 4  # probes that power steps may start from
_LOOKED_AT = 4096  # entries of a node, for the test of the passes
# What squares that underflow may hide of a norm, in units of the scale: 1e-162 for each entry.
_HIDDEN = 1e-150


@dataclass
class Probed:
    """Norms of what the probes became, one entry per probe.

    Attributes:
        rows: ||B w||.
        blocks: ||P_j A J T w||, by parameter.
        total: The same for all gradients together.
        nonlinearity: By how much the passes are not linear, relative to what they return.
        kept: B w of the first probes, by node, as many as were asked for.
    """

    rows: list[float]
    blocks: dict[str, list[float]]
    total: list[float]
    nonlinearity: float
    kept: dict[fx.Node, Tensor] = field(default_factory=dict)


class ScaledMap:
    """The scaled map B = S^-1 P A J T and its blocks, probed."""

    def __init__(
        self,
        program: Program,
        facts: Facts,
        scale: Scale,
        device: torch.device | str | None,
        draws: Draws,
    ) -> None:
        self._program = program
        self._facts = facts
        self._rows = scale.rows
        self._columns = scale.columns
        self._device = device
        self._draws = draws
        self.dimension = sum(t.numel() for t in scale.columns.values())

    def eta(self) -> float:
        """||T^-1 d||, rounded up."""
        parts = [
            float(norm_up(torch.where(d > 0, div_up(d, self._columns[node]), 0.0)))
            for node, d in self._facts.sources.items()
            if d.numel()
        ]
        return float(norm_up(torch.tensor(parts, dtype=torch.float64))) if parts else 0.0

    def probe(self, count: int, *, keep: int = 0) -> Probed:
        """||B w|| and ||P_j A J T w|| for fresh vectors w, and a test of the passes.

        In each batch one more vector is pushed, the sum of the others: what comes out differs from
        the sum of what the others become by the rounding of the passes alone. That is looked at in
        some thousand entries of each node.

        What is not a number counts as infinite.

        Args:
            count: How many vectors.
            keep: Of how many B w itself is returned; at most `KEPT`.
        """
        named: dict[fx.Node, list[str]] = {}
        for name, node in self._facts.gradients.items():  # two parameters may share a gradient
            named.setdefault(node, []).append(name)
        rows = torch.zeros(0, dtype=torch.float64)
        blocks = dict.fromkeys(self._facts.gradients, rows)
        worst = 0.0
        kept: dict[fx.Node, Tensor] = {}
        while len(rows) < count:
            lanes = min(_PUSHED, count - len(rows))
            squares = torch.zeros(lanes + 1, dtype=torch.float64)
            off = torch.zeros(2, dtype=torch.float64)
            sizes: dict[str, Tensor] = {n: torch.zeros(lanes).double() for n in blocks}

            def visit(
                node: fx.Node,
                e: Tensor,
                squares: Tensor = squares,
                sizes: dict[str, Tensor] = sizes,
                off: Tensor = off,
                first: bool = not len(rows),
            ) -> None:
                s = self._rows.get(node)
                if s is not None:
                    scaled = (e / s).reshape(len(e), -1)
                    if keep and first:
                        kept[node] = scaled[:keep].reshape(keep, *e.shape[1:]).clone()
                    squares += _lane_norms(scaled).square()
                    few = scaled[:, :: max(1, scaled.shape[1] // _LOOKED_AT)]
                    gap = few[:-1].sum(0) - few[-1]
                    off += torch.stack([gap.square().sum(), few[-1].square().sum()]).cpu()
                for name in named.get(node, ()):
                    sizes[name] = _lane_norms_up(e[:-1])

            self._push(lanes, visit)
            worst = _larger(worst, float((off[0] / off[1].clamp(min=1e-300)).sqrt()))
            rows = torch.cat([rows, squares[:-1].sqrt()])
            blocks = {name: torch.cat([blocks[name], sizes[name]]) for name in blocks}
        total = norm_up(torch.stack(list(blocks.values())), 0) if blocks else torch.zeros_like(rows)
        cover = 1 + 1e-9  # of the rounding of norms
        rows = torch.nan_to_num(rows * cover + _HIDDEN, nan=math.inf)
        return Probed(
            rows.tolist(),
            {name: b.tolist() for name, b in blocks.items()},
            total.tolist(),
            worst,
            kept,
        )

    def _push(self, lanes: int, visit: Any) -> None:
        """Push fresh vectors and, last, their sum."""

        def inject(node: fx.Node, value: Tensor) -> Tensor | None:
            t = self._columns.get(node)
            return None if t is None else self._draws.times(t, lanes, value, sums=1)

        push(self._program, lanes + 1, inject, visit, device=self._device)

    def power(
        self,
        probes: int,
        steps: int,
        failure_probability: float,
        *,
        started: dict[fx.Node, Tensor] | None = None,
    ) -> tuple[float, float]:
        """An upper bound of ||B||, and the largest relative gap of <B x, y> and <x, B^T y>.

        Memory is that of all values of the program, and of two vectors per probe.

        Args:
            probes: How many vectors.
            steps: Applications of B B^T to each.
            failure_probability: Of the bound.
            started: B w for random vectors w, that `probe` kept; otherwise they are drawn.
        """
        linear = Linearization(self._program, device=self._device)
        plan = ProbePlan(probes, steps, failure_probability, self.dimension)
        results, worst = [], 0.0
        for done in range(0, probes, _BATCH):
            lanes = min(_BATCH, probes - done)
            y = started or self._forward(lanes)
            started = None
            sizes = _norms(y, lanes)
            logs = sizes.log()
            for step in range(steps):
                for n, t in y.items():  # S^-1 y, for y of length one; in place, it is all there is
                    t.div_(_along(sizes, t)).div_(self._rows[n])
                x = linear.vjps(y, wanted=self._columns)
                for n in x:
                    x[n] = x[n] * self._columns[n]
                left = _norms(x, lanes).square()
                y, sizes, right = self._forward_again(lanes, x, y, keep=step < steps - 1)
                worst = _larger(worst, _gap(left, right))
                logs += sizes.log()
            results += (logs / (2 * steps + 1)).exp().tolist()
        return plan.bound(results), worst

    def _forward(self, lanes: int) -> dict[fx.Node, Tensor]:
        """B w for fresh vectors w, by node."""
        found: dict[fx.Node, Tensor] = {}

        def inject(node: fx.Node, value: Tensor) -> Tensor | None:
            t = self._columns.get(node)
            return None if t is None else self._draws.times(t, lanes, value)

        def visit(node: fx.Node, e: Tensor) -> None:
            if node in self._rows:
                found[node] = e / self._rows[node]

        push(self._program, lanes, inject, visit, device=self._device)
        return found

    def _forward_again(
        self, lanes: int, x: dict[fx.Node, Tensor], v: dict[fx.Node, Tensor], *, keep: bool
    ) -> tuple[dict[fx.Node, Tensor], Tensor, Tensor]:
        """B x (if it is to be kept), ||B x||, and <B x, S v>; x is used up."""
        found: dict[fx.Node, Tensor] = {}
        squares, right = torch.zeros(lanes).double(), torch.zeros(lanes).double()

        def inject(node: fx.Node, value: Tensor) -> Tensor | None:
            del value
            given = x.pop(node, None)
            return None if given is None else given * self._columns[node]

        def visit(node: fx.Node, e: Tensor) -> None:
            s = self._rows.get(node)
            if s is None:
                return
            if node in v:
                right.add_((e * v[node]).reshape(lanes, -1).sum(1).cpu())
            scaled = e / s
            squares.add_(_lane_norms(scaled).square())
            if keep:
                found[node] = scaled

        push(self._program, lanes, inject, visit, device=self._device)
        return found, squares.sqrt(), right


def _larger(x: float, y: float) -> float:
    """The larger number; NaN if one of them is."""
    return x if math.isnan(x) or y <= x else y


def _lane_norms(e: Tensor) -> Tensor:
    return torch.linalg.vector_norm(e.reshape(len(e), -1), dim=1).cpu()


def _lane_norms_up(e: Tensor) -> Tensor:
    """Upper bounds, also where squares underflow."""
    fast = _lane_norms(e)
    if bool(((fast > 1e-100) & (fast < 1e100)).all()):
        return fast * (1 + 1e-9)
    return norm_up(e.reshape(len(e), -1), 1).cpu()


def _norms(y: dict[fx.Node, Tensor], lanes: int) -> Tensor:
    squares = (_lane_norms(t).square() for t in y.values())
    return sum(squares, torch.zeros(lanes, dtype=torch.float64)).sqrt()


def _along(sizes: Tensor, t: Tensor) -> Tensor:
    return sizes.to(t.device).reshape(-1, *[1] * (t.dim() - 1))


def _gap(left: Tensor, right: Tensor) -> float:
    """Largest relative difference of <x, x> (x = B^T y) and <B x, y>."""
    return float(((left - right).abs() / left.clamp(min=1e-300)).max())
