"""Is the memory of copies used again only when nobody holds the copy before?"""

import gc

import pytest
import torch
from torch import nn

import numgeom
from numgeom.recording.buffers import Buffers, buffers_of

_N = 1 << 15  # entries: large enough to be kept


def test_memory_is_used_again_when_a_copy_was_dropped():
    buffers, source = Buffers(), torch.randn(_N)
    copy = buffers.copy(source)
    assert torch.equal(copy, source)
    place = copy.data_ptr()
    assert place != source.data_ptr()
    del copy
    assert buffers.copy(2 * source).data_ptr() == place


@pytest.mark.parametrize(
    "hold", [lambda t: t, lambda t: t[5:9], lambda t: t.numpy(), lambda t: t.untyped_storage()]
)
def test_what_somebody_holds_is_left_alone(hold):
    buffers, source = Buffers(), torch.randn(_N)
    held = hold(buffers.copy(source))
    before = list(held[:40])
    for _ in range(3):
        buffers.copy(torch.zeros(_N))
    assert list(held[:40]) == before


def test_memory_that_another_process_may_read_is_left_alone():
    buffers = Buffers()
    copy = buffers.copy(torch.randn(_N)).share_memory_()
    handle = copy.untyped_storage()._share_filename_cpu_()
    del copy
    again = torch.UntypedStorage._new_shared_filename_cpu(*handle)
    read = torch.empty(0).set_(again).clone()
    for _ in range(3):
        buffers.copy(torch.zeros(_N))
    assert torch.equal(torch.empty(0).set_(again), read)


def test_a_sum_of_memory_is_not_exceeded(monkeypatch):
    monkeypatch.setattr("numgeom.recording.buffers._LARGEST_SUM", 3 * 4 * _N)
    buffers, source = Buffers(), torch.randn(_N)
    copies = [buffers.copy(source) for _ in range(5)]
    assert buffers._size() == 3 * 4 * _N
    assert all(torch.equal(copy, source) for copy in copies)


def test_programs_of_one_model_do_not_disturb_each_other():
    torch.manual_seed(0)
    model = nn.Linear(256, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    programs = []
    for _ in range(4):
        optimizer.zero_grad()
        with numgeom.record(model) as recording:
            model(torch.randn(4, 256)).square().sum().backward()
        optimizer.step()
        programs.append(recording.program)
    for program in programs:
        again = program.replay(None).gradients
        for name, gradient in program.recorded.gradients.items():
            assert torch.equal(again[name], gradient)


def test_a_model_that_is_recorded_once_keeps_nothing():
    model = nn.Linear(2, 2)
    assert buffers_of(model) is None
    assert buffers_of(model) is not None
    assert buffers_of(None) is None
    del model
    gc.collect()
