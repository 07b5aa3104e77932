"""Does a bound lose its word where the accuracies below it were measured on other processors?"""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import numgeom
from numgeom.arithmetic import elementary
from numgeom.arithmetic.accuracy import Accuracy, default_table
from numgeom.arithmetic.reliance import accuracy_of, relying, support
from numgeom.functionals import track
from numgeom.nonsmooth import hull
from numgeom.results.guarantee import Guarantee


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that was never measured."""
    monkeypatch.setattr(elementary, "capability", lambda: "SVE512")


def step(activation: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 1)), torch.randn(5, 3)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def entry(function: str = "exp") -> Accuracy:
    found = default_table().find(function, torch.float64)
    assert found is not None
    return found


def test_only_what_is_used_is_noted():
    with relying() as outer:
        accuracy_of("exp", torch.float64)
        with relying() as inner:
            accuracy_of("tanh", torch.float64)
            assert accuracy_of("airy", torch.float64) is None
        assert {e.function for e in inner} == {"tanh"}
    assert {e.function for e in outer} == {"exp", "tanh"}
    accuracy_of("exp", torch.float64)  # outside a block: found, and noted nowhere
    assert len(outer) == 2


@pytest.mark.parametrize("method", ["ball", "kantorovich", "functional", "auto"])
def test_certificates_are_estimates_on_a_processor_that_was_never_measured(
    method: str, elsewhere: None
):
    model, x = step(nn.Tanh())
    certificate = numgeom.certify(model, loss, x, method=method)
    assert certificate.guarantee is Guarantee.ESTIMATED
    assert {row.guarantee for row in certificate.parameters.values()} == {Guarantee.ESTIMATED}
    assert certificate.total.guarantee is Guarantee.ESTIMATED
    assert certificate.total.error_bound is not None
    (note,) = [note for note in certificate.notes if "never measured" in note]
    assert "tanh" in note
    assert "SVE512" in note


@pytest.mark.parametrize("method", ["ball", "kantorovich", "functional"])
def test_a_step_without_elementary_functions_rests_on_no_measurement(method: str, elsewhere: None):
    model, x = step(nn.Hardtanh())
    certificate = numgeom.certify(model, loss, x, method=method)
    assert certificate.guarantee >= Guarantee.CERTIFIED
    assert not [note for note in certificate.notes if "measured" in note]


@pytest.mark.parametrize("method", ["ball", "kantorovich", "functional"])
def test_where_it_was_measured_nothing_is_noted(method: str):
    entries = [default_table().find(name, torch.float64) for name in ("tanh", "exp", "sigmoid")]
    if not all(e is not None and default_table().describes(e) for e in entries):
        pytest.skip("the kernels of this process are not those of the table")
    model, x = step(nn.Tanh())
    certificate = numgeom.certify(model, loss, x, method=method)
    assert certificate.guarantee >= Guarantee.CERTIFIED
    assert not [note for note in certificate.notes if "measured" in note]


def test_a_hull_of_a_backward_pass_that_only_multiplies_rests_on_no_measurement(elsewhere: None):
    model, x = step(nn.Tanh())
    assert hull(model, loss, x).guarantee is Guarantee.PROVED


def test_functionals_and_hulls_are_estimates_as_well(elsewhere: None):
    model, x = step(nn.Tanh())
    with track(model) as tracking:
        loss(model, x).backward()
    assert tracking.guarantee is Guarantee.ESTIMATED
    model, x = step(nn.GELU())
    assert hull(model, loss, x).guarantee is Guarantee.ESTIMATED


def test_other_kernels_under_a_known_name_are_not_the_measured_ones(
    monkeypatch: pytest.MonkeyPatch,
):
    """The name of the instruction set is not enough: the results on fixed arguments decide."""
    monkeypatch.setattr(elementary, "fingerprint", lambda name, dtype: "0" * 12)
    assert not support({entry("sigmoid")}).holds
    assert support(set()).holds


def test_what_the_maker_documents_stands_in_for_a_measurement(monkeypatch: pytest.MonkeyPatch):
    """Intel's vector mathematics chooses its kernels by the processor's maker and age."""
    monkeypatch.setattr(elementary, "fingerprint", lambda name, dtype: "0" * 12)
    monkeypatch.setattr(elementary, "architecture", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    capability = elementary.capability()
    known = dataclasses.replace(entry("tanh"), capability=capability)
    answer = support({known})
    assert answer.holds
    assert "tanh" in answer.notes[0]
    assert "documents" in answer.notes[0]
    assert not support({dataclasses.replace(known, allowed_ulps=0.75)}).holds
    assert not support({dataclasses.replace(known, function="sigmoid")}).holds
    assert not support({dataclasses.replace(known, capability="SVE512")}).holds
    monkeypatch.setattr(elementary, "architecture", lambda: "aarch64")
    assert not support({known}).holds
    monkeypatch.setattr(elementary, "architecture", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not support({known}).holds


def test_many_names_are_counted():
    names = ("exp", "log", "sin", "cos", "tan", "tanh")
    entries = {dataclasses.replace(entry(name), capability="SVE512") for name in names}
    (note,) = support(entries).notes
    assert "cos, exp, log, sin and 2 more functions" in note


def test_a_function_that_is_one_operation_needs_no_measurement(monkeypatch: pytest.MonkeyPatch):
    square = dataclasses.replace(entry("pow(2)"), capability="SVE512", fingerprint="0" * 12)
    assert support({square}).holds
    monkeypatch.setattr(elementary, "COMPUTED", {"pow(2)": lambda x: x * x * (1 + 2.0**-52)})
    elementary.is_one_operation.cache_clear()
    try:
        assert not support({square}).holds
    finally:
        elementary.is_one_operation.cache_clear()
