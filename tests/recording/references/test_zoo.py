"""Does every reference of an op that few models call agree with the kernel, as steps call it?

aten::_embedding_bag, aten::_embedding_bag_per_sample_weights, aten::multi_margin_loss,
aten::multilabel_margin_loss, aten::_weight_norm_interface, aten::_pdist_forward, aten::_pdist,
aten::grid_sampler_2d, aten::linalg_solve_triangular, aten::linalg_lu_solve,
aten::_linalg_solve_ex, aten::linalg_inv_ex, aten::_linalg_det, aten::_linalg_slogdet,
aten::linalg_cholesky_ex, aten::cholesky_solve, aten::linalg_qr, aten::hardsigmoid, aten::elu: the
steps of the zoo call them.
"""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from numgeom.recording.references import bags, ctc, distances, linear_systems, margins, sampling
from tests.ops.zoo import ZOO, Holder, whole
from tests.recording.references.agreement import Calls, check, compute

NAMES = tuple(
    definition.name
    for module in (bags, ctc, distances, linear_systems, margins, sampling)
    for definition in module.DEFINITIONS
)
# Outputs that only the backward op reads, and reads from the offsets as well; sizes of bags that a
# kernel leaves out where it does not need them.
# The forward variables of CTC hold memory as it was behind the end of each sequence.
SKIPPED = {
    "aten::_embedding_bag": (1, 2, 3),
    "aten::_embedding_bag_forward_only": (1, 2, 3),
    "aten::_ctc_loss": (1,),
    "aten::_ctc_loss.Tensor": (1,),
}
# Their float64 kernels are accurate to float32 alone: one takes 1/6, one is handed CELU's 1/alpha.
SPACING = {"aten::hardsigmoid_backward": 2.0**-23, "aten::elu_backward": 2.0**-23}
TERMS = 64  # products and sums in a row of the largest example


def calls_of(name: str, dtype: torch.dtype) -> list[tuple[str, Any, Any, Any]]:
    """The calls of such ops in a step."""
    model = Holder(ZOO[name]).to(dtype)
    torch.manual_seed(0)
    with Calls(*NAMES) as calls:
        model().backward()
    return [call for call in calls.seen if not draws(call)]


def draws(call: tuple[str, Any, Any, Any]) -> bool:
    """A recording holds what was drawn, and not the op that drew."""
    return call[0] == "aten::rrelu_with_noise" and any(a is True for a in call[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ZOO)
def test_references_agree_with_the_kernels(name: str, dtype: torch.dtype) -> None:
    for op, args, kwargs, _ in calls_of(name, dtype):
        skip, spacing = SKIPPED.get(op, ()), SPACING.get(op)
        check(op, *args, terms=TERMS, skip=skip, spacing=spacing, **kwargs)


def direct() -> dict[str, tuple[Any, ...]]:
    """Arguments of the ops that no step calls."""
    draw = partial(torch.randn, dtype=torch.float64)
    x = draw(3, 2, 4).log_softmax(2)
    lengths = torch.tensor([3, 2]), torch.tensor([1, 1])
    labels = torch.tensor([[1], [2]])
    y, alpha = torch.ops.aten._ctc_loss.Tensor(x, labels, *lengths)
    noise = draw(5)
    return {
        "aten::_embedding_bag_forward_only": (draw(4, 2), whole(0, 3, 1), whole(0, 2)),
        "aten::embedding_renorm": (draw(6, 3), whole([0, 2], [2, 5]), 0.8, 2.0),
        "aten::linalg_lu_factor_ex": (draw(2, 4, 4),),
        "aten::rrelu_with_noise_backward": (draw(5), draw(5), noise, 0.1, 0.3, False, False),
        "aten::rrelu_with_noise": (draw(5), noise),
        "aten::rrelu_with_noise_functional": (draw(5), noise),
        "aten::_ctc_loss": (x, labels, [3, 2], [1, 1]),
        "aten::_ctc_loss.Tensor": (x, labels, *lengths),
        "aten::_ctc_loss_backward": (draw(2), x, labels, [3, 2], [1, 1], y, alpha, 0),
        "aten::_ctc_loss_backward.Tensor": (draw(2), x, labels, *lengths, y, alpha, 0),
    }


@pytest.mark.parametrize("name", direct())
def test_what_no_step_calls_agrees_as_well(name: str) -> None:
    check(name, *direct()[name], terms=TERMS, skip=SKIPPED.get(name, ()))


def test_every_reference_is_tried() -> None:
    seen = {call[0] for name in ZOO for call in calls_of(name, torch.float64)}
    assert set(NAMES) == seen | set(direct())


def test_the_largest_of_a_bag_stands_where_the_kernel_says() -> None:
    weight, offsets = torch.randn(5, 3), torch.tensor([0, 3, 3, 5])
    indices = torch.tensor([0, 2, 4, 4, 1, 3, 0])
    op = torch.ops.aten._embedding_bag.default
    kernel = op(weight, indices, offsets, False, 2)
    found = compute("aten::_embedding_bag", weight, indices, offsets, False, 2)
    assert torch.equal(found[0], kernel[0])
    assert torch.equal(found[3], kernel[3])


@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_rows_are_shortened_as_the_kernel_does(norm_type: float) -> None:
    weight, indices = torch.randn(6, 3, dtype=torch.float64), torch.tensor([[0, 2], [2, 5]])
    kernel = torch.ops.aten.embedding_renorm_.default(weight.clone(), indices, 0.8, norm_type)
    found = compute("aten::embedding_renorm", weight, indices, 0.8, norm_type)
    torch.testing.assert_close(found, kernel, rtol=1e-15, atol=0)
    assert torch.equal(found[1], weight[1])


@pytest.mark.parametrize("laid_out", ["padded", "end to end"])
def test_ctc_from_end_to_end(laid_out: str) -> None:
    """Loss and gradient of the references, one after the other, against autograd's."""
    x = torch.randn(7, 3, 5, dtype=torch.float64).log_softmax(2).requires_grad_()
    targets = torch.tensor([[1, 1, 2], [3, 2, 0], [4, 0, 0]])
    if laid_out == "end to end":
        targets = torch.tensor([1, 1, 2, 3, 2, 4])
    steps, lengths = torch.tensor([7, 5, 6]), torch.tensor([3, 2, 1])
    loss = F.ctc_loss(x, targets, steps, lengths, reduction="none")
    weights = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    (expected,) = torch.autograd.grad(loss, x, weights)
    given = (x.detach(), targets, steps, lengths)
    y, alpha = compute("aten::_ctc_loss.Tensor", *given)
    found = compute("aten::_ctc_loss_backward.Tensor", weights, *given, y, alpha, 0)
    torch.testing.assert_close(y, loss.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_sequence_that_cannot_be_aligned_has_an_infinite_loss() -> None:
    x = torch.randn(2, 1, 3, dtype=torch.float64).log_softmax(2)
    given = (x, torch.tensor([[1, 1, 1]]), [2], [3])
    y, alpha = compute("aten::_ctc_loss", *given)
    assert y.item() == float("inf")
    grad = torch.ones(1, dtype=torch.float64)
    found = compute("aten::_ctc_loss_backward", grad, *given, y, alpha, 0, True)
    assert torch.equal(found, torch.zeros_like(x))


def test_ctc_does_not_read_what_the_kernel_left_unwritten() -> None:
    x = torch.randn(4, 2, 3, dtype=torch.float64).log_softmax(2)
    given = (x, torch.tensor([[1, 2], [1, 0]]), [4, 3], [2, 1])
    y, alpha = compute("aten::_ctc_loss", *given)
    spoilt = alpha.clone()
    spoilt[1, 3:] = torch.nan
    spoilt[1, :, 3:] = torch.nan
    grad = torch.ones(2, dtype=torch.float64)
    found, clean = (
        compute("aten::_ctc_loss_backward", grad, *given, y, a, 0) for a in (spoilt, alpha)
    )
    assert torch.equal(found, clean)
