"""The recording is the computation: replays of many kinds of steps."""

import copy
import warnings

import pytest
import torch

from numgeom.recording import Program, record
from tests.recording.program_files import assert_same
from tests.recording.workloads import WORKLOADS, build


@pytest.fixture(autouse=True)
def _quiet_libraries():
    """transformers and torch's recurrent layers warn about things that are meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _record(name: str) -> Program:
    model, step = build(name)
    torch.manual_seed(1)
    with record(model) as recording:
        step()
    return recording.program


def _total_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Relative 2-norm of the difference of two gradients, all parameters together."""
    difference = torch.cat([(a[k].double() - b[k].double()).flatten() for k in b])
    size = torch.cat([b[k].double().flatten() for k in b])
    return (
        float(difference.norm() / size.norm()) if float(size.norm()) else float(difference.norm())
    )


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_step_is_recorded_whole(name, tmp_path):
    """Replays: recorded formats bit for bit, float64 close, opened the same over the reals.

    Recorded and opened, it survives a file: no op that a recorder writes is refused there.
    """
    program = _record(name)
    replay = program.replay(None)
    for parameter, gradient in program.recorded.gradients.items():
        assert torch.equal(replay.gradients[parameter], gradient), parameter
    for changed, value in program.recorded.updates.items():
        assert torch.equal(replay.updates[changed], value), changed
    assert replay.loss is not None
    assert program.recorded.loss is not None
    assert torch.equal(replay.loss, program.recorded.loss)

    reference = program.replay()
    assert all(g.dtype == torch.float64 for g in reference.gradients.values())
    low = any(
        g.dtype in (torch.bfloat16, torch.float16) for g in program.recorded.gradients.values()
    )
    low = low or "autocast" in name or name == "grad-scaler"
    assert _total_difference(program.recorded.gradients, reference.gradients) < (
        0.05 if low else 2e-5
    )

    opened = program.decompose()
    assert _total_difference(opened.replay().gradients, reference.gradients) < 1e-11

    for each in (program, opened):
        each.save(tmp_path / "step.pt")
        assert_same(Program.load(tmp_path / "step.pt"), each)


@pytest.mark.parametrize("name", WORKLOADS)
def test_recording_changes_no_bit(name):
    """The step gives the same gradients and the same new parameters with and without it."""
    model, step = build(name)
    torch.manual_seed(1)
    step()
    expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    values = copy.deepcopy(model.state_dict())

    model, step = build(name)
    torch.manual_seed(1)
    with record(model):
        step()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        if gradient is None:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradient)
    for key, value in model.state_dict().items():
        assert torch.equal(value, values[key]), key


def test_every_parameter_that_has_a_gradient_is_in_the_program():
    for name in ("lenet", "tied", "frozen", "double-backward", "optimizer-adam"):
        model, step = build(name)
        with record(model) as recording:
            step()
        have = tuple(n for n, p in model.named_parameters() if p.grad is not None)
        assert recording.program.parameters == have
