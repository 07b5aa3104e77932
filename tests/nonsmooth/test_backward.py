"""Is the backward pass of a recorded step what autograd does, under every selection?

Two mechanisms meet here: hooks on the autograd graph of a live step, and replaced calls of a
recorded program. They must agree bit by bit.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from numgeom.nonsmooth import (
    AllOnes,
    FrozenStep,
    Hybrid,
    Random,
    Selection,
    SelectionError,
    backprop,
    compare_gradients,
    select,
)
from numgeom.nonsmooth.sites import find_sites
from numgeom.recording import Program, record, record_step
from tests.nonsmooth.kinked import KINKED, Kinked
from tests.recording.workloads import build

CHOSEN = Selection(
    relu=0.3,
    abs=0.7,
    clamp=0.2,
    maxpool=Hybrid(beta=3.0),
    max=Hybrid(beta=0.3),
    amax=Hybrid(beta=0.4),
    norm=0.5,
)


def own_loss(model: nn.Module, batch: object) -> Tensor:
    del batch
    return model()


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name


@pytest.mark.parametrize("name", KINKED)
def test_a_recorded_step_agrees_with_the_live_one(name: str) -> None:
    function, shape = KINKED[name]
    model = Kinked(function, shape)
    program = record_step(model, own_loss, None)
    step = FrozenStep(program)
    native = step.gradients(Selection(), dtype=None)
    assert_equal(native, dict(program.recorded.gradients))
    chosen = step.gradients(CHOSEN, dtype=None)
    assert_equal(chosen, backprop(model, own_loss, None, selection=CHOSEN))
    assert any(not torch.equal(chosen[n], native[n]) for n in native)
    assert not step.sites.unmatched


@pytest.mark.parametrize("name", KINKED)
def test_in_float64_it_agrees_up_to_rounding(name: str) -> None:
    function, shape = KINKED[name]
    step = FrozenStep(record_step(Kinked(function, shape), own_loss, None))
    narrow, wide = step.gradients(CHOSEN, dtype=None), step.gradients(CHOSEN)
    for parameter, gradient in wide.items():
        assert gradient.dtype == torch.float64
        torch.testing.assert_close(narrow[parameter].double(), gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "mlp-prelu",
        "lenet-channels-last",
        "batch-norm-cnn",
        "dropout",
        "in-place",
        "checkpoint-reentrant",
        "checkpoint",
        "lstm",
        "attention",
        "autocast-bf16",
        "float16",
        "grad-scaler",
        "accumulation",
        "double-backward",
        "custom-function",
        "tied",
        "optimizer-adamw",
    ],
)
def test_any_step_keeps_its_bits_under_torchs_own_selection(name: str) -> None:
    model, run = build(name)
    with record(model) as recording:
        run()
    program = recording.program
    step = FrozenStep(program)
    assert_equal(step.gradients(Selection(), dtype=None), dict(program.recorded.gradients))


def test_random_choices_agree_as_well() -> None:
    function, shape = KINKED["max-pool2d-overlapping"]
    model = Kinked(function, shape)
    chosen = Selection(maxpool=Random(), seed=3)
    step = FrozenStep(record_step(model, own_loss, None))
    live = backprop(model, own_loss, None, selection=chosen)
    assert_equal(step.gradients(chosen, dtype=None), live)


class Checkpointed(nn.Module):
    """Ends its checkpointed part in a kink, behind dropout."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 2, 1), nn.Linear(8, 1)
        nn.init.ones_(self.first.weight)
        self.reentrant = reentrant

    def part(self, x: Tensor) -> Tensor:
        return F.max_pool1d(F.relu(F.dropout(x, 0.3)), 2)

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.part, self.first(x), use_reentrant=self.reentrant)
        return self.last(y).sum()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_pass_stays_frozen(reentrant: bool) -> None:
    model = Checkpointed(reentrant=reentrant)
    x = torch.ones(2, 1, 16)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return model(x)

    program = record_step(model, loss, x)
    sites = find_sites(program)
    repeated = {str(node.target) for node in sites.origin}
    assert {"aten.relu.default", "aten.max_pool2d_with_indices.default"} <= repeated
    step = FrozenStep(program)
    assert_equal(step.gradients(Selection(), dtype=None), dict(program.recorded.gradients))
    chosen = Selection(relu=1.0, maxpool=AllOnes())
    live = backprop(model, loss, x, selection=chosen)
    assert_equal(step.gradients(chosen, dtype=None), live)
    assert any(not torch.equal(live[n], g) for n, g in program.recorded.gradients.items())


def test_a_gradient_in_the_loss_is_refused() -> None:
    def penalised(model: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = torch.relu(model(x)).sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        return y + g.square().sum()

    model, x = nn.Linear(2, 2, bias=False), torch.ones(1, 2)
    nn.init.zeros_(model.weight)
    step = FrozenStep(record_step(model, penalised, x))
    assert_equal(step.gradients(Selection(), dtype=None), dict(step.program.recorded.gradients))
    with pytest.raises(SelectionError, match="double backward"):
        step.gradients(Selection(relu=1.0))
    assert backprop(model, penalised, x, selection=Selection(relu=1.0))["weight"].any()


class WritesIntoAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.0, 1.0], [0.0, 3.0]]))

    def forward(self) -> Tensor:
        y = self.weight * 1
        y[0].relu_()
        return y.sum()


def test_a_recorded_program_reaches_what_hooks_cannot() -> None:
    step = FrozenStep(record_step(WritesIntoAView(), own_loss, None))
    found = step.gradients(Selection(relu=0.25))["weight"]
    assert found.tolist() == [[0.25, 1.0], [1.0, 1.0]]


def test_what_a_selection_looks_at_is_not_recorded() -> None:
    function, shape = KINKED["max-pool2d"]
    model = Kinked(function, shape)
    plain = record_step(model, own_loss, None)
    live = backprop(model, own_loss, None, selection=CHOSEN)
    with select(CHOSEN):
        outside = record_step(model, own_loss, None)
    with record(model) as recording, select(CHOSEN):
        model().backward()
    for program in (outside, recording.program):
        ops = [
            [str(n.target) for n in p if n.meta["call"].phase == "forward"]
            for p in (plain, program)
        ]
        assert ops[0] == ops[1]
        assert_equal(dict(program.recorded.gradients), live)
        assert_equal(program.replay(None).gradients, live)


def test_kinks_without_a_gradient_are_named() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        return (y * torch.relu(y).detach()).sum()

    program = record_step(nn.Linear(2, 2), loss, torch.ones(1, 2))
    assert [str(n.target) for n in find_sites(program).unmatched] == ["aten.relu.default"]


def test_a_branch_of_the_user_is_not_taken_for_a_clamp() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        return (torch.where(y >= 0, y, 0) + y.clamp(min=0)).sum()

    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    step = FrozenStep(record_step(model, loss, torch.ones(1, 2)))
    assert len(step.sites.found) == 1
    found = step.gradients(Selection(clamp=0.5))["weight"]
    assert found.tolist() == [[1.5, 1.5], [1.5, 1.5]]


def test_the_noise_is_of_the_size_of_rounding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    step = FrozenStep(record_step(model, lambda m, x: m(x).sum(), torch.randn(4, 8)))
    plain = step.gradients(Selection())
    noisy = step.gradients(Selection(), noise=torch.Generator().manual_seed(0))
    change = compare_gradients(plain, noisy)
    assert 0 < change.relative < 1e-15


def test_a_loaded_program_takes_selections(tmp_path: object) -> None:
    function, shape = KINKED["norm-2"]
    program = record_step(Kinked(function, shape), own_loss, None)
    program.save(f"{tmp_path}/step.pt")
    again = Program.load(f"{tmp_path}/step.pt")
    assert_equal(
        FrozenStep(program).gradients(CHOSEN, dtype=None),
        FrozenStep(again).gradients(CHOSEN, dtype=None),
    )
