"""Would the exact tensors have decided as the recorded ones did?

A decision is a tensor that chose what the step did (`numgeom.recording.decisions`). For integers
and booleans the answer is in the doubt about them. Of a real number only its sign is looked at: a
branch, a mask or a position that depends on it may, for all that is known, ask whether it is 0.

The *margin* says how far away other decisions are: by what factor all error bounds could be larger
before the first of them might come out otherwise, rounded down to a power of ten.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import div_up, mul_up
from numgeom.ops.entry import Evaluation, Op
from numgeom.recording.decisions import Decision

LARGEST_MARGIN = 16  # decimal digits; more are not looked for


@dataclass(frozen=True)
class Judged:
    """What an evaluation says of one decision.

    Attributes:
        decision: The decision; its tensors are those of the evaluation.
        undecided: Mask over the entries of the tensor: True where the exact one may decide
            otherwise than the recorded run did.
        radius: How far the exact entries may be off, for real numbers; None if they are exact.
    """

    decision: Decision
    undecided: Tensor
    radius: Tensor | None = None


def judge(decision: Decision, value: Tensor, radius: Tensor | None, doubt: Any) -> Judged:
    """Compare a decision with what is known of the tensor that it was taken by.

    Args:
        decision: The decision, `taken` being the tensor in the recorded run.
        value: The tensor as it was evaluated.
        radius: Of real numbers: how far the exact ones may be from `value`; None: exact.
        doubt: Of integers and booleans: where they may be others; None: nowhere.
    """
    taken = decision.taken.to(value.device)
    if taken.shape != value.shape or decision.is_unseen:
        return Judged(decision, torch.ones_like(taken, dtype=torch.bool))
    if not value.is_floating_point():
        undecided = ~(taken == value)
        return Judged(decision, undecided if doubt is None else undecided | doubt)
    undecided = ~(torch.sign(taken) == torch.sign(value))  # NaN decides nothing
    if radius is not None:
        undecided = undecided | ((radius > 0) & ~(value.abs() > radius))
    return Judged(decision, undecided, radius)


def margin_of_sign(value: Tensor, radius: Tensor | None) -> float:
    """The margin of the signs of real numbers, none of them undecided."""
    if radius is None or not value.is_floating_point():
        return math.inf
    inexact = radius > 0
    if not bool(inexact.any()):
        return math.inf
    ratio = float(div_up(radius[inexact], value.abs()[inexact]).amax())
    return _margin(lambda factor: mul_up(ratio, factor) < 1.0)


def margin_of_call(op: Op, call: Evaluation) -> float:
    """The margin of a call that decides, with the radii of its inputs, none of them in doubt."""
    if not call.radii:
        return math.inf

    def holds(factor: float) -> bool:
        wide = {key: _times(radius, factor) for key, radius in call.radii.items()}
        doubt = op.doubt_of(replace(call, radii=wide))
        masks = doubt if isinstance(doubt, (tuple, list)) else [doubt]
        return not any(isinstance(m, Tensor) and bool(m.any()) for m in masks)

    return _margin(holds)


def _margin(holds: Any) -> float:
    """The largest power of ten for which it holds, given that it does for 1."""
    low, high = 0, LARGEST_MARGIN + 1
    while high - low > 1:
        middle = (low + high) // 2
        if holds(10.0**middle):
            low = middle
        else:
            high = middle
    return 10.0**low


def _times(radius: Any, factor: float) -> Any:
    if isinstance(radius, (list, tuple)):
        return [_times(r, factor) for r in radius]
    return None if radius is None else mul_up(radius, factor)


def deciding_calls(decisions: Iterable[Decision]) -> set[fx.Node]:
    """The calls through which integers and booleans come to a decision."""
    found: set[fx.Node] = set()
    waiting = [d.value for d in decisions]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in found or _is_real(node):
            continue
        found.add(node)
        waiting.extend(node.all_input_nodes)
    return found


def _is_real(node: fx.Node) -> bool:
    metas = node.meta.get("tensors", {}).values()
    return bool(metas) and all(m.dtype.is_floating_point for m in metas)
