"""Does a checkpointed part give on recomputation what it gave in the forward pass?

Calls of the backward pass that depend on no cotangent and repeat a call of the forward pass, from
the same line and module, are its recomputation. Two such calls have the same result if all their
inputs are the same values or recomputed equal ones; where that fails both results are compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from numgeom.diagnosis.partial import evaluate
from numgeom.diagnosis.rederive import rederive
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.scaling import loss_seeds
from numgeom.diagnosis.trace import (
    Observation,
    Trace,
    ancestors,
    compare,
    norm,
    op_name,
    outputs,
    phase_of,
    place,
)
from numgeom.errors import ReplayError
from numgeom.recording import Program
from numgeom.semantics.lockstep import Call

_TRIED = 64


@dataclass(frozen=True)
class Repeat:
    """A recomputed call whose inputs are not those of the first time.

    Attributes:
        first: The call of the forward pass.
        again: Its recomputation.
        drawn: Whether other random numbers were drawn.
    """

    first: fx.Node
    again: fx.Node
    drawn: bool


class RecomputationDetector:
    """Finds checkpoints whose recomputation differs from the first forward pass."""

    def see(self, call: Call, seen: Observation | None) -> None:
        """Nothing is read from single calls."""
        del call, seen

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield the first recomputed call that differs, with what it does to the gradients."""
        for repeat in differing_repeats(trace.program)[:_TRIED]:
            try:
                values = evaluate(trace.program, [repeat.first, repeat.again], dtype=None)
            except ReplayError:
                continue
            first, again = values[repeat.first], values[repeat.again]
            if not isinstance(first, Tensor) or _equal(first, again):
                continue
            yield _finding(trace, repeat, first, again)
            return


def _finding(trace: Trace, repeat: Repeat, first: Tensor, again: Tensor) -> Finding:
    size = norm(first)
    moved = norm(again.double() - first.double())
    where: dict[str, Any] = place(repeat.first) | {"phase": "backward"}
    evidence: dict[str, Any] = {"rel_difference": moved / size if size else float("inf")}
    derived = rederive(trace.program, dtype=torch.float64)
    if derived is not None and trace.is_finite:
        evidence["gradient_change"] = compare(trace.result.reference, derived).of_gradients
    remedy = (
        "Let the checkpoint restore the generators: checkpoint(..., preserve_rng_state=True)."
        if repeat.drawn
        else "Keep the checkpointed function free of side effects: change buffers and counters "
        "outside of it, and take inputs as arguments."
    )
    return Finding(
        kind=Kind.RECOMPUTATION,
        severity=Severity.ERROR,
        **where,
        evidence=evidence,
        explanation="The backward pass recomputed this call and got another result than the "
        "forward pass had"
        + (", from other random numbers" if repeat.drawn else ", from state that has changed")
        + ": the gradients belong to no forward pass.",
        remedy=remedy,
    )


def differing_repeats(program: Program) -> list[Repeat]:
    """The recomputed calls on the way to a gradient that have other inputs than the first time."""
    forward: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in program.calls:
        if phase_of(node) == "forward":
            forward.setdefault(_key(node), []).append(node)
    carries_cotangents = set(loss_seeds(program))
    twin: dict[fx.Node, fx.Node] = {}  # recomputed node -> the one of the forward pass
    tainted: set[fx.Node] = set()
    found: list[Repeat] = []
    for node in program.graph.nodes:
        if any(source in carries_cotangents for source in node.all_input_nodes):
            carries_cotangents.add(node)
            continue
        if node.op != "call_function" or phase_of(node) != "backward":
            continue
        first = _first(node, forward.get(_key(node), []), twin)
        if first is None:
            continue
        twin[node] = first
        pairs = list(zip(first.all_input_nodes, node.all_input_nodes, strict=True))
        fresh = [(a, b) for a, b in pairs if a is not b and twin.get(b) is not a]
        fresh = [(a, b) for a, b in fresh if not _same_constant(program, a, b)]
        if fresh:
            found.append(Repeat(first, node, drawn=any(_is_drawn(b) for _, b in fresh)))
        if fresh or any(b in tainted for _, b in pairs):
            tainted.add(node)
    ends = [n for n in outputs(program)["gradients"].values() if isinstance(n, fx.Node)]
    reach = ancestors(ends) if found else set()
    return [repeat for repeat in found if repeat.again in reach]


def _first(
    node: fx.Node, candidates: list[fx.Node], twin: dict[fx.Node, fx.Node]
) -> fx.Node | None:
    """The forward call that a call repeats: the latest of those that share most inputs."""
    best: tuple[int, fx.Node] | None = None
    taken = set(twin.values())
    for first in candidates:
        ours, theirs = node.all_input_nodes, first.all_input_nodes
        if first in taken or len(ours) != len(theirs):
            continue
        shared = [a is b or twin.get(b) is a for a, b in zip(theirs, ours, strict=True)]
        fits = [
            known or _comparable(a, b) for known, a, b in zip(shared, theirs, ours, strict=True)
        ]
        if all(fits) and (best is None or sum(shared) >= best[0]):
            best = sum(shared), first
    return None if best is None else best[1]


def _comparable(a: fx.Node, b: fx.Node) -> bool:
    """Whether two inputs that are not the same value can play the same part."""
    if a.op == b.op == "get_attr":
        return a.meta["role"] == b.meta["role"] == "drawn"
    # A buffer at one time and at a later time.
    return _is_state(a) and _is_state(b)


def _is_state(node: fx.Node) -> bool:
    """Whether a value was made from buffers alone."""
    pending, seen = [node], {node}
    while pending:
        at = pending.pop()
        if at.op == "get_attr" and at.meta["role"] not in ("buffer", "input", "decision"):
            return False
        for source in at.all_input_nodes:
            if source not in seen:
                seen.add(source)
                pending.append(source)
        if len(seen) > 30:
            return False
    return any(n.op == "get_attr" and n.meta["role"] == "buffer" for n in seen)


def _is_drawn(node: fx.Node) -> bool:
    return node.op == "get_attr" and node.meta["role"] == "drawn"


def _same_constant(program: Program, a: fx.Node, b: fx.Node) -> bool:
    if not (a.op == b.op == "get_attr"):
        return False
    return _equal(program.constants[str(a.target)], program.constants[str(b.target)])


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _key(node: fx.Node) -> tuple[Any, ...]:
    """What a recomputed call shares with the first: op, place, and arguments that are no values."""
    where = place(node)
    rest = map_arg((node.args, dict(node.kwargs)), lambda n: None)
    return op_name(node), str(node.target), where["module"], where["source"], str(rest)
