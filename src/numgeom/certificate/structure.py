"""Which calls of a program reach its gradients, and in which way?

Three questions about the graph alone:

- *Pruned*: calls that no gradient and no decision depends on can neither round nor decide anything
  that matters.
- *Connected*: a call reaches a gradient through real numbers. Where the only way leads through
  decisions (an index computed from a logarithm, say), errors matter only if they change one, and
  first-order changes do not arrive at all.
- *Tail*: the way from a call to a gradient is made of movements, negations and additions alone.
  Its error arrives as it is, each entry once per way, and nowhere else: it need not be probed.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from numgeom.ops.table import functional_name, traits_of
from numgeom.recording import Program

Ways = Mapping[str, int]


@dataclass(frozen=True)
class Structure:
    """How nodes reach the gradients.

    Attributes:
        gradients: The nodes that hold the gradients, by parameter.
        connected: Nodes that reach one through real numbers.
        tails: For nodes whose errors arrive unchanged: how often at which gradient.
    """

    gradients: dict[str, fx.Node]
    connected: frozenset[fx.Node]
    tails: dict[fx.Node, Ways]


def pruned(program: Program) -> Program:
    """The program without the calls that its gradients and its decisions do not depend on."""
    end = _output(program)
    wanted: set[fx.Node] = set()
    results = end.args[0]
    kept = {"gradients": results["gradients"], "loss": None, "updates": {}}
    if "decisions" in results:
        kept["decisions"] = results["decisions"]
    waiting: list[fx.Node] = []
    map_arg(kept, waiting.append)
    while waiting:
        node = waiting.pop()
        if node not in wanted:
            wanted.add(node)
            waiting.extend(node.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node in wanted:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(map_arg(kept, copies.__getitem__))
    return dataclasses.replace(program, graph=graph)


def structure(program: Program) -> Structure:
    """Find out how the nodes of a pruned program reach its gradients."""
    gradients = {
        name: node
        for name, node in _output(program).args[0]["gradients"].items()
        if isinstance(node, fx.Node)
    }
    connected: set[fx.Node] = set(gradients.values())
    ways: dict[fx.Node, dict[str, int]] = {}
    for name, node in gradients.items():
        ways.setdefault(node, {})[name] = 1
    only_ways = set(ways)
    for node in reversed(program.graph.nodes):
        if node.op == "output":
            continue
        users = [user for user in node.users if user.op != "output"]
        if any(user in connected for user in users) and _is_real(node):
            connected.add(node)
        if not all(user in only_ways and _passes(user, node) for user in users):
            only_ways.discard(node)
            ways.pop(node, None)
            continue
        total = dict(ways.get(node, {}))
        for user in users:
            times = sum(argument is node for argument in user.args)
            for name, count in ways[user].items():
                total[name] = total.get(name, 0) + times * count
        if total:
            ways[node] = total
            only_ways.add(node)
    return Structure(gradients, frozenset(connected), dict(ways))


def last_readers(program: Program) -> dict[fx.Node, list[fx.Node]]:
    """For every node, those that nobody reads after it."""
    seen: set[fx.Node] = set()
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(program.graph.nodes):
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                last.setdefault(node, []).append(source)
    return last


def _output(program: Program) -> Any:
    return next(n for n in program.graph.nodes if n.op == "output")


def _is_real(node: fx.Node) -> bool:
    """Whether a node may hold real numbers; True where the graph does not tell."""
    if node.op != "call_function" or "tensors" not in node.meta:
        return True
    metas = node.meta["tensors"]
    return not metas or any(m.dtype.is_floating_point or m.dtype.is_complex for m in metas.values())


def _passes(user: fx.Node, node: fx.Node) -> bool:
    """Whether a call hands every entry of a node on as it is, once."""
    target: Any = user.target
    if "call" not in user.meta or user.kwargs:
        return False
    traits = traits_of(functional_name(target))
    if traits.moves is not None and traits.moves.keeps_all:
        return user.args[0] is node
    adds = traits.adds and traits.entrywise and traits.product is None
    if adds and len(user.args) == 2:  # each entry of the result is a sum of one of each, or minus
        return _shape(node) is not None and _shape(node) == _shape(user)
    return False


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensors", {}).get(())
    return None if meta is None else tuple(meta.shape)
