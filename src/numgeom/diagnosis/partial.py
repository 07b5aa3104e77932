"""What do some calls of a program give, without running the rest?"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, fx

from numgeom.diagnosis.trace import ancestors
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter

Change = Callable[[fx.Node, Tensor], Tensor]


def evaluate(
    program: Program,
    nodes: Collection[fx.Node],
    *,
    dtype: Any,
    change: Change | None = None,
) -> dict[fx.Node, Any]:
    """Run the calls that the given nodes depend on, and return the values of those nodes.

    Args:
        program: The recorded step.
        nodes: What is wanted.
        dtype: Format of all calls; None: the recorded ones.
        change: Replaces the constants: it gets the node and its value.

    Raises:
        ReplayError: A call could not run.
    """
    run = _Partial(program, nodes, dtype, change)
    run.evaluate()
    return run.kept


class _Partial(ProgramInterpreter):
    def __init__(
        self, program: Program, nodes: Collection[fx.Node], dtype: Any, change: Change | None
    ) -> None:
        super().__init__(program, dtype=dtype)
        self._wanted = frozenset(nodes)
        self._change = change
        self.kept: dict[fx.Node, Any] = {}

    def constant(self, node: fx.Node) -> Tensor:
        value = super().constant(node)
        return value if self._change is None else self._change(node, value)

    def _run(self) -> Any:
        needed = ancestors(self._wanted)
        waiting: Mapping[fx.Node, set[fx.Node]] = {n: {u for u in n.users if u in needed}
                                                   for n in needed}  # fmt: skip
        values: dict[fx.Node, Any] = {}
        for node in self.program.graph.nodes:
            if node not in needed:
                continue
            values[node] = self.run_node(node, values)
            if node in self._wanted:
                self.kept[node] = values[node]
            for source in node.all_input_nodes:
                waiting[source].discard(node)
                if not waiting[source]:
                    del values[source]
        return {"gradients": {}, "loss": None, "updates": {}}
