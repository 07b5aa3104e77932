"""What a recording leaves untouched, what it refuses, and how it says so."""

import gc
import sys
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from numgeom.errors import RecordingError
from numgeom.recording import record, record_callable, record_step


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))


def _loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def _batch():
    return torch.randn(5, 4), torch.randint(0, 3, (5,))


def _state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_record_step_leaves_everything_as_it_was():
    model, batch = _model(), _batch()
    _loss(model, batch).backward()
    grads = [p.grad for p in model.parameters()]
    values = [g.clone() for g in grads if g is not None]
    state, rng = _state(model), torch.get_rng_state()
    dtype, grad_mode, threads = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )
    program = record_step(model, _loss, batch)
    program.replay(None)
    program.replay()
    assert _same(_state(model), state)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(g, v) for g, v in zip(grads, values, strict=True) if g is not None)
    assert torch.get_default_dtype() is dtype
    assert torch.is_grad_enabled() is grad_mode
    assert torch.get_num_threads() == threads
    assert model.training


def test_record_step_restores_after_an_error_of_the_user():
    model, batch = _model(), _batch()
    state, rng = _state(model), torch.get_rng_state()

    def failing(model, batch):
        model(batch[0])
        model[0].weight.data.mul_(2)
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        record_step(model, failing, batch)
    assert _same(_state(model), state)
    assert torch.equal(torch.get_rng_state(), rng)
    record_step(model, _loss, batch)  # nothing is left behind


def test_record_step_restores_a_batch_that_the_loss_writes_to():
    model = nn.Linear(4, 1)
    x = torch.randn(10, 4)
    before = x.clone()

    def loss_fn(model, batch):
        batch[2:5].mul_(3)
        return model(batch).sum()

    program = record_step(model, loss_fn, x)
    assert torch.equal(x, before)
    scaled = before.clone()
    scaled[2:5] *= 3
    torch.testing.assert_close(program.recorded.gradients["weight"][0], scaled.sum(0))


def test_record_callable_restores_parameters_that_an_optimizer_changed():
    model, (x, y) = _model(), _batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = _state(model)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    program = record_callable(step)
    assert _same(_state(model), state)
    assert set(program.parameters) == {n for n, _ in model.named_parameters()}
    assert "0.weight" in program.recorded.updates
    torch.testing.assert_close(
        program.recorded.updates["0.weight"],
        model[0].weight.detach() - 0.1 * program.recorded.gradients["0.weight"],
    )


def test_gradients_accumulate_on_those_that_were_there():
    model, batch = nn.Linear(4, 3), _batch()
    _loss(model, batch).backward()
    assert model.weight.grad is not None
    first = model.weight.grad.clone()
    with record(model) as recording:
        _loss(model, batch).backward()
    assert torch.equal(model.weight.grad, 2 * first)
    assert torch.equal(recording.program.replay(None).gradients["weight"], 2 * first)


def test_memory_is_freed():
    """Intermediates die with the step, and the constants with the program."""
    model, (x, y) = _model(), _batch()
    with record(model) as recording:
        h = model[0](x)
        intermediate = weakref.ref(h.untyped_storage())
        loss = F.cross_entropy(model[3](h), y)
        loss.backward()
        del h, loss
        gc.collect()
        assert intermediate() is None, "the recording keeps an intermediate tensor alive"
    program = recording.program
    constant = weakref.ref(next(iter(program.constants.values())))
    held = weakref.ref(model)
    del model, recording, program
    gc.collect()
    assert constant() is None
    assert held() is None


def test_the_user_frees_the_model_while_the_program_lives():
    model, batch = _model(), _batch()
    program = record_step(model, _loss, batch)
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None
    assert program.replay(None).gradients.keys() == program.recorded.gradients.keys()


# -- refusals ----------------------------------------------------------------------------


def _refused(match, step, model=None):
    with pytest.raises(RecordingError, match=match) as caught, record(model):
        step()
    return str(caught.value)


def test_a_recording_that_is_open_or_failed_has_no_program():
    model, batch = _model(), _batch()
    recording = record(model)
    with pytest.raises(RecordingError, match="not been entered"):
        _ = recording.program
    with recording:
        with pytest.raises(RecordingError, match="still open"):
            _ = recording.program
        _loss(model, batch).backward()
    with pytest.raises(RecordingError, match="entered once"):
        recording.__enter__()
    failed = record(model)
    with pytest.raises(ZeroDivisionError), failed:
        _ = 1 / 0
    with pytest.raises(RecordingError, match="ended in an error"):
        _ = failed.program


def test_a_backward_that_never_ran():
    model, batch = _model(), _batch()
    _refused("no backward pass ran", lambda: _loss(model, batch), model)
    x = torch.randn(2, 4)
    w = model[0].weight
    _refused("no gradient", lambda: torch.autograd.grad(model[0](x).sum(), w), model)


def test_no_parameter_requires_a_gradient():
    with pytest.raises(RecordingError, match="requires a gradient"):
        record(_model().requires_grad_(False))
    with pytest.raises(RecordingError, match="requires a gradient"):
        record(nn.ReLU())
    with pytest.raises(RecordingError, match=r"torch\.nn\.Module"):
        record("model")  # type: ignore[arg-type]  # that is the point


def test_losses_that_are_none():
    model, batch = _model(), _batch()
    with pytest.raises(RecordingError, match=r"shape \(5, 3\)"):
        record_step(model, lambda m, b: m(b[0]), batch)
    with pytest.raises(RecordingError, match="returned float"):
        record_step(model, lambda m, b: float(m(b[0]).sum().detach()), batch)
    with pytest.raises(RecordingError, match="does not depend"):
        record_step(model, lambda m, b: m(b[0]).sum().detach(), batch)


def test_a_sparse_gradient_is_named():
    model = nn.Embedding(10, 4, sparse=True)
    text = _refused("sparse", lambda: model(torch.tensor([1, 2])).sum().backward(), model)
    assert "sparse=False" in text


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors_are_refused():
    w = nn.Parameter(torch.randn(3))

    def step():
        q = torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8)
        (w * q.dequantize()).sum().backward()

    assert "quantize_per_tensor" in _refused("quantized", step)


def test_bits_read_as_another_dtype_are_refused():
    w = nn.Parameter(torch.randn(4))
    text = _refused("another dtype", lambda: (w * w.detach().view(torch.int32)).sum().backward())
    assert "test_record.py" in text


def test_dropout_inside_a_fused_kernel_is_refused_or_recorded():
    """On a CPU torch takes the open path, which is recorded with what was drawn."""
    w = nn.Parameter(torch.randn(1, 2, 4, 8))
    with record() as recording, sdpa_kernel(SDPBackend.MATH):
        F.scaled_dot_product_attention(w, w, w, dropout_p=0.5).sum().backward()
    assert torch.equal(recording.program.replay(None).gradients["leaf_0"], w.grad)


def test_a_forward_pass_before_the_recording():
    model, batch = _model(), _batch()
    loss = _loss(model, batch)
    assert "outside of the recording" in _refused("recorded", loss.backward, model)


def test_part_of_the_forward_pass_before_the_recording():
    model, (x, y) = _model(), _batch()
    h = model[0](x)
    text = _refused("AddmmBackward0", lambda: F.cross_entropy(model[3](h), y).backward(), model)
    assert "outside of the recording" in text


def test_part_of_the_forward_pass_on_another_thread():
    model, (x, y) = _model(), _batch()

    def step():
        found = []
        thread = threading.Thread(target=lambda: found.append(model[0](x)))
        thread.start()
        thread.join()
        F.cross_entropy(model[3](found[0]), y).backward()

    assert "another thread" in _refused("recorded", step, model)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_all_problems_are_told_at_once():
    w = nn.Parameter(torch.randn(4))

    def step():
        a = w.detach().view(torch.int32).sum()
        for _ in range(3):
            torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8)
        (w * a).sum().backward()

    text = _refused("cannot be recorded", step)
    assert "aten.view.dtype" in text
    assert "(3 times)" in text


def test_the_users_step_runs_to_its_end_although_it_cannot_be_recorded():
    model = nn.Embedding(10, 4, sparse=True)
    with pytest.raises(RecordingError), record(model):
        model(torch.tensor([1, 2])).sum().backward()
    assert model.weight.grad is not None


def test_a_program_that_is_asked_for_late_is_that_of_the_step() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    with record(model) as recording:
        model(torch.randn(4, 3)).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.grad.mul_(0.0)
            p.add_(1.0)
    torch.set_default_dtype(torch.float64)
    try:
        program = recording.program
    finally:
        torch.set_default_dtype(torch.float32)
    assert program.default_dtype is torch.float32
    assert recording.program is program
    for found in (program.recorded.gradients, program.replay(None).gradients):
        assert all(torch.equal(found[name], g) for name, g in expected.items())


class _Growing(nn.Module):
    """Makes its second layer when it is first called."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)

    def forward(self, x):
        if not hasattr(self, "second"):
            self.second = nn.Linear(4, 2)
        return self.second(self.first(x))


def test_parameters_that_the_step_makes_have_their_names():
    model = _Growing()
    with record(model) as recording:
        model(torch.ones(1, 3)).sum().backward()
    names = ("first.weight", "first.bias", "second.weight", "second.bias")
    assert recording.program.parameters == names


@pytest.mark.parametrize("size", [3, 5000])  # small parameters are copied before the step
def test_a_parameter_that_is_overwritten_before_it_is_used(size):
    model = nn.Linear(size, 1, bias=False)
    before = model.weight.detach().clone()
    with record(model) as recording:
        with torch.no_grad():
            model.weight.mul_(2)
        (model.weight * model.weight).sum().backward()
    program = recording.program
    assert torch.equal(program.replay().gradients["weight"], 4 * before.double())
    constants = [program.constants[n.target] for n in program.graph.nodes if n.op == "get_attr"]
    assert any(torch.equal(c, before) for c in constants if c.shape == before.shape)


def test_a_parameter_that_is_the_imaginary_part_of_something():
    z = torch.tensor([1 + 2j])
    model = nn.Module()
    model.p = nn.Parameter(z.conj().imag)  # lies as z.imag does, and holds its negative
    assert model.p.is_neg()
    with record(model) as recording:
        (model.p**2 * z.imag).sum().backward()
    gradient = recording.program.replay().gradients["p"]
    assert torch.equal(gradient, torch.tensor([-8.0]).double())


def test_the_collector_runs_again_after_a_recording_that_could_not_begin(monkeypatch):
    def fail(model):
        raise RuntimeError("no names")

    monkeypatch.setattr(sys.modules["numgeom.recording.record"], "named", fail)
    with pytest.raises(RuntimeError), record(nn.Linear(1, 1)):
        pass
    assert gc.isenabled()
