"""Do steps that call rare ops open into ops that have rules, and are they enclosed?"""

import pytest
import torch

from numgeom.errors import RecordingError
from numgeom.recording.decompose import decompositions
from numgeom.semantics.ball import enclose
from tests.ops.zoo import ZOO, record_zoo

NOT_RECORDED = {"ctc"}


@pytest.mark.parametrize("name", sorted(set(ZOO) - NOT_RECORDED))
def test_what_is_left_of_a_step_has_rules(name: str) -> None:
    program = record_zoo(name)
    opened = program.decompose()
    found = enclose(opened)
    assert not found.unknown_ops
    reference = program.replay().gradients
    for parameter, radius in found.radii.items():
        assert bool(torch.isfinite(radius).all())
        y, z = found.midpoints[parameter], reference[parameter]
        # Both are float64 evaluations of one function; what their errors have in common is its
        # condition, which the radius shows.
        assert bool(((y - z).abs() <= 8.0 * radius).all())
        assert bool((radius <= 1e-9 * (1.0 + y.abs().max())).all())


@pytest.mark.parametrize("name", sorted(NOT_RECORDED))
def test_what_cannot_be_recorded_is_refused(name: str) -> None:
    with pytest.raises(RecordingError, match="shape"):
        record_zoo(name)


def test_primitives_mean_what_their_namesakes_do() -> None:
    x = torch.tensor([0.3, 0.7], dtype=torch.float64)
    table = decompositions()
    prims = torch.ops.prims
    for op in (prims.add, prims.sub, prims.mul, prims.div):
        assert torch.equal(table[op.default](x, x.flip(0)), op.default(x, x.flip(0)))
    for op in (prims.neg, prims.exp, prims.log, prims.sqrt, prims.tanh):
        assert torch.equal(table[op.default](x), op.default(x))
