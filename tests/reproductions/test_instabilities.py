import pytest
import torch
from torch import nn

from reproductions.confusion import confusion
from reproductions.gallery import CASES, Case
from reproductions.instabilities import INJECTIONS, instabilities
from reproductions.outcome import Settings


def test_injected_defects_are_found_and_their_twins_are_silent() -> None:
    names = ("log of a softmax", "variance as E[x^2] - E[x]^2", "float16 without a loss scale")
    outcome = instabilities(Settings(seed=5), names=names, cases=CASES[:3])
    *rows, total = outcome.tables[0].rows
    assert [row[0] for row in rows] == list(names)
    assert total[1] == 9
    assert outcome.facts == {
        "detected_share": 1.0,
        "false_alarm_share": 0.0,
        "gallery_programs": 3,
        "gallery_found": 3,
        "gallery_twins_with_findings": 0,
    }
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


def _square(factor: float) -> Case:
    def step():
        return nn.Linear(2, 1), lambda m, x: (factor * m(x)).square().mean(), torch.ones(3, 2)

    return step


def test_the_confusion_matrix_tells_what_went_wrong() -> None:
    fine, overflowing = _square(1.0), _square(1e30)
    cases = (
        Case("right", ("overflow", "overflow-risk"), (), overflowing, fine),
        Case("missed", ("overflow",), (), fine, fine),
        Case("wrong name", ("dead-units",), (), overflowing, fine),
        Case("wrong op", ("overflow",), ("cholesky",), overflowing, fine),
        Case("suspected twin", ("overflow",), (), overflowing, overflowing),
    )
    rows = {row[0]: row for row in confusion(cases).rows}
    assert rows["dead-units"][1:5] == (1, 0, 1, 0)
    assert rows["overflow"][1:5] == (4, 2, 1, 1)
    assert rows["overflow"][6] == 1
    assert rows["all"][1:5] == (5, 2, 2, 1)
    assert "nothing 1" in str(rows["overflow"][5])
