import pytest

from numgeom.experiments.instabilities import INJECTIONS, instabilities
from numgeom.experiments.reproduction import Settings


def test_injected_defects_are_found_and_their_twins_are_silent() -> None:
    names = ("log of a softmax", "variance as E[x^2] - E[x]^2", "float16 without a loss scale")
    outcome = instabilities(Settings(seed=5), names=names)
    *rows, total = outcome.tables[0].rows
    assert [row[0] for row in rows] == list(names)
    assert total[1] == 9
    assert outcome.facts == {"detected_share": 1.0, "false_alarm_share": 0.0}
    # A cancellation shows neither in norms nor as a NaN.
    assert rows[1][3:5] == (0, 0)
    assert outcome.plots[0].svg.count("<svg") == 1


@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda each: each.name)
def test_every_defect_differs_from_its_cure(injection) -> None:
    import torch

    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    bad, good = injection.defective(x), injection.healthy(x)
    assert bad.shape == good.shape
    assert not torch.equal(bad, good) or injection.name == "norm of a zero vector"
