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
from numgeom.semantics.tangents import Pusher, VisitMany, push

_PULLED = 3  # probes that are pulled back at once
_PUSHED = 20  # probes that are pushed at once
_BATCH = 8  # those of power steps, which are kept meanwhile
KEPT = 6  # probes that half a power step starts from
_LOOKED_AT = 4096  # entries of a node, for the test of the passes
# What squares that underflow may hide of a norm, in units of the scale: 1e-162 for each entry.
_HIDDEN = 1e-150
_LARGEST = 1e100


@dataclass
class Probed:
    """Norms of what the probes became, one entry per probe.

    Attributes:
        rows: ||B w||.
        blocks: ||P_j A J T w||, by parameter.
        total: The same for all gradients together.
        nonlinearity: By how much the passes are not linear, relative to what they return.
        kept: S^-1 B w of the first probes, by node, as many as were asked for.
        branch: Of the draws, for the first probe.
    """

    rows: list[float]
    blocks: dict[str, list[float]]
    total: list[float]
    nonlinearity: float
    kept: dict[fx.Node, Tensor] = field(default_factory=dict)
    branch: int = 0

    def joined(self, more: "Probed") -> "Probed":
        """These probes and more of them."""
        return Probed(
            self.rows + more.rows,
            {name: known + more.blocks[name] for name, known in self.blocks.items()},
            self.total + more.total,
            _larger(self.nonlinearity, more.nonlinearity),
            self.kept,
            self.branch,
        )


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
        self._pushed = 0  # batches
        self._room = torch.empty(0, dtype=torch.float64)
        self.dimension = sum(t.numel() for t in scale.columns.values())

    def eta(self) -> float:
        """||T^-1 d||, rounded up.

        T is at least d wherever d > 0 (`scale.choose_scale`), but that is not relied upon. Each
        quotient is rounded once; a square that underflows hides less than `_HIDDEN`.
        """
        found = 0.0
        for node, d in self._facts.sources.items():
            if not d.numel():
                continue
            size = float(torch.linalg.vector_norm(d / self._columns[node]))
            if not size < _LARGEST:  # 0 / 0, which is nothing, or squares that overflow
                size = float(norm_up(torch.where(d > 0, div_up(d, self._columns[node]), 0.0)))
            found = math.hypot(found, size * (1 + 1e-9) + _HIDDEN)
        return found * (1 + 1e-9)

    def probe(self, count: int, *, keep: int = 0) -> Probed:
        """||B w|| and ||P_j A J T w|| for fresh vectors w, and a test of the passes.

        In each batch one more vector is pushed, the sum of the others: what comes out differs from
        the sum of what the others become by the rounding of the passes alone. That is looked at in
        some thousand entries of each node.

        What is not a number counts as infinite.

        Args:
            count: How many vectors.
            keep: Of how many S^-1 B w itself is returned; at most `KEPT`.
        """
        named: dict[fx.Node, list[str]] = {}
        for name, node in self._facts.gradients.items():  # two parameters may share a gradient
            named.setdefault(node, []).append(name)
        rows = torch.zeros(0, dtype=torch.float64)
        blocks = dict.fromkeys(self._facts.gradients, rows)
        worst = 0.0
        kept: dict[fx.Node, Tensor] = {}
        branch = self._pushed + 1
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
                    scaled = torch.div(e, s, out=self._memory(e)).reshape(len(e), -1)
                    if keep and first:
                        kept[node] = scaled[:keep].reshape(keep, *e.shape[1:]) / s
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
            branch,
        )

    def _memory(self, like: Tensor) -> Tensor:
        """Memory for a result of this shape, used again at the next call."""
        if self._room.numel() < like.numel() or self._room.device != like.device:
            self._room = like.new_empty(like.numel())
        return self._room[: like.numel()].view(like.shape)

    def _push(self, lanes: int, visit: Any) -> None:
        """Push fresh vectors and, last, their sum. The first one can be drawn again."""
        walk = _Probing(self._program, lanes + 1, self._device, self._facts.trace)
        walk.columns, walk.visit = self._columns, visit
        self._pushed += 1
        walk.first, walk.rest = self._draws.branch(self._pushed), self._draws
        walk.push()

    def pull(self, found: Probed, failure_probability: float) -> tuple[float, float]:
        """An upper bound of ||B||, from half a power step, and the gap of adjoints.

        The gap is the relative difference of <B w, B w> and <w, B^T B w> for the first probe w.
        Memory is that of all values of the program, and of two vectors per probe.

        Args:
            found: Probes of which `probe` kept B w; they are used up. The first ones it made.
            failure_probability: Of the bound.
        """
        kept = found.kept
        probes = len(next(iter(kept.values()), ()))
        if not probes:  # nothing arrives at a row; plain probes have said so
            return math.inf, 0.0
        plan = ProbePlan(probes, 0.5, failure_probability, self.dimension)
        linear = Linearization(self._program, device=self._device)
        squares, pulled, first = [], 0.0, self._draws.branch(found.branch)
        for start in range(0, probes, _PULLED):
            some = {n: y[start : start + _PULLED] for n, y in kept.items()}
            x = linear.vjps(some, wanted=self._columns)
            if start == 0:
                for n in filter(self._columns.__contains__, self._program.graph.nodes):
                    w = first.times(self._columns[n], 1, self._facts.trace[n])
                    if n in x:
                        pulled += float((w[0] * x[n][0]).sum())
            square = torch.zeros(len(next(iter(some.values()))), dtype=torch.float64)
            while x:  # each is freed when it is used
                n, a = x.popitem()
                scaled = torch.mul(a, self._columns[n], out=self._memory(a))
                square += _lane_norms(scaled).square()
            squares.append(square)
        kept.clear()
        results = torch.cat(squares).sqrt().sqrt()
        size = found.rows[0] ** 2
        return plan.bound(results.tolist()), abs(pulled - size) / max(size, 1e-300)

    def power(
        self,
        probes: int,
        steps: int,
        failure_probability: float,
    ) -> tuple[float, float]:
        """An upper bound of ||B||, and the largest relative gap of <B x, y> and <x, B^T y>.

        Memory is that of all values of the program, and of two vectors per probe.

        Args:
            probes: How many vectors.
            steps: Applications of B B^T to each.
            failure_probability: Of the bound.
        """
        linear = Linearization(self._program, device=self._device)
        plan = ProbePlan(probes, steps, failure_probability, self.dimension)
        results, worst = [], 0.0
        for done in range(0, probes, _BATCH):
            lanes = min(_BATCH, probes - done)
            y = self._forward(lanes)
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

        push(self._program, lanes, inject, visit, device=self._device, known=self._facts.trace)
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

        push(self._program, lanes, inject, visit, device=self._device, known=self._facts.trace)
        return found, squares.sqrt(), right


class _Probing(Pusher):
    """Carries fresh vectors and, in the last lane, their sum."""

    columns: dict[fx.Node, Tensor]
    visit: VisitMany
    first: Draws  # for the first vector
    rest: Draws

    def passed(self, node: fx.Node, tangents: Tensor) -> None:
        """Show what passed."""
        self.visit(node, tangents)

    def joined(
        self, node: fx.Node, value: Tensor, tangents: Tensor | None, fresh: bool
    ) -> Tensor | None:
        """Draw what arises at a node where it is added."""
        t = self.columns.get(node)
        if t is None:
            return tangents
        if tangents is None:
            tangents = value.new_zeros((self._count, *value.shape), dtype=torch.float64)
        elif not fresh:
            tangents = tangents.clone(memory_format=torch.contiguous_format)
        self.rest.add(t, tangents[:-1], tangents[-1], self.first)
        return tangents


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
