"""A program whose every op rounds its result to few bits, as a float64 program.

What an op's rounding adds is a constant of the run: rounded(y) - y, which float64 holds exactly.
So behind every call an addition of that constant is inserted. Replayed in float64, the new program
gives what arithmetic of `bits` bits would have given; over the real numbers it is to be judged by
the exact program, the one without these additions. Its facts therefore say of each of them that it
rounds by at most u |y|, u = 2^-bits, and nothing else is told about them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import mul_up
from numgeom.ops.entry import Bound, Evaluation, Op
from numgeom.ops.table import OPS, OpTable
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter

_ADD = torch.ops.aten.add.Tensor


def rounded(y: Tensor, bits: int) -> Tensor:
    """The nearest number with a significand of `bits` bits, ties to even."""
    fraction, exponent = torch.frexp(y)
    return torch.ldexp(torch.ldexp(fraction, torch.tensor(bits)).round(), exponent - bits)


def rounded_program(
    program: Program, bits: int, *, stated_bits: int | None = None
) -> tuple[Program, OpTable]:
    """The opened program in arithmetic of `bits` bits, and the facts that describe it.

    Args:
        program: An opened program.
        bits: Of the significand, below 53.
        stated_bits: What the facts say instead; more than `bits` makes them wrong.
    """
    found = _Roundings(program, bits)
    found.evaluate()
    graph, constants = fx.Graph(), dict(program.constants)
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        copies[node] = copy = graph.node_copy(node, copies.__getitem__)
        if node not in found.added:
            continue
        name = f"rounding_{len(copies)}"
        constants[name] = found.added[node]
        constant = graph.create_node("get_attr", name)
        constant.meta = {"role": "drawn", "name": name}
        copies[node] = graph.call_function(_ADD, (copy, constant))
        maker = node if "call" in node.meta else node.args[0]
        copies[node].meta = {"call": maker.meta["call"], "tensors": maker.meta["tensors"]}
    ids = {id(constant) for constant in found.added.values()}
    return replace(program, graph=graph, constants=constants), _facts(stated_bits or bits, ids)


class _Roundings(ProgramInterpreter):
    """Runs the program in few bits, and notes what each rounding adds."""

    def __init__(self, program: Program, bits: int) -> None:
        super().__init__(program, dtype=torch.float64)
        self._bits = bits
        self.added: dict[fx.Node, Tensor] = {}

    def run_node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        value = super().run_node(node, values)
        if node.op == "get_attr" or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        finite = torch.where(torch.isfinite(value), value, 0.0)
        added = rounded(finite, self._bits) - finite
        if not bool(added.any()):  # moved, copied, or few bits by nature
            return value
        self.added[node] = added
        return value + added


def _facts(bits: int, ids: set[int]) -> OpTable:
    def with_few_bits(op: Op) -> Op:
        def rounding(call: Evaluation) -> Bound:
            if id(call.args[1]) not in ids:
                return op.rounding_of(call)
            # |rounded(y) - y| <= u |rounded(y)| holds for the nearest, too (Higham 2002, thm 2.3).
            return mul_up(call.y.abs(), 2.0**-bits)

        return replace(op, rounding=rounding)

    return OpTable(tuple(with_few_bits(op) if op.name == "add" else op for op in OPS))
