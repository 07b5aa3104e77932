"""How far can single entries be off, where the ball of all errors is too wide to tell?

A ball bounds an entry by rho s, as if all that arises anywhere arrived there at once. One reverse
pass with a unit vector gives the entry's own row a = A^T u of the linearised program, and with it

    |e_k| <= sum_j |a_j| d_j + ||a J T|| K/2 rho^2,

since e = A (R - delta) on the whole path, |delta| <= d, and ||T^-1 R|| <= K/2 rho^2. The first term
is what the roundings can really do to this entry; so units near their kink are told from units at
their kink. It is worth a pass for a few units only.

The reverse pass gives a guess a^. Fresh vectors w_j, pushed forward, tell how far it is off: what
arrives at the entry is <a, J T (w_j + omega_j)>, and ||(a - a^) J T|| <= c follows as for power
steps (`probes`). Then |e_k| <= sum_j |a^_j| d_j + c ||T^-1 d|| + (||a^ J T|| + c) K/2 rho^2.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import add_up, div_up, mul_up, norm_up, sum_up
from numgeom.certificate.draws import Draws
from numgeom.certificate.facts import Facts
from numgeom.certificate.passes import Drawn
from numgeom.certificate.scale import Scale
from numgeom.certificate.witnesses import LANES, Witnesses
from numgeom.errors import ReplayError
from numgeom.ops.entry import Kind, Op
from numgeom.ops.table import OpTable
from numgeom.recording import Program
from numgeom.semantics.sensitivity import Linearization

MOST = 64  # entries that get a row of their own
_BATCH = 8


Entry = tuple[fx.Node, int]


def _is_entrywise(op: Op) -> bool:
    """Whether an entry depends on its own place alone, unlike a maximum over a window."""
    return op.kind is Kind.ELEMENTWISE or (op.kind is Kind.SELECTION and op.traits.entrywise)


def entry_radii(
    program: Program,
    facts: Facts,
    scale: Scale,
    doubts: Mapping[fx.Node, Tensor],
    *,
    bending: float,
    eta: float,
    failure_probability: float,
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
        eta: At least ||T^-1 d||.
        failure_probability: Of all these bounds together, over the fresh vectors.
        ops: The facts to use.
        device: Where to run.
        draws: For the fresh vectors.

    Returns:
        Nothing where there are too many entries.
    """
    entries = _entries(program, facts, doubts, ops)
    if not 0 < len(entries) <= MOST:
        return {}
    try:
        linear = Linearization(program, device=device)
    except ReplayError:
        return {}
    places: dict[fx.Node, list[int]] = {}
    for node, k in entries:
        places.setdefault(node, []).append(k)
    arrived: dict[fx.Node, Tensor] = {}

    def visit(node: fx.Node, e: Tensor) -> None:
        if node in places:
            arrived[node] = e.reshape(len(e), -1)[:, places[node]]

    walk = Drawn(program, LANES, facts, scale.columns, device, ops, visit)
    walk.branches, walk.each = (draws.branch(1),), LANES
    walk.push()
    columns = filter(scale.columns.__contains__, program.graph.nodes)
    shapes = {node: facts.trace[node] for node in columns}
    dimension = sum(t.numel() for t in scale.columns.values())
    judges = Witnesses(lambda: draws.branch(1), arrived, walk.rounding, shapes, dimension)
    found: dict[fx.Node, Tensor] = {}
    for start in range(0, len(entries), _BATCH):
        batch = entries[start : start + _BATCH]
        units = _units(linear, batch)
        rows = linear.vjps(units, wanted=scale.columns)
        scaled = {n: a * scale.columns[n] for n, a in rows.items()}
        share = failure_probability * len(batch) / len(entries)
        chosen = {n: u.reshape(len(u), -1)[:, places[n]] for n, u in units.items()}
        errors = judges.errors(chosen, scaled, share)
        for lane, (node, k) in enumerate(batch):
            bound = _bound({n: x[lane] for n, x in scaled.items()}, facts, scale, bending)
            bound = add_up(bound, mul_up(errors[lane], add_up(eta, bending)))
            if node not in found:
                value = linear.values[node]
                found[node] = value.new_full(value.shape, math.inf)
            found[node].view(-1)[k] = bound
    return found


def _bound(row: dict[fx.Node, Tensor], facts: Facts, scale: Scale, bending: float) -> float:
    """The bound for an exact row, which is given in units of T."""
    rounding, bent = 0.0, [0.0]
    for node, x in row.items():
        d = facts.sources.get(node)
        if d is not None:
            part = torch.where(d > 0, mul_up(div_up(d, scale.columns[node]), x.abs()), 0.0)
            rounding = add_up(rounding, float(sum_up(part)))
        bent.append(float(norm_up(x)))
    curved = mul_up(float(norm_up(torch.tensor(bent, dtype=torch.float64))), bending)
    return add_up(rounding, curved)


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
        if op is None or not _is_entrywise(op):
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
