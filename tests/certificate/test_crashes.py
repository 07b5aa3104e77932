"""Steps that ended in a bare exception: each has an answer, or an error that says what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, tensor

import numgeom
from numgeom.nonsmooth import zones
from numgeom.recording import record_callable
from numgeom.results.guarantee import Guarantee


def certified(step: Callable[[], Tensor], method: str = "auto") -> numgeom.Certificate:
    return numgeom.certify(lambda: step().backward(), method=method)


def leaf(*values: Any) -> Tensor:
    return tensor(values if len(values) != 1 else values[0], requires_grad=True)


class Cancelled(nn.Module):
    """A difference that is 0 over the reals, under a root: its sensitivity overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(tensor([0.1, 0.2], dtype=torch.float32))
        self.v = nn.Parameter(torch.ones(2))

    def forward(self, batch: None) -> Tensor:
        return ((self.w * self.v - self.w * self.v) + 1e-30).sqrt().sum()


@pytest.mark.parametrize("method", ["auto", "ball", "kantorovich", "functional"])
def test_a_sensitivity_beyond_the_range_leaves_no_bound(method: str):
    certificate = numgeom.certify(Cancelled(), lambda m, b: m(b), None, method=method)
    assert certificate.guarantee <= Guarantee.ESTIMATED
    assert certificate.notes


def test_empty_rows_and_matrices_are_certified():
    rows, square, w = torch.zeros(5, 0, requires_grad=True), torch.zeros(0, 0).double(), leaf(1.5)
    square = square.float().requires_grad_()
    steps: list[Callable[[], Tensor]] = [
        lambda: torch.softmax(rows, 1).sum() + w * w,
        lambda: torch.log_softmax(rows, 1).sum() + w * w,
        lambda: torch.linalg.det(square) * w,
        lambda: torch.linalg.slogdet(square)[1] + w * w,
        lambda: torch.linalg.inv(square).sum() + w * w,
        lambda: torch.linalg.solve(square, square).sum() + w * w,
    ]
    for i, step in enumerate(steps):
        certificate = certified(step)
        assert certificate.guarantee is Guarantee.PROVED, (i, certificate.notes)


def test_an_empty_batch_is_diagnosed():
    w = leaf(1.0, 2.0)
    found = numgeom.diagnose(lambda: F.rms_norm(torch.ones(0, 2), (2,), w).sum().backward())
    assert not found


@pytest.mark.parametrize("method", ["auto", "kantorovich", "functional"])
def test_reductions_of_a_single_number_are_certified(method: str):
    x = leaf(0.5)
    steps: list[Callable[[], Tensor]] = [
        lambda: F.cosine_similarity(x, tensor(2.0), dim=0) + x * x,
        lambda: x.exp().sum(0),
        lambda: x.exp().mean(0) * x,
        lambda: x.amax(0) * x,
        lambda: torch.softmax(x, 0) * x,
    ]
    for i, step in enumerate(steps):
        certificate = certified(step, method)
        assert not [n for n in certificate.notes if "fault" in n], (i, certificate.notes)
        zones_of_step = numgeom.diagnose(lambda s=step: s().backward())
        assert zones_of_step is not None


def test_a_single_score_has_a_margin():
    x = leaf(0.3)
    assert certified(lambda: F.multi_margin_loss(x, tensor(0))).guarantee is Guarantee.PROVED


def test_a_scatter_by_strides_into_a_matrix_is_certified():
    a, part = torch.rand(3, 3, requires_grad=True), torch.rand(2, 2, requires_grad=True)

    def step() -> Tensor:
        return (torch.as_strided_scatter(a, part, (2, 2), (2, 1), 1) ** 2).sum()

    certificate = certified(step)
    assert certificate.guarantee is Guarantee.PROVED
    program = record_callable(lambda: step().backward())
    opened = program.decompose(device="cpu").replay(torch.float64).gradients
    want = program.replay(torch.float64).gradients
    assert all(torch.equal(opened[name], want[name]) for name in want)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("linalg_lu_factor", lambda a: torch.linalg.lu_factor(a)[0].sum()),
        ("linalg_qr", lambda a: torch.linalg.qr(a)[1].sum()),
        (
            "grid_sampler_2d",
            lambda a: F.grid_sample(
                a[None, None], torch.zeros(1, 2, 2, 2), mode="bicubic", align_corners=False
            ).sum(),
        ),
    ],
)
def test_an_op_that_cannot_be_opened_leaves_no_bound_and_is_named(
    name: str, step: Callable[[Tensor], Tensor]
):
    a = torch.randn(2, 3, requires_grad=True)
    assert certified(lambda: step(a), "reference").guarantee is Guarantee.ESTIMATED
    for method in ("auto", "ball", "kantorovich", "functional"):
        certificate = certified(lambda: step(a), method)
        assert certificate.guarantee is Guarantee.NONE
        assert certificate.total.error_bound is None
        assert any(name in note and "test_crashes.py" in note for note in certificate.notes)


@pytest.mark.parametrize("method", ["auto", "ball", "kantorovich", "functional"])
def test_gradients_of_complex_parameters_are_compared_but_not_bounded(method: str):
    model = nn.Linear(3, 2, dtype=torch.complex64)
    batch = torch.randn(4, 3, dtype=torch.complex64)
    certificate = numgeom.certify(
        model, lambda m, b: m(b).abs().square().sum(), batch, method=method
    )
    assert certificate.replay_is_identical
    assert certificate.guarantee is Guarantee.NONE
    assert 0.0 < certificate.total.observed_error < 1e-6
    (note,) = [note for note in certificate.notes if note.startswith("No bound")]
    assert "complex parameters (weight, bias)" in note


def test_complex_numbers_inside_a_step_are_recorded_and_certified():
    x, y = leaf(1.0, 2.0), leaf(3.0, 5.0)
    z = tensor([1 + 2j, 3 - 1j])
    program = record_callable(lambda: (torch.complex(x, y) * z).real.sum().backward())
    again = program.replay(None).gradients
    assert all(torch.equal(g, again[n]) for n, g in program.recorded.gradients.items())


def test_zones_of_a_tie_before_a_sum_that_is_not_kept():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(tensor([1.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            r = torch.relu(self.w * x)
            return (r.exp() + r * 3).square().sum()

    found = zones(Model(), lambda m, x: m(x), tensor([1.0, 0.0]))
    assert found.zone in ("regular", "compensation", "bifurcation")


def test_zones_where_autograd_multiplies_by_a_number():
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return torch.cumprod(torch.sigmoid(model(x)).clamp(max=0.99), 1).sum()

    assert zones(nn.Linear(3, 4), loss, torch.randn(2, 3)).zone == "regular"


def test_a_mask_that_is_added_is_diagnosed():
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        h = model(x)
        return (h + (h > 0)).square().sum() + ((h + 1e6) - 1e6).square().sum()

    found = numgeom.diagnose(nn.Linear(4, 4), loss, torch.randn(3, 4))
    assert "cancellation" in str(found)


def test_the_sources_of_summed_products_are_known():
    m = nn.Module()
    m.p = nn.ParameterList([torch.randn(2, 3), torch.randn(4, 2, 2), torch.randn(4, 2, 3)])

    def loss(model: Any, batch: None) -> Tensor:
        return torch.addbmm(*model.p).square().sum()

    assert numgeom.certify(m, loss, None).sources()
    predicted = numgeom.estimate(m, loss, None).total.predicted_error
    observed = numgeom.certify(m, loss, None).total.observed_error
    assert 0.1 < predicted / observed < 10.0
