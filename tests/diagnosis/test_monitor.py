"""Does a watched run train as it would alone, and is what goes wrong written down and kept?"""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from numgeom.diagnosis import (
    FindingError,
    FindingWarning,
    Monitor,
    WatchedStep,
    diagnose,
    load_kept,
)
from numgeom.errors import NumgeomError
from numgeom.recording import Program, record_step
from reproductions.gallery import mlp


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
    train(Monitor(watched, every=2, budget=math.inf), watched)
    for a, b in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_nth_step_is_one_line_of_history(tmp_path: Path) -> None:
    model, path = fresh(), tmp_path / "history.jsonl"
    train(Monitor(model, every=2, budget=math.inf, history=path), model)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert set(lines[0]["gradient_norms"]) == {name for name, _ in model.named_parameters()}
    assert lines[0]["diagnosis"]["findings"] == []
    assert lines[0]["loss"] > 0


def test_a_bad_step_is_kept_and_gives_the_same_findings_again(tmp_path: Path) -> None:
    model = fresh()
    seen: list[WatchedStep] = []
    train(
        Monitor(model, every=1, budget=math.inf, keep=tmp_path, on_finding=seen.append),
        model,
        bad_at=3,
    )
    (watched,) = seen
    assert watched.step == 3
    assert watched.diagnosis is not None
    again = diagnose(Program.load(watched.program))
    assert again.findings == watched.diagnosis.findings
    assert "overflow" in {finding.kind for finding in again}


def test_policies(tmp_path: Path) -> None:
    model = fresh()
    with pytest.warns(FindingWarning, match="step 1: .*finding"):
        train(Monitor(model, every=1, budget=math.inf), model, bad_at=1)
    model, path = fresh(), tmp_path / "history.jsonl"
    with pytest.raises(FindingError, match="overflow"):
        train(
            Monitor(model, every=1, budget=math.inf, history=path, on_finding="raise"),
            model,
            bad_at=1,
        )
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["step"] == 1
    assert last["loss"] in ("Infinity", "NaN")


def test_a_step_that_cannot_be_recorded_does_not_stop_the_run() -> None:
    model = fresh()
    monitor = Monitor(model, every=1, budget=math.inf)
    with pytest.warns(FindingWarning, match="could not be watched"), monitor():
        model(torch.ones(1, 3))
    assert monitor.last is not None
    assert "no backward" in monitor.last.problem
    assert math.isnan(monitor.last.loss)


def test_an_error_of_the_step_comes_through() -> None:
    monitor = Monitor(fresh(), every=1, budget=math.inf)
    with pytest.raises(ZeroDivisionError), monitor():
        raise ZeroDivisionError
    assert monitor.last is None


@pytest.mark.parametrize("options", [{"every": 0}, {"on_finding": "shout"}])
def test_wrong_options_are_a_clear_error(options: dict[str, Any]) -> None:
    with pytest.raises(NumgeomError, match="Monitor"):
        Monitor(fresh(), **options)


def test_clipping_on_every_step_is_a_finding_once() -> None:
    model, seen = fresh(), []
    monitor = Monitor(model, every=1, budget=math.inf, on_finding=seen.append)
    for _ in range(12):
        model.zero_grad()
        with monitor():
            (100 * model(torch.randn(8, 3))).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    (watched,) = seen
    assert watched.step == 9
    (finding,) = watched.diagnosis.of("clipping")
    assert finding.evidence["steps_clipped_in_a_row"] == 10
    assert finding.evidence["clip_factor"] < 1e-3


def test_clipping_now_and_then_is_no_finding() -> None:
    model = fresh()
    monitor = Monitor(model, every=1, budget=math.inf, on_finding="raise")
    for i in range(12):
        model.zero_grad()
        with monitor():
            model(torch.randn(8, 3)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3 if i % 4 else 1e3)
        assert monitor.last is not None
        assert monitor.last.diagnosis is not None
        assert (monitor.last.diagnosis.clip_factor < 1) == bool(i % 4)


@pytest.mark.parametrize("foreach", [True, False])
def test_entries_that_are_cut_off_are_clipping_too(foreach: bool) -> None:
    model = fresh()
    monitor = Monitor(model, every=1, budget=math.inf, on_finding="raise")
    for limit, clips in ((1e-3, True), (1e3, False)):
        model.zero_grad()
        with monitor():
            model(torch.randn(8, 3)).square().mean().backward()
            largest = max(float(p.grad.abs().max()) for p in model.parameters())
            nn.utils.clip_grad_value_(model.parameters(), limit, foreach=foreach)
        assert monitor.last is not None
        assert monitor.last.diagnosis is not None
        factor = monitor.last.diagnosis.clip_factor
        assert factor == pytest.approx(min(1.0, limit / largest))
        assert bool(monitor.last.diagnosis.of("clipping")) == clips


def test_a_kept_step_has_its_batch_and_random_state(tmp_path: Path) -> None:
    model = fresh()
    monitor = Monitor(model, every=1, budget=math.inf, keep=tmp_path, on_finding=lambda _: None)
    state = torch.get_rng_state()
    train(monitor, model, steps=1, bad_at=0)
    assert monitor.last is not None
    kept = load_kept(monitor.last.program)
    assert kept.step == 0
    assert torch.equal(kept.random_state["cpu"], state)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)) - 1e30
    given = [t for t in kept.program.constants.values() if t.shape == x.shape]
    assert any(torch.equal(t, x) for t in given)


def test_a_program_that_no_monitor_kept_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    record_step(fresh(), lambda m, x: m(x).mean(), torch.ones(2, 3)).save(path)
    with pytest.raises(NumgeomError, match="not kept by a Monitor"):
        load_kept(path)


RUN = """
import sys, os, torch
from torch import nn
import math
from numgeom.diagnosis import Monitor
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1))
monitor = Monitor(model, every=1, budget=math.inf, history=sys.argv[1], keep=sys.argv[2],
                  on_finding=lambda step: os._exit(3))
for i in range(4):
    with monitor():
        (model(torch.randn(8, 3)) * (1e30 if i == 2 else 1.0)).square().mean().backward()
"""


def test_after_a_crash_the_history_is_whole_and_the_bad_step_is_reproduced(tmp_path: Path) -> None:
    history, folder = tmp_path / "history.jsonl", tmp_path / "bad"
    command = [sys.executable, "-c", RUN, str(history), str(folder)]
    assert subprocess.run(command, check=False).returncode == 3
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert set(lines[0]["layer_gradient_norms"]) == {"0", "3"}
    again = subprocess.run(
        [sys.executable, "-m", "numgeom", "diagnose", lines[-1]["program"], "--json"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 1, again.stderr
    assert json.loads(again.stdout)["findings"] == lines[-1]["diagnosis"]["findings"]
