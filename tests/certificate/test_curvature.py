"""Is what the quick walk clears what the full one clears, with radii that are no smaller?"""

from typing import Any

import pytest
import torch
from torch import nn

import numgeom.certificate.curvature as curvature
from numgeom.certificate.curvature import Examined, examine
from numgeom.certificate.draws import Draws
from numgeom.certificate.scale import choose_scale
from numgeom.certificate.structure import pruned
from numgeom.certificate.survey import survey
from numgeom.ops.table import OPS
from numgeom.recording import record_step
from tests.oracle.workloads import opened_workload

RHO = 1e4


def _examined(name: str) -> tuple[Examined, Examined]:
    """By the quick walk, if it does, and by the full one."""
    program = pruned(opened_workload(name))
    surveyed = survey(program, OPS, None, Draws(0))
    facts, scale = surveyed.facts, choose_scale(surveyed)
    full = examine(program, facts, scale, RHO, OPS, None, known={})
    return examine(program, facts, scale, RHO, OPS, None), full


@pytest.fixture
def full_walks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Counts the walks that carry a ball everywhere."""
    found: list[Any] = []

    class Counted(curvature._Examination):
        def __init__(self, *given: Any) -> None:
            found.append(self)
            super().__init__(*given)

    monkeypatch.setattr(curvature, "_Examination", Counted)
    return found


@pytest.mark.usefixtures("quiet_libraries")
@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-gelu", "norms", "attention-weights", "lstm"])
def test_the_quick_walk_is_no_less_cautious(name: str, full_walks: list[Any]) -> None:
    quick, full = _examined(name)
    assert quick.curvature >= full.curvature * (1 - 1e-9)
    assert not quick.crossing
    for key, radius in quick.radii.items():
        assert bool((radius >= full.radii[key] * (1 - 1e-12)).all())
        assert torch.equal(quick.values[key], full.values[key])
        assert quick.own[key] >= full.own[key] * (1 - 1e-9)


@pytest.mark.usefixtures("quiet_libraries")
def test_smooth_programs_take_the_quick_walk_alone(full_walks: list[Any]) -> None:
    _examined("mlp-tanh")
    assert len(full_walks) == 1


def test_what_it_does_not_clear_is_left_to_the_full_walk(full_walks: list[Any]) -> None:
    """A unit that is off whatever happens: rho s would not tell, its exact zero does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2))
    step = record_step(model, lambda m, x: m(x).square().sum(), torch.randn(1, 3))
    program = pruned(step.decompose())
    surveyed = survey(program, OPS, None, Draws(0))
    facts, scale = surveyed.facts, choose_scale(surveyed)
    found = examine(program, facts, scale, RHO, OPS, None)
    assert len(full_walks) == 1
    zero = facts.values["0.weight"] == 0
    assert bool(zero.any())
    assert bool((found.radii["0.weight"][zero] == 0).all())
