"""Which entries of a frozen forward pass are one and the same function of the parameters?

Two entries with equal labels come from equal data and the same parameters by equal formulas, with
equal decisions on the way: they have equal derivatives, whatever the parameters are and whatever is
chosen at tied units before them. So the places of a tied window that have one label can share their
weight in any way, and the gradient does not move.

Labels are those of `numgeom.semantics.twins` with every parameter's entry a label of its own. In
addition an entry is known by its computed value, since the frozen decisions depend on it; a ReLU
that is off has the label 0, for it is a constant; and a tied unit whose choice may matter has a
label of its own, like a parameter.

Missing knowledge gives an entry a label that no other has. Sums are compared by random evaluation,
which is wrong with a probability of at most `numgeom.semantics.twins.COLLISION_PROBABILITY`.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from numgeom.nonsmooth.backward import FrozenStep, TiedCall
from numgeom.nonsmooth.clarke import Unit, tensor_arguments, units_of
from numgeom.ops.selection import op_name
from numgeom.ops.table import traits_of
from numgeom.semantics.ball import Enclosure
from numgeom.semantics.twins import Twins

_FIRST = 1 << 55  # above every number that Twins gives


def moving_units(step: FrozenStep, *, seed: int = 0) -> dict[TiedCall, list[Unit]]:
    """The tied units at which different functions of the parameters meet.

    Args:
        step: The frozen step.
        seed: Of the random evaluations that compare sums.

    Returns:
        For each call with such units, in program order, those units.
    """
    labeler = _Labeler(step, seed)
    if not _names_parameters(step):  # nothing is known of what moves: every tied unit may
        found = {tie: units_of(tie, {}) for tie in step.ties}
        return {tie: units for tie, units in found.items() if units}
    labeler.walk()
    return {tie: labeler.units[tie] for tie in step.ties if labeler.units.get(tie)}


def _names_parameters(step: FrozenStep) -> bool:
    """Whether the program says which of its constants are the parameters that got a gradient."""
    named = {
        node.meta["name"]
        for node in step.program.graph.nodes
        if node.op == "get_attr" and node.meta["role"] == "parameter"
    }
    return named >= set(step.program.parameters)


class _Labeler:
    def __init__(self, step: FrozenStep, seed: int) -> None:
        self._step = step
        self._ties: dict[fx.Node, list[TiedCall]] = {}
        for tie in step.ties:
            self._ties.setdefault(tie.node, []).append(tie)
        # Twins asks for the inputs of what it is given.
        self._twins = Twins(self._ties, seed=seed)
        self._next = _FIRST
        self._parameters = frozenset(step.program.parameters)
        self._moving: set[fx.Node] = set()
        self.known: dict[fx.Node, Enclosure] = {}
        self.units: dict[TiedCall, list[Unit]] = {}

    def walk(self) -> None:
        """Label what tied calls depend on, in program order, and find their moving units."""
        for node in self._step.program.graph.nodes:
            if node.op == "output" or node not in self._step.values:
                continue
            if node.op == "get_attr":
                if node.meta["role"] == "parameter" and node.meta["name"] in self._parameters:
                    self._moving.add(node)
            elif not self._moving.isdisjoint(node.all_input_nodes):
                self._moving.add(node)
            for tie in self._ties.get(node, ()):
                inputs = {n: self.known[n].labels for n in tensor_arguments(node)}
                self.units[tie] = units_of(tie, inputs)
            if node in self._twins:
                self.known[node] = self._labelled(node)

    def _labelled(self, node: fx.Node) -> Enclosure:
        value = self._step.values[node]
        known = Enclosure(value, self._radius(value) if node in self._moving else None)
        if node.op == "get_attr":
            labels = self._twins.label(node, (), {}, known)
        elif node.target is operator.getitem:
            source: Any = node.args[0]
            whole = self.known[source].labels
            return Enclosure(value, known.radius, None, None if whole is None else self._at(node))
        else:
            labels = self._called(node, known)
        if node in self._moving:
            labels = self._with_values(labels, value)
        for tie in self._ties.get(node, ()):
            labels = self._with_choices(labels, self.units[tie])
        return Enclosure(value, known.radius, None, labels)

    def _at(self, node: fx.Node) -> Any:
        source: Any = node.args[0]
        labels: Any = self.known[source].labels
        return labels[node.args[1]]

    def _called(self, node: fx.Node, known: Enclosure) -> Any:
        target: Any = node.target
        name = op_name(target)
        known_of: Any = self.known.__getitem__
        args: Any = map_arg(node.args, known_of)
        kwargs: Any = map_arg(node.kwargs, known_of)
        # Of a batch norm every channel is one function of the input's entry, shared by the channel:
        # (x - mean) / deviation.
        normalizes = traits_of(name).normalizes and "batch_norm" in name
        if node in self._moving and normalizes:
            return self._per_channel(args[0].labels, known.value)
        labels = self._twins.label(node, args, kwargs, known)
        if node in self._moving and name == "relu" and isinstance(labels, Tensor):
            return labels.masked_fill(known.value.cpu() == 0, 0)
        return labels

    @staticmethod
    def _radius(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(_Labeler._radius(v) for v in value)
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.ones(value.shape)
        return None

    def _per_channel(self, labels: Tensor | None, value: Any) -> Any:
        out = value[0]
        rest = [self._alone(v) for v in value[1:]]
        if labels is None:
            return (self._alone(out), *rest)
        shape = [1, -1, *[1] * (out.dim() - 2)]
        channel = torch.arange(out.shape[1]).reshape(shape).expand(out.shape)
        return (self._numbered(labels, channel), *rest)

    def _with_values(self, labels: Any, value: Any) -> Any:
        """Tell entries apart that were computed differently, as decisions look at them."""
        if isinstance(value, (tuple, list)):
            parts = labels if isinstance(labels, (tuple, list)) else [None] * len(value)
            return tuple(self._with_values(a, b) for a, b in zip(parts, value, strict=True))
        if not isinstance(labels, Tensor) or not value.is_floating_point():
            return labels
        _, places = torch.unique(value.cpu(), return_inverse=True)  # no NaN equals a NaN
        return self._numbered(labels, places).masked_fill(labels == 0, 0)

    def _with_choices(self, labels: Any, units: list[Unit]) -> Any:
        """A tied unit that can move is like a parameter: nothing else moves as it does."""
        if isinstance(labels, tuple):
            return (self._with_choices(labels[0], units), *labels[1:])
        if units and isinstance(labels, Tensor):
            places = [unit.output for unit in units]
            labels = labels.clone(memory_format=torch.contiguous_format)
            labels.view(-1)[places] = torch.arange(self._next, self._next + len(places))
            self._next += len(places)
        return labels

    def _numbered(self, first: Tensor, second: Tensor) -> Tensor:
        kinds, code = torch.unique(first, return_inverse=True)
        others, places = torch.unique(second, return_inverse=True)
        del kinds
        found, code = torch.unique(code * len(others) + places, return_inverse=True)
        self._next += len(found)
        return code + (self._next - len(found))

    def _alone(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(self._alone(v) for v in value)
        if not isinstance(value, Tensor):
            return None
        self._next += value.numel()
        return torch.arange(self._next - value.numel(), self._next).reshape(value.shape)
