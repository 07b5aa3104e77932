"""Does the stretch of a call cover what its facts allow?"""

import pytest
import torch

from numgeom.functionals.stretch import stretch_of
from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS

aten = torch.ops.aten
D = torch.float64


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


CALLS = {
    "tanh": (aten.tanh.default, (rand(5, 4),), {}),
    "exp": (aten.exp.default, (rand(5, 4),), {}),
    "relu": (aten.relu.default, (rand(50, 4),), {}),
    "mul": (aten.mul.Tensor, (rand(5, 4), rand(5, 4, seed=1)), {}),
    "mul broadcast": (aten.mul.Tensor, (rand(5, 4), rand(4, seed=1)), {}),
    "div": (aten.div.Tensor, (rand(5, 4), rand(5, 4, seed=1).abs() + 1), {}),
    "mm": (aten.mm.default, (rand(5, 4), rand(4, 6, seed=1)), {}),
    "bmm": (aten.bmm.default, (rand(2, 5, 4), rand(2, 4, 6, seed=1)), {}),
    "sum": (aten.sum.dim_IntList, (rand(5, 4), [1]), {}),
    "mean": (aten.mean.dim, (rand(5, 4), [0]), {}),
    "expand": (aten.expand.default, (rand(1, 4), [5, 4]), {}),
    "permute": (aten.permute.default, (rand(5, 4), [1, 0]), {}),
    "index": (aten.index.Tensor, (rand(5, 4), [torch.tensor([0, 0, 0, 2])]), {}),
    "cat": (aten.cat.default, ([rand(5, 4), rand(2, 4, seed=1)], 0), {}),
    "convolution": (
        aten.convolution.default,
        (rand(2, 3, 6, 6), rand(4, 3, 3, 3, seed=1), rand(4, seed=2),
         [1, 1], [1, 1], [1, 1], False, [0, 0], 1), {},
    ),
    "neg": (aten.neg.default, (rand(5, 4),), {}),
    "cumsum": (aten.cumsum.default, (rand(5, 4), 1), {}),
    "avg_pool2d": (aten.avg_pool2d.default, (rand(2, 3, 6, 6), [3, 3], [1, 1]), {}),
}  # fmt: skip


@pytest.mark.parametrize("label", list(CALLS))
@pytest.mark.parametrize("size", [1e-7, 1e-2])
def test_no_perturbation_exceeds_the_stretch(label, size):
    op, args, kwargs = CALLS[label]
    entry = OPS.lookup(op)
    generator = torch.Generator().manual_seed(3)

    def radius(x):
        return torch.rand(x.shape, generator=generator, dtype=D) * size

    radii, errors = {}, {}
    for i, a in enumerate(args):
        if isinstance(a, torch.Tensor):
            radii[i] = radius(a)
            errors[i] = float(radii[i].norm()) * (1 + 1e-12)
        elif isinstance(a, list) and isinstance(a[0], torch.Tensor) and a[0].dtype == D:
            radii[i] = [radius(t) for t in a]
            for j, r in enumerate(radii[i]):
                errors[i, j] = float(r.norm()) * (1 + 1e-12)
    call = Evaluation(entry.name, args, kwargs, op(*args, **kwargs), radii)
    found = stretch_of(entry, call, errors, lambda c: op(*c.args, **c.kwargs), None)
    assert found is not None
    worst = 0.0
    for trial in range(40):
        moved = list(args)
        sizes = {}
        for i, r in radii.items():

            def push(x, r, outward=trial % 2):
                sign = torch.randint(0, 2, x.shape, generator=generator) * 2.0 - 1.0
                if outward:
                    sign = torch.ones_like(sign)
                return x + sign * r

            if isinstance(r, list):
                moved[i] = [push(x, s) for x, s in zip(args[i], r, strict=True)]
                for j, (x, m) in enumerate(zip(args[i], moved[i], strict=True)):
                    sizes[i, j] = float((m - x).norm())
            else:
                moved[i] = push(args[i], r)
                sizes[i] = float((moved[i] - args[i]).norm())
        change = float((op(*moved, **kwargs) - call.y).norm())
        bound = sum(found.factors[p] * sizes[p] for p in sizes) + found.curvature + found.jumps
        assert change <= bound * (1 + 1e-9) + 1e-14
        worst = max(worst, change / bound)
    assert worst > 0.05  # far from empty


def test_a_matrix_product_stretches_by_the_spectral_norm():
    a, b = rand(30, 40), rand(40, 50, seed=1)
    call = Evaluation("mm", (a, b), {}, a @ b, {0: torch.full_like(a, 1e-9)})
    found = stretch_of(OPS.named("mm"), call, {0: 1e-9}, lambda c: c.args[0] @ c.args[1], None)
    true = float(torch.linalg.matrix_norm(b, 2))
    assert true <= found.factors[0] < 1.3 * true
    assert found.curvature == 0.0


def test_doubtful_decisions_have_no_stretch():
    x = rand(4, 4)
    call = Evaluation(
        "where", (x > 0, x, -x), {}, torch.where(x > 0, x, -x), {1: torch.ones_like(x)},
        {0: torch.ones(4, 4, dtype=torch.bool)},
    )  # fmt: skip
    assert stretch_of(OPS.named("where"), call, {1: 4.0}, lambda c: c.y, None) is None


def test_a_kink_within_reach_is_paid_in_full():
    x = torch.tensor([1e-9, 1.0], dtype=D)
    call = Evaluation("relu", (x,), {}, torch.relu(x), {0: torch.full_like(x, 1e-6)})
    found = stretch_of(OPS.named("relu"), call, {0: 1.5e-6}, lambda c: torch.relu(*c.args), None)
    assert found.jumps >= 1e-6
    assert found.factors[0] <= 1.001
