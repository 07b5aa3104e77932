"""What decides outside of the replay is never taken for certain where it is not.

In each step x is such that s = |10 x - (x + ... + x)| is 0 over the reals and about 1e-16 as it is
computed. So what `s > 0` decides is wrong in the recorded run, and the exact gradients are known:
no bound may be smaller than the difference, whatever the way in which the decision is taken.
"""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from numgeom import Certificate, certify, record
from numgeom.functionals import track
from numgeom.recording import Program
from numgeom.report.table import to_text
from numgeom.results.guarantee import Guarantee

METHODS = ("auto", "ball", "functional", "kantorovich")


def residue(x):
    total = x * 0
    for _ in range(10):
        total = total + x
    return (x * 10 - total).abs()


def written_mask(w, x):
    y = w * 7
    y[residue(x) > 0] = 0.0
    return y.sum()


def put_values(w, x):
    y = w * 7
    mask = residue(x) > 0
    y[mask] = w[mask] * 2
    return y.sum()


def loop(w, x):
    y, s = w * 1.0, residue(x).max()
    while s > 0:  # over the reals no step is taken
        y, s = y * 2, s * 0
    return y.sum()


def split(w, x):
    sizes = (1 + (residue(x) > 0).to(torch.int64)[:1]).tolist()
    return torch.split(w * 1.0, [*sizes, 2 - sizes[0]])[0].sum() + w.sum()


def one_hot(w, x):
    hot = nn.functional.one_hot(torch.argmax(torch.stack([residue(x)[0], x[0] * 0])), 2)
    rows = torch.arange(2)[hot.to(torch.bool)]
    return (w[rows] * 7).sum() + w.sum()


def repeated(w, x):
    counts = (residue(x) > 0).to(torch.int64) + 1
    return torch.repeat_interleave(w * 1.0, counts).sum()


def topk_in_python(w, x):
    s = residue(x)
    best = torch.topk(torch.stack([s[0], x[0] * 0]), 1).indices.tolist()[0]
    return w[best] * 7 + w.sum()


def unique(w, x):
    numbers = (residue(x) > 0).to(torch.int64) * torch.tensor([0, 1])
    return w.sum() * torch.unique(numbers).numel()


def split_at(w, x):
    at = (residue(x)[:1] > 0).to(torch.int64)
    return torch.tensor_split(w * 1.0, at)[0].sum() + w.sum()


def sorted_in_python(w, x):
    order = np.argsort(-torch.stack([residue(x)[0], x[0] * 0]).numpy(), kind="stable")
    return (w * torch.from_numpy(order)).sum()


def packed(w, x):
    lengths = 1 + (residue(x)[:1] > 0).to(torch.int64)
    rows = (w * 1.0).reshape(1, 2, 1)
    found = nn.utils.rnn.pack_padded_sequence(rows, lengths, batch_first=True)
    return found.data.sum() + w.sum()


def in_the_backward_pass(w, x):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w, s):
            ctx.save_for_backward(s)
            return w.clone()

        @staticmethod
        def backward(ctx, dy):
            (s,) = ctx.saved_tensors
            return dy * 2 if s.max().item() > 0 else dy, None

    return Doubled.apply(w, residue(x)).sum()


def new_tensor(w, x):
    return (w * w.detach().new_tensor([*residue(x)]).sign()).sum()


def from_numpy(w, x):
    keep = torch.from_numpy((residue(x).numpy() > 0).astype(np.float64))
    return (w * keep.to(w.dtype)).sum() + w.sum()


# step, and the gradient over the reals at w = (1, 2)
UNDECIDED = {
    "mask": (lambda w, x: (w * 7)[residue(x) > 0].sum() + w.sum(), [1, 1]),
    "mask of masks": (
        lambda w, x: (w * 7)[(residue(x) > 0) & ~(x > 5) | (x > 9)].sum() + w.sum(),
        [1, 1],
    ),
    "written by a mask": (written_mask, [7, 7]),
    "values by a mask": (put_values, [7, 7]),
    "masked_select": (
        lambda w, x: torch.masked_select(w * 7, residue(x) > 0).sum() + w.sum(),
        [1, 1],
    ),
    "nonzero": (lambda w, x: (w * 7)[torch.nonzero(residue(x) > 0)[:, 0]].sum() + w.sum(), [1, 1]),
    "nonzero of reals": (
        lambda w, x: (w * 7)[torch.nonzero(residue(x))[:, 0]].sum() + w.sum(),
        [1, 1],
    ),
    "argwhere": (
        lambda w, x: (w * 7)[torch.argwhere(residue(x))[:, 0]].sum() + w.sum(),
        [1, 1],
    ),
    "unique": (unique, [1, 1]),
    "bincount": (
        lambda w, x: (w * torch.bincount((residue(x) > 0).to(torch.int64), minlength=2)).sum(),
        [2, 0],
    ),
    "item": (lambda w, x: (w * 7 * (residue(x).max().item() > 0)).sum(), [0, 0]),
    "float": (lambda w, x: (w * 7 * (float(residue(x)[0]) > 0)).sum(), [0, 0]),
    "if": (lambda w, x: (w * 7).sum() if residue(x).sum() > 0 else w.sum(), [1, 1]),
    "loop": (loop, [1, 1]),
    "any": (lambda w, x: (w * 7).sum() if (residue(x) != 0).any() else w.sum(), [1, 1]),
    "int of a sum": (lambda w, x: w.sum() * int((residue(x) > 0).sum()), [0, 0]),
    "equal": (lambda w, x: w.sum() * (2 - torch.equal(residue(x), x * 0)), [1, 1]),
    "allclose": (
        lambda w, x: w.sum() * (2 - torch.allclose(residue(x), x * 0, rtol=0.0, atol=0.0)),
        [1, 1],
    ),
    "in": (lambda w, x: w.sum() * (2 - (0.0 in residue(x))), [1, 1]),
    "tolist": (lambda w, x: w.sum() * sum(v > 0 for v in residue(x).tolist()), [0, 0]),
    "tensor of scalars": (
        lambda w, x: (w * torch.tensor([*residue(x)]).to(w.dtype).sign()).sum(),
        [0, 0],
    ),
    "split sizes": (split, [2, 1]),
    "lengths": (packed, [2, 1]),
    "backward pass": (in_the_backward_pass, [1, 1]),
    "new_tensor": (new_tensor, [0, 0]),
    "tensor_split": (split_at, [1, 1]),
    "slice": (lambda w, x: w[: (residue(x)[0] > 0).to(torch.int64)].sum() + w.sum(), [1, 1]),
    "one_hot of argmax": (one_hot, None),
    "counts": (repeated, [1, 1]),
    "topk": (topk_in_python, None),
    "numpy order": (sorted_in_python, None),
    "numpy mask": (from_numpy, [1, 1]),
}


class Step(nn.Module):
    def __init__(self, f, dtype):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=dtype))
        self.x = torch.tensor([0.1, 0.7], dtype=dtype)
        self.f = f

    def forward(self):
        return self.f(self.w, self.x)


def certificate_of(f, dtype, method):
    return certify(Step(f, dtype), lambda model, batch: model(), None, method=method)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", UNDECIDED)
def test_an_undecided_decision_leaves_no_bound_below_the_error(name, dtype):
    f, exact = UNDECIDED[name]
    for method in METHODS:
        found = certificate_of(f, dtype, method)
        assert found.guarantee < Guarantee.CERTIFIED
        assert not found.entrywise_bounds
        assert found.decisions is not None
        assert found.unresolved_kinks
        kink = found.unresolved_kinks[0]
        assert "test_decisions.py:" in kink.source
    if exact is not None:  # the decision is wrong indeed
        step = Step(f, dtype)
        step().backward()
        grad = torch.zeros(2) if step.w.grad is None else step.w.grad
        assert grad.tolist() != exact


def clipped(w, x):
    loss = (w * x).square().sum()
    (grad,) = torch.autograd.grad(loss, w, create_graph=True)
    norm = grad.norm().item()
    return (w * min(1.0, 1.0 / (norm + 1e-6))).sum() + loss


def logged(w, x):
    loss = (w * x).square().sum()
    loss.item()
    f"{loss:.3f}"
    return loss


def padded(w, x):
    tokens = torch.tensor([3, 0])
    return (w * x)[tokens != 0].sum() + (w * x).masked_fill(tokens == 0, 0.0).sum()


def dropped(w, x):
    return (nn.functional.dropout(w, 0.5) * x).sum()


def lengths(w, x):
    n = int((torch.tensor([3, 0]) != 0).sum())
    return (w * x)[:n].sum()


def finite(w, x):
    loss = (w * x).sum()
    if not torch.isfinite(loss) or loss.isnan().any():
        raise AssertionError
    return loss


def far_from_its_kink(w, x):
    return (w * x.exp())[x.exp() > 1.5].sum() + w.sum()


ORDINARY = (clipped, logged, padded, dropped, lengths, finite, far_from_its_kink)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("f", ORDINARY)
def test_ordinary_steps_keep_their_guarantee(f, dtype):
    for method in METHODS:
        found = certificate_of(f, dtype, method)
        assert found.guarantee >= Guarantee.CERTIFIED, (method, found.notes)
        assert found.decisions is None or not found.decisions.margin < 1e3


def test_decisions_by_what_came_from_outside_are_none():
    assert certificate_of(padded, torch.float32, "ball").decisions is not None  # made in the step

    def masked(w, x):
        return (w * x)[mask].sum()

    mask = torch.tensor([True, False])
    assert certificate_of(masked, torch.float32, "ball").decisions is None


def test_the_margin_is_how_much_wider_the_bounds_might_be():
    def at(distance):
        def f(w, x):
            s = x.exp() / x.exp()  # 1, about 4e-16 off
            return w[s - (1 - distance) > 0].sum() + w.sum()

        return certificate_of(f, torch.float64, "ball").decisions

    assert at(1e-6).margin == 1e8 or at(1e-6).margin == 1e9
    assert at(1e-12).margin in (1e2, 1e3)
    assert at(1e-6).count == 1
    assert at(1e-6).reads == 0


def test_decisions_are_told_and_saved(tmp_path):
    found = certificate_of(logged, torch.float32, "ball")
    assert found.decisions.reads == found.decisions.count == 1  # read twice
    assert "1 of them are real numbers that Python read" in to_text(found).replace("\n", " ")
    assert json.loads(found.to_json())["decisions"]["count"] == 1
    found.save(tmp_path / "c.json")
    assert Certificate.load(tmp_path / "c.json").decisions == found.decisions
    bare = certificate_of(dropped, torch.float32, "reference")
    assert "decisions" not in json.loads(bare.to_json())


def test_what_python_read_is_named_and_where_it_is_used_again():
    def scaled(w, x):
        return (w * x * w.detach().exp().sum().item()).sum()

    (note,) = [n for n in certificate_of(scaled, torch.float32, "ball").notes if "read" in n]
    assert "item in the model (" in note or "item in Step (" in note
    assert "as they were read: aten.mul.Tensor" in note
    (note,) = [n for n in certificate_of(logged, torch.float32, "ball").notes if "read" in n]
    assert "as they were read" not in note
    assert not [n for n in certificate_of(dropped, torch.float32, "ball").notes if "read" in n]


def test_the_reference_alone_tells_what_falls_out_otherwise():
    def f(w, x):
        return w[(x * 10 - 1) > 0].sum() + w.sum()  # in float32 0.1 * 10 rounds to 1

    found = certificate_of(f, torch.float32, "reference")
    assert math.isnan(found.decisions.margin)
    assert found.unresolved_kinks[0].count == 1
    assert "not tested" in str(found.decisions)
    assert any("otherwise" in note for note in found.notes)


@pytest.mark.parametrize("name", ["mask", "tolist", "loop", "equal", "counts"])
def test_programs_with_decisions_are_replayed_saved_and_loaded(name, tmp_path):
    step = Step(UNDECIDED[name][0], torch.float32)
    with record(step) as recording:
        step().backward()
    program = recording.program
    assert program.decisions
    again = program.replay(None)
    assert torch.equal(again.gradients["w"], step.w.grad)
    for decision in again.decisions:
        assert torch.equal(decision.value, decision.taken)
    program.save(tmp_path / "p.pt")
    loaded = Program.load(tmp_path / "p.pt")
    assert loaded.digest() == program.digest()
    assert [d.op for d in loaded.decisions] == [d.op for d in program.decisions]
    assert [d.info for d in loaded.decisions] == [d.info for d in program.decisions]
    found = certify(loaded, method="ball")
    assert found.guarantee < Guarantee.CERTIFIED


def test_torch_is_what_it_was_after_a_recording():
    before = (torch.Tensor.tolist, torch.Tensor.numpy, torch.tensor, torch.Tensor.__deepcopy__)
    step = Step(logged, torch.float32)
    for _ in range(3):
        with record(step):
            step().backward()
    after = (torch.Tensor.tolist, torch.Tensor.numpy, torch.tensor, torch.Tensor.__deepcopy__)
    assert torch.tensor([1.0]).tolist() == [1.0]
    assert after == before or all(hasattr(f, "__wrapped__") for f in after)


@pytest.mark.parametrize("name", ["mask", "if", "tolist"])
def test_tracking_bounds_nothing_where_a_decision_is_undecided(name):
    step = Step(UNDECIDED[name][0], torch.float32)
    with track(step) as tracking:
        step().backward()
    assert tracking.guarantee is Guarantee.NONE
    assert math.isinf(tracking.gradients["w"].error_bound)
    plain = Step(logged, torch.float32)
    with track(plain) as tracking:
        plain().backward()
    assert tracking.guarantee is Guarantee.PROVED
    assert math.isfinite(tracking.gradients["w"].error_bound)
