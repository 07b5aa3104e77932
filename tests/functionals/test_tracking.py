import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from numgeom.errors import FileFormatError, RecordingError
from numgeom.functionals import FunctionalError, Tracking, track


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4))


def tracked(net: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> Tracking:
    net = (model() if net is None else net).to(dtype)
    torch.manual_seed(1)
    x, y = torch.randn(8, 20).to(dtype), torch.randint(0, 4, (8,))
    with track(net) as tracking:
        F.cross_entropy(net(x), y).backward()
    return tracking


def test_the_step_is_what_it_would_have_been() -> None:
    plain, watched = model(), model()
    torch.manual_seed(1)
    x, y = torch.randn(8, 20), torch.randint(0, 4, (8,))
    F.cross_entropy(plain(x), y).backward()
    with track(watched):
        F.cross_entropy(watched(x), y).backward()
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


def test_every_gradient_and_module_has_a_functional() -> None:
    tracking = tracked()
    assert tracking.guarantee == "PROVED"
    assert list(tracking.gradients) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for row in tracking.gradients.values():
        assert 0 < row.error_bound < 1e-4
        assert row.functional.stretch > 0
        # The composition pays for inputs that are off, and never less than the run's own bound.
        assert row.functional.added >= row.error_bound * row.norm * 0.5
    assert set(tracking.modules) == {"", "0", "1", "2"}
    tanh = tracking.modules["1"]
    assert tanh.forward is not None
    assert 0.1 < tanh.forward.stretch <= 1.0001
    assert all(each.total is not None for each in tracking.modules.values())
    assert tracking.modules[""].own_error >= tracking.modules["0"].own_error > 0


def test_a_module_s_functional_bounds_what_it_does_to_a_perturbation() -> None:
    tracking, net = tracked(), model().double()
    forward = tracking.modules["0"].forward
    # Parameters and data are exact for a module, so the first layer stretches nothing.
    assert forward is not None
    assert forward.stretch == 0.0
    last = tracking.modules["2"].forward
    assert last is not None
    assert last.stretch >= float(torch.linalg.matrix_norm(net[2].weight.detach(), 2))


def test_the_bound_holds_and_narrower_formats_have_larger_ones() -> None:
    bounds = []
    for dtype in (torch.float32, torch.bfloat16):
        tracking = tracked(dtype=dtype)
        reference = tracking.program.replay().gradients
        for name, row in tracking.gradients.items():
            computed = tracking.program.recorded.gradients[name].double()
            error = float((computed - reference[name]).norm() / reference[name].norm())
            assert error <= row.error_bound
        bounds.append(tracking.total.error_bound)
    assert bounds[1] > 1e3 * bounds[0]


def test_bits_follow_the_tolerance() -> None:
    tracking = tracked()
    assert tracking.bits(1e-2) < tracking.bits(1e-4) < tracking.bits(1e-6)
    assert tracking.bits(1e-3) - tracking.bits(1e-3 * 2**5) == 5
    with pytest.raises(FunctionalError, match="positive"):
        tracking.bits(0.0)


def test_the_result_can_be_printed_and_saved(tmp_path: Path) -> None:
    tracking = tracked()
    text = str(tracking)
    assert "guarantee PROVED" in text
    assert "2.weight" in text
    tracking.save(tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert document["schema"] == "numgeom.tracking"
    assert (
        document["gradients"]["0.bias"]["error_bound"] == tracking.gradients["0.bias"].error_bound
    )
    with pytest.raises(FileFormatError, match="nowhere"):
        tracking.save(tmp_path / "nowhere" / "result.json")


def test_what_has_no_rule_is_said_first() -> None:
    class Custom(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_y0(x.detach().abs() + 1) * x

    tracking = tracked(nn.Sequential(nn.Linear(20, 4), Custom()))
    assert tracking.guarantee == "NONE"
    assert str(tracking).startswith("GUARANTEE NONE")
    assert tracking.total.error_bound == float("inf")
    assert json.loads(tracking.to_json())["total"]["error_bound"] is None


def test_errors_say_what_to_do() -> None:
    tracking = track(model())
    with pytest.raises(RecordingError, match="entered"):
        _ = tracking.total
    with pytest.raises(RecordingError, match="backward"), track(model()):
        pass
    with pytest.raises(RecordingError, match="requires a gradient"):
        track(model().requires_grad_(False))
