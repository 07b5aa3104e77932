"""Does the hull hold every Clarke selection, and is it a point exactly where they agree?"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.nonsmooth import FrozenStep, Minimal, Selection, hull, hull_of, zones_of
from numgeom.nonsmooth.clarke import draw
from numgeom.nonsmooth.pullback import Pullback
from numgeom.recording import record_step
from numgeom.results.guarantee import Guarantee
from reproductions.maxpool.small_programs import bifurcation_example, pooled_convolution
from tests.nonsmooth.kinked import KINKED, Kinked
from tests.nonsmooth.steps import cross_entropy

Gradients = dict[str, Tensor]


def own_loss(model: nn.Module, batch: object) -> Tensor:
    del batch
    return model()


def random_gradient(step: FrozenStep, seed: int) -> tuple[Gradients, Gradients]:
    """The gradient of a random selection, unit by unit, and a bound on its rounding.

    It is that of the opened backward pass: torch's own hardsigmoid_backward takes 1/6 in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {tie: draw(tie, generator, vertices=bool(seed % 2)) for tie in step.ties}
    balls = Pullback(step).reference({t: (t.kink, numbers) for t, numbers in weights.items()})
    own = step.gradients(Selection(), weights=weights)
    for name, (g, _) in balls.items():
        torch.testing.assert_close(g, own[name], rtol=1e-7, atol=1e-12)
    return {n: g for n, (g, _) in balls.items()}, {n: r for n, (_, r) in balls.items()}


class TwoPools(nn.Module):
    """Whole numbers in small networks: every gradient is computed without rounding."""

    def __init__(self, seed: int, *, bias: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Conv1d(1, 2, 2, bias=bias)
        self.second = nn.Conv1d(2, 2, 2, bias=bias)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randint(-2, 3, p.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool1d(F.relu(self.first(x)), 2)
        return F.max_pool1d(F.relu(self.second(y)), 2).sum()


def whole_image(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randint(-1, 2, (2, 1, 14), generator=generator).float()


def value(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sum()


@pytest.mark.parametrize("seed", [0, 6, 16, 21, 23])
def test_the_hull_contains_the_gradients_of_1000_random_selections(seed: int) -> None:
    """On each of five networks; without rounding there is no slack."""
    step = FrozenStep(record_step(TwoPools(seed), value, whole_image(seed)))
    found = hull_of(step)
    lower, upper = found.lower, found.upper
    assert not found.is_point
    for draws in range(1000):
        generator = torch.Generator().manual_seed(draws)
        weights = {tie: draw(tie, generator, vertices=bool(draws % 2)) for tie in step.ties}
        for name, g in step.gradients(Selection(), weights=weights).items():
            assert bool((lower[name] <= g).all()), name
            assert bool((g <= upper[name]).all()), name


@pytest.mark.parametrize("name", KINKED)
def test_it_contains_random_selections_at_every_kind_of_kink(name: str) -> None:
    function, shape = KINKED[name]
    step = FrozenStep(record_step(Kinked(function, shape), own_loss, None))
    found = hull_of(step)
    assert found.guarantee is Guarantee.CERTIFIED
    assert found.method == "differences"
    reached = {n: (g.clone(), g.clone()) for n, g in found.center.items()}
    for seed in range(12):
        gradients, rounding = random_gradient(step, seed)
        assert found.outside(gradients, rounding=rounding) == []
        for n, (low, high) in reached.items():
            reached[n] = (torch.minimum(low, gradients[n]), torch.maximum(high, gradients[n]))
    for n, width in found.width.items():  # where it is a point, nothing moved
        low, high = reached[n]
        assert bool((high - low)[width == 0].abs().le(1e-12).all()), n


LAYERS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-1, 1),
    "amax": lambda x: x.amax(-1, keepdim=True) + x,
    "max": lambda x: torch.maximum(x, x.flip(-1)),
    "pool": lambda x: F.max_pool1d(x, 3, 1, 1),
}


@pytest.mark.parametrize("second", LAYERS)
@pytest.mark.parametrize("first", LAYERS)
def test_it_contains_random_selections_of_kinks_behind_kinks(first: str, second: str) -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.w = nn.Parameter(torch.randint(-1, 2, (2, 1, 6), generator=generator).float())
            self.v = nn.Parameter(torch.randint(-1, 2, (2, 1, 6), generator=generator).float())

        def forward(self, x: Tensor) -> Tensor:
            y = LAYERS[first](self.w * x) - self.v
            return LAYERS[second](y) * torch.arange(1, 7)

    x = torch.tensor([1.0, -1, 1, 1, -1, 1])
    step = FrozenStep(record_step(Stack(), value, x))
    found = hull_of(step)
    lower, upper = found.lower, found.upper
    assert all(not bool(r.any()) for r in found.rounding.values())
    assert not found.is_point
    generator = torch.Generator().manual_seed(0)
    for draws in range(40):
        weights = {t: draw(t, generator, vertices=bool(draws % 4)) for t in step.ties}
        for name, g in step.gradients(Selection(), weights=weights).items():
            assert bool((lower[name] <= g).all()), name
            assert bool((g <= upper[name]).all()), name


@pytest.mark.parametrize("name", ["max-pool2d-overlapping", "relu-of-relu", "clamp-tensors"])
def test_intervals_contain_the_differences(name: str) -> None:
    function, shape = KINKED[name]
    step = FrozenStep(record_step(Kinked(function, shape), own_loss, None))
    narrow, wide = hull_of(step), hull_of(step, max_pullbacks=0)
    assert wide.method == "intervals"
    for n in narrow.center:
        assert bool((wide.lower[n] <= narrow.lower[n]).all())
        assert bool((wide.upper[n] >= narrow.upper[n]).all())
    assert any(bool((wide.width[n] > narrow.width[n]).any()) for n in narrow.center) or all(
        torch.allclose(wide.width[n], narrow.width[n]) for n in narrow.center
    )


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_one_layer_of_ties_is_enclosed_exactly(seed: int) -> None:
    """The hull of all vertices, enumerated."""

    class OnePool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = TwoPools(seed).first

        def forward(self, x: Tensor) -> Tensor:
            y = F.max_pool1d(self.conv(x), 3, 2)
            return (y * torch.tensor([1.0, -2.0, 4.0, -1.0, 3.0, 2.0][: y.shape[-1]])).sum()

    x = torch.tensor([[[1.0, 1, 1, 0, 1, 0, 1, -1, 0, 1]]])
    step = FrozenStep(record_step(OnePool(), value, x))
    found = hull_of(step)
    (tie,) = step.ties
    places = [row.nonzero()[:, 0].tolist() for row in tie.kink.active]  # type: ignore[attr-defined]  # a pool
    lowest: Gradients = {}
    highest: Gradients = {}
    for choice in itertools.product(*places):
        weights = torch.zeros(len(places), 3, dtype=torch.float64)
        weights[range(len(places)), list(choice)] = 1
        for n, g in step.gradients(Selection(), weights={tie: weights}).items():
            lowest[n] = torch.minimum(lowest.get(n, g), g)
            highest[n] = torch.maximum(highest.get(n, g), g)
    for n in lowest:
        assert torch.equal(lowest[n] == highest[n], found.width[n] == 0), n
        torch.testing.assert_close(found.lower[n], lowest[n], rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(found.upper[n], highest[n], rtol=1e-14, atol=1e-14)


def test_it_is_a_point_on_tie_free_data(lenet: Callable) -> None:
    torch.manual_seed(0)
    batch = (torch.randn(16, 1, 28, 28), torch.randint(0, 10, (16,)))
    step = FrozenStep(record_step(lenet(), cross_entropy, batch))
    found = hull_of(step)
    assert found.is_point
    assert found.n_units == 0
    native = step.gradients(Selection())
    for n, g in native.items():
        assert torch.equal(found.lower[n], g)
        assert torch.equal(found.upper[n], g)


def test_identical_patches_leave_a_point(lenet: Callable, digits: Callable) -> None:
    step = FrozenStep(record_step(lenet(), cross_entropy, digits(0, 32)))
    found = hull_of(step)
    assert found.is_point
    assert found.n_inert > 1000
    assert found.guarantee is Guarantee.CERTIFIED
    for n, g in step.gradients(Selection(maxpool=Minimal())).items():
        assert bool(((g - found.center[n]).abs() <= 2 * found.rounding[n]).all())


def test_batch_norm_keeps_identical_patches_one_function(digits: Callable) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3 * 13 * 13, 10),
    )
    found = hull(model, cross_entropy, digits(0, 8))
    assert found.is_point
    assert found.n_inert > 100
    assert found.guarantee is Guarantee.CERTIFIED
    assert all(bool(r.isfinite().all()) for r in found.rounding.values())


def test_accidental_ties_widen_it_as_far_as_the_zones_say(
    lenet: Callable, digits: Callable
) -> None:
    """Weights of few bits make sums of products collide."""
    model = lenet(0)
    with torch.no_grad():
        weight = model.features[0].weight
        weight.copy_((weight * 2**5).round() / 2**5)
    program = record_step(model, cross_entropy, digits(0, 2))
    pair = (Selection(), Selection(maxpool=Minimal()))
    zone = zones_of(program, selections=pair)
    found = hull_of(program)
    assert zone.zone == "bifurcation"
    assert found.method == "differences"
    assert not found.is_point
    moved = FrozenStep(program).gradients(pair[1])
    assert found.contains(moved, rounding=found.rounding)
    # Weight moves between places of one channel: its bias does not see that.
    assert not bool((found.width["features.0.bias"] != 0).any())
    assert bool((found.width["features.0.weight"] != 0).any())
    # Half of the weight of every tied pair moved: the hull is not far wider than that.
    assert float(sum(w.sum() for w in found.width.values())) < 20 * zone.replayed_variation


def test_the_example_of_appendix_a5_has_the_interval_between_its_gradients() -> None:
    image, kernel = bifurcation_example()

    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(kernel)

        def forward(self, x: Tensor) -> Tensor:
            return pooled_convolution(x, self.kernel)

    found = hull(Kernel(), value, image)
    lower, upper = found.lower["kernel"][0, 0], found.upper["kernel"][0, 0]
    width = torch.zeros(3, 3, dtype=torch.float64)
    width[0, 0] = width[0, 2] = 1
    assert torch.equal((upper - lower).round(decimals=12), width)
    assert torch.equal(found.width["kernel"][0, 0] == 0, width == 0)


def test_a_norm_at_zero_has_the_ball_of_its_dual() -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.x.norm() * 2 + x.sum()

    found = hull(Vector(), value, torch.ones(1))
    torch.testing.assert_close(found.lower["x"], torch.full((3,), -2.0, dtype=torch.float64))
    torch.testing.assert_close(found.upper["x"], torch.full((3,), 2.0, dtype=torch.float64))


def test_equal_values_of_different_parameters_are_no_one_function() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a * x).max()

    found = hull(Pair(), value, torch.ones(2))
    assert bool((found.upper["a"] >= 1).all())
    assert bool((found.lower["a"] <= 0).all())
    assert bool((found.width["a"] >= 1).all())


def test_a_selection_outside_of_the_set_is_not_contained() -> None:
    step = FrozenStep(record_step(TwoPools(0), value, whole_image(0)))
    found = hull_of(step)
    wrong = {n: g + 1 + 2 * found.width[n] for n, g in found.center.items()}
    assert found.outside(wrong) == list(found.center)
    assert not found.contains(wrong)


def test_the_text_names_what_can_move() -> None:
    text = str(hull(TwoPools(0), value, whole_image(0)))
    assert "more than one point (CERTIFIED)" in text
    assert "first.weight: width up to" in text
