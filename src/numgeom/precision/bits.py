"""How many significant bits does each part of a step need?

A part (a module, or all ops of a kind) is replayed with its results rounded to p bits and all else
in float64; the error of the whole gradient is measured against the float64 replay. To first order
that error is c 2^-p, so one replay predicts the smallest p that keeps a tolerance. Replays with
that many bits and with one less check it, and move it where kinks or curvature make it wrong.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from numgeom.precision.errors import PrecisionError
from numgeom.precision.kinds import kinds_of
from numgeom.precision.noisy import moves
from numgeom.recording import Program
from numgeom.recording.replay import ProgramInterpreter
from numgeom.results.accuracy import combined_norm, norm, relative

Grouping = Literal["module", "kind"]
MOST_BITS = 53
# Where the error is measured to predict from.
_TRIAL_BITS = 12


@dataclass(frozen=True)
class BitsNeeded:
    """What one part of a step needs.

    Attributes:
        part: Module path, or kind of op.
        bits: Significant bits, the hidden one included; None if 53 are not enough.
        error: Relative error of the whole gradient, 2-norm, with the part in that many bits.
        calls: Number of calls of the part.
        predicted_bits: What one replay in 12 bits predicted.
    """

    part: str
    bits: int | None
    error: float
    calls: int
    predicted_bits: int


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
        p = self._bits(node) if "call" in node.meta and not moves(node) else None
        return value if p is None else _rounded(value, p)


def bits_needed(
    program: Program, tolerance: float, *, by: Grouping = "module"
) -> dict[str, BitsNeeded]:
    """Find how many bits each part needs, every part alone.

    Args:
        program: A recorded step.
        tolerance: Relative error, 2-norm, that the whole gradient may have.
        by: Parts are modules, or kinds of ops (`numgeom.precision.kinds`): "attention scores",
            "softmax", "attention values", "projections", "normalization", "MLP", "convolution",
            "other"; each with its backward. For kinds fused ops are opened.

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
    program = program.decompose() if by == "kind" else program
    reference = program.replay(torch.float64).gradients
    kinds = kinds_of(program) if by == "kind" else {}
    parts: dict[str, list[fx.Node]] = {}
    for node in program.calls:
        if _computes(node):
            part = kinds[node].value if by == "kind" else node.meta["call"].module
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


def _search(
    program: Program,
    part: str,
    nodes: list[fx.Node],
    reference: Mapping[str, Tensor],
    tolerance: float,
) -> BitsNeeded:
    tried: dict[int, float] = {}

    def holds(p: int) -> bool:
        if p not in tried:
            tried[p] = error_with(program, reference, nodes, p)
        return tried[p] <= tolerance

    holds(_TRIAL_BITS)
    trial = tried[_TRIAL_BITS]
    raised = math.log2(trial / tolerance) if 0.0 < trial < math.inf else -math.inf
    predicted = _TRIAL_BITS + math.ceil(raised) if math.isfinite(raised) else 1
    p = predicted = min(max(predicted, 1), MOST_BITS)
    while not holds(p) and p < MOST_BITS:
        p += 1
    while p > 1 and holds(p - 1):
        p -= 1
    return BitsNeeded(part, p if holds(p) else None, tried[p], len(nodes), predicted)


def _computes(node: fx.Node) -> bool:
    metas = node.meta["tensors"].values()
    return not moves(node) and any(m.dtype.is_floating_point for m in metas)


def _rounded(value: Any, p: int) -> Any:
    """Round to nearest, ties either way, by arithmetic (Dekker 1971, sec. 5)."""
    if isinstance(value, list | tuple):
        return type(value)(_rounded(item, p) for item in value)
    if not isinstance(value, Tensor) or not value.is_floating_point() or p >= MOST_BITS:
        return value
    multiple = value * (2.0 ** (MOST_BITS - p) + 1.0)
    return torch.where(multiple.isfinite(), multiple - (multiple - value), value)
