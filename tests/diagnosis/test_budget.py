"""Does a monitor keep its budget, and say what it did not look at?"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from numgeom.diagnosis import FindingError, FindingWarning, Monitor, WatchedStep
from numgeom.diagnosis.background import BackgroundError
from numgeom.diagnosis.budget import Account, default_budget
from numgeom.diagnosis.gradients import look_at_gradients
from numgeom.diagnosis.trace import norm
from numgeom.errors import NumgeomError
from reproductions.gallery import mlp


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    account: Account, clock: Clock, *, turns: int, every: int, look: float
) -> tuple[int, float]:
    """Steps of one second, looks of `look` seconds more; how many looks, and how long it took."""
    looks, start = 0, clock.now
    for step in range(turns * every):
        account.begin()
        clock.now += 1.0
        if step % every == 0 and account.allows:
            clock.now += look
            looks += 1
            account.charge()
        else:
            account.end()
    return looks, clock.now - start


@pytest.mark.parametrize("look", [0.5, 4.0, 30.0, 300.0])
@pytest.mark.parametrize(("share", "every"), [(0.05, 100), (0.05, 5), (0.5, 5), (0.5, 1)])
def test_looks_take_the_share_and_one_look_more_at_most(
    share: float, every: int, look: float
) -> None:
    clock = Clock()
    account = Account(share, clock=clock)
    run(account, clock, turns=1, every=every, look=1000.0)  # the first one is free
    looks, took = run(account, clock, turns=2000 // every, every=every, look=look)
    steps = 2000 // every * every
    assert took - steps <= share * steps + look
    assert looks == 2000 // every or account.spent_share > share - (look + every) / steps
    assert account.spent_share == pytest.approx(looks * look / (steps + every - 1), abs=2.5 / steps)


def test_no_budget_is_no_limit_and_a_budget_of_nothing_is_soon_used_up() -> None:
    clock = Clock()
    assert run(Account(math.inf, clock=clock), clock, turns=9, every=1, look=9.0)[0] == 9
    assert run(Account(0.0, clock=clock), clock, turns=9, every=2, look=9.0)[0] == 2


def test_the_default_is_what_a_look_may_cost() -> None:
    shares = [default_budget(n) for n in (1, 5, 10, 50, 1000)]
    assert shares == [0.4, 0.4, 0.2, 0.04, 0.03]


@pytest.mark.parametrize("share", [-0.1, math.nan])
def test_a_budget_that_is_none_is_a_clear_error(share: float) -> None:
    with pytest.raises(NumgeomError, match="budget"):
        Monitor(mlp(3, 4, 1), budget=share)


def steps_of(monitor: Monitor, model: nn.Module, *scales: float) -> None:
    for scale in scales:
        model.zero_grad()
        with monitor():
            (model(torch.ones(2, 3)) * scale).square().mean().backward()


def poor(model: nn.Module, **options: Any) -> Monitor:
    """A monitor whose budget is used up after two looks."""
    monitor = Monitor(model, every=1, budget=1e-9, **options)
    steps_of(monitor, model, 1.0, 1.0)
    return monitor


def test_a_turn_without_a_diagnosis_has_its_gradients_in_the_history(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = mlp(3, 4, 1), tmp_path / "history.jsonl"
    monitor = poor(model, history=path)
    steps_of(monitor, model, 2.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["skipped"] for line in lines] == ["", "", "budget"]
    assert monitor.spent_share > 1e-9
    assert lines[2]["diagnosis"] is None
    assert lines[2]["nonfinite"] == []
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert lines[2]["gradient_norms"][name] == pytest.approx(norm(p.grad), rel=1e-5)
    assert monitor.last is not None
    assert monitor.last.step == 1


def test_a_gradient_that_is_not_finite_is_told_and_the_next_step_recorded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mlp(3, 4, 1)
    monitor = poor(model, keep=tmp_path)
    with pytest.warns(FindingWarning, match="step 2: the gradient of .* is not finite"):
        steps_of(monitor, model, 1e30)
    with pytest.warns(FindingWarning, match="step 3: .*finding"):
        steps_of(monitor, model, 1e30)
    assert monitor.last is not None
    assert monitor.last.step == 3
    assert (tmp_path / "step_3.pt").exists()


def test_the_next_step_is_recorded_once_not_again_and_again() -> None:
    torch.manual_seed(0)
    model = mlp(3, 4, 1)
    seen: list[WatchedStep] = []
    monitor = poor(model, on_step=seen.append, on_finding=lambda _: None)
    steps_of(monitor, model, *[1e30] * 4, 1.0, 1e30, 1e30)
    assert [step.skipped for step in seen[2:]] == [
        "budget", "", "budget", "budget", "budget", "budget", "",
    ]  # fmt: skip


def test_a_policy_of_raising_raises_for_gradients_alone() -> None:
    torch.manual_seed(0)
    model = mlp(3, 4, 1)
    monitor = poor(model, on_finding="raise")
    with pytest.raises(FindingError, match="not finite"):
        steps_of(monitor, model, 1e30)


def test_where_no_process_can_be_started_training_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> Any:
        raise OSError("no process for you")

    model = mlp(3, 4, 1)
    monitor = Monitor(model, every=1, background=True)
    monkeypatch.setattr("subprocess.Popen", refuse)
    with pytest.warns(FindingWarning, match="no process for you.*training waits"):
        steps_of(monitor, model, 1.0)
    assert monitor.last is not None
    assert monitor.last.step == 0
    assert monitor.last.diagnosis is not None
    assert monitor.wait() is monitor.last
    assert issubclass(BackgroundError, NumgeomError)


# -- gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_gradients_are_read_as_they_are(dtype: torch.dtype) -> None:
    model = nn.Linear(300, 4).to(dtype)
    generator = torch.Generator().manual_seed(0)
    model.weight.grad = torch.randn(4, 300, generator=generator).mul_(100.0).to(dtype)
    model.bias.grad = torch.full((4,), 2.0**-20, dtype=dtype)
    seen = look_at_gradients(model)
    assert seen.norms["weight"] == pytest.approx(norm(model.weight.grad), rel=1e-3)
    assert seen.nonfinite == ()
    room = math.log2(torch.finfo(dtype).max) - math.log2(norm(model.weight.grad))
    assert seen.headroom_binades == pytest.approx(room, abs=1e-3)
    assert room < math.log2(torch.finfo(dtype).max) - math.log2(model.weight.grad.abs().max())
    if dtype is torch.float16:
        assert 0.0 < seen.subnormal_share < 0.1
    else:
        assert math.isnan(seen.subnormal_share)
    model.weight.grad[1, 2] = math.nan
    assert look_at_gradients(model).nonfinite == ("weight",)
    assert look_at_gradients(nn.Linear(2, 2)).norms == {}


def test_gradients_that_are_no_plain_tensors_are_left_out() -> None:
    class Spread(torch.Tensor):
        pass

    model = nn.Linear(2, 2)
    model.weight.grad = torch.ones(2, 2).as_subclass(Spread)
    model.bias.grad = torch.ones(2)
    assert set(look_at_gradients(model).norms) == {"bias"}
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    assert look_at_gradients(embedding).norms == {}


def test_norms_whose_squares_leave_the_range_are_right() -> None:
    model = nn.Linear(2, 2)
    for size in (1e-30, 1e30, 0.0):
        model.weight.grad = torch.full((2, 2), size)
        seen = look_at_gradients(model)
        assert seen.nonfinite == ()
        assert seen.norms["weight"] == pytest.approx(2.0 * size, rel=1e-6)
