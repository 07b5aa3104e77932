"""How do functional entries become a graph?"""

import gc
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from numgeom.recording.environment import current_switches
from numgeom.recording.program import Program, Replay
from numgeom.recording.values import Constant, Entry, Value

Outputs = Mapping[str, Any]  # "gradients", "updates": name -> Value; "loss": Value or None


def build_program(
    entries: Iterable[Entry], outputs: Outputs, recorded: Replay, **attributes: Any
) -> Program:
    """Build a program of the entries that the outputs depend on.

    Args:
        entries: Calls in the order in which they ran.
        outputs: The values that a replay returns.
        recorded: The tensors that the recorded run had for them.
        attributes: Fields of `Program` that differ from those of this moment.
    """
    with without_collection():
        return _build(list(entries), outputs, recorded, attributes)


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause Python's garbage collector: a graph is many objects, all of them needed.

    Also a decorator.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _build(
    entries: list[Entry], outputs: Outputs, recorded: Replay, attributes: dict[str, Any]
) -> Program:
    live = _live(entries, outputs)
    builder = _Builder()
    for entry in entries:
        if id(entry) in live:
            builder.add(entry)
    results = tree_map_only(Value, builder.node, dict(outputs))
    builder.graph.output(results)
    return Program(builder.graph, builder.constants, recorded, **circumstances() | attributes)


def circumstances() -> dict[str, Any]:
    """Fields of `Program` that tell of this moment: torch's settings and the versions."""
    from numgeom.version import __version__

    return {
        "switches": current_switches(),
        "default_dtype": torch.get_default_dtype(),
        "versions": {"torch": torch.__version__, "numgeom": __version__},
    }


def _values_in(tree: Any) -> list[Value]:
    if isinstance(tree, Value):
        return [tree]
    if isinstance(tree, (list, tuple)):
        return [v for item in tree for v in _values_in(item)]
    if isinstance(tree, Mapping):
        return [v for item in tree.values() for v in _values_in(item)]
    return []


def _live(entries: list[Entry], outputs: Outputs) -> set[int]:
    live = {id(v.origin) for v in _values_in(outputs)}
    for entry in reversed(entries):
        if id(entry) in live:
            live.update(id(v.origin) for v in _values_in((entry.args, entry.kwargs)))
    return live


class _Builder:
    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.constants: dict[str, torch.Tensor] = {}
        self._nodes: dict[tuple[int, tuple[int, ...]], fx.Node] = {}
        self._kept: list[Any] = []  # keeps ids from being used again
        self._n = 0

    def add(self, entry: Entry) -> None:
        args = _map_values(entry.args, self.node)
        kwargs = _map_values(entry.kwargs, self.node)
        node = self.graph.call_function(entry.op, args, kwargs)
        node.meta["call"] = entry.info
        node.meta["tensors"] = entry.metas
        self._nodes[id(entry), ()] = node
        self._kept.append(entry)

    def node(self, value: Value) -> fx.Node:
        key = (id(value.origin), value.path)
        found = self._nodes.get(key)
        if found is not None:
            return found
        if isinstance(value.origin, Constant):
            found = self._constant(value.origin)
        else:
            whole = self.node(Value(value.origin, value.path[:-1]))
            found = self.graph.call_function(operator.getitem, (whole, value.path[-1]))
        self._nodes[key] = found
        return found

    def _constant(self, constant: Constant) -> fx.Node:
        target = f"{constant.role}_{self._n}"
        self._n += 1
        self.constants[target] = constant.tensor
        self._kept.append(constant)
        node = self.graph.create_node("get_attr", target, name=target)
        node.meta["role"] = constant.role
        node.meta["name"] = constant.name
        return node


def _map_values(tree: Any, by: Any) -> Any:
    """Copy arguments with values replaced by nodes (fx wants lists and tuples, as they are)."""
    if isinstance(tree, Value):
        return by(tree)
    if isinstance(tree, list):
        return [_map_values(item, by) for item in tree]
    if isinstance(tree, tuple):
        return tuple(_map_values(item, by) for item in tree)
    if isinstance(tree, dict):
        return {key: _map_values(item, by) for key, item in tree.items()}
    return tree
