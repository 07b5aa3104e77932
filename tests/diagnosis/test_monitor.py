"""Does a watched run train as it would alone, and is what goes wrong written down and kept?"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from numgeom.diagnosis import FindingError, FindingWarning, Monitor, WatchedStep, diagnose
from numgeom.errors import NumgeomError
from numgeom.recording import Program
from tests.diagnosis.cases import mlp


def train(monitor: Monitor | None, model: nn.Module, steps: int = 5, bad_at: int = -1) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        x = torch.randn(8, 3, generator=generator)
        if step == bad_at:
            x = x - 1e30

        def run(x: torch.Tensor = x) -> None:
            optimizer.zero_grad()
            (nn.functional.dropout(model(x), 0.5) * x[:, :1]).square().mean().backward()

        if monitor is None:
            run()
        else:
            with monitor():
                run()
        if step != bad_at:
            optimizer.step()


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return mlp(3, 4, 1)


def test_a_watched_run_has_the_same_bits() -> None:
    alone, watched = fresh(), fresh()
    torch.manual_seed(2)
    train(None, alone)
    torch.manual_seed(2)
    train(Monitor(watched, every=2), watched)
    for a, b in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_nth_step_is_one_line_of_history(tmp_path: Path) -> None:
    model, path = fresh(), tmp_path / "history.jsonl"
    train(Monitor(model, every=2, history=path), model)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert set(lines[0]["gradient_norms"]) == {name for name, _ in model.named_parameters()}
    assert lines[0]["diagnosis"]["findings"] == []
    assert lines[0]["loss"] > 0


def test_a_bad_step_is_kept_and_gives_the_same_findings_again(tmp_path: Path) -> None:
    model = fresh()
    seen: list[WatchedStep] = []
    train(Monitor(model, every=1, keep=tmp_path, on_finding=seen.append), model, bad_at=3)
    (watched,) = seen
    assert watched.step == 3
    assert watched.diagnosis is not None
    again = diagnose(Program.load(watched.program))
    assert again.findings == watched.diagnosis.findings
    assert "overflow" in {finding.kind for finding in again}


def test_policies(tmp_path: Path) -> None:
    model = fresh()
    with pytest.warns(FindingWarning, match="step 1: .*finding"):
        train(Monitor(model, every=1), model, bad_at=1)
    model, path = fresh(), tmp_path / "history.jsonl"
    with pytest.raises(FindingError, match="overflow"):
        train(Monitor(model, every=1, history=path, on_finding="raise"), model, bad_at=1)
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["step"] == 1
    assert last["loss"] in ("inf", "nan")


def test_a_step_that_cannot_be_recorded_does_not_stop_the_run() -> None:
    model = fresh()
    monitor = Monitor(model, every=1)
    with pytest.warns(FindingWarning, match="could not be watched"), monitor():
        model(torch.ones(1, 3))
    assert monitor.last is not None
    assert "no backward" in monitor.last.problem
    assert math.isnan(monitor.last.loss)


def test_an_error_of_the_step_comes_through() -> None:
    monitor = Monitor(fresh(), every=1)
    with pytest.raises(ZeroDivisionError), monitor():
        raise ZeroDivisionError
    assert monitor.last is None


@pytest.mark.parametrize("options", [{"every": 0}, {"on_finding": "shout"}])
def test_wrong_options_are_a_clear_error(options: dict[str, Any]) -> None:
    with pytest.raises(NumgeomError, match="Monitor"):
        Monitor(fresh(), **options)
