"""Do zones tell differences over the reals from those of rounding?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.nonsmooth import (
    CONTRAST,
    NATIVE,
    FrozenStep,
    Last,
    Minimal,
    Selection,
    zone_of_point,
    zones,
    zones_of,
)
from numgeom.recording import record_step
from reproductions.maxpool.small_programs import bifurcation_example, pooled_convolution
from tests.nonsmooth.steps import cross_entropy

PAIR = (Selection(), Selection(maxpool=Minimal()))


class Kernel(nn.Module):
    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel)

    def forward(self, image: Tensor) -> Tensor:
        return pooled_convolution(image, self.kernel)


def value(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sum()


def test_the_example_of_appendix_a5_bifurcates() -> None:
    image, kernel = bifurcation_example(0.3)
    found = zones(Kernel(kernel), value, image, selections=PAIR)
    assert found.zone == "bifurcation"
    assert found.variation == found.replayed_variation == 1.0
    (tie,) = found.ties
    assert tie.op == "max_pool2d_with_indices"
    assert tie.indices.tolist() == [[0, 0, 0, 0]]
    assert tie.n_accidental == 1


def test_a_flat_image_compensates() -> None:
    found = zones(Kernel(torch.rand(1, 1, 3, 3)), value, torch.ones(1, 1, 4, 4), selections=PAIR)
    assert found.zone == "compensation"
    assert found.ties[0].n_accidental == 0
    assert found.replayed_variation < 1e-14


def test_an_image_without_ties_is_regular() -> None:
    found = zones(Kernel(torch.rand(1, 1, 3, 3)), value, torch.rand(1, 1, 4, 4))
    assert found.zone == "regular"
    assert found.ties == ()
    assert found.variation == found.replayed_variation == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_bifurcate(lenet: Callable, digits: Callable, dtype: torch.dtype) -> None:
    found = zones(lenet(0, dtype), cross_entropy, digits(0, dtype=dtype), selections=PAIR)
    assert found.zone == "bifurcation"
    assert found.replayed_variation > 1e-4
    assert found.variation == pytest.approx(found.replayed_variation, rel=0.5)
    assert sum(tie.n_accidental or 0 for tie in found.ties) > 0


def test_float64_compensates(lenet: Callable, digits: Callable) -> None:
    found = zones(
        lenet(0, torch.float64), cross_entropy, digits(0, dtype=torch.float64), selections=PAIR
    )
    assert found.zone == "compensation"
    assert [tie.module for tie in found.ties] == ["features.2"]


def test_gaussian_data_in_float32_are_regular(lenet: Callable) -> None:
    images = torch.randn(64, 1, 28, 28)
    labels = torch.randint(0, 10, (64,))
    found = zones(lenet(), cross_entropy, (images, labels))
    assert found.zone == "regular"
    assert found.n_dead > 0
    assert found.variation == found.replayed_variation == 0.0


def test_in_float32_the_two_groups_are_far_apart(lenet: Callable, digits: Callable) -> None:
    """Every batch with D below 1e-6 replays to rounding; every other one stays as it was.

    Weights of few bits make accidental ties frequent: sums of products that collide.
    """
    compensated, bifurcated = [], []
    for seed in range(2):
        for bits in (None, 5):
            model = lenet(seed)
            if bits is not None:
                with torch.no_grad():
                    weight = model.features[0].weight
                    weight.copy_((weight * 2**bits).round() / 2**bits)
            for q in range(2):
                found = zones(model, cross_entropy, digits(q), selections=PAIR)
                accidental = sum(tie.n_accidental or 0 for tie in found.ties)
                group = compensated if found.variation < 1e-6 else bifurcated
                group.append(found.replayed_variation)
                expected = "compensation" if found.variation < 1e-6 else "bifurcation"
                assert found.zone == expected
                assert (accidental == 0) is (expected == "compensation")
                if expected == "bifurcation":
                    ratio = found.replayed_variation / found.variation
                    assert 0.5 < ratio < 2
    assert compensated
    assert bifurcated
    assert max(compensated) < 1e-12
    assert min(bifurcated) / max(compensated) > 1e6


def test_the_rounding_sample_leaves_decisions_of_the_backward_pass_alone() -> None:
    """The derivative of amax compares entries with the maximum; moved apart they gave 0 / 0."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t = nn.Parameter(torch.tensor(0.7))

        def forward(self, x: Tensor) -> Tensor:
            return (self.t * x).amax(dim=0)

    found = zones(Scale(), value, torch.full((3,), 1.3))
    assert found.zone == "compensation"
    assert 0 < found.rounding < 1e-14


def test_only_families_in_which_the_selections_differ_count() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        return F.relu(y).sum() + y.abs().sum()

    layer = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(layer.weight)
    for pair, families in (
        ((Selection(), Selection(relu=1.0)), ["relu"]),
        ((Selection(), Selection(abs=1.0)), ["abs"]),
        ((NATIVE, CONTRAST), ["relu", "abs"]),
    ):
        found = zones(layer, loss, torch.ones(1, 1), selections=pair)
        assert [tie.family for tie in found.ties] == families
        assert found.zone == "bifurcation"
    assert zones(layer, loss, torch.ones(1, 1), selections=PAIR).zone == "regular"


def test_a_recorded_step_has_the_same_zone(lenet: Callable, digits: Callable) -> None:
    model, batch = lenet(), digits(size=32)
    step = record_step(model, cross_entropy, batch)
    first = zones(model, cross_entropy, batch, reduction="mean")
    second = zones_of(step, reduction="mean")
    assert first.details == second.details
    assert first.replayed_details == second.replayed_details
    assert first.zone == second.zone


def test_the_model_is_left_as_it_was(lenet: Callable, digits: Callable) -> None:
    model = lenet()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    zones(model, cross_entropy, digits(size=16))
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_the_text_says_where_and_how_many(lenet: Callable, digits: Callable) -> None:
    text = str(zones(lenet(), cross_entropy, digits(size=16), selections=PAIR))
    assert text.startswith("compensation: native against maxpool=Minimal()")
    assert "features.2" in text
    assert "0 by accident" in text


def test_a_kink_outside_of_the_gradient_is_named() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        return (y * torch.relu(y).detach()).sum()

    found = zones(nn.Linear(2, 2), loss, torch.ones(1, 2))
    assert len(found.unmatched) == 1
    assert "aten.relu" in found.unmatched[0]
    assert "not covered" in str(found)


def test_a_parameter_point_takes_the_worst_zone_of_its_batches() -> None:
    image, kernel = bifurcation_example()
    flat = zones(Kernel(kernel), value, torch.ones(1, 1, 4, 4), selections=PAIR)
    tied = zones(Kernel(kernel), value, image, selections=PAIR)
    free = zones(Kernel(kernel), value, torch.rand(1, 1, 4, 4), selections=PAIR)
    assert zone_of_point([free, free]) == "regular"
    assert zone_of_point([free, flat]) == "compensation"
    assert zone_of_point([tied, flat, free]) == "bifurcation"


def test_table_1_is_rounding_and_its_middle_is_not() -> None:
    """The choice matters to max(t·x) at t = 0, x = (1, 2, 3, 4), and not at x = (1.4, ...)."""

    class Scale(nn.Module):
        def __init__(self, t: float) -> None:
            super().__init__()
            self.t = nn.Parameter(torch.tensor(t))

        def forward(self, x: Tensor) -> Tensor:
            return torch.max(self.t * x)

    pair = (Selection(), Selection(max=Last()))
    flat = zones(Scale(10.0), value, torch.full((4,), 1.4), selections=pair)
    assert flat.zone == "compensation"
    kink = zones(Scale(0.0), value, torch.tensor([1.0, 2.0, 3.0, 4.0]), selections=pair)
    assert kink.zone == "bifurcation"
    assert kink.replayed_variation == 1.5


def test_frozen_ties_are_those_of_the_recorded_format(lenet: Callable, digits: Callable) -> None:
    """Float16 has ties that the same parameters do not have in float64."""
    model, batch = lenet(0, torch.float16), digits(0, size=32, dtype=torch.float16)
    narrow = FrozenStep(record_step(model, cross_entropy, batch))
    wide_batch = (batch[0].double(), batch[1])
    wide = FrozenStep(record_step(model.double(), cross_entropy, wide_batch))
    counts = [sum(len(tie.kink.units) for tie in step.ties) for step in (narrow, wide)]
    assert counts[0] > counts[1]
