"""On which calls, with which errors, are the laws tried?

Every example of an entry, with radii of several scales, and errors in several places of the box.
The exact arguments are Arb balls of radius 0: x + e is not rounded.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flint import arb, ctx
from torch import Tensor

from numgeom.ops.entry import Evaluation, Example, Op

EXACT_BITS = 5000  # enough for a sum of any two float64 numbers
# Radii that are tried, relative to the entries: rounding-sized, small, comparable, larger.
SCALES = (1e-16, 1e-9, 1e-3, 0.3, 3.0)


def run_op(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What torch computes."""
    namespace, _, own = name.rpartition("::")
    return getattr(getattr(torch.ops, namespace or "aten"), own)(*args, **kwargs)


def evaluate(
    op: Op,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    radii: dict[int | str, Any] | None = None,
    doubts: dict[int | str, Any] | None = None,
) -> Evaluation:
    """Run the op, and describe the call as an engine would."""
    y = run_op(op.name, args, kwargs)
    return Evaluation(op.name, args, kwargs, y, radii or {}, doubts or {})


def outputs_of(value: Any) -> tuple[Any, ...]:
    """One item per output, for an op with one output as well."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------- arguments and errors


def float_tensors(call: Evaluation | tuple[Any, Any]) -> Iterator[tuple[int | str, Any]]:
    """Positions and values of the arguments that are floating-point tensors, or lists of them."""
    args, kwargs = (call.args, call.kwargs) if isinstance(call, Evaluation) else call
    for key, value in (*enumerate(args), *kwargs.items()):
        is_list = isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value)
        if is_list or (isinstance(value, Tensor) and value.is_floating_point()):
            yield key, value


def draw_radii(
    args: tuple[Any, ...], kwargs: dict[str, Any], g: torch.Generator, *, scale: float
) -> dict[int | str, Any]:
    """Radii of about `scale` times the entries, some exactly 0, absolute next to 0."""

    def radius(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [radius(v) if isinstance(v, Tensor) else None for v in x]
        if not x.is_floating_point():
            return None
        size = torch.rand(x.shape, generator=g, dtype=torch.float64) + 0.01
        magnitude = x.double().abs().nan_to_num(nan=1.0, posinf=1.0)
        magnitude = torch.where(magnitude < 1e-250, scale, magnitude)
        r = torch.minimum(size * magnitude * scale, torch.tensor(1e300, dtype=torch.float64))
        keep = torch.rand(x.shape, generator=g) > 0.2
        return torch.where(keep, r, 0.0)

    return {key: radius(value) for key, value in float_tensors((args, kwargs))}


def draw_error(r: Any, g: torch.Generator, mode: str) -> Any:
    """An error with |e| <= r: a corner of the box ("corner"), inside it ("inside"), or nothing."""
    if r is None:
        return None
    if isinstance(r, list):
        return [draw_error(one, g, mode) for one in r]
    r = torch.where(torch.isinf(r), 1e3, r)
    sign = torch.sign(torch.rand(r.shape, generator=g, dtype=torch.float64) - 0.5)
    if mode == "up":
        return r
    if mode == "down":
        return -r
    if mode == "corner":
        return sign * r
    share = torch.rand(r.shape, generator=g, dtype=torch.float64)
    return sign * r * torch.where(share > 0.9, 0.0, share)


MODES = ("up", "down", "corner", "inside")


# ------------------------------------------------------------------------------------ exact numbers


def exact_array(x: Tensor, e: Tensor | None = None, *, share: arb | None = None) -> np.ndarray:
    """x + share * e without rounding, as an array of Arb numbers (share: 1)."""
    values = np.empty(tuple(x.shape), dtype=object)
    flat = x.detach().double().reshape(-1).tolist()
    errors = [0.0] * len(flat) if e is None else e.reshape(-1).tolist()
    with ctx.workprec(EXACT_BITS):
        entries = [
            arb(v) if d == 0.0 else arb(v) + (arb(d) if share is None else share * arb(d))
            for v, d in zip(flat, errors, strict=True)
        ]
    values.reshape(-1)[:] = entries  # a view: freshly made arrays are contiguous
    return values


def exact_arguments(
    call: Evaluation, errors: dict[int | str, Any], *, share: arb | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an oracle: midpoints plus `share` times the errors."""

    def convert(value: Any, error: Any) -> Any:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                return exact_array(value, error, share=share)
            return value.numpy()
        if isinstance(value, (list, tuple)):
            given = error if isinstance(error, list) else [None] * len(value)
            return [convert(v, d) for v, d in zip(value, given, strict=True)]
        return value

    args = tuple(convert(v, errors.get(i)) for i, v in enumerate(call.args))
    return args, {k: convert(v, errors.get(k)) for k, v in call.kwargs.items()}


@dataclass(frozen=True)
class Trial:
    """One call with radii, and errors within them."""

    call: Evaluation
    errors: dict[int | str, Any]
    label: str


def trials(
    op: Op,
    *,
    seed: int = 0,
    scales: tuple[float, ...] = SCALES,
    modes: tuple[str, ...] = MODES,
) -> Iterator[Trial]:
    """Every example with radii of every scale, and with errors in several places of the box."""
    assert op.examples, f"{op.name} has no examples"
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(seed + number))
        for scale in scales:
            g = generator(seed + 1000 * number + round(-10 * math.log10(scale)) + 500)
            radii = draw_radii(args, kwargs, g, scale=scale)
            call = evaluate(op, args, kwargs, radii=radii)
            for mode in modes:
                errors = {key: draw_error(r, g, mode) for key, r in radii.items()}
                yield Trial(call, errors, f"{example_name(example, number)}, scale {scale}, {mode}")


def example_name(example: Example, number: int) -> str:
    return f"example {number} {example.label}".rstrip()
