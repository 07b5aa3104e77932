"""Does a certificate state the true error of a gradient?"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from numgeom.certificate import Certificate, CertificateError, Guarantee
from numgeom.certificate import certify as certify_with_bounds
from numgeom.errors import NumgeomError
from numgeom.recording import record_step

# What is measured; bounds have tests of their own.
certify = partial(certify_with_bounds, method="reference")


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def regression() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return nn.Linear(5, 1), (torch.randn(7, 5), torch.randn(7, 1))


def rational(tensor: Tensor) -> list[Any]:
    """The exact values of a tensor of one or two dimensions."""
    if tensor.dim() == 1:
        return [Fraction(value) for value in tensor.tolist()]
    return [rational(line) for line in tensor]


def exact_regression_gradient(
    model: nn.Linear, batch: tuple[Tensor, Tensor]
) -> dict[str, list[Fraction]]:
    """The gradient of mean((Wx + b - y)^2) in rational arithmetic, written out by hand."""
    (weight,), (bias,) = rational(model.weight.detach()), rational(model.bias.detach())
    xs, ys = rational(batch[0]), [y for (y,) in rational(batch[1])]
    scale = Fraction(2, len(xs))
    residuals = [
        sum(w * v for w, v in zip(weight, x, strict=True)) + bias - y
        for x, y in zip(xs, ys, strict=True)
    ]
    slopes = [
        scale * sum(r * x[j] for r, x in zip(residuals, xs, strict=True))
        for j in range(len(weight))
    ]
    return {"weight": slopes, "bias": [scale * sum(residuals)]}


def relative_error(computed: list[Any], exact: list[Any]) -> float:
    with mpmath.workdps(50):
        numbers = [(_mpf(a), _mpf(b)) for a, b in zip(computed, exact, strict=True)]
        error = mpmath.sqrt(sum((a - b) ** 2 for a, b in numbers))
        return float(error / mpmath.sqrt(sum(b**2 for _, b in numbers)))


def _mpf(value: Any) -> mpmath.mpf:
    if isinstance(value, Fraction):
        return mpmath.mpf(value.numerator) / value.denominator
    return mpmath.mpf(value)


def gradients(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batch: Any
) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss_fn(model, batch), list(model.parameters()))
    return {name: g for (name, _), g in zip(model.named_parameters(), found, strict=True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_that_against_rational_arithmetic(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    model, batch = regression()
    model, batch = model.to(dtype), (batch[0].to(dtype), batch[1].to(dtype))
    exact = exact_regression_gradient(model, batch)
    computed = gradients(model, squared_error, batch)
    certificate = certify(model, squared_error, batch)
    assert certificate.guarantee is Guarantee.ESTIMATED
    everything: tuple[list[float], list[Fraction]] = ([], [])
    for name, accuracy in certificate.parameters.items():
        values = computed[name].flatten().tolist()
        everything[0].extend(values)
        everything[1].extend(exact[name])
        # The reference is wrong by about 1e-16 of its size: absolute slack of 1e-14 in the ratio.
        expected = relative_error(values, exact[name])
        assert accuracy.observed_error == pytest.approx(expected, rel=1e-6, abs=1e-14)
        largest = max(abs(Fraction(a) - b) for a, b in zip(values, exact[name], strict=True))
        assert accuracy.largest_entry_error == pytest.approx(float(largest), rel=1e-6, abs=1e-14)
    expected = relative_error(*everything)
    assert certificate.total.observed_error == pytest.approx(expected, rel=1e-6, abs=1e-14)
    assert certificate.total.observed_error > 0.0


def test_the_error_of_a_tanh_network_is_that_against_fifty_digits() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    certificate = certify(model, squared_error, (x, y))
    computed = gradients(model, squared_error, (x, y))
    with mpmath.workdps(50):
        w1, b1, w2, b2 = (mpmath.matrix(p.detach().tolist()) for p in model.parameters())
        exact = [mpmath.zeros(m.rows, m.cols) for m in (w1, b1, w2, b2)]
        for row, target in zip(x.tolist(), y.tolist(), strict=True):
            point = mpmath.matrix(row)
            hidden = (w1 * point + b1).apply(mpmath.tanh)
            slope = 2 * ((w2 * hidden + b2)[0] - target[0]) / len(x)
            exact[2] += slope * hidden.T
            exact[3] += mpmath.matrix([slope])
            inner = mpmath.matrix([slope * w2[j] * (1 - hidden[j] ** 2) for j in range(4)])
            exact[0] += inner * point.T
            exact[1] += inner
    for accuracy, truth in zip(certificate.parameters.values(), exact, strict=True):
        expected = relative_error(computed[accuracy.name].flatten().tolist(), list(truth))
        assert accuracy.observed_error == pytest.approx(expected, rel=1e-6, abs=1e-14)
    assert 1e-9 < certificate.total.observed_error < 1e-6


def test_the_three_forms_agree() -> None:
    model, batch = regression()

    def step() -> None:
        squared_error(model, batch).backward()

    by_model = certify(model, squared_error, batch)
    by_program = certify(record_step(model, squared_error, batch))
    by_step = certify(step)
    assert by_program.parameters == by_model.parameters
    assert by_step.total == by_model.total
    assert [row.observed_error for row in by_step.parameters.values()] == [
        row.observed_error for row in by_model.parameters.values()
    ]


def test_nothing_of_the_users_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    x = torch.randn(8, 4)
    model(x).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    slopes = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    kept = [p.grad for p in model.parameters()]
    random_state = torch.get_rng_state()
    certify(model, lambda model, x: model(x).square().sum(), x)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is grad for p, grad in zip(model.parameters(), kept, strict=True))
    assert all(
        torch.equal(a, b.grad) for a, b in zip(slopes, model.parameters(), strict=True)
        if b.grad is not None
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), random_state)


def test_gradients_from_elsewhere_are_judged_in_place_of_the_recorded_ones() -> None:
    model, batch = regression()
    program = record_step(model, squared_error, batch)
    reference = program.replay(torch.float64).gradients
    wrong = {name: (gradient * 1.5).float() for name, gradient in reference.items()}
    certificate = certify(program, computed=wrong)
    assert certificate.total.observed_error == pytest.approx(0.5)
    assert certificate.replay_is_identical is True
    assert any("given" in note for note in certificate.notes)


def test_gradients_from_elsewhere_may_be_sparse_and_on_record_as_missing() -> None:
    model, batch = regression()
    program = record_step(model, squared_error, batch)
    given = dict(program.recorded.gradients)
    given["weight"] = given["weight"].to_sparse()
    certificate = certify(program, computed={**given, "frozen": None})
    assert certificate.parameters == certify(program).parameters


def test_all_problems_of_given_gradients_are_named_at_once() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    program = record_step(model, lambda model, x: model(x).sum(), torch.ones(1, 2))
    given: dict[str, Any] = {
        "0.weight": torch.ones(3, 3),
        "0.bias": [1.0, 2.0, 3.0],
        "1.weight": torch.ones(1, 3, dtype=torch.int64),
        "extra": torch.ones(1),
    }
    with pytest.raises(CertificateError) as caught:
        certify(program, computed=given)
    for problem in (
        "0.weight: of shape (3, 3), but the parameter has (3, 2)",
        "0.bias: of type list",
        "1.weight: of torch.int64",
        "1.bias: missing",
        "extra: the recorded step has no gradient of this name",
    ):
        assert problem in str(caught.value)


def test_non_finite_values_given_from_elsewhere_are_found() -> None:
    model, batch = regression()
    program = record_step(model, squared_error, batch)
    given = {name: gradient.clone() for name, gradient in program.recorded.gradients.items()}
    given["weight"][0, 0] = math.inf
    found = certify(program, computed=given).first_nonfinite
    assert found is not None
    assert (found.value, found.origin, found.reached) == ("Inf", "given", ("weight",))


def tampered(change: float) -> Certificate:
    model, batch = regression()
    program = record_step(model, squared_error, batch)
    gradients = dict(program.recorded.gradients)
    gradients["bias"] = gradients["bias"] + change
    recorded = dataclasses.replace(program.recorded, gradients=gradients)
    return certify(dataclasses.replace(program, recorded=recorded))


def test_a_recording_that_is_not_the_computation_has_no_guarantee() -> None:
    certificate = tampered(0.25)
    assert certificate.replay_is_identical is False
    assert certificate.guarantee is Guarantee.NONE
    levels = {row.guarantee for row in (certificate.total, *certificate.parameters.values())}
    assert levels == {Guarantee.NONE}
    (note,) = (note for note in certificate.notes if "does not reproduce" in note)
    assert "2.50e-01" in note
    assert "bias" in note


def test_one_bit_is_enough_to_notice() -> None:
    model, batch = regression()
    program = record_step(model, squared_error, batch)
    gradients = dict(program.recorded.gradients)
    gradients["bias"] = torch.nextafter(gradients["bias"], torch.tensor(math.inf))
    program = dataclasses.replace(
        program, recorded=dataclasses.replace(program.recorded, gradients=gradients)
    )
    assert certify(program).replay_is_identical is False
    assert certify(program, check_replay=False).replay_is_identical is None


def test_the_sign_of_a_zero_is_a_bit_too() -> None:
    model = nn.Linear(1, 1, bias=False)
    program = record_step(model, lambda model, x: model(x).sum(), torch.zeros(1, 1))
    gradients = {name: -gradient for name, gradient in program.recorded.gradients.items()}
    program = dataclasses.replace(
        program, recorded=dataclasses.replace(program.recorded, gradients=gradients)
    )
    assert certify(program).replay_is_identical is False


def test_two_nans_are_the_same_whatever_their_bits() -> None:
    model, batch = regression()
    program = record_step(model, lambda model, b: (model(b[0]) * math.nan).sum(), batch)
    gradients = {name: -gradient for name, gradient in program.recorded.gradients.items()}
    program = dataclasses.replace(
        program, recorded=dataclasses.replace(program.recorded, gradients=gradients)
    )
    assert certify(program).replay_is_identical is True


def test_gradients_in_float64_are_never_called_exact() -> None:
    model, batch = regression()
    certificate = certify(model.double(), squared_error, (batch[0].double(), batch[1].double()))
    assert certificate.guarantee is Guarantee.NONE
    for row in (certificate.total, *certificate.parameters.values()):
        assert (row.guarantee, row.digits) == (Guarantee.NONE, None)
        assert math.isnan(row.observed_error)
    assert any("float64" in note and "says nothing" in note for note in certificate.notes)


def test_a_single_parameter_in_float64_is_singled_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).double())
    certificate = certify(
        model, lambda model, x: model[1](model[0](x).double()).sum(), torch.ones(3, 2)
    )
    levels = [row.guarantee for row in certificate.parameters.values()]
    assert levels == [Guarantee.ESTIMATED] * 2 + [Guarantee.NONE] * 2
    assert certificate.guarantee is Guarantee.NONE


def test_parameters_without_a_gradient_are_listed() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    model["frozen"] = nn.Linear(2, 1).requires_grad_(False)
    certificate = certify(model, lambda model, x: model["used"](x).sum(), torch.ones(1, 2))
    assert certificate.without_gradient == ("unused.weight", "unused.bias")
    assert list(certificate.parameters) == ["used.weight", "used.bias"]
    assert any("unused.weight" in note for note in certificate.notes)


def test_gradients_that_are_zero_are_noted() -> None:
    model = nn.Linear(3, 1)
    certificate = certify(model, lambda model, x: model(x).sum(), torch.zeros(1, 3))
    assert certificate.parameters["weight"].observed_error == 0.0
    assert any("Exactly zero" in note and "weight" in note for note in certificate.notes)


def test_gradients_that_underflow_are_noted() -> None:
    model = nn.Linear(1, 1, bias=False).half()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) * 1e-4).sum() * 1e-5

    certificate = certify(model, loss, torch.ones(1, 1).half())
    assert certificate.parameters["weight"].observed_error == pytest.approx(1.0)
    assert any("Zero as computed" in note for note in certificate.notes)


def test_a_step_that_ends_in_nan_has_a_certificate() -> None:
    model, batch = regression()
    certificate = certify(model, lambda model, b: model(b[0]).log().sum(), batch)
    assert certificate.first_nonfinite is not None
    assert certificate.guarantee is Guarantee.NONE
    assert certificate.replay_is_identical is True
    assert certificate.computed_loss is not None
    assert math.isnan(certificate.computed_loss)


def test_without_a_radius_nothing_is_bounded() -> None:
    model, batch = regression()
    certificate = certify(model, squared_error, batch)
    assert certificate.method == "reference"
    assert certificate.total.error_bound is None
    assert certificate.total.tightness is None
    with pytest.raises(CertificateError):
        certificate.entrywise_bound("weight")
    assert any("not bounded" in assumption for assumption in certificate.assumptions)


def test_progress_is_told_and_ends_at_the_end() -> None:
    told: list[tuple[str, int, int]] = []
    model, batch = regression()
    certify(model, squared_error, batch, progress=lambda *step: told.append(step))
    phases = list(dict.fromkeys(what for what, _, _ in told))
    assert phases == ["recording", "reference in float64", "replay in the recorded formats"]
    for phase in phases[1:]:
        steps = [(done, count) for what, done, count in told if what == phase]
        assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
        assert len({count for _, count in steps}) == 1
        assert steps[-1][0] <= steps[-1][1] <= steps[-1][0] + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Linear(1, 1),), "no loss function"),
        ((nn.Linear(1, 1), squared_error), "no batch"),
        ((nn.Linear(1, 1), 3, None), "type int, which cannot be called"),
        ((lambda: None, squared_error), "only with a model"),
        ((3,), "type int. It takes a model"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        certify(*arguments)


def test_a_batch_of_none_is_a_batch() -> None:
    certificate = certify(nn.Linear(1, 1), lambda model, _: model(torch.ones(1, 1)).sum(), None)
    assert certificate.guarantee is Guarantee.ESTIMATED


def test_every_error_of_the_package_has_one_base() -> None:
    assert issubclass(CertificateError, NumgeomError)


@pytest.mark.cuda
def test_a_gradient_from_a_gpu_is_judged_by_a_reference_on_the_cpu() -> None:
    model, batch = regression()
    model, batch = model.cuda(), (batch[0].cuda(), batch[1].cuda())
    for device in (None, "cpu"):
        certificate = certify(model, squared_error, batch, device=device)
        assert certificate.guarantee is Guarantee.ESTIMATED
        assert certificate.total.observed_error < 1e-5


def test_error_functionals_bound_the_computed_gradient() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.randn(4, 6)
    given = certify(model, lambda m, b: m(b).square().sum(), x, method="functional")
    assert given.guarantee is Guarantee.PROVED
    assert given.method == "functional"
    assert given.total.error_bound is not None
    assert given.total.observed_error <= given.total.error_bound < 1e-5
    # A gradient from elsewhere is judged by its distance to the one that ran.
    program = record_step(model, lambda m, b: m(b).square().sum(), x)
    moved = {name: g + 1e-2 for name, g in program.recorded.gradients.items()}
    judged = certify(program, method="functional", computed=moved)
    assert judged.total.error_bound is not None
    assert judged.total.observed_error <= judged.total.error_bound
    assert judged.total.error_bound > 1e-4
