"""What does one pass in lockstep show about every call, in plain numbers?

Norms are 2-norms over all entries of a value. A relative error is the norm of
computed - reference divided by that of the reference.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from numgeom.arithmetic import formats
from numgeom.arithmetic.formats import Format
from numgeom.diagnosis.result import Finding
from numgeom.ops.table import traits_of
from numgeom.ops.traits import Traits
from numgeom.recording import Program, Replay
from numgeom.semantics.lockstep import Call, LockstepResult, lockstep

FORMATS = {
    torch.float64: formats.float64,
    torch.float32: formats.float32,
    torch.float16: formats.float16,
    torch.bfloat16: formats.bfloat16,
}
# A parameter's error counts in proportion to the whole gradient below this part of its norm:
# gradients that are zero in exact arithmetic consist of rounding errors.
_SMALL_PART = 1e-2


@dataclass(frozen=True)
class Observation:
    """One node's value, computed beside its reference.

    Attributes:
        format: Format of the computed value.
        entries: Number of entries.
        largest: Largest finite magnitude, computed.
        norm: Norm of the reference, over entries that are finite.
        rms: Root mean square of the reference.
        rel_error: Relative error; infinite where only the computed value is not finite or only
            the reference is zero; 0 if both are not finite.
        nonfinite: Number of entries that are not finite, computed.
        reference_nonfinite: The same in the reference.
        flushed: Number of entries computed as zero whose reference is a nonzero number below
            the smallest normal one of the format.
        subnormal: Number of entries computed as subnormal numbers.
    """

    format: Format
    entries: int
    largest: float
    norm: float
    rms: float
    rel_error: float
    nonfinite: int
    reference_nonfinite: int
    flushed: int
    subnormal: int


class Detector(Protocol):
    """Looks for one family of troubles."""

    def see(self, call: Call, seen: Observation | None) -> None:
        """See a call pass by, with its numbers; its tensors must not be kept."""
        ...

    def findings(self, trace: "Trace") -> Iterable[Finding]:
        """Say what was found, when the pass is over."""
        ...


@dataclass(frozen=True, eq=False)
class Errors:
    """How wrong a run is against the reference, relative.

    Attributes:
        loss: Of the loss.
        gradient: Of all gradients as one vector.
        worst: Largest error of one parameter's gradient, those of next to no weight aside.
        parameters: Of each parameter's gradient, whatever its weight.
    """

    loss: float
    gradient: float
    worst: float
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def of_gradients(self) -> float:
        """The larger of the two errors of the gradients."""
        return max(self.gradient, self.worst)


@dataclass(frozen=True, eq=False)
class Trace:
    """Everything that the lockstep pass showed.

    Attributes:
        program: The program.
        observations: By node, for every node that holds one real floating-point tensor.
        result: Outputs of both runs.
        errors: How wrong the computed outputs are.
    """

    program: Program
    observations: Mapping[fx.Node, Observation]
    result: LockstepResult
    errors: Errors

    @cached_property
    def unit_roundoff(self) -> float:
        """Unit roundoff u of the coarsest format in which a call ran."""
        found = [o.format.unit_roundoff for n, o in self.observations.items() if n.op != "get_attr"]
        return max(found, default=formats.float64.unit_roundoff)

    @cached_property
    def tolerance(self) -> float:
        """A relative error above which half of the format's digits and more are lost."""
        return 4.0 * math.sqrt(self.unit_roundoff)

    @cached_property
    def is_finite(self) -> bool:
        """Whether the loss and the gradients are finite, in both runs."""
        runs = (self.result.computed, self.result.reference)
        tensors = [t for run in runs for t in (run.loss, *run.gradients.values()) if t is not None]
        if math.isfinite(self.errors.gradient):  # so are the real gradients that it compares
            tensors = [t for t in tensors if t.is_complex() or t.dim() == 0]
        return all(math.isfinite(norm(t.real if t.is_complex() else t)) for t in tensors)

    @cached_property
    def order(self) -> Mapping[fx.Node, int]:
        """Position of every node in the program."""
        return {node: i for i, node in enumerate(self.program.graph.nodes)}


def take(program: Program, detectors: Iterable[Detector]) -> Trace:
    """Run a program in lockstep and show every call to the detectors."""
    observations: dict[fx.Node, Observation] = {}
    detectors = list(detectors)

    def visit(call: Call) -> None:
        node = call.node
        source = argument(node, 0) if is_rearrangement(node) else None
        seen = observations[source] if source in observations else observe(call)
        if seen is not None:
            observations[call.node] = seen
        for detector in detectors:
            detector.see(call, seen)

    result = lockstep(program, visit)
    return Trace(program, observations, result, compare(result.computed, result.reference))


def observe(call: Call) -> Observation | None:
    """Measure one node; None if it holds no single real floating-point tensor."""
    computed, reference = call.computed, call.reference
    if not isinstance(computed, Tensor) or computed.dtype not in FORMATS:
        return None
    found = FORMATS[computed.dtype]
    computed, reference = computed.detach(), reference.detach().double()
    if computed.numel() == 0:
        return Observation(found, 0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0)
    exact = call.node.op == "get_attr"  # the reference starts from the same numbers
    ends = torch.aminmax(computed.abs())
    smallest, largest = float(ends.min), float(ends.max)
    whole = norm(reference)
    if not (math.isfinite(largest) and math.isfinite(whole)):
        return _observe_nonfinite(computed.double(), reference, found)
    flushed = subnormal = 0
    if smallest < found.smallest_normal and not exact:
        flushed, subnormal = _below_normal(computed, reference, found)
    return Observation(
        format=found,
        entries=computed.numel(),
        largest=largest,
        norm=whole,
        rms=whole / math.sqrt(computed.numel()),
        rel_error=0.0 if exact else _ratio(distance(computed, reference), whole),
        nonfinite=0,
        reference_nonfinite=0,
        flushed=flushed,
        subnormal=subnormal,
    )


def _below_normal(computed: Tensor, reference: Tensor, found: Format) -> tuple[int, int]:
    """Numbers of entries that became zero and that are subnormal, in a finite tensor."""
    nonzero = int(torch.count_nonzero(computed))
    subnormal = nonzero - int(torch.count_nonzero(computed.abs() >= found.smallest_normal))
    if int(torch.count_nonzero(reference)) <= nonzero:
        return 0, subnormal  # what is zero is so in the reference
    lost = (computed == 0) & (reference != 0)
    return int((lost & (reference.abs() < found.smallest_normal)).sum()), subnormal


def distance(a: Tensor, b: Tensor) -> float:
    """The 2-norm of a - b in float64, in pieces that stay in the cache where that is simple."""
    if a.numel() <= _PIECE or not (a.is_contiguous() and b.is_contiguous()):
        return norm(a.double() - b)
    room = torch.empty(_PIECE, dtype=torch.float64, device=a.device)
    sizes = []
    for x, y in zip(a.view(-1).split(_PIECE), b.view(-1).split(_PIECE), strict=True):
        sizes.append(norm(room[: x.numel()].copy_(x).sub_(y)))
    return math.hypot(*sizes)


_PIECE = 2**15  # entries; 256 KiB of float64


def _observe_nonfinite(wide: Tensor, reference: Tensor, found: Format) -> Observation:
    finite, known = torch.isfinite(wide), torch.isfinite(reference)
    zero = wide.new_zeros(())
    a = torch.where(finite & known, wide, zero)
    b = torch.where(finite & known, reference, zero)
    lost = bool((~finite & known).any())
    whole = norm(b)
    return Observation(
        format=found,
        entries=wide.numel(),
        largest=float(a.abs().max()),
        norm=whole,
        rms=whole / math.sqrt(wide.numel()),
        rel_error=math.inf if lost else _ratio(norm(a - b), whole),
        nonfinite=int((~finite).sum()),
        reference_nonfinite=int((~known).sum()),
        flushed=int(((a == 0) & (b != 0) & (b.abs() < found.smallest_normal)).sum()),
        subnormal=int(((a != 0) & (a.abs() < found.smallest_normal)).sum()),
    )


def norm(x: Tensor) -> float:
    """The 2-norm, without underflow or overflow on the way; NaN or infinite if an entry is."""
    if x.numel() == 0:
        return 0.0
    x = x.detach().double()
    plain = float(torch.linalg.vector_norm(x))
    if _SAFE[0] < plain < _SAFE[1]:
        return plain
    largest = float(x.abs().max())
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(x / largest))


_SAFE = (1e-140, 1e140)  # squares of such norms are normal numbers


def compare(computed: Replay, reference: Replay) -> Errors:
    """Measure how far the outputs of a run are from those of the reference."""
    names = [name for name, value in computed.gradients.items() if not value.is_complex()]
    pairs = [
        (computed.gradients[name].detach(), reference.gradients[name].detach().double())
        for name in names
    ]
    sizes = [(distance(a, b), norm(b)) for a, b in pairs]
    whole = math.hypot(*(size for _, size in sizes))
    error = _ratio(math.hypot(*(e for e, _ in sizes)), whole)
    worst = max((_ratio(e, max(s, _SMALL_PART * whole)) for e, s in sizes), default=0.0)
    loss = math.nan
    if computed.loss is not None and reference.loss is not None:
        got, want = float(computed.loss), float(reference.loss)
        loss = _ratio(abs(got - want), abs(want))
    ratios = {name: _ratio(e, s) for name, (e, s) in zip(names, sizes, strict=True)}
    return Errors(loss, error, worst, ratios)


def _ratio(error: float, size: float) -> float:
    if error == 0.0:
        return 0.0
    return error / size if size > 0.0 else math.inf


NOWHERE: Mapping[str, Any] = {"op": "", "module": "", "source": "", "phase": ""}
"""The place of a finding that belongs to no call."""


def place(node: fx.Node) -> dict[str, Any]:
    """Where a node comes from, as the fields of a finding."""
    while node.op == "call_function" and "call" not in node.meta:
        node = node.all_input_nodes[0]  # a part of a call with several outputs
    info = node.meta.get("call")
    if info is None:
        return dict(NOWHERE)
    target, module, source, phase = str(node.target), info.module, info.source, info.phase
    return {"op": target, "module": module, "source": source, "phase": phase}


def op_name(node: fx.Node) -> str:
    """The operation without library and overload: "log" for aten.log.default; "" if none."""
    name = node.meta.get("op_name")
    if name is None:
        known = node.op == "call_function" and "call" in node.meta
        name = node.meta["op_name"] = _base_name(node.target) if known else ""
    return name


def traits(node: fx.Node) -> Traits:
    """What the operation does; of a node that is no call, nothing is said."""
    return traits_of(op_name(node))


def is_rearrangement(node: fx.Node) -> bool:
    """Whether a call gives back all entries of its first input, each once."""
    moves = traits(node).moves
    return moves is not None and moves.is_rearrangement


@lru_cache(maxsize=4096)
def _base_name(target: Any) -> str:
    parts = str(target).split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def argument(node: fx.Node, position: int) -> Any:
    """A positional argument of a call; None if it was not given."""
    return node.args[position] if len(node.args) > position else None


def phase_of(node: fx.Node) -> str:
    """The phase of a call; "" if it is none."""
    info = node.meta.get("call")
    return info.phase if info is not None else place(node)["phase"]


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that the given ones depend on, themselves included."""
    pending, seen = list(nodes), set(nodes)
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return seen


def outputs(program: Program) -> Mapping[str, Any]:
    """The nodes of gradients, loss and updates."""
    found: Any = program.graph.output_node().args[0]
    return found
