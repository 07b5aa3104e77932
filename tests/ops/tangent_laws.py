"""Is a tangent rule the derivative, and is its rounding what it says?

The rule of an entry gets tangents of every argument, and of each argument alone. Against it stands
a central difference of the exact function along each tangent, over Arb: with h = 2^-1400 its own
error is below 2^-200 of the derivative, or 2^-1400, for tangents as large as the entries. Nothing
else is granted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flint import arb, ctx
from torch import Tensor

from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.tangents import Stack
from tests.ops.laws import Oracle, as_masks
from tests.ops.trials import (
    draw_radii,
    evaluate,
    exact_arguments,
    example_name,
    generator,
    outputs_of,
)

BITS = 3400
LANES = 3
_STEP = -1400


@dataclass(frozen=True)
class Compared:
    """One entry of one lane: what the rule gave, its bound, and the exact derivative."""

    computed: float
    bound: float
    exact: arb
    label: str


def compared(op: Op, oracle: Oracle, *, seed: int = 0) -> Iterator[Compared]:
    """All entries of all lanes on all examples, but those at kinks and beyond a domain."""
    assert op.tangent is not None, f"{op.name} has no tangent rule"
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(seed + number))
        g = generator(seed + 77 * number + 1)
        call = evaluate(op, args, kwargs)
        everything = [_drawn(args, kwargs, g, lane) for lane in range(LANES)]
        keys = list(everything[0])
        for moving in [*([k] for k in keys), keys] if len(keys) > 1 else [keys]:
            tangents = [{k: lane[k] for k in moving} for lane in everything]
            label = f"{op.name}: {example_name(example, number)}, moving {moving}"
            yield from _on_call(op, oracle, call, tangents, label)


def check_tangent(op: Op, oracle: Oracle, *, seed: int = 0) -> float:
    """The law; returns the largest share of a stated bound that was seen."""
    best = 0.0
    with ctx.workprec(BITS):
        for item in compared(op, oracle, seed=seed):
            if item.bound == math.inf:
                continue
            own = arb(2) ** -200 * abs(item.exact) + arb(2) ** -1400
            distance = abs(item.exact - arb(item.computed))
            assert not distance - own > arb(item.bound), (
                f"{item.label}: {item.computed!r} is off by {distance.str(5)} of "
                f"{item.exact.str(15)}, the bound says {item.bound!r}"
            )
            if item.bound > 0.0:
                best = max(best, float((distance.abs_lower() / arb(item.bound)).abs_lower()))
    return best


def _drawn(
    args: tuple[Any, ...], kwargs: dict[str, Any], g: torch.Generator, lane: int
) -> dict[int | str, Any]:
    """Tangents as large as the entries, of both signs, some 0; the last lane spans many decades."""

    def signed(r: Any) -> Any:
        if isinstance(r, list):
            return [None if x is None else signed(x) for x in r]
        if r is None:
            return None
        t = r * torch.sign(torch.rand(r.shape, generator=g, dtype=torch.float64) - 0.5)
        if lane == LANES - 1:
            t = t * torch.exp2(torch.randint(-90, 1, r.shape, generator=g).to(torch.float64))
        return t

    drawn = draw_radii(args, kwargs, g, scale=0.7)
    return {
        key: signed(r)
        for key, r in drawn.items()
        if r is not None and not (isinstance(r, list) and all(x is None for x in r))
    }


def _on_call(
    op: Op, oracle: Oracle, call: Evaluation, tangents: list[dict[int | str, Any]], label: str
) -> Iterator[Compared]:
    assert op.tangent is not None
    moved = {key: _stacked([t[key] for t in tangents]) for key in tangents[0]}
    found = outputs_of(op.tangent(call, moved))
    masks = _kinks(op, call, tangents)
    derivatives = [_derivative(oracle, call, t) for t in tangents]
    for part, (y, pushed) in enumerate(zip(outputs_of(call.y), found, strict=True)):
        if not (isinstance(y, Tensor) and y.is_floating_point()):
            assert pushed is None
            continue
        lanes = torch.zeros(LANES, *y.shape, dtype=torch.float64)
        bound = torch.zeros(y.shape, dtype=torch.float64)
        if pushed is not None:
            assert pushed.lanes.shape == lanes.shape, label
            lanes = pushed.lanes
            if pushed.rounding is not None:
                stated = pushed.rounding(Stack(lanes).size)
                bound = bound if stated is None else stated
                assert bound.shape == y.shape, f"{label}: a bound of shape {list(bound.shape)}"
        flat, usable = bound.reshape(-1).tolist(), ~masks[part].reshape(-1)
        finite = torch.isfinite(y).reshape(-1)
        for lane in range(LANES):
            values = lanes[lane].reshape(-1).tolist()
            for i, exact in enumerate(derivatives[lane][part]):
                if usable[i] and finite[i] and exact.is_finite():
                    # Of lanes that overflowed nothing is claimed.
                    stated = flat[i] if math.isfinite(values[i] * 0.0 + flat[i]) else math.inf
                    yield Compared(values[i], stated, exact, f"{label}, output {part}, entry {i}")


def _stacked(tangents: list[Any]) -> Any:
    if isinstance(tangents[0], list):
        each = zip(*tangents, strict=True)
        return [None if t[0] is None else Stack(torch.stack(t)) for t in each]
    return Stack(torch.stack(tangents))


def _kinks(op: Op, call: Evaluation, tangents: list[dict[int | str, Any]]) -> list[Tensor]:
    """Where a branch may change within a hair's breadth."""

    def near(*each: Any) -> Any:
        if isinstance(each[0], list):
            return [None if e[0] is None else near(*e) for e in zip(*each, strict=True)]
        return torch.stack([t.abs() for t in each]).amax(0) * 2.0**-100

    radii = {key: near(*(t[key] for t in tangents)) for key in tangents[0]}
    masks = as_masks(
        op.doubt_of(Evaluation(call.name, call.args, call.kwargs, call.y, radii)), call.y
    )
    return list(masks)


def _derivative(oracle: Oracle, call: Evaluation, tangent: dict[int | str, Any]) -> list[list[arb]]:
    """(f(x + h t) - f(x - h t)) / 2h, one flat list per output."""
    with ctx.workprec(BITS):
        h = arb(2) ** _STEP
        right, left = (
            [
                np.asarray(out, dtype=object).reshape(-1)
                for out in outputs_of(oracle(*exact_arguments(call, tangent, share=s)))
            ]
            for s in (h, -h)
        )
        found = []
        for p, m in zip(right, left, strict=True):
            if any(isinstance(v, (bool, int, np.bool_, np.integer)) for v in p):
                found.append([arb(0)] * len(p))
            else:
                found.append([(a - b) / (2 * h) for a, b in zip(p, m, strict=True)])
        return found
