"""Are the paper's thresholds what their definitions say, also where there are none?"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from numgeom.nonsmooth import (
    Minimal,
    Selection,
    VariationError,
    backprop_variation,
    tau1,
    tau1_emulated,
    tau2,
    tau_curve,
)
from tests.nonsmooth.steps import cross_entropy

PAIR = (Selection(), Selection(maxpool=Minimal()))


def test_tau1_is_refused_on_a_deterministic_cpu(lenet: Callable, digits: Callable) -> None:
    with pytest.raises(VariationError, match="the CPU repeats them: it would be 0 by construction"):
        tau1([lenet()], cross_entropy, [digits(0, 8)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tau1_is_measured_on_a_gpu_and_refused_in_deterministic_mode() -> None:
    model, batch = nn.Linear(4, 4).cuda(), torch.ones(3, 4).cuda()
    found = tau1([model], lambda m, x: m(x).sum(), [batch])
    assert found.value is not None
    assert found.n_pairs == 1
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(VariationError, match="deterministic mode"):
            tau1([model], lambda m, x: m(x).sum(), [batch])
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_emulation_is_of_the_size_of_rounding_and_says_what_it_is(
    lenet: Callable, digits: Callable
) -> None:
    sizes = {}
    for dtype in (torch.float32, torch.float64):
        found = tau1_emulated([lenet(0, dtype)], cross_entropy, [digits(0, 32, dtype)])
        assert found.value is not None
        assert found.n_positive == 1
        assert "by permuted sums (emulation)" in str(found)
        sizes[dtype] = found.value
    assert 1e-9 < sizes[torch.float32] < 1e-4
    assert 1e7 < sizes[torch.float32] / sizes[torch.float64] < 1e11


def test_the_emulation_repeats_with_its_seed(lenet: Callable, digits: Callable) -> None:
    model, batches = lenet(), [digits(0, 16)]
    first, second, other = (
        tau1_emulated([model], cross_entropy, batches, seed=s).value for s in (1, 1, 2)
    )
    assert first == second != other


def test_a_permutation_of_random_draws_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).sum()

    with pytest.raises(VariationError, match="1 draws random numbers"):
        tau1_emulated([model], loss, [torch.ones(3, 2)])
    tau1_emulated([model.eval()], loss, [torch.ones(3, 2)])


def test_a_batch_without_samples_is_refused() -> None:
    model = nn.Linear(2, 2)
    for batch in ((torch.ones(3, 2), torch.ones(2)), None, torch.ones(())):
        with pytest.raises(VariationError, match="same number"):
            tau1_emulated([model], lambda m, x: m(x).sum(), [batch])


def test_batches_of_any_shape_are_permuted() -> None:
    model = nn.Linear(2, 2)

    def loss(model: nn.Module, batch: dict) -> Tensor:
        return (model(batch["x"]) * batch["y"][0]).sum() + len(batch["note"])

    batch = {"x": torch.randn(5, 2), "y": [torch.ones(5, 1)], "note": "kept"}
    assert tau1_emulated([model], loss, [batch]).n_pairs == 1


def test_tau2_is_the_smallest_positive_variation(lenet: Callable, digits: Callable) -> None:
    models = [lenet(0, torch.bfloat16), lenet(1, torch.bfloat16)]
    batches = [digits(q, 16, torch.bfloat16) for q in range(3)]
    found = tau2(models, cross_entropy, batches, selections=PAIR)
    all_of_them = [
        backprop_variation(m, cross_entropy, b, selections=PAIR).l1 for m in models for b in batches
    ]
    assert found.value == min(d for d in all_of_them if d > 0)
    assert found.n_pairs == 6
    assert found.n_positive == sum(d > 0 for d in all_of_them)


def test_tau2_is_undefined_where_nothing_differs(lenet: Callable, digits: Callable) -> None:
    """0 would be a threshold; there is none (ReLU'(0) = 0 against 1 in float32)."""
    found = tau2([lenet()], cross_entropy, [digits(0, 16)])
    assert found.value is None
    assert str(found) == "tau2 is undefined: no variation was found (0 of 1 pairs differ)"


def test_the_curve_over_tau_by_hand() -> None:
    values = [0.0, 1e-8, 3e-4, math.nan]
    assert tau_curve(values, [1e-3, 1e-9, 1e-6]) == ((1e-9, 0.75), (1e-6, 0.5), (1e-3, 0.25))


def test_the_curve_spans_the_variations() -> None:
    curve = tau_curve([2e-8, 3e-4])
    assert curve[0][1] == 1.0
    assert curve[-1][1] == 0.0
    assert [tau for tau, _ in curve] == sorted(tau for tau, _ in curve)


def test_no_variations_have_no_curve() -> None:
    with pytest.raises(VariationError):
        tau_curve([])
