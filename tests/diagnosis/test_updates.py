"""Is an optimizer's step found that does not move its parameters?"""

import pytest
import torch
from torch import nn

import numgeom
from numgeom.diagnosis import diagnose
from numgeom.diagnosis.result import Kind, Severity


def _step(dtype, rate, *, make=torch.optim.SGD):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
    optimizer = make(model.parameters(), lr=rate)
    with numgeom.record(model) as recording:
        model(torch.randn(8, 16, dtype=dtype)).square().mean().backward()
        optimizer.step()
    return recording.program


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_that_is_absorbed_is_found_in_the_update(dtype, make):
    found = diagnose(_step(dtype, 1e-6, make=make))
    kinds = {finding.kind for finding in found.findings if finding.severity is not Severity.INFO}
    assert kinds == {Kind.ABSORPTION}
    finding = next(f for f in found.findings if f.kind is Kind.ABSORPTION)
    assert finding.phase == "update"
    assert finding.op
    assert finding.verified
    assert finding.evidence["unchanged_share"] > 0.6
    assert "float32" in finding.remedy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_moves_its_parameters_is_healthy(dtype):
    assert not diagnose(_step(dtype, 1.0))


def test_a_step_below_the_resolution_of_float32_has_no_cure_by_format():
    found = diagnose(_step(torch.float32, 1e-12))
    finding = next(f for f in found.findings if f.kind is Kind.ABSORPTION)
    assert not finding.verified
    assert "learning rate" in finding.remedy


def test_a_step_of_length_zero_is_no_finding():
    assert not diagnose(_step(torch.bfloat16, 0.0))


def test_entries_without_a_gradient_may_stand_still():
    torch.manual_seed(0)
    model = nn.Embedding(100, 8).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with numgeom.record(model) as recording:
        model(torch.tensor([3, 5])).square().mean().backward()
        optimizer.step()
    assert not diagnose(recording.program)
