"""What do the calls of a program say about themselves, and where does it matter?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, add_up, mul_up, norm_up
from numgeom.certificate.structure import Structure
from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.table import OpTable
from numgeom.recording import Program
from numgeom.semantics.ball import BallWalk


@dataclass(frozen=True)
class Facts:
    """What the calls of a program say about themselves.

    Attributes:
        rounding: d, entry by entry, of every node that holds a floating-point tensor and is not a
            constant; None where the call is exact.
        unbounded: Name of a call whose rounding has no bound; "" if all have one.
        structure: How the nodes reach the gradients.
        values: The gradients, by parameter.
        exact: The nodes that hold what the exact program holds: constants, and what is made of
            them without rounding, such as a transposed weight. They carry no error.
        trace: The values of all nodes.
    """

    rounding: dict[fx.Node, Tensor | None]
    unbounded: str
    structure: Structure
    values: dict[str, Tensor]
    exact: frozenset[fx.Node] = frozenset()
    trace: Mapping[fx.Node, Any] = field(default_factory=dict, repr=False)

    def is_column(self, node: fx.Node) -> bool:
        """Whether what arises at a node spreads from there."""
        structure = self.structure
        return node in structure.connected and node not in structure.tails

    @cached_property
    def sources(self) -> dict[fx.Node, Tensor]:
        """d, where there is any that spreads."""
        return {n: d for n, d in self.rounding.items() if d is not None and self.is_column(n)}

    @cached_property
    def gradients(self) -> dict[str, fx.Node]:
        """The nodes that hold the gradients, by parameter; constants are missing."""
        return {k: n for k, n in self.structure.gradients.items() if n in self.rounding}

    def own(self) -> dict[str, float]:
        """2-norms of what arises in the tails of the gradients, by parameter, rounded up."""
        found = dict.fromkeys(self.values, 0.0)
        for node, ways in self.structure.tails.items():
            d = self.rounding.get(node)
            if d is not None:
                size = fast_norm_up(d)
                for name, count in ways.items():
                    found[name] = add_up(found[name], mul_up(size, float(count)))
        return found


class Walk(BallWalk):
    """A walk that knows the nodes behind the parts of calls with several outputs."""

    def __init__(self, program: Program, ops: OpTable, device: Any) -> None:
        super().__init__(program, ops, device)
        self._parts = parts_of(program)

    def holders(self, node: fx.Node, part: int | None) -> list[fx.Node]:
        """The nodes that hold this output."""
        return [node] if part is None else self._parts.get((node, part), [])


def fast_norm_up(x: Tensor) -> float:
    """Upper bound of a 2-norm, a plain one where that does."""
    found = float(torch.linalg.vector_norm(x))
    if 1e-100 < found < 1e100:  # squares that underflow are nothing beside it
        return found * (1 + 1e-9 + 2 * x.numel() * UNIT_ROUNDOFF)
    return float(norm_up(x))


def parts_of(program: Program) -> dict[tuple[fx.Node, int], list[fx.Node]]:
    """The `getitem` nodes of calls with several outputs."""
    found: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and "call" not in node.meta:
            found.setdefault((node.args[0], node.args[1]), []).append(node)
    return found


def total(bound: Tensor) -> float:
    """About the sum of nonnegative entries: 0 if all are 0, infinite if one is not finite."""
    found = float(bound.sum())
    if found < math.inf:
        return found
    return math.inf if not bool(torch.isfinite(bound).all()) else float(bound.amax())


def second_order(op: Op, call: Evaluation, part: int | None) -> Tensor | None:
    """Q for one output; infinite where it is not a number."""
    second = op.second_order_of(call)
    if second is not None and part is not None:
        second = second[part]
    if second is None or total(second) < math.inf:
        return second
    return torch.nan_to_num(second, nan=math.inf, posinf=math.inf)


def inputs_of(node: fx.Node) -> list[fx.Node]:
    """What the call reads that a node holds the result of, or a part of it."""
    if node.op == "call_function" and "call" not in node.meta:
        node = node.args[0]  # type: ignore[assignment]  # a call with several outputs
    return node.all_input_nodes
