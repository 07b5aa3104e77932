"""Does an op without a rule void the guarantee, and is it named where it is read first?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import numgeom
from numgeom.certificate.result import Certificate
from numgeom.ops.table import OPS
from numgeom.report.table import to_text
from numgeom.results.guarantee import Guarantee


@pytest.fixture(scope="module")
def cube() -> Callable[[Tensor], Tensor]:
    """An op of the user's own, with a derivative."""

    @torch.library.custom_op("numgeom_test::cube", mutates_args=())
    def made(x: Tensor) -> Tensor:
        return x * x * x

    def keep(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 3 * x * x * dy

    made.register_autograd(backward, setup_context=keep)
    return made


def certified(loss: Callable[[Tensor], Tensor], method: str) -> Certificate:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return numgeom.certify(model, lambda m, b: loss(m(b)), torch.randn(5, 4), method=method)


@pytest.mark.parametrize("method", ["auto", "ball", "functional"])
def test_an_op_of_the_users_own(cube: Callable[[Tensor], Tensor], method: str) -> None:
    found = certified(lambda h: (cube(h) + cube(h + 1)).sum(), method)
    assert found.guarantee is Guarantee.NONE
    assert found.total.error_bound is None
    assert found.unknown_ops == {"numgeom_test.cube.default": 2}
    text = to_text(found)
    named = text.index("No rule for: numgeom_test.cube.default (2 calls)")
    assert named < text.index("weight"), "unknown ops stand above the parameters"


def test_newton_kantorovich_bounds_nothing_either(cube: Callable[[Tensor], Tensor]) -> None:
    found = certified(lambda h: cube(h).sum(), "kantorovich")
    assert found.total.error_bound is None
    assert found.unknown_ops == {"numgeom_test.cube.default": 1}


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "_linalg_svd": lambda h: torch.linalg.svdvals(h).sum(),
    "_linalg_eigh": lambda h: torch.linalg.eigvalsh(h.T @ h).sum(),
    "linalg_matrix_exp": lambda h: torch.linalg.matrix_exp(h.T @ h).sum(),
    "polygamma": lambda h: torch.polygamma(1, h.abs() + 1).sum(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_op(name: str) -> None:
    assert OPS.named(name) is None
    found = certified(REFUSED[name], "auto")
    assert found.guarantee is Guarantee.NONE
    assert found.total.error_bound is None
    assert any(name in op for op in found.unknown_ops)
