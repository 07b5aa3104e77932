"""How far can single entries be off, where the ball of all errors is too wide to tell?

A ball bounds an entry by rho s, as if all that arises anywhere arrived there at once. One reverse
pass with a unit vector gives the entry's own row a = A^T u of the linearised program, and with it

    |e_k| <= sum_j |a_j| d_j + ||a J T|| K/2 rho^2,

since e = A (R - delta) on the whole path, |delta| <= d, and ||T^-1 R|| <= K/2 rho^2. The first term
is what the roundings can really do to this entry; so units near their kink are told from units at
their kink. It is worth a pass for a few units only.

The pass rounds; it is held to the same assumption and the same test as power steps (`probes`).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import add_up, mul_up, norm_up, sum_up
from numgeom.certificate.draws import Draws
from numgeom.certificate.facts import Facts
from numgeom.certificate.probes import LARGEST_GAP, MARGIN
from numgeom.certificate.scale import Scale
from numgeom.errors import ReplayError
from numgeom.ops.entry import Kind
from numgeom.ops.table import OpTable
from numgeom.recording import Program
from numgeom.semantics.sensitivity import Linearization
from numgeom.semantics.tangents import push

MOST = 64  # entries that get a row of their own
_BATCH = 8

# Selections that decide by the entries at the same place, unlike a maximum over a window.
_SELECTIONS = frozenset(
    ("relu", "leaky_relu", "threshold", "hardtanh", "clamp", "clamp_min", "clamp_max")
    + ("maximum", "minimum", "fmax", "fmin")
)

Entry = tuple[fx.Node, int]


def entry_radii(
    program: Program,
    facts: Facts,
    scale: Scale,
    doubts: Mapping[fx.Node, Tensor],
    *,
    bending: float,
    ops: OpTable,
    device: Any,
    draws: Draws,
) -> dict[fx.Node, Tensor]:
    """Bounds of the entries that decide about the units in doubt, by node; infinite elsewhere.

    Guarantee: as that of the ball.

    Args:
        program: The opened program.
        facts: Its local errors.
        scale: T.
        doubts: The calls in doubt, with masks over their units.
        bending: At least K/2 rho^2.
        ops: The facts to use.
        device: Where to run.
        draws: For the test of the passes.

    Returns:
        Nothing where there are too many entries, and where the passes are inaccurate.
    """
    entries = _entries(program, facts, doubts, ops)
    if not 0 < len(entries) <= MOST:
        return {}
    try:
        linear = Linearization(program, device=device)
    except ReplayError:
        return {}
    arriving = _arriving(program, facts, scale, device, draws, entries)
    found: dict[fx.Node, Tensor] = {}
    for start in range(0, len(entries), _BATCH):
        batch = entries[start : start + _BATCH]
        rows = linear.vjps(_units(linear, batch), wanted=scale.columns)
        for lane, (node, k) in enumerate(batch):
            bound = _bound({n: a[lane] for n, a in rows.items()}, facts, scale, bending)
            if not _gap(rows, lane, arriving[node, k]) <= LARGEST_GAP:
                return {}
            if node not in found:
                value = linear.values[node]
                found[node] = value.new_full(value.shape, math.inf)
            found[node].view(-1)[k] = bound
    return found


def _bound(row: dict[fx.Node, Tensor], facts: Facts, scale: Scale, bending: float) -> float:
    rounding, bent = 0.0, [0.0]
    for node, a in row.items():
        d = facts.sources.get(node)
        if d is not None:
            rounding = add_up(rounding, float(sum_up(mul_up(a.abs(), d))))
        bent.append(float(norm_up(mul_up(a.abs(), scale.columns[node]))))
    curved = mul_up(float(norm_up(torch.tensor(bent, dtype=torch.float64))), bending)
    return mul_up(add_up(rounding, curved), 1 + MARGIN)


# -- the entries ---------------------------------------------------------------------------


def _entries(
    program: Program, facts: Facts, doubts: Mapping[fx.Node, Tensor], ops: OpTable
) -> list[Entry]:
    """The entries that are compared where a decision is in doubt; none if there are too many.

    What reaches no gradient through real numbers has no row. Its radius follows from the entries
    before it.
    """
    found: dict[Entry, None] = {}
    for call, mask in doubts.items():
        target: Any = call.target
        op = ops.lookup(target)
        if op is None or not (op.kind is Kind.ELEMENTWISE or op.name in _SELECTIONS):
            continue
        for node in call.all_input_nodes:
            shape = _shape(node)
            known = node in facts.exact or node not in facts.rounding
            if known or shape is None or not facts.is_column(node):
                continue
            for place in _own_places(mask, shape):
                found[node, place] = None
                if len(found) > MOST:
                    return []
    return list(found)


def _own_places(mask: Tensor, shape: tuple[int, ...]) -> list[int]:
    """Flat places of the entries of an argument that a mask of the result is about."""
    places = torch.arange(math.prod(shape)).reshape(shape)
    broadcast = torch.broadcast_to(places, mask.shape)
    return sorted(set(broadcast[mask.cpu()].tolist()))


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensors", {}).get(())
    return None if meta is None else tuple(meta.shape)


# -- the passes ----------------------------------------------------------------------------


def _units(linear: Linearization, batch: list[Entry]) -> dict[fx.Node, Tensor]:
    found: dict[fx.Node, Tensor] = {}
    for lane, (node, k) in enumerate(batch):
        if node not in found:
            found[node] = linear.values[node].new_zeros(len(batch), *linear.values[node].shape)
        found[node][lane].view(-1)[k] = 1.0
    return found


class _Arrival:
    """What arrived at an entry in one forward pass, and the vector that was sent."""

    def __init__(self, size: float, sent: dict[fx.Node, Tensor]) -> None:
        self.size = size
        self.sent = sent


def _arriving(
    program: Program,
    facts: Facts,
    scale: Scale,
    device: Any,
    draws: Draws,
    entries: list[Entry],
) -> dict[Entry, _Arrival]:
    sent: dict[fx.Node, Tensor] = {}
    found = {entry: _Arrival(0.0, sent) for entry in entries}

    def inject(node: fx.Node, value: Tensor) -> Tensor | None:
        t = scale.columns.get(node)
        if t is None:
            return None
        w = draws.times(t, 1, value)
        sent[node] = w[0].clone()
        return w

    def visit(node: fx.Node, e: Tensor) -> None:
        for other, k in entries:
            if other is node:
                found[node, k].size = float(e[0].reshape(-1)[k])

    push(program, 1, inject, visit, device=device, known=facts.trace)
    return found


def _gap(rows: dict[fx.Node, Tensor], lane: int, arrival: _Arrival) -> float:
    """Difference of <a, w> and what arrived, relative to the sum of |a_j w_j|."""
    pulled = size = 0.0
    for node, a in rows.items():
        if node in arrival.sent:
            products = a[lane] * arrival.sent[node]
            pulled += float(products.sum())
            size += float(products.abs().sum())
    difference = abs(pulled - arrival.size)
    return 0.0 if difference == 0.0 else difference / size if size > 0.0 else math.inf
