"""What does a step leave behind in its log?"""

import sys
import weakref

import pytest
import torch
from torch import nn

import numgeom
from numgeom.errors import RecordingError
from numgeom.recording.build import build_program
from numgeom.recording.log import Log
from numgeom.recording.stream import Stream


def _noted(step):
    log = Log()
    try:
        with Stream(log):
            step()
    finally:
        log.memories.close()
    return log


def test_intermediate_tensors_are_not_kept():
    x = torch.randn(5, requires_grad=True)
    gone = []

    def step():
        y = x.exp()
        gone.append(weakref.ref(y))
        (y * y).sum().backward()

    log = _noted(step)
    assert gone[0]() is None
    assert len(log.calls) > 4


def test_an_address_used_again_is_another_memory():
    x = torch.randn(1000, requires_grad=True)

    def step():
        for _ in range(50):  # each round frees what the one before has made
            torch.exp(x.detach() * 2)
        x.sum().backward()

    log = _noted(step)
    made = [call.outputs.memory for call in log.calls if call.traits.op._opname == "exp"]
    assert len(set(made)) == 50


def test_a_copy_is_taken_before_the_first_write():
    state = torch.ones(3)
    x = torch.ones(3, requires_grad=True)
    with numgeom.record() as recording:
        loss = (x + state).square().sum()
        state.add_(1)
        (loss + (x + state).square().sum()).backward()
    program = recording.program
    assert torch.equal(program.replay().gradients["leaf_0"], torch.full((3,), 10.0).double())


def test_detached_parameters_keep_their_names():
    model = nn.Linear(3, 2)
    with numgeom.record(model) as recording:
        frozen = model.weight.detach()
        (model(torch.ones(1, 3)) * frozen.sum()).sum().backward()
    names = {n.meta["name"] for n in recording.program.graph.nodes if n.op == "get_attr"}
    assert names >= {"weight", "bias"}


def _written_whole(x, y):
    y.mul_(2)
    return x * y


def _written_in_part(x, y):
    y[0].mul_(2)
    return x * y


def _read_by_a_view_older_than_the_write(x, y):
    part = y[0]
    y.mul_(2)
    return x * part


@pytest.mark.parametrize(
    ("step", "made"),
    [(_written_whole, 0), (_written_in_part, 1), (_read_by_a_view_older_than_the_write, 1)],
)
def test_a_program_waits_until_it_is_asked_for_unless_it_may_fail(step, made, monkeypatch):
    programs = []

    def counted(*args, **kwargs):
        programs.append(build_program(*args, **kwargs))
        return programs[-1]

    monkeypatch.setattr(sys.modules["numgeom.recording.finish"], "build_program", counted)
    x = torch.randn(3, 2, requires_grad=True)
    with numgeom.record() as recording:
        step(x, x.exp().detach().clone()).sum().backward()
    assert len(programs) == made
    assert recording.program is programs[0]
    assert len(programs) == 1


def test_what_is_known_only_when_the_program_is_made_is_refused_when_the_block_ends():
    x = torch.randn(10)[2:5].requires_grad_()
    with pytest.raises(RecordingError, match="reaches memory beyond"), numgeom.record():
        torch.as_strided(x, (2,), (1,), 0).sum().backward()


def test_a_recording_that_waits_keeps_neither_leaves_nor_old_gradients():
    leaf = torch.ones(3, requires_grad=True)
    leaf.grad = torch.zeros(3)
    gone = [weakref.ref(leaf), weakref.ref(leaf.grad)]
    with numgeom.record() as recording:
        (leaf * 2).sum().backward()
    del leaf
    assert [each() for each in gone] == [None, None]
    assert torch.equal(
        recording.program.replay().gradients["leaf_0"], torch.full((3,), 2.0).double()
    )


def test_places_are_looked_up_once_and_when_the_program_is_made(monkeypatch):
    looked_at = []
    sources = sys.modules["numgeom.recording.sources"].Sources
    learn = sources.learn

    def counted(self, places):
        places = list(places)
        looked_at.append(len(places))
        learn(self, places)

    monkeypatch.setattr(sources, "learn", counted)
    x = torch.ones(3, requires_grad=True)
    with numgeom.record() as recording:
        (x.exp() * x.sin()).sum().backward()
    assert looked_at == []
    assert len(recording.program.calls) >= 8
    assert len(looked_at) == 1  # all of them, in one go
