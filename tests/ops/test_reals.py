"""Do rules for real numbers keep quiet about complex ones?"""

import torch

from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS
from tests.ops.laws import run_op

Z = torch.tensor([[1 + 2j, 3.0]], dtype=torch.complex128)


def facts(name: str, *args: object, doubts: dict[int | str, object] | None = None) -> tuple:
    op = OPS.named(name)
    assert op is not None
    call = Evaluation(name, args, {}, run_op(name, args, {}), {}, doubts or {})
    return op.rounding(call), op.spread(call), op.doubt(call)


def test_complex_arithmetic_is_unknown() -> None:
    for name, args in (("mm", (Z, Z.t())), ("sum", (Z,)), ("cumsum", (Z, 1)), ("prod", (Z,))):
        assert bool(facts(name, *args)[2].all()), name


def test_a_real_result_of_complex_entries_is_unknown() -> None:
    rounding, _, _ = facts("linalg_vector_norm", Z)
    assert bool(torch.isinf(rounding).all())


def test_complex_entries_that_move_keep_their_certainty() -> None:
    rounding, spread, doubt = facts("view", Z, [2])
    assert (rounding, spread, doubt) == (None, None, None)
    known = torch.tensor([[False, True]])
    assert facts("permute", Z, [1, 0], doubts={0: known})[2].tolist() == [[False], [True]]
