"""Do rules for real numbers keep quiet about complex ones?"""

import torch

from numgeom.ops.entry import Evaluation, Op
from numgeom.ops.table import OPS
from numgeom.recording import record
from numgeom.semantics.ball import enclose
from tests.ops.laws import run_op

Z = torch.tensor([[1 + 2j, 3.0]], dtype=torch.complex128)


def asked(
    name: str, *args: object, doubts: dict[int | str, object] | None = None
) -> tuple[Op, Evaluation]:
    op = OPS.named(name)
    assert op is not None
    return op, Evaluation(name, args, {}, run_op(name, args, {}), {}, doubts or {})


def applies(name: str, *args: object) -> bool:
    op = OPS.named(name)
    assert op is not None
    return op.applies_to(Evaluation(name, args, {}, run_op(name, args, {})))


def test_entries_for_real_numbers_do_not_apply_to_complex_ones() -> None:
    for name, args in (("mm", (Z, Z.t())), ("sum", (Z,)), ("mul", (Z, 2.0)), ("prod", (Z,))):
        assert not applies(name, *args), name
    assert not applies("linalg_vector_norm", Z)  # a real result of complex entries
    assert not applies("mul", Z.real, 1j)
    assert applies("mul", Z.real, 2.0)


def test_complex_entries_that_move_keep_their_certainty() -> None:
    op, call = asked("view", Z, [2])
    assert op.applies_to(call)
    assert (op.rounding_of(call), op.spread_of(call), op.doubt_of(call)) == (None, None, None)
    known = torch.tensor([[False, True]])
    op, call = asked("permute", Z, [1, 0], doubts={0: known})
    assert op.doubt_of(call).tolist() == [[False], [True]]


def test_a_call_that_no_entry_applies_to_is_unknown_by_name() -> None:
    """Complex arithmetic that was not opened into parts must not pass for exact."""

    def step() -> None:
        z = torch.complex(w, w * 0.3)
        (z * z).abs().sum().backward()

    w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    module = torch.nn.Module()
    module.w = w
    with record(module) as recording:
        step()
    result = enclose(recording.program)  # not decomposed
    assert any("complex numbers" in name for name in result.unknown_ops)
    assert bool(torch.isinf(result.radii["w"]).all())
