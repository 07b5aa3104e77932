"""Do balls of the backward pass hold the exact gradients, and pullbacks the directional parts?"""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.nonsmooth import FrozenStep, Minimal, Selection, SelectionError
from numgeom.nonsmooth.pullback import Pullback
from numgeom.recording import record_step
from tests.nonsmooth.steps import cross_entropy


class Small(nn.Module):
    def __init__(self, norm: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv1d(1, 2, 2), norm(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool1d(F.relu(self.norm(self.first(x))), 2)
        return self.last(y.flatten(1))


NORMS = {
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm1d(2),
    "layer": lambda: nn.LayerNorm(6),
    "group": lambda: nn.GroupNorm(1, 2),
}


def step_of(norm: str) -> FrozenStep:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 3, (4, 1, 7), generator=generator).float()
    batch = (x, torch.tensor([0, 1, 2, 0]))
    return FrozenStep(record_step(Small(NORMS[norm]).train(), cross_entropy, batch))


@pytest.mark.parametrize("norm", NORMS)
def test_the_reference_is_torchs_gradient_with_a_bound_on_rounding(norm: str) -> None:
    step = step_of(norm)
    for name, (value, radius) in Pullback(step).reference().items():
        assert bool(radius.isfinite().all())
        assert float(radius.max()) < 1e-12
        own = step.gradients(Selection())[name]
        assert float((own - value).abs().max()) < 1e-14
        # Another rounding of the same pass stays within the bound and what it adds itself.
        noise = torch.Generator().manual_seed(0)
        other = step.gradients(Selection(), noise=noise)[name]
        assert bool(((other - value).abs() <= 8 * radius + 1e-14).all())


def test_the_radius_holds_against_exact_fractions() -> None:
    """A linear layer: the gradient is a sum of products of float32 numbers."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2, bias=False), torch.randn(50, 3)
    weights = torch.randn(50, 2)
    step = FrozenStep(record_step(model, lambda m, b: (m(b) * weights).sum(), x))
    value, radius = Pullback(step).reference()["weight"]
    for i in range(2):
        for j in range(3):
            exact = sum(
                Fraction(float(weights[k, i])) * Fraction(float(x[k, j])) for k in range(50)
            )
            assert abs(Fraction(float(value[i, j])) - exact) <= Fraction(float(radius[i, j]))


@pytest.mark.parametrize("norm", NORMS)
def test_pulling_back_the_whole_upstream_gradient_gives_the_gradient(norm: str) -> None:
    """Of the parameters behind the kink: by linearity nothing else reaches them."""
    step = step_of(norm)
    pullback = Pullback(step)
    whole = pullback.reference()
    (site,) = [s for s in step.sites.found if "pool" in str(s.forward.target)]
    start = pullback.kept(site.last).value
    found, _ = pullback.from_kink({site: start}, [])
    assert not any(name.startswith("last") for name in found)
    assert any(name.startswith("first") for name in found)
    for name, (value, radius) in found.items():
        expected, allowed = whole[name]
        assert bool(((value - expected).abs() <= radius + allowed).all())


def test_asked_values_come_back() -> None:
    step = step_of("none")
    pullback = Pullback(step)
    pullback.reference()
    pool, relu = (
        next(s for s in step.sites.found if op in str(s.forward.target)) for op in ("pool", "relu")
    )
    start = pullback.kept(pool.last).value
    _, inner = pullback.from_kink({pool: start}, [relu.upstream])
    assert torch.equal(inner[relu.upstream][0].flatten(), pullback.upstream(relu)[0].flatten())


def test_another_selection_has_its_own_ball() -> None:
    step = step_of("none")
    weights = {t: t.kink.choose(Minimal(), torch.Generator()) for t in step.ties if "pool" in t.op}
    balls = Pullback(step).reference({t: (t.kink, w) for t, w in weights.items() if w is not None})
    own = step.gradients(Selection(maxpool=Minimal()))
    for name, (value, radius) in balls.items():
        assert bool(((value - own[name]).abs() <= 2 * radius).all())


def test_a_gradient_in_the_loss_is_refused() -> None:
    def penalty(model: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(torch.relu(model(x)).sum(), x, create_graph=True)
        return g.square().sum()

    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    step = FrozenStep(record_step(layer, penalty, torch.ones(1, 2)))
    with pytest.raises(SelectionError, match="double backward"):
        Pullback(step)
