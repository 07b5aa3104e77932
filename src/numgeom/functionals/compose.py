"""What do the functionals of single calls give for a module, a parameter, or the whole step?

eps_i = sum_p L_ip eps_p + Delta_i along the graph: paths that part and join again add up.
"""

from collections.abc import Callable, Iterable, Mapping

from torch import fx

from numgeom.functionals.functional import EXACT, IDENTITY, ErrorFunctional
from numgeom.functionals.walk import Local, Walk


def compose(
    locals_: Mapping[fx.Node, Local],
    sources: Callable[[fx.Node], ErrorFunctional],
    nodes: Iterable[fx.Node],
) -> dict[fx.Node, ErrorFunctional]:
    """Compose the functionals of some calls, in program order.

    Args:
        locals_: Functional of each call in terms of its own inputs.
        sources: Functional of a value that comes from outside of `nodes`.
        nodes: The calls to compose, in program order.

    Returns:
        The functional of every call's value in terms of the error of the sources.
    """
    found: dict[fx.Node, ErrorFunctional] = {}
    for node in nodes:
        local = locals_[node]
        total = ErrorFunctional(0.0, local.added)
        for parent, stretch in local.stretch.items():
            inner = found[parent] if parent in found else sources(parent)
            total = total + ErrorFunctional(stretch, 0.0) @ inner
        found[node] = total
    return found


def end_to_end(walk: Walk) -> dict[fx.Node, ErrorFunctional]:
    """The functional of every value: its error in terms of that of parameters and data.

    The input error is the 2-norm of the error of each parameter and each input, one bound for all.
    """
    return compose(walk.locals, lambda node: IDENTITY if _real(node) else EXACT, walk.locals)


def within(walk: Walk, chosen: Callable[[fx.Node], bool]) -> ErrorFunctional | None:
    """The functional of a part of the step, from what enters it to what leaves it.

    The input error bounds the 2-norm of the error of every value that enters. Parameters are exact.
    Of several values that leave, the errors are added.

    Returns:
        The functional; None if no call was chosen.
    """
    nodes = [node for node in walk.locals if chosen(node)]
    if not nodes:
        return None
    inside = set(nodes)
    found = compose(walk.locals, lambda node: EXACT if node.op == "get_attr" else IDENTITY, nodes)
    total = EXACT
    for node in nodes:
        if any(user not in inside and user in _results(walk) for user in node.users):
            total = total + found[node]
    return total


def _results(walk: Walk) -> set[fx.Node]:
    """Calls and the output: whatever uses a value for more than its own bookkeeping."""
    return set(walk.program.graph.nodes)


def _real(node: fx.Node) -> bool:
    return node.op == "get_attr" and node.meta["role"] != "drawn"
