"""Bounds that reach the user: outward, agreeing with the replay, and none where none is known."""

import math

import flint
import pytest
import torch
from torch import nn

from numgeom.certificate import Certificate, Guarantee, certify
from numgeom.recording import decompose, record_step
from tests.oracle.exact_program import exact_gradients


def _subject():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, (lambda m, x: m(x).square().mean()), torch.randn(5, 3)


@pytest.mark.parametrize("method", ["ball", "kantorovich"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bound_holds_for_what_the_user_computed(method, dtype):
    """Against the exact gradient of the step, entry by entry and in total, without slack."""
    model, loss_fn, x = _subject()
    model, x = model.to(dtype), x.to(dtype)
    program = record_step(model, loss_fn, x)
    certificate = certify(program, method=method)
    assert certificate.guarantee >= Guarantee.CERTIFIED
    before, flint.ctx.prec = flint.ctx.prec, 200
    try:
        exact = exact_gradients(program.decompose())
        errors, sizes = flint.arb(0), flint.arb(0)
        for name, numbers in exact.items():
            bound = certificate.entrywise_bound(name).reshape(-1).tolist()
            computed = program.recorded.gradients[name].double().reshape(-1).tolist()
            for e, c, b in zip(numbers.reshape(-1), computed, bound, strict=True):
                assert abs(e - flint.arb(c)) <= flint.arb(b)
                errors += (e - flint.arb(c)) ** 2
                sizes += e**2
        relative = (errors / sizes).sqrt()
        assert certificate.total.error_bound is not None
        assert relative <= flint.arb(certificate.total.error_bound)
    finally:
        flint.ctx.prec = before
    assert certificate.total.tightness is not None
    assert certificate.total.tightness < 1.01


def test_an_opened_program_that_computes_something_else_gives_no_bound(monkeypatch):
    """A wrong decomposition is another program; its certificate would be about that one."""
    table = dict(decompose.decompositions())
    table[torch.ops.aten.tanh_backward.default] = lambda g, y: g * (1 - y)
    monkeypatch.setattr(decompose, "decompositions", lambda: table)
    certificate = certify(*_subject())
    assert certificate.guarantee is Guarantee.ESTIMATED
    assert certificate.total.error_bound is None
    assert any("do not agree" in note for note in certificate.notes)


def test_an_op_without_a_rule_voids_the_guarantee_and_is_listed():
    model, _, x = _subject()
    certificate = certify(
        model, lambda m, b: torch.special.bessel_j0(m(b).detach() + 1).sum() * m(b).sum(), x
    )
    assert certificate.guarantee is Guarantee.NONE
    assert any("bessel_j0" in name for name in certificate.unknown_ops)
    assert certificate.total.error_bound is None


def test_bounds_survive_a_file(tmp_path):
    certificate = certify(*_subject(), method="ball")
    certificate.save(tmp_path / "c.pt")
    loaded = Certificate.load(tmp_path / "c.pt")
    assert loaded.total.error_bound == certificate.total.error_bound
    for name in certificate.parameters:
        assert torch.equal(loaded.entrywise_bound(name), certificate.entrywise_bound(name))
    assert math.isfinite(loaded.total.radius or math.inf)
