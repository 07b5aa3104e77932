"""Which calls may give other results when the same step runs again?

On every device: writes of different values to one place, of which any may win. On CUDA: the calls
that torch lists as nondeterministic under `torch.use_deterministic_algorithms`. And whatever its
calls are: a step whose replay in the recorded formats has other bits than the run itself.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.diagnosis.result import Finding, Kind, Severity
from numgeom.diagnosis.trace import NOWHERE, Observation, Trace, argument, compare, op_name, place
from numgeom.ops.table import traits_of
from numgeom.recording import Program
from numgeom.semantics.lockstep import Call


def may_not_repeat(program: Program) -> bool:
    """Whether a call of the step adds or writes in the order in which threads arrive.

    On CUDA those that torch lists; on the CPU with several threads index_put that accumulates.
    """
    for node in program.calls:
        name = op_name(node)
        if traits_of(name).nondeterministic_on_cuda and any(
            m.device.type != "cpu" for m in node.meta["tensors"].values()
        ):
            return True
        if name == "index_put" and argument(node, 3) and torch.get_num_threads() > 1:
            return True
    return False


class NondeterminismDetector:
    """Finds calls whose result is not determined by their inputs."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._contested: dict[fx.Node, float] = {}
        self._listed: list[fx.Node] = []

    def see(self, call: Call, seen: Observation | None) -> None:
        """Look at writes by index, and at calls that torch lists."""
        name = op_name(call.node)
        if (
            traits_of(name).nondeterministic_on_cuda
            and isinstance(call.reference, Tensor)
            and call.reference.is_cuda
        ):
            self._listed.append(call.node)
        if seen is None or not traits_of(name).last_wins:
            return
        share = _contested(call, name)
        if share > 0.0:
            self._contested[call.node] = share

    def findings(self, trace: Trace) -> Iterator[Finding]:
        """Yield contested writes, a step that does not repeat, and what torch lists."""
        for node, share in self._contested.items():
            yield Finding(
                kind=Kind.NONDETERMINISM,
                severity=Severity.WARNING,
                **place(node),
                evidence={"share_of_contested_entries": share},
                explanation="Different values are written to the same place: which of them stays "
                "is not defined and may change from run to run.",
                remedy="Make the indices unique, or say how to combine: "
                'x.scatter_reduce(dim, index, src, reduce="sum"), x.index_add(dim, index, src), '
                "index_put with accumulate=True.",
            )
        yield from _unrepeated(trace)
        for node in self._listed[:1]:
            yield Finding(
                kind=Kind.NONDETERMINISM,
                severity=Severity.INFO,
                **place(node),
                evidence={"calls": len(self._listed)},
                explanation="torch lists this operation as nondeterministic on CUDA: terms are "
                "added in the order in which threads arrive.",
                remedy="torch.use_deterministic_algorithms(True), if the last bits must repeat.",
            )


def _unrepeated(trace: Trace) -> Iterator[Finding]:
    recorded, again = trace.program.recorded, trace.result.computed
    differing = [
        name
        for name, value in recorded.gradients.items()
        if not torch.equal(value, again.gradients[name]) and bool(torch.isfinite(value).all())
    ]
    if not differing:
        return
    change = compare(again, recorded).of_gradients
    yield Finding(
        kind=Kind.NONDETERMINISM,
        severity=Severity.WARNING if change > trace.tolerance else Severity.INFO,
        **NOWHERE,
        evidence={"change_when_run_again": change, "parameters": differing},
        explanation="Running the same calls again gives other bits.",
        remedy="torch.use_deterministic_algorithms(True) names the operation, or avoids it.",
    )


def _contested(call: Call, name: str) -> float:
    """Part of the entries of a result that depend on the order of the writes."""
    args: list[Any] = [
        call.inputs[a].computed if isinstance(a, fx.Node) else a for a in call.node.args
    ]
    target: Any = call.node.target
    if isinstance(args[1], list):  # index_put: one index for each dimension
        if argument(call.node, 3) or len(args[1]) != 1 or not isinstance(args[1][0], fx.Node):
            return 0.0
        index, values = call.inputs[args[1][0]].computed, args[2]
        if index.dtype is torch.bool or index.dim() != 1 or values.dim() == 0:
            return 0.0
        if values.shape[0] != index.shape[0]:
            return 0.0
        args[1], args[2] = [index.flip(0)], values.flip(0)
    else:
        dim, index, source = args[1], args[2], args[3]
        if not isinstance(source, Tensor) or index.dim() == 0:
            return 0.0
        if name == "scatter":  # the entries of the source that are written
            source = source[tuple(slice(0, n) for n in index.shape)]
        args[2] = index.flip(0 if name == "index_copy" else dim)
        args[3] = source.flip(dim)
    other = target(*args, **call.node.kwargs)
    same = (other == call.computed) | (other.isnan() & call.computed.isnan())
    return float((~same).double().mean()) if same.numel() else 0.0
