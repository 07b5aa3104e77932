"""Where does the first NaN or infinity of a step come from?

The program is run again and every value looked at. From the non-finite loss and gradients the
values are followed back, NaN through NaN and infinity through infinity, to the calls that made
them. So an infinity written into a mask on purpose, which never reaches the loss, is not met.

A call *makes* a NaN (or infinity) if none of its inputs holds one, or if it still does so after
every non-finite entry of its inputs was replaced by a harmless number.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from numgeom.errors import ReplayError
from numgeom.recording import Program, Replay
from numgeom.recording.program import OnCall
from numgeom.recording.replay import ProgramInterpreter
from numgeom.visible import visible

_NAN, _INF = "NaN", "Inf"
# Takes the place of a non-finite entry. No op that we know turns 0.5 into NaN or infinity;
# 0 would (1/x, log), and so would 1 (atanh, logit).
_HARMLESS = 0.5


@dataclass(frozen=True)
class NonFinite:
    """The origin of a non-finite value that reached the loss or a gradient.

    Attributes:
        value: "NaN" or "Inf" (of either sign).
        origin: What made it: "operation"; "parameter", "buffer", "input", "drawn" or "decision"
            if the step started from a tensor that held it; "given" if only the gradients given
            from elsewhere hold it; "unknown" if running the program again did not give it.
        name: Name of the operation or of the tensor, "" where it has none.
        module: Path of the module that ran the operation, "" outside of every module.
        phase: "forward", "backward" or "update"; "" if no operation made it.
        source: "file.py:line" of the user's line, "" if unknown.
        reached: What is not finite in the end: "loss" and names of parameters.
        seen_in: "computed", "reference" or "both": which of them are not finite.
        made_from: Where the infinity comes from out of which a NaN was made, or None.
    """

    value: str
    origin: str
    name: str = ""
    module: str = ""
    phase: str = ""
    source: str = ""
    reached: tuple[str, ...] = ()
    seen_in: str = ""
    made_from: "NonFinite | None" = None

    def describe(self) -> str:
        """Return two or three sentences for a person."""
        text = self._where()
        if self.made_from is not None:
            text += f" It is made from a value that is not finite: {self.made_from._where()}"
        if self.reached:
            text += f" Not finite in the end: {_shortened(self.reached)}."
        return visible(text + _VERDICTS.get(self.seen_in, ""))

    def _where(self) -> str:
        if self.origin == "operation":
            place = f" of {self.module}" if self.module else ""
            line = f", {self.source}" if self.source else ""
            return f"{self.value} first arises in {self.name} ({self.phase} pass{place}{line})."
        if self.origin == "given":
            return f"{self.value} is in the gradients that were given; the recorded step has none."
        if self.origin == "unknown":
            return f"{self.value} was recorded, but running the step again did not give it."
        name = f" {self.name!r}" if self.name else ""
        return f"{self.value} is already in the {_ROLES.get(self.origin, self.origin)}{name}."


_ROLES = {"drawn": "random draw", "decision": "value that Python code read"}

_VERDICTS = {
    "both": " The float64 reference has it too: not a matter of rounding or range.",
    "computed": " The float64 reference is finite: the format's range or rounding is the cause.",
    "reference": " Only the float64 reference has it; the computed values are finite.",
}


def first_nonfinite(
    program: Program,
    reference: Replay,
    *,
    device: torch.device | str | None = None,
    on_call: OnCall | None = None,
) -> NonFinite | None:
    """Find where the first non-finite value that reached the loss or a gradient comes from.

    Args:
        program: The recorded step.
        reference: Its replay in float64.
        device: Where the reference ran.
        on_call: Called with every node and its value while the program runs again.

    Returns:
        The origin; None if the loss and all gradients are finite, in both runs.
    """
    bad, bad_reference = _bad_outputs(program.recorded), _bad_outputs(reference)
    if not bad and not bad_reference:
        return None
    seen_in = "computed" if not bad_reference else ("both" if bad else "reference")
    if bad:
        watch = _Watch(program, dtype=None, on_call=on_call)
    else:
        watch = _Watch(program, dtype=torch.float64, device=device, on_call=on_call)
    watch.evaluate()
    reached = bad or bad_reference
    names = tuple("loss" if name is None else name for name in reached)
    return dataclasses.replace(_origin(program, watch, reached), reached=names, seen_in=seen_in)


def _bad_outputs(replay: Replay) -> list[str | None]:
    """Return the names of the gradients that are not finite, before them None for the loss."""
    loss = [None] if kinds_of(replay.loss) else []
    return [*loss, *(name for name, value in replay.gradients.items() if kinds_of(value))]


def kinds_of(value: Any) -> frozenset[str]:
    """Return which of "NaN" and "Inf" occur in the tensors of a (nested) value."""
    if isinstance(value, list | tuple):
        return frozenset().union(*(kinds_of(item) for item in value))
    if isinstance(value, dict):
        return kinds_of(list(value.values()))
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return frozenset()
    wide = value.float() if value.element_size() == 1 else value  # float8 has few kernels
    if bool(torch.isfinite(wide).all()):
        return frozenset()
    found = ((_NAN, torch.isnan(wide)), (_INF, torch.isinf(wide)))
    return frozenset(kind for kind, where in found if bool(where.any()))


class _Watch(ProgramInterpreter):
    """Runs a program and notes which values are not finite, and which calls make them so."""

    def __init__(self, program: Program, **options: Any) -> None:
        super().__init__(program, **options)
        self.holds: dict[fx.Node, frozenset[str]] = {}
        self.makes: dict[fx.Node, frozenset[str]] = {}
        self.makes_alone: dict[fx.Node, frozenset[str]] = {}  # from finite inputs

    def constant(self, node: fx.Node) -> Tensor:
        value = super().constant(node)
        self.holds[node] = self.makes[node] = self.makes_alone[node] = kinds_of(value)
        return value

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        value = super().call(node, args, kwargs)
        self.holds[node] = kinds_of(value)
        if self.holds[node]:
            alone = self._made_alone(node, args, kwargs)
            inputs = kinds_of((args, kwargs))
            self.makes_alone[node] = alone
            self.makes[node] = (self.holds[node] - inputs) | alone
        return value

    def _made_alone(self, node: fx.Node, args: Any, kwargs: Any) -> frozenset[str]:
        if "call" not in node.meta:  # picks one output of a call, and computes nothing
            return frozenset()
        clean = map_aggregate(args, _harmless), map_aggregate(kwargs, _harmless)
        try:
            return self.holds[node] & kinds_of(super().call(node, *clean))
        except ReplayError:  # e.g. a Cholesky factor that the new numbers do not have
            return frozenset()


def _harmless(value: Any) -> Any:
    if not kinds_of(value):
        return value
    if value.element_size() == 1:
        return _harmless(value.float()).to(value.dtype)
    return torch.where(torch.isfinite(value), value, torch.full_like(value, _HARMLESS))


def _origin(program: Program, watch: _Watch, reached: Iterable[str | None]) -> NonFinite:
    outputs: Any = program.graph.output_node().args[0]
    found = [outputs["loss"] if name is None else outputs["gradients"][name] for name in reached]
    ends = [node for node in found if isinstance(node, fx.Node)]
    order = {node: index for index, node in enumerate(program.graph.nodes)}

    def rank(maker: tuple[fx.Node, str]) -> tuple[bool, int]:
        return _is_on_purpose(maker[0], watch), order[maker[0]]

    makers = [(node, kind) for kind in (_NAN, _INF) for node in _makers(ends, kind, watch)]
    if not makers:
        return NonFinite(_NAN, "unknown")
    node, kind = min(makers, key=rank)
    origin = _describe(node, kind)
    if kind == _NAN and kind not in watch.makes_alone[node]:
        infinite = [(source, _INF) for source in _makers(node.all_input_nodes, _INF, watch)]
        if infinite:
            origin = dataclasses.replace(origin, made_from=_describe(*min(infinite, key=rank)))
    return origin


def _makers(ends: Iterable[fx.Node], kind: str, watch: _Watch) -> list[fx.Node]:
    """Return the calls and constants that made the NaNs (or infinities) found at `ends`."""
    pending = [node for node in ends if kind in watch.holds[node]]
    seen, makers = set(pending), []
    while pending:
        node = pending.pop()
        if kind in watch.makes[node]:
            makers.append(node)
        for source in node.all_input_nodes:
            if source not in seen and kind in watch.holds[source]:
                seen.add(source)
                pending.append(source)
    return makers


def _is_on_purpose(node: fx.Node, watch: _Watch) -> bool:
    """Whether a person wrote the infinity down: as a number in the call, or in a constant."""
    if node.op == "get_attr":
        return watch.holds[node] == {_INF}
    written: list[float] = []

    def note(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            written.append(value)
        return value

    map_aggregate(node.args, note)
    map_aggregate(node.kwargs, note)
    return bool(written)


def _describe(node: fx.Node, kind: str) -> NonFinite:
    if node.op == "get_attr":
        return NonFinite(kind, node.meta["role"], name=node.meta["name"])
    info = node.meta["call"]
    return NonFinite(
        kind,
        "operation",
        name=str(node.target),
        module=info.module,
        phase=info.phase,
        source=info.source,
    )


def _shortened(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
