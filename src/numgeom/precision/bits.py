"""How many significant bits does each part of a step need?

A part (a module, or all ops of a kind) is replayed with its results rounded to p bits and all else
in float64; the error of the whole gradient is measured against the float64 replay. The smallest p
that keeps a tolerance is found by bisection, and every p that is reported was replayed.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from numgeom.arithmetic.formats import round_to_bits
from numgeom.precision.errors import PrecisionError
from numgeom.precision.noisy import MOVING, op_name
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter
from numgeom.results.accuracy import combined_norm, norm, relative

Grouping = Literal["module", "kind"]
MOST_BITS = 53
_PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "mv", "matmul", "convolution"})
_SOFTMAX = frozenset({"_softmax", "_log_softmax", "softmax", "_safe_softmax"})
_NORMS = frozenset({
    "native_layer_norm", "native_batch_norm", "native_group_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional", "_fused_rms_norm", "rsqrt", "var_mean",
    "native_layer_norm_backward", "native_batch_norm_backward", "native_group_norm_backward",
    "_fused_rms_norm_backward",
})  # fmt: skip


@dataclass(frozen=True)
class BitsNeeded:
    """What one part of a step needs.

    Attributes:
        part: Module path, or kind of op.
        bits: Significant bits, the hidden one included; None if 53 are not enough.
        error: Relative error of the whole gradient, 2-norm, with the part in that many bits.
        calls: Number of calls of the part.
    """

    part: str
    bits: int | None
    error: float
    calls: int


class RoundedReplay(ProgramInterpreter):
    """A float64 replay in which the results of chosen calls are rounded to p bits.

    Args:
        program: A recorded program.
        bits: Significant bits of a call's results; None: as they are.
    """

    def __init__(self, program: Program, bits: Callable[[fx.Node], int | None]) -> None:
        """Prepare a replay."""
        super().__init__(program, dtype=torch.float64)
        self._bits = bits

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run one call and round what it gives."""
        value = super().call(node, args, kwargs)
        p = self._bits(node) if "call" in node.meta and op_name(node) not in MOVING else None
        return value if p is None else _rounded(value, p)


def bits_needed(
    program: Program, tolerance: float, *, by: Grouping = "module"
) -> dict[str, BitsNeeded]:
    """Find how many bits each part needs, every part alone.

    Args:
        program: A recorded step.
        tolerance: Relative error, 2-norm, that the whole gradient may have.
        by: Parts are modules, or kinds of ops: "attention scores", "softmax", "attention values",
            "attention" (fused), "normalization", "products", "other"; each with its backward.

    Returns:
        The needs, by part, in the order in which the parts first run. Guarantee: ESTIMATED; other
        batches and other roundings need others.

    Raises:
        PrecisionError: if the tolerance is not positive or the grouping is unknown.
        ReplayError: if the program cannot be run in float64.
    """
    if not (math.isfinite(tolerance) and tolerance > 0.0):
        raise PrecisionError(f"The tolerance is {tolerance}; give a positive number such as 1e-2.")
    if by not in ("module", "kind"):
        raise PrecisionError(f'Parts are by="module" or by="kind", not {by!r}.')
    reference = program.replay(torch.float64).gradients
    kinds = kinds_of_ops(program) if by == "kind" else {}
    parts: dict[str, list[fx.Node]] = {}
    for node in program.calls:
        if op_name(node) not in MOVING:
            part = kinds[node] if by == "kind" else node.meta["call"].module
            parts.setdefault(part, []).append(node)
    return {
        part: _search(program, part, nodes, reference, tolerance) for part, nodes in parts.items()
    }


def error_with(
    program: Program, reference: Mapping[str, Tensor], nodes: Iterable[fx.Node], bits: int
) -> float:
    """Relative error of the gradient with the results of some calls rounded to `bits`."""
    chosen = set(nodes)
    found = RoundedReplay(program, lambda node: bits if node in chosen else None).evaluate()
    parts = [norm(found.gradients[name] - g) for name, g in reference.items()]
    error = relative(combined_norm(parts), combined_norm(norm(g) for g in reference.values()))
    return error if math.isfinite(error) else math.inf


def kinds_of_ops(program: Program) -> dict[fx.Node, str]:
    """What each call is for, told by what it computes from what.

    A product that reaches a softmax makes attention scores, one that takes what a softmax gave
    makes values. A backward call is of the kind of the forward calls of its line and module that
    it shares; where these are of several kinds, it is told by its own op.
    """
    found: dict[fx.Node, str] = {}
    after_softmax: set[fx.Node] = set()
    before_softmax = _reaching_softmax(program)
    for node in program.calls:
        name = op_name(node)
        if "attention" in name:
            kind = "attention"
        elif name in _SOFTMAX or name.removesuffix("_backward_data") in _SOFTMAX:
            kind = "softmax"
        elif name in _NORMS:
            kind = "normalization"
        elif name in _PRODUCTS or name == "convolution_backward":
            if node in before_softmax:
                kind = "attention scores"
            elif any(source in after_softmax for source in node.all_input_nodes):
                kind = "attention values"
            else:
                kind = "products"
        else:
            kind = "other"
        found[node] = kind
        attention = kind == "softmax" and not name.startswith("_log")
        passes = name in MOVING and any(s in after_softmax for s in node.all_input_nodes)
        if attention or passes:
            after_softmax.add(node)
    return found


def _reaching_softmax(program: Program) -> set[fx.Node]:
    """Forward products whose results reach a softmax through elementwise ops and views alone."""
    reached: set[fx.Node] = set()
    found: set[fx.Node] = set()
    for node in reversed(program.calls):
        if node.meta["call"].phase != "forward":
            continue
        name = op_name(node)
        softmax = name in _SOFTMAX and not name.startswith("_log")
        if softmax or node in reached:
            if name in _PRODUCTS:
                found.add(node)
            else:
                reached.update(node.all_input_nodes)
    return found


def _search(
    program: Program,
    part: str,
    nodes: list[fx.Node],
    reference: Mapping[str, Tensor],
    tolerance: float,
) -> BitsNeeded:
    tried: dict[int, float] = {}

    def holds(p: int) -> bool:
        tried[p] = error_with(program, reference, nodes, p)
        return tried[p] <= tolerance

    low, high = 0, MOST_BITS
    if not holds(high):
        return BitsNeeded(part, None, tried[high], len(nodes))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return BitsNeeded(part, high, tried[high], len(nodes))


def _rounded(value: Any, p: int) -> Any:
    if isinstance(value, Tensor):
        return round_to_bits(value, p) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(_rounded(item, p) for item in value)
    return value
