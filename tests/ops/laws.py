"""Which laws does every entry of the table obey, whatever the op?

An oracle computes the op over the real numbers: it gets the arguments with every floating-point
tensor replaced by a numpy array of Arb balls (exact ones), other tensors by plain numpy arrays, and
returns an array of Arb balls (of booleans or integers for decisions), or a tuple of arrays. NaN
says that the op is not defined there.

No law has a tolerance. Where Arb's precision does not decide an inequality it is raised; what
stays undecided fails.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flint import arb, ctx
from torch import Tensor

from numgeom.arithmetic.rounding import add_up
from numgeom.ops.entry import Evaluation, Op
from tests.ops.trials import (
    EXACT_BITS,
    SCALES,
    Trial,
    draw_radii,
    evaluate,
    exact_arguments,
    example_name,
    float_tensors,
    generator,
    outputs_of,
    run_op,
    trials,
)

__all__ = [
    "Attained",
    "Oracle",
    "as_bounds",
    "as_masks",
    "attained",
    "check_all",
    "check_containment",
    "check_exact_inputs",
    "check_monotone",
    "check_rounding",
    "check_second_order",
    "evaluate",
    "generator",
    "outputs_of",
    "run_op",
    "trials",
]

Oracle = Callable[[tuple[Any, ...], dict[str, Any]], Any]

PRECISIONS = (256, 1024, EXACT_BITS)
REMAINDER_BITS = 600
_STEP_BITS = 120  # the central difference of law 4 uses h = 2^-120


def outside(y: float, bound: float, exact: arb) -> bool | None:
    """Whether |exact - y| > bound; None where the precision does not tell."""
    if bound == math.inf:
        return False
    if math.isnan(y):
        return True
    if not exact.is_finite():
        return not (math.isinf(y) and exact == arb(y))
    if math.isinf(y):
        return True
    distance = abs(exact - arb(y))
    if distance <= arb(bound):
        return False
    return True if distance > arb(bound) else None


def as_bounds(value: Any, y: Any) -> tuple[Tensor, ...]:
    """A fact's answer as one full tensor per output: None is 0."""
    outputs = outputs_of(y)
    given = outputs_of(value) if value is not None else (None,) * len(outputs)
    assert len(given) == len(outputs), f"{len(given)} bounds for {len(outputs)} outputs"
    full = []
    for bound, out in zip(given, outputs, strict=True):
        shape = out.shape if isinstance(out, Tensor) else ()
        if bound is None:
            full.append(torch.zeros(shape, dtype=torch.float64))
            continue
        assert bound.dtype == torch.float64, f"a bound of dtype {bound.dtype}"
        assert bound.shape == shape, f"a bound of shape {list(bound.shape)} for {list(shape)}"
        assert not bool(torch.isnan(bound).any()), "a bound is NaN"
        assert bool((bound >= 0).all()), "a bound is negative"
        full.append(bound)
    return tuple(full)


def as_masks(value: Any, y: Any) -> tuple[Tensor, ...]:
    """A doubt as one full boolean tensor per output: None is False."""
    outputs = outputs_of(y)
    given = outputs_of(value) if value is not None else (None,) * len(outputs)
    assert len(given) == len(outputs), f"{len(given)} doubts for {len(outputs)} outputs"
    full = []
    for mask, out in zip(given, outputs, strict=True):
        if mask is None:
            full.append(torch.zeros(out.shape, dtype=torch.bool))
            continue
        assert mask.dtype == torch.bool, f"a doubt of dtype {mask.dtype}"
        assert mask.shape == out.shape, f"a doubt of shape {list(mask.shape)}"
        full.append(mask)
    return tuple(full)


# ------------------------------------------------------------------------------------------ laws


def check_containment(op: Op, oracle: Oracle, *, seed: int = 0) -> None:
    """Law 1: the exact value lies in [y - R, y + R]; an undoubted decision is the exact one."""
    for trial in trials(op, seed=seed):
        bounds = _total(op, trial.call)
        doubts = as_masks(op.doubt_of(trial.call), trial.call.y)
        _compare(op, oracle, trial, bounds, doubts)


def check_rounding(op: Op, oracle: Oracle, *, seed: int = 0) -> None:
    """Law 1 without errors in the inputs: |fl(f(x)) - f(x)| <= rounding."""
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(seed + number))
        call = evaluate(op, args, kwargs)
        bounds = as_bounds(op.rounding_of(call), call.y)
        doubts = as_masks(op.doubt_of(call), call.y)
        _compare(op, oracle, Trial(call, {}, example_name(example, number)), bounds, doubts)


def _total(op: Op, call: Evaluation) -> tuple[Tensor, ...]:
    spread = as_bounds(op.spread_of(call), call.y)
    rounding = as_bounds(op.rounding_of(call), call.y)
    return tuple(add_up(a, b) for a, b in zip(spread, rounding, strict=True))


def _compare(
    op: Op,
    oracle: Oracle,
    trial: Trial,
    bounds: tuple[Tensor, ...],
    doubts: tuple[Tensor, ...],
) -> None:
    pending: set[tuple[int, int]] | None = None
    for bits in PRECISIONS:
        args, kwargs = exact_arguments(trial.call, trial.errors)
        with ctx.workprec(bits):
            exact = outputs_of(oracle(args, kwargs))
            undecided = set()
            for k, (out, value) in enumerate(zip(outputs_of(trial.call.y), exact, strict=True)):
                flat = np.asarray(value, dtype=object).reshape(-1)
                ys = out.reshape(-1).tolist()
                assert len(flat) == len(ys), f"{op.name}: the oracle returns another shape"
                rs = bounds[k].reshape(-1).tolist()
                ms = doubts[k].reshape(-1).tolist()
                for i, (y, r, m, v) in enumerate(zip(ys, rs, ms, flat, strict=True)):
                    if pending is not None and (k, i) not in pending:
                        continue
                    if not out.is_floating_point():
                        assert m or y == v, (
                            f"{op.name}: decided {y}, exact {v}, without doubt "
                            f"(output {k}, entry {i}; {trial.label})"
                        )
                        continue
                    verdict = outside(y, r, v)
                    if verdict is None:
                        undecided.add((k, i))
                    assert verdict is not True, (
                        f"{op.name}: exact {v.str(25)} is not in {y!r} +- {r!r} "
                        f"(output {k}, entry {i}; {trial.label})\n{_shown(trial, i)}"
                    )
        pending = undecided
        if not pending:
            return
    raise AssertionError(f"{op.name}: {len(pending or ())} entries undecided ({trial.label})")


def _shown(trial: Trial, i: int) -> str:
    lines = []
    y = outputs_of(trial.call.y)[0]
    for key, value in float_tensors(trial.call):
        if isinstance(value, Tensor):
            for what, tensor in (
                ("x", value),
                ("r", trial.call.radius(key)),
                ("e", trial.errors.get(key)),
            ):
                if tensor is not None and _broadcasts(tensor, y):
                    entry = tensor.expand(y.shape).reshape(-1)[i].item()
                    lines.append(f"  argument {key}: {what} = {entry!r}")
    return "\n".join(lines)


def _broadcasts(x: Tensor, y: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(x.shape, y.shape) == y.shape
    except RuntimeError:
        return False


def check_exact_inputs(op: Op) -> None:
    """Law 2: exact inputs have no spread, no remainder and raise no doubt."""
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(number))
        zeros = {key: _zeros(value) for key, value in float_tensors((args, kwargs))}
        for radii in ({}, zeros):
            call = evaluate(op, args, kwargs, radii=radii)
            for fact in (op.spread_of, op.second_order_of):
                for bound, y in zip(as_bounds(fact(call), call.y), outputs_of(call.y), strict=True):
                    known = ~torch.isnan(y) if y.is_floating_point() else torch.ones_like(y) > 0
                    assert bool((bound[known] == 0).all()), f"{op.name}: exact inputs, spread"
            for mask in as_masks(op.doubt_of(call), call.y):
                assert not bool(mask.any()), f"{op.name}: exact inputs, doubt"


def _zeros(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_zeros(v) if isinstance(v, Tensor) else None for v in value]
    return torch.zeros(value.shape, dtype=torch.float64) if value.is_floating_point() else None


def check_monotone(op: Op, *, seed: int = 0) -> None:
    """Law 3: a larger radius never gives a smaller spread or remainder, nor less doubt."""
    for number, example in enumerate(op.examples):
        args, kwargs = example.make(generator(seed + number))
        for scale in (SCALES[0], SCALES[2], SCALES[4]):
            radii = draw_radii(args, kwargs, generator(seed + number), scale=scale)
            before: list[Tensor] = []
            for factor in (1.0, 1.5, 1e3, math.inf):
                call = evaluate(op, args, kwargs, radii=_scaled(radii, factor))
                after = [
                    *as_bounds(op.spread_of(call), call.y),
                    *as_bounds(op.second_order_of(call), call.y),
                    *as_masks(op.doubt_of(call), call.y),
                ]
                for p, q in zip(before, after, strict=False):
                    assert bool((p <= q).all()), f"{op.name}: wider input, narrower output"
                before = after


def _scaled(radii: Any, factor: float) -> Any:
    if radii is None:
        return None
    if isinstance(radii, dict):
        return {key: _scaled(r, factor) for key, r in radii.items()}
    if isinstance(radii, list):
        return [_scaled(r, factor) for r in radii]
    return torch.where(radii > 0, radii * factor, radii)


def check_second_order(op: Op, oracle: Oracle, *, seed: int = 0) -> None:
    """Law 4: |f(x + e) - f(x) - f'(x) e| <= second_order wherever no kink is in doubt.

    f'(x) e is the central difference of the oracle along e, with a step of 2^-120 at 600 bits:
    its error, some 2^-240 of f''' e^3, is far below what a bound in float64 can resolve.
    """
    for trial in trials(op, seed=seed, modes=("up", "corner")):
        bounds = as_bounds(op.second_order_of(trial.call), trial.call.y)
        doubts = as_masks(op.doubt_of(trial.call), trial.call.y)
        for k, remainder in enumerate(remainders(oracle, trial)):
            y = outputs_of(trial.call.y)[k]
            if not y.is_floating_point():
                continue
            entries = zip(
                y.reshape(-1).tolist(),
                bounds[k].reshape(-1).tolist(),
                doubts[k].reshape(-1).tolist(),
                remainder,
                strict=True,
            )
            for i, (value, bound, doubtful, exact) in enumerate(entries):
                if doubtful or bound == math.inf or not math.isfinite(value):
                    continue
                # 2^-200: the error of the central difference, relative to any bound of interest.
                slack = arb(2) ** -200 * (abs(exact) if exact.is_finite() else 1)
                assert exact.is_finite(), f"{op.name}: no remainder ({trial.label}, entry {i})"
                assert not abs(exact) - slack > arb(bound) + arb(2) ** -1400, (
                    f"{op.name}: remainder {exact.str(20)} exceeds {bound!r} "
                    f"(output {k}, entry {i}; {trial.label})\n{_shown(trial, i)}"
                )


def remainders(oracle: Oracle, trial: Trial) -> list[list[arb]]:
    """f(x + e) - f(x) - f'(x) e, one flat list per output."""
    with ctx.workprec(REMAINDER_BITS):
        h = arb(2) ** -_STEP_BITS
        shares = (arb(1), arb(0), h, -h)
        values = [
            [
                np.asarray(out, dtype=object).reshape(-1)
                for out in outputs_of(oracle(*exact_arguments(trial.call, trial.errors, share=s)))
            ]
            for s in shares
        ]
        result = []
        for there, here, right, left in zip(*values, strict=True):
            if any(isinstance(v, (bool, int, np.bool_, np.integer)) for v in here):
                result.append([arb(0)] * len(here))
                continue
            entries = zip(there, here, right, left, strict=True)
            # Where f(x) itself is not defined, law 1 has asked for an infinite radius.
            result.append(
                [t - o - (p - m) / (2 * h) if o.is_finite() else arb(0) for t, o, p, m in entries]
            )
        return result


@dataclass(frozen=True)
class Attained:
    """How much of each stated bound was seen: the largest ratio of an error to its bound."""

    rounding: float
    spread: float
    second_order: float


def attained(op: Op, oracle: Oracle, *, seed: int = 0) -> Attained:
    """Law 6, the mutation law: above 1/2, halving the stated constant breaks containment."""
    best = {"rounding": 0.0, "spread": 0.0, "second_order": 0.0}

    def see(what: str, error: arb, bound: float) -> None:
        if bound > 0.0 and math.isfinite(bound) and error.is_finite():
            best[what] = max(best[what], float((error.abs_lower() / arb(bound)).abs_lower()))

    with ctx.workprec(REMAINDER_BITS):
        for trial in trials(op, seed=seed, scales=(1e-9, 1e-3), modes=("up", "corner")):
            exact = outputs_of(oracle(*exact_arguments(trial.call, trial.errors)))
            plain = outputs_of(oracle(*exact_arguments(trial.call, {})))
            rounding = as_bounds(op.rounding_of(trial.call), trial.call.y)
            spread = as_bounds(op.spread_of(trial.call), trial.call.y)
            second = as_bounds(op.second_order_of(trial.call), trial.call.y)
            rest = remainders(oracle, trial)
            masks = as_masks(op.doubt_of(trial.call), trial.call.y)
            for k, out in enumerate(outputs_of(trial.call.y)):
                if not out.is_floating_point():
                    continue
                a = np.asarray(exact[k], dtype=object).reshape(-1)
                b = np.asarray(plain[k], dtype=object).reshape(-1)
                for i, y in enumerate(out.reshape(-1).tolist()):
                    if not math.isfinite(y):
                        continue
                    see("rounding", b[i] - arb(y), rounding[k].reshape(-1)[i].item())
                    see("spread", a[i] - b[i], spread[k].reshape(-1)[i].item())
                    if not masks[k].reshape(-1)[i]:
                        see("second_order", rest[k][i], second[k].reshape(-1)[i].item())
    return Attained(**best)


def check_all(op: Op, oracle: Oracle, *, seed: int = 0) -> None:
    """Laws 1 to 5 on all examples."""
    check_exact_inputs(op)
    check_monotone(op, seed=seed)
    check_rounding(op, oracle, seed=seed)
    check_containment(op, oracle, seed=seed)
    check_second_order(op, oracle, seed=seed)
