"""Do cotangents vanish or explode on their way back through depth or time?

The longest way back through the program is followed, from the loss to the parameter that lies
deepest, and the norm of the cotangent is read before every matrix product or convolution on it (or,
in programs without these, before every product of a line that is repeated). The norms' ratio over
the depth tells; its logarithm per layer is an exponent of Lyapunov's kind (Bengio, Simard &
Frasconi 1994; Pascanu, Mikolov & Bengio 2013).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import fx

from numgeom.arithmetic.printing import nearest, nearest_short
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.trace import Observation, Trace, op_name, outputs, phase_of, place, traits
from numgeom.ops.entry import Kind as OpKind
from numgeom.ops.table import kind_of
from numgeom.semantics.lockstep import Call

_VANISHED = 1e-5  # ratio of norms, first layer over last layer
_EXPLODED = 1e4
_HOPELESS = 1e8  # beyond this ratio, either way, it is an error
_FEWEST_LAYERS = 4
_FEWEST_REPEATS = 8


def _is_contraction(node: fx.Node) -> bool:
    """Whether a call sums products of two inputs: a layer, seen from its cotangent."""
    return kind_of(op_name(node)) is OpKind.CONTRACTION


def _is_scaling(node: fx.Node) -> bool:
    """Whether a call is a product or a quotient, entry by entry."""
    return op_name(node) in ("mul", "div")


def _joins(node: fx.Node) -> bool:
    """Whether a call puts several tensors beside one another."""
    moves = traits(node).moves
    return moves is not None and moves.joins


@dataclass(frozen=True)
class _Stage:
    node: fx.Node  # the product that the cotangent goes into
    norm: float


class DepthDetector:
    """Finds layers that shrink or stretch cotangents, where it adds up over the depth."""

    def see(self, call: Call, seen: Observation | None) -> None:
        """Nothing is read from single calls; the numbers in the trace are enough."""
        del call, seen

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield a finding if the cotangents vanish or explode."""
        way = _longest_way(trace)
        stages = _layers(trace, _stages(trace, way, _is_contraction))
        fewest = _FEWEST_LAYERS
        if not any(_is_contraction(node) for node in trace.program.calls):
            stages, fewest = _repeated(_stages(trace, way, _is_scaling)), _FEWEST_REPEATS
        if len(stages) < fewest:
            return
        first, last = stages[0].norm, stages[-1].norm
        if first == 0.0 or not math.isfinite(first) or not math.isfinite(last):
            return
        ratio = last / first
        if _VANISHED < ratio < _EXPLODED:
            return
        steps = len(stages) - 1
        factors = [_over(b.norm, a.norm) for a, b in zip(stages, stages[1:], strict=False)]
        vanishing = ratio <= _VANISHED
        i = (min if vanishing else max)(range(steps), key=factors.__getitem__)
        exponent = math.log(ratio) / steps if ratio > 0.0 else -math.inf
        hopeless = ratio < 1.0 / _HOPELESS or ratio > _HOPELESS
        yield Finding(
            kind=Kind.VANISHING if vanishing else Kind.EXPLODING,
            severity=Severity.ERROR if hopeless else Severity.WARNING,
            **place(stages[i].node),
            evidence={
                "ratio_of_cotangent_norms": ratio,
                "layers": steps,
                "factor_per_layer": math.exp(exponent),
                "exponent_per_layer": exponent,
                "strongest_factor": factors[i],
                "factors": factors,
            },
            explanation=f"Over {steps} layers the cotangent "
            f"{'shrinks' if vanishing else 'grows'} to {nearest(ratio, 2)} times its norm, by "
            f"a factor of {nearest_short(math.exp(exponent))} per layer.",
            remedy=_VANISHING_REMEDY if vanishing else _EXPLODING_REMEDY,
        )


_VANISHING_REMEDY = (
    "Residual connections, normalisation layers, orthogonal or Kaiming initialisation with the "
    "activation's gain, ReLU or GELU for sigmoid; gates (nn.LSTM, nn.GRU) for plain recurrence."
)
_EXPLODING_REMEDY = (
    "Smaller or orthogonal initialisation, normalisation layers, residual branches scaled down; "
    "for recurrence a shorter horizon; torch.nn.utils.clip_grad_norm_ bounds the update."
)


def _over(a: float, b: float) -> float:
    return a / b if b > 0.0 else math.inf


def _longest_way(trace: Trace) -> list[fx.Node]:
    """The backward calls on the longest way from the loss to a gradient, counted in products.

    Where cotangents of several ways are added the largest is followed, since it decides the sum:
    a branch that shrinks cotangents does no harm beside a residual connection.
    """
    longest: dict[fx.Node, tuple[int, int]] = {}
    before: dict[fx.Node, fx.Node | None] = {}
    cotangents = _cotangents(trace)
    for node in trace.program.graph.nodes:
        if phase_of(node) != "backward":
            continue
        weight = (int(_is_contraction(node)), int(_is_scaling(node)))
        parents = [parent for parent in node.all_input_nodes if parent in longest]
        best = max((longest[parent] for parent in parents), default=(0, 0))
        longest[node] = (best[0] + weight[0], best[1] + weight[1])
        joins = op_name(node) == "add" and node in cotangents
        key = _norm(trace) if joins else longest.__getitem__
        before[node] = max(parents, key=key, default=None)
    ends = [n for n in outputs(trace.program)["gradients"].values() if n in longest]
    if not ends:
        return []
    at: fx.Node | None = max(ends, key=longest.__getitem__)
    way: list[fx.Node] = []
    while at is not None:
        way.append(at)
        at = before[at]
    return way[::-1]


def _cotangents(trace: Trace) -> set[fx.Node]:
    """The backward calls whose results go into further products: no gradients of parameters."""
    found: set[fx.Node] = set()
    for node in reversed(trace.program.graph.nodes):
        users = [user for user in node.users if phase_of(user) == "backward"]
        if any(user in found or _is_contraction(user) or _is_scaling(user) for user in users):
            found.add(node)
    return found


def _norm(trace: Trace) -> Callable[[fx.Node], float]:
    return lambda node: trace.observations[node].norm if node in trace.observations else 0.0


def _stages(trace: Trace, way: list[fx.Node], counts: Callable[[fx.Node], bool]) -> list[_Stage]:
    """The cotangents that go into the products on the way, from the loss on.

    The last product makes a parameter's gradient; where it takes the cotangents of all times at
    once, stacked, that of the first time is meant.
    """
    stages: list[_Stage] = []
    alone: fx.Node | None = None  # the cotangent before it was stacked with others
    end = _last_product(way, counts)
    for a, b in zip(way, way[1:], strict=False):
        if _joins(b) and alone is None:
            alone = a
        if counts(b) and a in trace.observations:
            of = a if alone is None or b is not end or alone not in trace.observations else alone
            stages.append(_Stage(b, trace.observations[of].norm))
            alone = None
    return stages


def _layers(trace: Trace, stages: list[_Stage]) -> list[_Stage]:
    """The products that differentiate a product.

    The derivative of one decomposition or inverse of a matrix consists of products, too; the sizes
    that its parts go through say nothing of depth.
    """
    made: dict[str, bool] = {}  # whether a line of the forward pass has a product
    for node in trace.program.calls:
        if phase_of(node) == "forward":
            source = place(node)["source"]
            made[source] = made.get(source, False) or _is_contraction(node)
    return [stage for stage in stages if made.get(place(stage.node)["source"], True)]


def _last_product(way: list[fx.Node], counts: Callable[[fx.Node], bool]) -> fx.Node | None:
    return next((node for node in reversed(way) if counts(node)), None)


def _repeated(stages: list[_Stage]) -> list[_Stage]:
    """The products of the line that comes most often, one for each time round."""
    keys = Counter((place(s.node)["source"], op_name(s.node)) for s in stages)
    if not keys:
        return []
    often = keys.most_common(1)[0][0]
    return [s for s in stages if (place(s.node)["source"], op_name(s.node)) == often]
