"""Do the entries of ops on whole tensors obey the laws?"""

import pytest

from numgeom.ops.averaging import AVERAGING
from numgeom.ops.casting import CASTING
from numgeom.ops.choice import CHOICE
from numgeom.ops.contraction import CONTRACTION
from numgeom.ops.convolution import CONVOLUTION
from numgeom.ops.counting import COUNTING
from numgeom.ops.distances import DISTANCES
from numgeom.ops.entry import Kind, Op
from numgeom.ops.exact import EXACT
from numgeom.ops.factories import FACTORIES
from numgeom.ops.indexing import INDEXING
from numgeom.ops.interpolation import INTERPOLATION
from numgeom.ops.logic import LOGIC
from numgeom.ops.masking import MASKING
from numgeom.ops.moments import MOMENTS
from numgeom.ops.pooling import POOLING
from numgeom.ops.products import PRODUCTS
from numgeom.ops.randomness import RANDOM
from numgeom.ops.reduction import REDUCTION
from numgeom.ops.running_logs import RUNNING_LOGS
from numgeom.ops.scatter import SCATTER
from numgeom.ops.vector_norms import VECTOR_NORMS
from tests.ops import laws
from tests.ops.tensor_oracle import ORACLES

ENTRIES: tuple[Op, ...] = (
    *EXACT, *FACTORIES, *CASTING, *MASKING, *INDEXING, *CONTRACTION, *CONVOLUTION, *REDUCTION,
    *MOMENTS, *VECTOR_NORMS, *CHOICE, *SCATTER, *PRODUCTS, *POOLING, *AVERAGING, *INTERPOLATION,
    *DISTANCES, *LOGIC, *RANDOM, *COUNTING, *RUNNING_LOGS,
)  # fmt: skip

# Without a function of their inputs that an oracle could compute: what is drawn, memory as it was,
# and windows that are drawn (`test_pooling`).
UNTRIED = {
    *(op.name for op in RANDOM),
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided",
    "_efficientzerotensor", "fractional_max_pool2d", "fractional_max_pool2d_backward",
}  # fmt: skip

TRIED = tuple(op for op in ENTRIES if op.name not in UNTRIED)
each_op = pytest.mark.parametrize("op", TRIED, ids=lambda op: op.name)


def test_every_entry_is_tried() -> None:
    assert {op.name for op in TRIED} == set(ORACLES) - UNTRIED
    assert all(op.examples for op in TRIED)
    assert not any(op.examples for op in ENTRIES if op.name in UNTRIED)


@each_op
def test_exact_inputs_have_no_spread(op: Op) -> None:
    laws.check_exact_inputs(op)


@each_op
def test_a_larger_radius_never_gives_a_smaller_spread(op: Op) -> None:
    laws.check_monotone(op)


@each_op
def test_rounding_is_bounded(op: Op) -> None:
    laws.check_rounding(op, ORACLES[op.name])


@each_op
def test_the_exact_value_is_contained(op: Op) -> None:
    laws.check_containment(op, ORACLES[op.name])


@each_op
def test_the_second_order_remainder_is_bounded(op: Op) -> None:
    laws.check_second_order(op, ORACLES[op.name])


# gamma_n is attained when all roundings go the same way; over n random ones they partly cancel.
LOOSE_ROUNDING = 0.02
# The weights of interpolation take four roundings each, all granted in full at once.
LOOSER_ROUNDING = {op.name: 0.002 for op in INTERPOLATION if op.kind is Kind.REDUCTION}


@each_op
def test_halving_a_stated_constant_would_break_containment(op: Op) -> None:
    seen = laws.attained(op, ORACLES[op.name])
    call = laws.evaluate(op, *op.examples[0].make(laws.generator(0)))
    if any((bound > 0).any() for bound in laws.as_bounds(op.rounding_of(call), call.y)):
        assert seen.rounding > LOOSER_ROUNDING.get(op.name, LOOSE_ROUNDING)
    for what in ("spread", "second_order"):
        share = getattr(seen, what)
        assert share == 0.0 or share > 0.5
