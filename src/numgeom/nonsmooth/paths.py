"""What is a value of a recorded program computed from, and what is computed from it?"""

from typing import Any

from torch import fx

from numgeom.recording import Program


def outputs_of(program: Program) -> Any:
    """What the program's output node holds: gradients, loss and updates."""
    return next(n for n in program.graph.nodes if n.op == "output").args[0]


def ancestors(nodes: set[fx.Node]) -> set[fx.Node]:
    """These nodes and all that they are computed from."""
    waiting, found = list(nodes), set(nodes)
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def named_parameters(program: Program) -> set[fx.Node] | None:
    """The constants that are parameters with a gradient; None if the program does not say."""
    found = {
        node.meta["name"]: node
        for node in program.graph.nodes
        if node.op == "get_attr" and node.meta["role"] == "parameter"
    }
    if not set(found) >= set(program.parameters):
        return None
    return {found[name] for name in program.parameters}


def between_parameters_and_loss(program: Program) -> set[fx.Node]:
    """The nodes that depend on a parameter and that the loss depends on.

    A decision (an index, a mask) counts as a dependence, and so does what was detached.
    """
    outputs = outputs_of(program)
    ends = [outputs["loss"]]
    if not isinstance(outputs["loss"], fx.Node):
        ends = list(outputs["gradients"].values())
    above = ancestors({node for node in ends if isinstance(node, fx.Node)})
    parameters = named_parameters(program)
    if parameters is None:
        return above
    reached = set(parameters)
    for node in program.graph.nodes:  # in program order
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return reached & above
