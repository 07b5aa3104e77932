"""What gradient does a recorded step have when only its backward pass is run again?

The forward pass stays frozen as it was computed, in the recorded formats: every activation, every
active set, every decision. The backward pass runs again, in any format and under any selection.
In float64 that tells apart what differs over the reals from what only rounding makes differ.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from numgeom.nonsmooth.kinks import AbstractKink, Family
from numgeom.nonsmooth.paths import ancestors, outputs_of
from numgeom.nonsmooth.selection import KINKS, Selection
from numgeom.nonsmooth.sites import Site, Sites, find_sites
from numgeom.nonsmooth.uncovered import Candidate, is_tied, without_rule
from numgeom.ops.entry import Kind
from numgeom.ops.selection import OpCall, SelectionError, op_call
from numgeom.ops.table import OPS
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter


@dataclass(frozen=True, eq=False)
class TiedCall:
    """The tied units of one forward call, for one family of kinks.

    Attributes:
        node: The forward call.
        op: The op's name.
        shape: Shape of its (first) output.
        family: Which choice decides its derivative.
        kink: Its tied units.
    """

    node: fx.Node
    op: str
    shape: torch.Size
    family: Family
    kink: AbstractKink


class FrozenStep:
    """A recorded step whose forward pass is frozen as it was computed.

    Args:
        program: The step.

    Attributes:
        program: The step.
        sites: Which backward calls differentiate which kink.
        needed: The nodes that the gradients depend on.
        values: Values of the forward pass, as they were computed.
        ties: The tied units that selections reach.
        uncovered: Calls between parameters and loss that stand on a kink that no selection
            reaches (`numgeom.nonsmooth.uncovered`).
    """

    def __init__(self, program: Program) -> None:
        """Run the forward pass once more, in the recorded formats, and keep what is needed."""
        self.program = program
        self.sites: Sites = find_sites(program)
        self.needed = _needed_calls(program)
        candidates = [c for c in without_rule(program) if c.node not in self.sites.origin]
        self.values = self._freeze(candidates)
        self.ties: tuple[TiedCall, ...] = tuple(self._find_ties())
        self.uncovered = tuple(c.node for c in candidates if is_tied(c, self.values))

    def gradients(
        self,
        selection: Selection,
        *,
        dtype: torch.dtype | None = torch.float64,
        noise: torch.Generator | None = None,
        weights: Mapping[TiedCall, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run the backward pass under a selection.

        Args:
            selection: The derivatives at the kinks.
            weights: Derivatives unit by unit, for some of `ties`, in place of the selection's; as
                `numgeom.nonsmooth.clarke.draw` makes them.
            dtype: Format of the backward pass; None: the recorded formats. With those and
                torch's own selection the gradients are bit-identical to the recorded ones.
            noise: If given, every entry that a backward call computes is moved by one unit in its
                last place, up or down at random: a sample of what other rounding would give.

        Returns:
            The gradient of every parameter that got one.

        Raises:
            SelectionError: if the loss itself contains a gradient whose derivatives the selection
                changes.
        """
        return _Backward(self, selection, dtype, noise, weights or {}).evaluate().gradients

    @property
    def differentiates_a_gradient(self) -> bool:
        """Whether the loss depends on what a backward call of a kink computed."""
        loss = outputs_of(self.program)["loss"]
        before = ancestors({loss}) if isinstance(loss, fx.Node) else set()
        return any(site.last in before for site in self.sites.found)

    def _freeze(self, candidates: Iterable[Candidate]) -> dict[fx.Node, Any]:
        """The values of the forward pass that the backward pass, a kink or a candidate needs."""
        origin = self.sites.origin
        forward = {n for n in self.program.graph.nodes if _is_forward(n) or n in origin}
        wanted = ancestors({site.forward for site in self.sites.found})
        for each in candidates:
            wanted |= {each.node, *each.node.all_input_nodes}
        for node in self.program.graph.nodes:
            if node.op == "output" or (node in self.needed and node not in forward):
                wanted |= set(node.all_input_nodes) & forward
        wanted = {origin.get(node, node) for node in wanted}
        kept: dict[fx.Node, Any] = {}

        def keep(node: fx.Node, value: Any) -> None:
            if node in wanted:
                kept[node] = value

        self.program.replay(None, on_call=keep)
        return kept

    def _find_ties(self) -> list[TiedCall]:
        found: list[TiedCall] = []
        for node in dict.fromkeys(site.forward for site in self.sites.found):
            call = self._call(node)
            for rule in KINKS[call.name]:
                kink = rule.find(call)
                if kink is not None and len(kink.units):
                    found.append(
                        TiedCall(node, call.name, call.outputs[0].shape, rule.family, kink)
                    )
        order = {node: i for i, node in enumerate(self.program.graph.nodes)}
        return sorted(found, key=lambda tie: order[tie.node])

    def _call(self, node: fx.Node) -> OpCall:
        target: Any = node.target
        args = map_arg(node.args, self.values.__getitem__)
        kwargs = map_arg(node.kwargs, self.values.__getitem__)
        return op_call(target, args, kwargs, self.values[node])


class _Backward(ProgramInterpreter):
    """Runs the backward calls on frozen forward values, with replaced derivatives."""

    def __init__(
        self,
        step: FrozenStep,
        selection: Selection,
        dtype: torch.dtype | None,
        noise: torch.Generator | None,
        weights: Mapping[TiedCall, torch.Tensor],
    ) -> None:
        super().__init__(step.program, dtype=dtype)
        self._step = step
        self._noise = noise
        generator = torch.Generator().manual_seed(selection.seed)
        self._numbers: dict[fx.Node, list[tuple[AbstractKink, torch.Tensor]]] = {}
        for tie in step.ties:
            numbers = weights.get(tie)
            if numbers is None:
                numbers = tie.kink.choose(selection.of(tie.family), generator)
            if numbers is not None:
                self._numbers.setdefault(tie.node, []).append((tie.kink, numbers))
        self._sites = {s.last: s for s in step.sites.found if s.forward in self._numbers}
        if self._numbers and step.differentiates_a_gradient:
            raise SelectionError(
                "the loss of this step depends on a gradient (double backward), which a recorded "
                "program cannot redo under another selection; run the live step inside select()"
            )
        self._upstream = {s.upstream for s in self._sites.values()}
        self._held: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """The frozen value, the recomputed one, or the recomputed one with ties redone."""
        step = self._step
        source = step.sites.origin.get(node, node)
        if source in step.values:
            value = self._cast(step.values[source])
        elif node not in step.needed or node in step.sites.origin or _is_forward(node):
            return None  # nobody asks for it
        else:
            value = super().run_node(node, values)
            if self._noise is not None and _computes(node):
                value = _perturbed(value, self._noise)
        site = self._sites.get(node)
        if site is not None:
            value = self._redo(site, value)
        if node in self._upstream:
            self._held[node] = value
        return value

    def _redo(self, site: Site, value: Any) -> Any:
        gradient = value if site.part is None else value[site.part]
        upstream = (self._held[site.upstream],)
        for kink, numbers in self._numbers[site.forward]:
            slots: list[torch.Tensor | None] = [None] * (site.slot + 1)
            slots[site.slot] = gradient
            gradient = kink.redo(numbers, tuple(slots), upstream)[site.slot]
        if site.part is None:
            return gradient
        return (*value[: site.part], gradient, *value[site.part + 1 :])

    def _cast(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self._dtype_for(value.dtype))
        if isinstance(value, (tuple, list)):
            return tuple(self._cast(v) for v in value)
        return value


def _computes(node: fx.Node) -> bool:
    """Whether a call rounds; one that only moves entries keeps decisions such as x == max(x)."""
    if "call" not in node.meta:  # a part of a call with several outputs
        return False
    target: Any = node.target
    op = OPS.lookup(target)
    if op is None:
        return True
    plain = op.kind is Kind.ELEMENTWISE and not op.traits.activation_backward
    return not (op.kind is Kind.EXACT or (plain and op.rounding is None))


def _perturbed(value: Any, noise: torch.Generator) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_perturbed(v, noise) for v in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    signs = torch.randint(0, 2, value.shape, generator=noise).to(value) * 2 - 1
    return value * (1 + signs * torch.finfo(value.dtype).eps)


def _is_forward(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    while "call" not in node.meta:  # a part of a call with several outputs
        if node.op != "call_function":
            return False
        source: Any = node.args[0]
        node = source
    return node.meta["call"].phase == "forward"


def _needed_calls(program: Program) -> set[fx.Node]:
    """The nodes that the gradients depend on."""
    gradients = outputs_of(program)["gradients"].values()
    return ancestors({n for n in gradients if isinstance(n, fx.Node)})
