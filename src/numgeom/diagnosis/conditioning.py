"""How much would the step change if its inputs moved by one rounding?

Forward error <= condition number * backward error (Higham 2002, sec. 1.6): an algorithm whose
result moves no further than rounding its inputs moves it does as well as any algorithm can. So an
error beside this change tells an unstable program from an ill-conditioned problem.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from numgeom.diagnosis.directions import direction
from numgeom.diagnosis.partial import Change, evaluate
from numgeom.diagnosis.trace import (
    Errors,
    Trace,
    ancestors,
    argument,
    compare,
    norm,
    op_name,
    outputs,
    traits,
)
from numgeom.errors import ReplayError
from numgeom.ops.entry import Kind as OpKind
from numgeom.ops.table import kind_of
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter
from numgeom.semantics.lockstep import Call, lockstep

# The error of an algorithm may be this many times the change by one rounding of the inputs and
# still be blamed on the problem; it covers the constants of backward error bounds.
_MARGIN = 20.0
_STRETCH = 10.0  # of a call that stands out
_MOVED = frozenset({"parameter", "input", "buffer"})


@dataclass(frozen=True)
class Conditioning:
    """Relative change of the outputs when parameters, buffers and inputs move by u each.

    Attributes:
        loss: Change of the loss.
        gradient: Change of the gradients, as `Errors.of_gradients`.
        unit_roundoff: u.
        where: The first call that stretches the change most, on the way to the gradients; None if
            none stands out.
        stretch: By how much it does, relative change out over relative change in.
    """

    loss: float
    gradient: float
    unit_roundoff: float
    where: fx.Node | None
    stretch: float

    def explains_gradient(self, errors: Errors) -> bool:
        """Whether the gradients are no worse than their conditioning makes them."""
        return errors.of_gradients <= _MARGIN * self.gradient

    def explains_loss(self, errors: Errors) -> bool:
        """Whether the loss is no worse than its conditioning makes it."""
        return errors.loss <= _MARGIN * self.loss


def condition(trace: Trace, *, samples: int = 1) -> Conditioning:
    """Measure the conditioning of a step by seeded perturbations, in float64.

    Args:
        trace: The step and its reference.
        samples: Number of perturbations; the largest change counts.

    Returns:
        The conditioning; changes of zero if the step cannot run on perturbed inputs.
    """
    u = trace.unit_roundoff
    try:
        runs = [_Perturbed(trace.program, u, seed).evaluate() for seed in range(samples)]
    except ReplayError:  # an op that checks its inputs, and finds them moved
        return Conditioning(0.0, 0.0, u, None, 1.0)
    found = [compare(moved, trace.result.reference) for moved in runs]
    gradient = max(e.of_gradients for e in found)
    node, stretch = _stretching(trace) if gradient > trace.tolerance else (None, 1.0)
    return Conditioning(max(e.loss for e in found), gradient, u, node, stretch)


def exposed_change(trace: Trace, *, least: float) -> float:
    """Relative change of what the first calls make of exact inputs, when these move by u.

    Everything behind the first rounding shows its conditioning by its own error. Only a call whose
    inputs are exact can hide a bad condition, so only these are tried; the largest change counts.

    Args:
        trace: The step and its reference.
        least: Changes that norms prove to be smaller are not measured: they count as 0.
    """
    u = trace.unit_roundoff
    exact: set[fx.Node] = set()
    given: set[fx.Node] = set()  # what moves by u in every entry: constants, wherever they lie
    exposed: list[fx.Node] = []
    for node in trace.program.graph.nodes:
        if any(source not in exact for source in node.all_input_nodes):
            continue
        seen = trace.observations.get(node)
        if node.op == "get_attr" or (seen is not None and seen.rel_error == 0.0):
            exact.add(node)
        moves = node.op == "get_attr" or _only_moves(node)
        if moves and all(source in given for source in node.all_input_nodes):
            given.add(node)
        if _only_moves(node) or seen is None or not 0.0 < seen.norm < math.inf:
            continue
        alone = all(source in given for source in node.all_input_nodes)
        if not alone or _largest_change(trace, node) * u >= least:
            exposed.append(node)
    if not exposed:
        return 0.0
    try:
        still = evaluate(trace.program, exposed, dtype=torch.float64)
        moved = evaluate(trace.program, exposed, dtype=torch.float64, change=_mover(u, 0))
    except ReplayError:
        return math.inf
    return max(norm(moved[n] - still[n]) / trace.observations[n].norm for n in exposed)


def _is_contraction(node: fx.Node) -> bool:
    return kind_of(op_name(node)) is OpKind.CONTRACTION


def _only_moves(node: fx.Node) -> bool:
    """Whether a node holds entries of another one, as they are there; parts of calls do."""
    known = traits(node)
    return not op_name(node) or (known.only_moves and known.never_rounds)


def _largest_change(trace: Trace, node: fx.Node) -> float:
    """A bound of the change of a product of two factors, in units of u; infinite for other calls.

    |dA B + A dB| + |dC| <= 2 u |A| |B| + u |C| where every entry moves by u at most, and the norm
    of |A| |B| is at most the product of norms (for a convolution times the root of the number of
    places where an input entry is used, at most the kernel's size).
    """
    product, result = traits(node).product, trace.observations[node]
    if product is None or not _is_contraction(node) or node.kwargs:  # alpha, beta
        return math.inf
    left, right, added = (
        None if i is None else trace.observations.get(argument(node, i))
        for i in (product.left, product.right, product.added)
    )
    if left is None or right is None:
        return math.inf
    size = 2.0 * left.norm * right.norm
    if op_name(node) == "convolution":
        size *= math.sqrt(right.entries)
    if added is not None:
        size += math.sqrt(result.entries / added.entries) * added.norm
    return size / result.norm


def _stretching(trace: Trace) -> tuple[fx.Node | None, float]:
    """The first call that stretches the change by most, and by how much."""
    changes: dict[fx.Node, float] = {}

    def visit(call: Call) -> None:
        if isinstance(call.computed, Tensor) and call.computed.is_floating_point():
            size, moved = norm(call.reference), norm(call.computed - call.reference)
            changes[call.node] = 0.0 if moved == 0.0 else moved / size if size else math.inf

    lockstep(trace.program, visit, first=_Perturbed(trace.program, trace.unit_roundoff, 0))
    ends = [n for n in outputs(trace.program)["gradients"].values() if isinstance(n, fx.Node)]
    reach = ancestors(ends)
    best, stretch = None, _STRETCH
    for node, change in changes.items():
        if node not in reach or not op_name(node):
            continue
        given = max((changes.get(n, 0.0) for n in node.all_input_nodes), default=0.0)
        factor = change / max(given, trace.unit_roundoff)
        if factor > 2.0 * stretch or (best is None and factor > stretch):
            best, stretch = node, factor
    return best, stretch if best is not None else 1.0


class _Perturbed(ProgramInterpreter):
    def __init__(self, program: Program, u: float, seed: int) -> None:
        super().__init__(program, dtype=torch.float64)
        self._move = _mover(u, seed)

    def constant(self, node: fx.Node) -> Tensor:
        return self._move(node, super().constant(node))


def _mover(u: float, seed: int) -> Change:
    def move(node: fx.Node, value: Tensor) -> Tensor:
        if node.meta["role"] not in _MOVED or not value.is_floating_point():
            return value
        noise = direction(value, seed).abs_().clamp_max_(1.0)
        # Towards zero, so that probabilities and cosines stay in their interval.
        return torch.addcmul(value, value, noise, value=-u)

    return move
