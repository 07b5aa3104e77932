"""How large is the linearised program in units of its scale?

B = S^-1 P A J T maps what arises at the columns to the errors at the rows (`kantorovich`). It is
known by what it does to vectors; `probes` says what follows from that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, add_up, div_up, norm_up
from numgeom.certificate.draws import Draws
from numgeom.certificate.facts import Facts
from numgeom.certificate.passes import Drawn, Given
from numgeom.certificate.probes import ProbePlan, Step, largest_norm
from numgeom.certificate.scale import Scale
from numgeom.certificate.witnesses import HALF, LANES, Witnesses, norms
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program
from numgeom.semantics.sensitivity import Linearization

_PUSHED = 20  # probes that are pushed at once
_BATCH = 8  # those of power steps, which are kept meanwhile
KEPT = 2 * HALF  # probes that half a power step starts from; one half witnesses the other
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
        rounding: Eps_p of the passes, the largest of them.
        own: What the tails of the gradients rounded in a pass, by parameter.
        worst: The node that rounded most.
        kept: B w of the first probes, by node, as many as were asked for.
        branch: Of the draws, for the first of them.
    """

    rows: list[float]
    blocks: dict[str, list[float]]
    total: list[float]
    rounding: float
    own: dict[str, float]
    worst: fx.Node | None = None
    kept: dict[fx.Node, Tensor] = field(default_factory=dict)
    branch: int = 0

    def joined(self, more: "Probed") -> "Probed":
        """These probes and more of them."""
        return Probed(
            self.rows + more.rows,
            {name: known + more.blocks[name] for name, known in self.blocks.items()},
            self.total + more.total,
            max(self.rounding, more.rounding),
            {name: max(own, more.own[name]) for name, own in self.own.items()},
            self.worst if self.rounding >= more.rounding else more.worst,
            self.kept,
            self.branch,
        )

    @property
    def beside(self) -> float:
        """What the tails of all gradients together rounded in a pass."""
        return math.hypot(*self.own.values()) * (1 + 1e-12)


class ScaledMap:
    """The scaled map B = S^-1 P A J T and its blocks, probed."""

    def __init__(
        self,
        program: Program,
        facts: Facts,
        scale: Scale,
        device: torch.device | str | None,
        draws: Draws,
        ops: OpTable = OPS,
    ) -> None:
        self._program = program
        self._facts = facts
        self._rows = scale.rows
        self._columns = scale.columns
        self._device = device
        self._draws = draws
        self._ops = ops
        self._branches = 0
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

    # -- plain probes --------------------------------------------------------------------

    def probe(self, count: int, *, keep: int = 0) -> Probed:
        """||B w|| and ||P_j A J T w|| for fresh vectors w, with what the passes rounded.

        What is not a number counts as infinite.

        Args:
            count: How many vectors.
            keep: Of how many B w itself is returned: 0 or `KEPT`.
        """
        named: dict[fx.Node, list[str]] = {}
        for name, node in self._facts.gradients.items():  # two parameters may share a gradient
            named.setdefault(node, []).append(name)
        rows = torch.zeros(0, dtype=torch.float64)
        blocks = dict.fromkeys(self._facts.gradients, rows)
        own = dict.fromkeys(self._facts.values, 0.0)
        rounding, worst = 0.0, None
        kept: dict[fx.Node, Tensor] = {}
        branch = self._branches
        while len(rows) < count:
            lanes = min(_PUSHED, count - len(rows))
            squares = torch.zeros(lanes, dtype=torch.float64)
            sizes: dict[str, Tensor] = {n: torch.zeros(lanes).double() for n in blocks}
            keeps = keep if not len(rows) else 0

            def visit(
                node: fx.Node,
                e: Tensor,
                squares: Tensor = squares,
                sizes: dict[str, Tensor] = sizes,
                keeps: int = keeps,
            ) -> None:
                s = self._rows.get(node)
                if s is not None:
                    scaled = torch.div(e, s, out=self._memory(e)).reshape(len(e), -1)
                    if keeps:
                        kept[node] = scaled[:keeps].reshape(keeps, *e.shape[1:]).clone()
                    squares += _lane_norms(scaled).square()
                for name in named.get(node, ()):
                    sizes[name] = _lane_norms_up(e)

            walk = self._drawn(lanes, visit, keeps // HALF)
            walk.push()
            if not walk.rounding <= rounding:
                rounding, worst = walk.rounding, walk.largest[1]
            own = {name: max(size, walk.own[name]) for name, size in own.items()}
            rows = torch.cat([rows, squares.sqrt()])
            blocks = {name: torch.cat([blocks[name], sizes[name]]) for name in blocks}
        total = norm_up(torch.stack(list(blocks.values())), 0) if blocks else torch.zeros_like(rows)
        cover = 1 + 1e-9  # of the rounding of norms, and of the division by S
        rows = torch.nan_to_num(rows * cover + _HIDDEN, nan=math.inf)
        return Probed(
            rows.tolist(),
            {name: b.tolist() for name, b in blocks.items()},
            total.tolist(),
            rounding,
            own,
            worst,
            kept,
            branch,
        )

    def _memory(self, like: Tensor) -> Tensor:
        """Memory for a result of this shape, used again at the next call."""
        if self._room.numel() < like.numel() or self._room.device != like.device:
            self._room = like.new_empty(like.numel())
        return self._room[: like.numel()].view(like.shape)

    def _drawn(self, lanes: int, visit: Any, branches: int = 0, each: int = HALF) -> Drawn:
        """A pass of fresh vectors, the first of them from numbered branches, `each` from one."""
        walk = Drawn(
            self._program, lanes, self._facts, self._columns, self._device, self._ops, visit
        )
        walk.each, walk.rest = each, self._draws
        walk.branches = tuple(self._branch(self._branches + i)() for i in range(branches))
        self._branches += branches
        return walk

    def _branch(self, number: int) -> Callable[[], Draws]:
        return lambda: self._draws.branch(number + 1)

    def _witnesses(
        self, number: int, values: dict[fx.Node, Tensor], rounding: float, lanes: int
    ) -> Witnesses:
        nodes = filter(self._columns.__contains__, self._program.graph.nodes)
        shapes = {node: self._facts.trace[node] for node in nodes}
        return Witnesses(self._branch(number), values, rounding, shapes, self.dimension, lanes)

    def witnesses(self) -> Witnesses:
        """Fresh vectors, pushed, by which guesses of transposed products are judged."""
        values: dict[fx.Node, Tensor] = {}

        def visit(node: fx.Node, e: Tensor) -> None:
            if node in self._rows:
                values[node] = e / self._rows[node]

        number = self._branches
        walk = self._drawn(LANES, visit, 1, LANES)
        walk.push()
        return self._witnesses(number, values, walk.rounding, LANES)

    # -- power steps ---------------------------------------------------------------------

    def pull(self, found: Probed, failure_probability: float) -> float:
        """An upper bound of ||B||, from half a power step.

        Memory is that of all values of the program, and of two vectors per probe.

        Args:
            found: Probes of which `probe` kept B w; they are used up. The first ones it made.
            failure_probability: Of the bound.
        """
        kept = found.kept
        if not kept:  # nothing arrives at a row; plain probes have said so
            return math.inf
        plan = ProbePlan(KEPT, failure_probability / 2, self.dimension)
        linear = Linearization(self._program, device=self._device)
        start = plan.least - found.rounding
        results: list[float] = []
        halves = [slice(0, HALF), slice(HALF, KEPT)]
        for mine, other in (halves, halves[::-1]):
            number = found.branch + other.start // HALF
            values = {n: t[other] for n, t in kept.items()}
            judges = self._witnesses(number, values, found.rounding, HALF)
            y = {n: t[mine] for n, t in kept.items()}
            x = self._transposed(linear, {n: t / self._rows[n] for n, t in y.items()})
            errors = judges.errors(y, x, failure_probability / 4)
            lengths = norms(y.values(), HALF).tolist()
            ends = norms(x.values(), HALF).tolist()
            for length, error, end in zip(lengths, errors, ends, strict=True):
                steps = [Step(8 * UNIT_ROUNDOFF * length), Step(error)]
                results.append(largest_norm(start, steps, end))
        kept.clear()
        return max(results)

    def _transposed(self, linear: Linearization, y: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        """A guess of T A^T y for cotangents y at the rows, by column."""
        x = linear.vjps(y, wanted=self._columns)
        for n in x:
            x[n] = x[n] * self._columns[n]
        return x

    def power(self, probes: int, steps: int, failure_probability: float) -> float:
        """An upper bound of ||B||, from whole power steps.

        Memory is that of all values of the program, and of two vectors per probe.

        Args:
            probes: How many vectors.
            steps: Applications of B B^T to each.
            failure_probability: Of the bound.
        """
        linear = Linearization(self._program, device=self._device)
        plan = ProbePlan(probes, failure_probability / 2, self.dimension)
        judges = self.witnesses()
        results: list[float] = []
        least, share = plan.least, failure_probability / 2 / probes / steps
        for done in range(0, probes, _BATCH):
            lanes = min(_BATCH, probes - done)
            y: dict[fx.Node, Tensor] = {}
            first = self._drawn(lanes, self._into(y))
            first.push()
            chains: list[list[Step]] = [[] for _ in range(lanes)]
            for _ in range(steps):
                sizes = norms(y.values(), lanes)
                for t in y.values():  # of length one; in place, it is all there is
                    t.div_(_along(sizes, t))
                x = self._transposed(linear, {n: t / self._rows[n] for n, t in y.items()})
                errors = judges.errors(y, x, share * lanes) if y else [math.inf] * lanes
                y = {}
                again = Given(
                    self._program, lanes, self._facts, self._columns, self._device, self._ops,
                    self._into(y),
                )  # fmt: skip
                again.vectors = x
                again.push()
                for chain, size, error in zip(chains, sizes.tolist(), errors, strict=True):
                    chain += [
                        Step(8 * UNIT_ROUNDOFF * size, size),
                        Step(add_up(error, again.rounding)),
                    ]
            ends = norms(y.values(), lanes).tolist()
            start = least - first.rounding
            for chain, end in zip(chains, ends, strict=True):
                last = Step(8 * UNIT_ROUNDOFF * end)
                results.append(largest_norm(start, [*chain, last], end))
        return max(results)

    def _into(self, found: dict[fx.Node, Tensor]) -> Any:
        """Stores B w by row."""

        def visit(node: fx.Node, e: Tensor) -> None:
            if node in self._rows:
                found[node] = e / self._rows[node]

        return visit


def _lane_norms(e: Tensor) -> Tensor:
    return torch.linalg.vector_norm(e.reshape(len(e), -1), dim=1).cpu()


def _lane_norms_up(e: Tensor) -> Tensor:
    """Upper bounds, also where squares underflow."""
    fast = _lane_norms(e)
    if bool(((fast > 1e-100) & (fast < 1e100)).all()):
        return fast * (1 + 1e-9)
    return norm_up(e.reshape(len(e), -1), 1).cpu()


def _along(sizes: Tensor, t: Tensor) -> Tensor:
    return sizes.to(t.device).reshape(-1, *[1] * (t.dim() - 1))
