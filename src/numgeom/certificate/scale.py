"""In which unit is each entry's error measured, and in which unit its sources?

The Newton-Kantorovich theorem (`kantorovich`) has two scales, entry by entry, both free:

- S, on the *rows*: the entries whose error matters, that is the inputs of curved ops and of ops
  that decide, and the gradients. A good S is the size that the error has, so that the scaled map
  has rows of length one: the size in random samples A (d * xi).
- T, on the *columns*: the entries where something arises, by rounding (d) or by curvature. A good
  T is d, so that nothing is injected that does not arise, and where the second-order term Q that S
  allows is larger than kappa d, it is Q / kappa: then the curvature constant is about 2 kappa.

Where a probe pass would round more than a small part of T, T is raised (`survey`).

Any S, T > 0 give a valid theorem. Several kappa are tried at once, as lanes of one batch of
tangents, and the one that promises the smallest h is kept. Nodes whose ops are far from the largest
curvature get a larger S, which makes beta smaller at no cost in K.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx

from numgeom.certificate.facts import inputs_of
from numgeom.certificate.sizes import NOTHING
from numgeom.certificate.survey import KAPPAS, Survey, column

_PARTS = tuple(i / 8 for i in range(8))  # of the way from one kappa to the next
_STRETCH = 1e3  # by what S may grow where curvature leaves room
_STRETCH_AT_KINKS = 10.0  # the radius there decides whether the kink is clear


@dataclass(frozen=True)
class Scale:
    """S and T.

    Attributes:
        rows: S, by node.
        columns: T, by node; 0 where nothing arises.
        beta: About ||S^-1 A T||, from one sample: its Frobenius norm.
        curvature: About K.
        h: What they promise.
        block: About ||P A J T w|| at all gradients, for a probe w.
    """

    rows: dict[fx.Node, Tensor]
    columns: dict[fx.Node, Tensor]
    beta: float
    curvature: float
    h: float
    block: float


# -- choice ------------------------------------------------------------------------------


def choose_scale(found: Survey) -> Scale:
    """The S and T that promise the smallest h, of those that are tried.

    Sizes are used up, to save memory.
    """
    facts = found.facts
    # B holds what arises at connected nodes only, so it bounds errors at them only.
    read = (found.rows | found.kinks) - facts.exact
    wanted = {node for node in read if facts.is_column(node)}
    rows = {}
    for node in facts.rounding:
        if node in wanted:
            size = found.sizes.get(node)
            if size is None:
                size = torch.full_like(facts.trace[node], NOTHING, dtype=torch.float64)
            rows[node] = size
    return _best(found, rows)


def _best(found: Survey, rows: dict[fx.Node, Tensor]) -> Scale:
    """Each kappa was tried in a lane of its own; interpolate between them."""
    facts, sources = found.facts, found.facts.sources
    ratios = {node: _largest_ratio(q, sources.get(node)) for node, q in found.terms.items()}
    plans = [_stretched(found, ratios, kappa, rows) for kappa in _ALL]
    tried = [node for node in rows if node in found.squares]
    squares = _between(torch.stack([found.squares[n] for n in tried])) if tried else torch.zeros(0)
    promises = []
    eta = math.sqrt(sum(int(torch.count_nonzero(d)) for d in sources.values()))  # d <= T
    for i, (stretch, k) in enumerate(plans):
        each = zip(squares.tolist(), tried, strict=True)
        beta = math.sqrt(sum(s[i] / stretch[n] / stretch[n] for s, n in each))
        h = 2 * beta * beta * k * eta
        promises.append((math.inf if math.isnan(h) else h, i, beta))
    h, best, beta = min(promises)
    stretch, k = plans[best]
    columns = {
        node: column(sources.get(node), found.terms.get(node), _ALL[best])
        for node in facts.rounding
        if node in sources or node in found.terms
    }
    for node, floor in found.floors.items():
        t = columns.get(node)
        columns[node] = floor if t is None else torch.maximum(t, floor)
    block = math.sqrt(float(_between(found.blocks)[best]))
    return Scale({n: s.mul_(stretch[n]) for n, s in rows.items()}, columns, beta, k, h, block)


def _between(squares: Tensor) -> Tensor:
    """Squares of sizes at all kappa, from those that were tried.

    Linear in 1 / kappa^2: T^2 = max(d^2, Q^2 / kappa^2) is convex in it, so this is no less.
    """
    return squares @ _WEIGHTS


def _weights() -> Tensor:
    found = torch.zeros(len(KAPPAS), len(_ALL), dtype=torch.float64)
    for i, (a, b) in enumerate(pairwise(KAPPAS)):
        for j, part in enumerate(_PARTS):
            weight = ((b / a) ** (-2 * part) - 1) / ((b / a) ** -2 - 1)
            found[i, i * len(_PARTS) + j] = 1 - weight
            found[i + 1, i * len(_PARTS) + j] = weight
    found[-1, -1] = 1.0
    return found


_ALL = [a * (b / a) ** f for a, b in pairwise(KAPPAS) for f in _PARTS] + [KAPPAS[-1]]
_WEIGHTS = _weights()


def _largest_ratio(q: Tensor, d: Tensor | None) -> float:
    """The largest Q / d; infinite where only d is 0."""
    if d is None:
        return math.inf if bool((q > 0).any()) else 0.0
    found = float((q / d).max())
    if math.isnan(found):  # 0 / 0, which is nothing
        found = float(torch.where(q > 0, q / d, 0.0).max())
    return found


def _stretched(
    found: Survey,
    ratios: dict[fx.Node, float],
    kappa: float,
    rows: Iterable[fx.Node],
) -> tuple[dict[fx.Node, float], float]:
    """By what S can grow at each row, and about the K that results.

    With T = max(d, Q / kappa) a call's K_i is min(kappa, max Q/d). A row that is read by calls with
    a small K_i may grow by the square root of what is left to the largest.
    """
    per_row: dict[fx.Node, float] = {}
    for node, ratio in ratios.items():
        for parent in inputs_of(node):
            per_row[parent] = per_row.get(parent, 0.0) + min(kappa, ratio) ** 2
    largest = math.sqrt(max(per_row.values(), default=0.0))
    stretch = {}
    for node in rows:
        k = math.sqrt(per_row.get(node, 0.0))
        room = math.sqrt(largest / k) if k > 0 else _STRETCH
        stretch[node] = min(room, _STRETCH_AT_KINKS if node in found.kinks else _STRETCH)
    return stretch, largest
