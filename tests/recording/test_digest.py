import pytest
import torch
from torch import nn

from numgeom.recording import Program, digest, record_step, tensor_digest


def program(seed: int = 0, *, width: int = 4, scale: float = 1.0) -> Program:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))
    return record_step(model, lambda m, b: m(b).square().sum() * scale, torch.randn(5, 3))


def test_equal_steps_have_equal_digests_and_others_do_not() -> None:
    assert digest(program()) == digest(program())
    found = {digest(p) for p in (program(), program(1), program(width=5), program(scale=2.0))}
    assert len(found) == 4


def test_a_file_keeps_the_digest(tmp_path) -> None:
    one = program()
    one.save(tmp_path / "p.pt")
    assert digest(Program.load(tmp_path / "p.pt")) == digest(one)


def test_every_bit_of_a_constant_counts() -> None:
    one = program()
    before = digest(one)
    name = next(n for n, t in one.constants.items() if t.is_floating_point() and t.numel())
    flat = one.constants[name].detach().clone().reshape(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(torch.inf))
    one.constants[name] = flat.reshape(one.constants[name].shape)
    assert digest(one) != before


def test_tensors_are_told_apart_by_name_format_shape_and_bits() -> None:
    x = torch.tensor([0.0, 1.0])
    others = [
        {"b": x}, {"a": x.double()}, {"a": x.reshape(2, 1)}, {"a": -x}, {"a": x, "c": x},
        {"a": torch.tensor([-0.0, 1.0])},
    ]  # fmt: skip
    assert len({tensor_digest(each) for each in [{"a": x}, *others]}) == 7
    assert tensor_digest({"a": x, "b": -x}) == tensor_digest({"b": -x, "a": x})
    assert tensor_digest({"a": torch.zeros(0), "s": torch.tensor(1.0).expand(3, 2)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.complex64])
def test_a_digest_reads_entries_and_not_memory(dtype: torch.dtype) -> None:
    """Equal entries have one digest, however they lie in memory: a column of one row, too."""
    table = torch.arange(24).reshape(4, 6).to(dtype)
    views = [table[:1, 3], table[:, 2], table[:, ::2], table.t(), table[2:3, 1:2], table[:0], table]
    for view in views:
        plain = torch.empty(view.shape, dtype=dtype).copy_(view)
        assert tensor_digest({"a": view}) == tensor_digest({"a": plain})
    if dtype.is_complex:
        assert tensor_digest({"a": table.conj()}) == tensor_digest({"a": table.conj_physical()})


def test_a_step_on_a_column_of_one_row_has_a_digest() -> None:
    data = torch.randn(8, 4)
    step = record_step(
        nn.Linear(3, 1),
        lambda m, b: (m(b[0])[:, 0] - b[1]).square().sum(),
        (data[:1, :3], data[:1, 3]),
    )
    assert len(digest(step)) == len(step.digest()) == 64
