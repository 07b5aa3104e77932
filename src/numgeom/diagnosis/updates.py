"""Do the parameters move as the optimizer's step says, or is what it adds lost?

A parameter w in a format of unit roundoff u does not change when less than u |w| is added to it.
Where an optimizer runs inside of the recorded step, the change that each parameter made is
compared with the change that it makes in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from numgeom.arithmetic.printing import percent
from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.trace import Observation, Trace, norm, outputs, place
from numgeom.semantics.lockstep import Call

_LOST = 0.5  # of the entries that should move stand still, and of the change is missing


@dataclass(frozen=True)
class _Loss:
    """What one parameter's change lost.

    Attributes:
        name: The parameter.
        moving: Entries that change in float64.
        still: Those of them that did not change.
        still_in_float32: Those of them that would not change if the parameter were float32.
        missing: Norm of the change that is missing, over the norm of the change.
    """

    name: str
    moving: int
    still: int
    still_in_float32: int
    missing: float


class UpdateDetector:
    """Finds parameters that stand still because what is added to them is absorbed."""

    def see(self, call: Call, seen: Observation | None) -> None:
        """Nothing is noted: the ends of the step tell."""

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield one finding, at the parameter with most entries that stand still."""
        nodes = outputs(trace.program)["updates"]
        before = _parameters(trace)
        lost = []
        for name in nodes:
            if name in before:
                found = _loss(trace, name, before[name])
                if found is not None and found.still >= _LOST * found.moving > 0.0:
                    lost.append(found)
        lost = [found for found in lost if found.missing >= _LOST]
        if lost:
            yield _finding(trace, nodes, lost)


def _parameters(trace: Trace) -> dict[str, Tensor]:
    """Parameters as they were before the step, by name."""
    program = trace.program
    return {
        node.meta["name"]: program.constants[str(node.target)].detach()
        for node in program.graph.nodes
        if node.op == "get_attr" and node.meta["role"] == "parameter"
    }


def _loss(trace: Trace, name: str, before: Tensor) -> _Loss | None:
    computed = trace.result.computed.updates.get(name)
    reference = trace.result.reference.updates.get(name)
    if computed is None or reference is None or not before.is_floating_point():
        return None
    old = before.double()
    change = reference.detach().double() - old
    whole = norm(change)
    if not 0.0 < whole < torch.inf:
        return None
    moving = change != 0.0
    stands = moving & (computed.detach() == before)
    single = old.float()
    stands_in_single = moving & ((single.double() + change).float() == single)
    missing = norm(computed.detach().double() - old - change)
    n, still, still_in_single = (
        int(torch.count_nonzero(mask)) for mask in (moving, stands, stands_in_single)
    )
    return _Loss(name, n, still, still_in_single, missing / whole)


def _finding(trace: Trace, nodes: dict[str, fx.Node], lost: list[_Loss]) -> Finding:
    worst = max(lost, key=lambda found: found.still)
    moving = sum(found.moving for found in lost)
    still = sum(found.still for found in lost)
    cured = sum(found.still_in_float32 for found in lost) < 0.5 * still
    node = nodes[worst.name]
    while node.op == "call_function" and "call" not in node.meta and node.all_input_nodes:
        node = node.all_input_nodes[0]  # a part of a call with several outputs
    remedy = (
        "Keep the parameters in float32 and compute in the short format under torch.autocast, or "
        "give the optimizer float32 copies of them."
        if cured
        else "Raise the learning rate, or end the training: the steps are below the resolution "
        "of the parameters."
    )
    return Finding(
        kind=Kind.ABSORPTION,
        severity=Severity.WARNING,
        **place(node),
        evidence={
            "parameters": len(lost),
            "unchanged_share": still / moving,
            "missing_change_relative": worst.missing,
        },
        explanation=f"The optimizer's step is absorbed: {percent(still / moving, 0)} of the "
        f"entries that it should change stay as they are in {len(lost)} parameters, most in "
        f"{worst.name}.",
        remedy=remedy,
        verified=cured,
    )
