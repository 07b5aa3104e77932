"""Does the word of a certificate fall where an assumption that it prints does not hold here?

One test for each assumption that can be broken from outside; `docs/guarantees.md` lists them. Where
a setting of torch must not matter, bounds are compared bit for bit.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor, nn

import numgeom
from numgeom.arithmetic.assumptions import ArithmeticAssumptionError
from numgeom.certificate import Certificate, Guarantee, certify
from numgeom.nonsmooth import hull
from numgeom.recording import decompose, record_step

METHODS = ("auto", "ball", "kantorovich", "functional", "reference")
Subject = tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor]


def subject() -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, (lambda m, x: m(x).square().mean()), torch.randn(5, 3)


@contextmanager
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def is_void(certificate: Certificate) -> bool:
    rows = [certificate.total, *certificate.parameters.values()]
    words = {certificate.guarantee, *(row.guarantee for row in rows)}
    return words == {Guarantee.NONE} and all(row.error_bound is None for row in rows)


@pytest.mark.parametrize("method", METHODS)
def test_flushing_of_subnormal_numbers_voids_every_certificate(method: str) -> None:
    with flushing():
        certificate = certify(*subject(), method=method)
    assert is_void(certificate)
    assert any("set_flush_denormal" in note for note in certificate.notes)


def test_flushing_of_subnormal_numbers_stops_what_else_is_proved() -> None:
    model, loss_fn, batch = subject()
    with numgeom.track(model) as tracking:
        loss_fn(model, batch).backward()
    with flushing(), pytest.raises(ArithmeticAssumptionError, match="flush"):
        _ = tracking.result
    with flushing(), pytest.raises(ArithmeticAssumptionError, match="flush"):
        hull(model, loss_fn, batch)


@pytest.mark.parametrize("method", METHODS)
def test_sums_in_a_shorter_format_void_every_certificate(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that multiplies matrices in float32, whatever it is given."""
    plain = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda a, b: plain(a.float(), b.float()).to(a.dtype))
    numgeom.arithmetic.assumptions._products_are_exact.cache_clear()
    try:
        assert is_void(certify(*subject(), method=method))
    finally:
        numgeom.arithmetic.assumptions._products_are_exact.cache_clear()


def test_a_wrong_opening_is_found_in_one_small_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that hardly counts in the total has a bound of its own, so it is compared, too."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        first, act, last = model.children()
        # The first layer's gradient is a millionth of a millionth of the last one's.
        return last(x.new_ones(1, 4) * 1e3).square().sum() + act(first(x)).sum() * 1e-9

    table = dict(decompose.decompositions())
    table[torch.ops.aten.tanh_backward.default] = lambda g, y: g * (1 - y)
    monkeypatch.setattr(decompose, "decompositions", lambda: table)
    for method in ("ball", "kantorovich"):
        certificate = certify(model, loss_fn, torch.randn(5, 3), method=method)
        assert certificate.total.error_bound is None
        assert certificate.guarantee <= Guarantee.ESTIMATED
        assert any("do not agree" in note for note in certificate.notes)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def low_matmul_precision() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch announce a new name for it
        torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision("highest")


SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "deterministic algorithms": deterministic,
    "float32 products in short formats": low_matmul_precision,
    "oneDNN off": lambda: torch.backends.mkldnn.flags(enabled=False),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", ["ball", "kantorovich", "functional"])
def test_settings_of_torch_do_not_touch_the_bounds_of_a_recorded_step(
    setting: str, method: str
) -> None:
    program = record_step(*subject())
    plain = certify(program, method=method, check_replay=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anomaly detection warns of its cost
        with SETTINGS[setting]():
            found = certify(program, method=method, check_replay=False)
    assert found.guarantee is plain.guarantee
    assert found.total.error_bound == plain.total.error_bound
    assert found.total.radius == plain.total.radius
    for name in plain.parameters:
        assert torch.equal(found.entrywise_bound(name), plain.entrywise_bound(name))


@pytest.mark.parametrize("method", ["ball", "reference"])
def test_a_recording_that_nobody_compared_with_the_step_is_an_assumption(method: str) -> None:
    checked = certify(*subject(), method=method)
    unchecked = certify(*subject(), method=method, check_replay=False)
    (more,) = set(unchecked.assumptions) - set(checked.assumptions)
    assert more.startswith("The recorded calls are the computation")
