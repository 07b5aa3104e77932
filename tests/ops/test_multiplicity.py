"""Is a product of errors counted at most as often as stated?

With errors e = r e', |e'| <= 1, a scale s of y and Q the second-order bound, the certificate takes
|R / s| <= m max(Q / s) (sum of |e'_p|^2 over the inputs p) in the 2-norm, and that R shrinks
quadratically with e. Both are tried on random scales and on the worst ones found.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from numgeom.ops.entry import Evaluation, Kind, Op
from numgeom.ops.table import OPS
from tests.ops.laws import generator, outputs_of, run_op

NAMES = (
    "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addbmm", "convolution", "convolution_backward",
    "var", "var_mean", "std", "linalg_vector_norm", "prod", "cumprod", "_cdist_forward",
    "_cdist_backward", "logcumsumexp",
)  # fmt: skip


def op_named(name: str) -> Op:
    op = OPS.named(name)
    assert op is not None
    return op


def spiky(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Positive numbers, a few of them far larger than the others."""
    return torch.exp(4.0 * torch.randn(shape, generator=g, dtype=torch.float64))


def direction(r: Tensor, g: torch.Generator) -> Tensor:
    """e': all along the largest radius, of one size, or a few large entries."""
    kind = int(torch.randint(0, 3, (), generator=g))
    if kind == 0:
        return (r == r.max()).to(torch.float64)
    e = torch.randn(r.shape, generator=g, dtype=torch.float64)
    return torch.sign(e) if kind == 1 else e**3


def remainder(op: Op, args: tuple[Any, ...], kwargs: Any, e: dict[int, Tensor], h: float) -> Any:
    """The quadratic part of f along h e, by a symmetric second difference.

    Exact in exact arithmetic for bilinear and quadratic f, and close to it for all f while h e is
    small.
    """
    moved = [tuple(a + t * e[i] if i in e else a for i, a in enumerate(args)) for t in (h, -h, 0.0)]
    right, left, here = (outputs_of(run_op(op.name, m, kwargs)) for m in moved)
    return [
        None if y is None else (a + b - 2 * y) / 2
        for a, b, y in zip(right, left, here, strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_products_of_errors_are_counted_as_stated(name: str) -> None:
    op = op_named(name)
    size = 1.0 if op.kind is Kind.CONTRACTION and "cdist" not in name else 1e-2
    seen = 0.0
    for number, example in enumerate(op.examples):
        for seed in range(30):
            g = generator(1000 * number + seed)
            args, kwargs = example.make(g)
            places = real_places(args)
            if any(args[i].numel() == 0 for i in places):
                continue
            if not all(1e-3 < float(args[i].abs().amax()) < 1e3 for i in places):
                continue  # entries of all sizes would hide the remainder behind rounding
            r = {i: size * spiky(tuple(args[i].shape), g).clamp_max(10.0) for i in places}
            e = {i: direction(r[i], g) for i in places}
            length = sum(float(v.norm()) ** 2 for v in e.values()) ** 0.5
            call = Evaluation(name, args, kwargs, run_op(name, args, kwargs), dict(r))
            found = remainder(op, args, kwargs, {i: r[i] * e[i] / length for i in places}, 1.0)
            second = outputs_of(op.second_order_of(call))
            for y, q, rest in zip(outputs_of(call.y), second, found, strict=True):
                if q is None or not bool(torch.isfinite(q).all()) or not bool((q > 0).any()):
                    continue
                scale = spiky(tuple(y.shape), g)
                bound = float((q / scale).max()) * op.multiplicity(call)
                noise = 1e-12 * float((y.abs() / scale).norm())
                got = float((rest / scale).norm())
                assert got <= bound + noise, (name, number, seed)
                if got > 100.0 * noise:
                    seen = max(seen, got / bound)
    assert seen > 0.02


def real_places(args: tuple[Any, ...]) -> list[int]:
    """Positions of the tensors of reals."""
    return [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]


@pytest.mark.parametrize("name", NAMES)
def test_the_second_order_bound_shrinks_quadratically(name: str) -> None:
    """For errors t r, t < 1, it is at most t^2 times that for r."""
    op = op_named(name)
    for number, example in enumerate(op.examples):
        g = generator(number)
        args, kwargs = example.make(g)
        y = run_op(name, args, kwargs)
        places = real_places(args)
        for size in (1e-6, 1e-2, 0.3):
            r: dict[int | str, Any] = {
                i: size * torch.rand(args[i].shape, generator=g, dtype=torch.float64)
                for i in places
            }
            full = op.second_order_of(Evaluation(name, args, kwargs, y, r))
            for t in (0.5, 0.125):
                less = {i: t * b for i, b in r.items()}
                part = op.second_order_of(Evaluation(name, args, kwargs, y, less))
                for a, b in zip(outputs_of(full), outputs_of(part), strict=True):
                    if a is not None:
                        # Outward rounding adds a few units and subnormal spacings to either.
                        assert bool((b <= t * t * a * (1 + 1e-12) + 1e-300).all()), (name, number)
