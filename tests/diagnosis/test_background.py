"""Does a run that is diagnosed by another process tell the same as one that waits?"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from numgeom.diagnosis import (
    Diagnosis,
    FindingError,
    FindingWarning,
    Monitor,
    diagnose,
    load_kept,
)
from numgeom.diagnosis.worker import answer
from numgeom.errors import FileFormatError
from numgeom.results.codec import encode
from reproductions.gallery import mlp
from tests.diagnosis.test_monitor import fresh, train


def one_step(monitor: Monitor, model: nn.Module, x: torch.Tensor) -> None:
    with monitor():
        model(x).square().mean().backward()


def test_the_bits_of_the_run_and_the_findings_are_the_same(tmp_path: Path) -> None:
    alone, watched = fresh(), fresh()
    torch.manual_seed(2)
    train(None, alone)
    torch.manual_seed(2)
    monitor = Monitor(watched, every=2, background=True, history=tmp_path / "history.jsonl")
    train(monitor, watched)
    for a, b in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    assert monitor.wait() is not None
    told = [json.loads(x) for x in (tmp_path / "history.jsonl").read_text().splitlines()]
    lines = [line for line in told if not line["skipped"]]
    assert lines[0]["step"] == 0
    other = fresh()
    torch.manual_seed(2)
    waiting = Monitor(other, every=100)
    train(waiting, other)
    assert waiting.last is not None
    mine = waiting.last.to_document()
    for document in (mine, lines[0]):
        del document["diagnosis"]["seconds"]
    assert lines[0] == mine


def test_a_bad_step_is_kept_and_reported_later(tmp_path: Path) -> None:
    model, x = fresh(), torch.randn(8, 3)
    monitor = Monitor(model, every=1, background=True, keep=tmp_path, on_finding="raise")
    one_step(monitor, model, x - 1e30)
    with pytest.raises(FindingError, match="step 0: .*overflow|step 0: .*finding"):
        monitor.wait()
    assert monitor.last is not None
    kept = load_kept(monitor.last.program)
    assert kept.step == 0
    again = diagnose(kept.program)
    assert monitor.last.diagnosis is not None
    assert encode(again.findings) == encode(monitor.last.diagnosis.findings)
    # The monitor goes on, with a new process.
    one_step(monitor, model, x)
    assert monitor.wait() is monitor.last
    assert monitor.last.step == 1
    assert not monitor.last.diagnosis


def test_a_step_that_comes_too_early_is_replaced_by_a_later_one() -> None:
    model, steps = fresh(), []
    monitor = Monitor(model, every=2, budget=math.inf, background=True, on_step=steps.append)
    for _ in range(3):  # the process needs seconds to start, these steps milliseconds
        one_step(monitor, model, torch.ones(2, 3))
    deadline = time.monotonic() + 120
    while sum(not step.skipped for step in steps) < 2 and time.monotonic() < deadline:
        one_step(monitor, model, torch.ones(2, 3))
        time.sleep(0.01)
    monitor.wait()
    seen = [step.step for step in steps if not step.skipped]
    assert seen[0] == 0
    assert len(seen) >= 2
    assert seen[1] > 2
    assert steps[0].step == 2  # told at once, with its gradients
    assert steps[0].skipped == "busy"
    assert set(steps[0].gradient_norms) == {name for name, _ in model.named_parameters()}


def test_a_process_that_dies_is_a_problem_of_that_step() -> None:
    model = fresh()
    monitor = Monitor(model, every=1, background=True)
    one_step(monitor, model, torch.ones(2, 3))
    background = monitor._background
    assert background is not None
    assert background._process is not None
    os.kill(background._process.pid, signal.SIGTERM)
    with pytest.warns(FindingWarning, match="background process ended"):
        monitor.wait()
    assert monitor.last is not None
    assert monitor.last.diagnosis is None


def test_a_file_that_is_no_program_is_a_problem(tmp_path: Path) -> None:
    assert "no such file" in answer(str(tmp_path / "nothing.pt"))["problem"]


RUN = """
import sys, torch
from torch import nn
from numgeom.diagnosis import Monitor
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
monitor = Monitor(model, every=100, history=sys.argv[1], background=True)
with monitor():
    model(torch.randn(8, 3)).square().mean().backward()
print("done")
"""


def test_a_run_that_ends_early_still_writes_its_history(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(history)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "done\n"
    (line,) = history.read_text().splitlines()
    assert json.loads(line)["step"] == 0


def test_a_diagnosis_is_saved_and_read_again(tmp_path: Path) -> None:
    model = mlp(3, 4, 1)
    found = diagnose(model, lambda m, x: m(x).square().mean(), torch.full((2, 3), 1e30))
    assert found
    path = tmp_path / "diagnosis.json"
    found.save(path)
    assert Diagnosis.load(path).to_document() == found.to_document()
    path.write_text(path.read_text().replace('"kind"', '"sort"'))
    with pytest.raises(FileFormatError, match="damaged"):
        Diagnosis.load(path)
    path.write_text("{}")
    with pytest.raises(FileFormatError, match="without a schema"):
        Diagnosis.load(path)
    with pytest.raises(FileFormatError, match="Cannot read"):
        Diagnosis.load(tmp_path / "nothing.json")
