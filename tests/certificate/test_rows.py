"""Are units near their kink told from units at their kink, and never wrongly?"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import numgeom.certificate.kantorovich as theorem
from numgeom.certificate.kantorovich import kantorovich
from numgeom.certificate.rows import MOST, entry_radii
from numgeom.recording import Program, record
from tests.oracle.exact_program import contains, exact_gradients
from tests.oracle.radii import ratios

DEPTH = 12


class _Network(nn.Sequential):
    watched: nn.Parameter


def _deep(margin: float, decide: Callable[[Tensor], Tensor], units: int = 3) -> Program:
    """A deep network whose outputs, less what they are in float64, decide at a distance."""
    torch.manual_seed(0)
    layers = [m for _ in range(DEPTH) for m in (nn.Linear(8, 8), nn.Tanh())]
    model = _Network(*layers, nn.Linear(8, units)).double()
    with torch.no_grad():
        for parameter in model.parameters():  # so that a ball is far larger than what is in it
            parameter.mul_(2.5)
    x = torch.randn(2, 8, dtype=torch.float64)
    with torch.no_grad():
        shift = model(x) - margin
    model.watched = nn.Parameter(torch.zeros_like(shift))  # its gradient is what decides
    with record(model) as recording:
        y = model(x) - shift
        (decide(y) + y * model.watched).sum().backward()
    return recording.program.decompose()


def _relu(y: Tensor) -> Tensor:
    return torch.relu(y) * 3 + y.square()


def _gate(y: Tensor) -> Tensor:
    return torch.where(y > 0, 2 * y, y) + y.square()


def _blind(*subject: Any, **how: Any) -> dict[Any, Tensor]:
    return {}


@pytest.mark.parametrize("decide", [_relu, _gate])
@pytest.mark.parametrize("margin", [1e-13, -1e-13])
def test_units_near_their_kink_are_cleared_by_their_own_rows(
    decide: Callable[[Tensor], Tensor], margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = _deep(margin, decide)
    result = kantorovich(program)
    assert result.holds, result.reason
    assert max(ratios(program, result, exact_gradients(program))) <= 1
    monkeypatch.setattr(theorem, "entry_radii", _blind)
    without = kantorovich(program)
    assert not without.holds
    assert "may cross a kink" in without.reason
    assert sum(kink.count for kink in without.unresolved) > 0


@pytest.mark.parametrize("decide", [_relu, _gate])
@pytest.mark.parametrize("margin", [1e-17, 0.0, -1e-17])
def test_units_at_their_kink_are_not_cleared(
    decide: Callable[[Tensor], Tensor], margin: float
) -> None:
    result = kantorovich(_deep(margin, decide))
    assert not result.holds
    assert result.unresolved


def test_too_many_units_are_left_in_doubt() -> None:
    assert not kantorovich(_deep(1e-13, _relu, units=MOST)).holds


def test_the_error_of_each_entry_is_within_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Arb: the gradient of `watched` is what is compared with zero."""
    seen: dict[Any, Tensor] = {}

    def watched(*subject: Any, **how: Any) -> dict[Any, Tensor]:
        found = entry_radii(*subject, **how)
        seen.update(found)
        return found

    monkeypatch.setattr(theorem, "entry_radii", watched)
    program = _deep(1e-13, _relu)
    result = kantorovich(program)
    assert result.holds
    name = next(k for k, m in result.midpoints.items() if m.shape == (2, 3) and "bias" not in k)
    bounds = next(b for node, b in seen.items() if "sub" in node.name)
    assert 1e-17 < float(bounds.max()) < 1e-13
    exact = exact_gradients(program)[name]
    assert 0 < contains(exact, result.midpoints[name], bounds) <= 1
