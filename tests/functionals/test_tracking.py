import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from numgeom.certificate import Guarantee
from numgeom.errors import FileFormatError, RecordingError
from numgeom.functionals import FunctionalError, Tracking, TrackingResult, track


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
    assert tracking.guarantee is Guarantee.PROVED
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
    for i in (0, 2):  # parameters are exact for a module, data and activations are not
        forward = tracking.modules[str(i)].forward
        assert forward is not None
        norm = float(torch.linalg.matrix_norm(net[i].weight.detach(), 2))
        assert norm <= forward.stretch <= 1.2 * norm


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


def test_bits_follow_the_tolerance_in_every_module() -> None:
    tracking = tracked()
    loose, tight = tracking.bits(1e-2), tracking.bits(1e-2 / 2**5)
    assert set(loose) == {"", "0", "1", "2"}
    assert {path: bits + 5 for path, bits in loose.items()} == tight
    with pytest.raises(FunctionalError, match="positive"):
        tracking.bits(0.0)


def test_a_module_that_rounds_more_needs_more_bits() -> None:
    class Shift(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1000.0) - 1000.0

    torch.manual_seed(0)
    bits = tracked(nn.Sequential(nn.Linear(20, 16), Shift(), nn.Linear(16, 4))).bits(1e-3)
    assert bits["1"] > 5 + max(bits["0"], bits["2"])


def test_the_expected_error_is_between_the_error_and_its_bound() -> None:
    tracking = tracked()
    reference = tracking.program.replay().gradients
    for name, row in tracking.gradients.items():
        computed = tracking.program.recorded.gradients[name].double()
        error = float((computed - reference[name]).norm() / reference[name].norm())
        assert error / 2 < row.expected_error < row.functional.added / row.norm


def test_the_result_can_be_printed_saved_and_loaded(tmp_path: Path) -> None:
    tracking = tracked()
    text = str(tracking)
    assert "guarantee PROVED" in text
    assert "ESTIMATED" in text
    assert "2.weight" in text
    tracking.save(tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert document["schema"] == "numgeom.tracking"
    loaded = TrackingResult.load(tmp_path / "result.json")
    assert loaded == tracking.result
    assert str(loaded) == text
    assert loaded.bits(1e-3) == tracking.bits(1e-3)
    with pytest.raises(FileFormatError, match="nowhere"):
        tracking.save(tmp_path / "nowhere" / "result.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "JSON"),
        ("[]", "its top is no object"),
        ("{}", "without a schema"),
        ('{"schema": "numgeom.tracking", "version": 2}', "damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message):
        TrackingResult.load(path)
    with pytest.raises(FileFormatError):
        TrackingResult.load(tmp_path / "missing.json")


def test_what_has_no_rule_is_said_first() -> None:
    class Custom(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_y0(x.detach().abs() + 1) * x

    tracking = tracked(nn.Sequential(nn.Linear(20, 4), Custom()))
    assert tracking.guarantee is Guarantee.NONE
    assert str(tracking).startswith("Guarantee NONE")
    assert tracking.total.error_bound == float("inf")
    assert json.loads(tracking.to_json())["total"]["error_bound"] == "Infinity"
    with pytest.raises(FunctionalError, match="nothing bounds"):
        tracking.bits(1e-3)


def test_errors_say_what_to_do() -> None:
    tracking = track(model())
    with pytest.raises(RecordingError, match="entered"):
        _ = tracking.total
    with pytest.raises(RecordingError, match="backward"), track(model()):
        pass
    with pytest.raises(RecordingError, match="requires a gradient"):
        track(model().requires_grad_(False))
