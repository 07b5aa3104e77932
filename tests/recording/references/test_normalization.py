"""Do the references of batch norm and RMS norm agree with the kernels?"""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.recording.references.agreement import (
    assert_close,
    check,
    compute,
    dtypes,
    gradients,
)

aten = torch.ops.aten
BATCH = "aten::native_batch_norm"
BACKWARD = "aten::native_batch_norm_backward"
SHAPES = [(4, 3), (5, 2, 7), (2, 4, 3, 5), (3, 1, 2, 2, 2)]
FORMATS = [  # of the input, of the parameters
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]


def channels(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters and running statistics of a batch norm."""
    count = shape[1]
    values = {name: torch.randn(count) for name in ("weight", "bias", "running_mean")}
    values["running_var"] = torch.rand(count) + 0.5
    return {name: value.to(dtype) for name, value in values.items()}


def terms(shape: tuple[int, ...]) -> int:
    """The kernels may sum the variance in one pass, so allow for the mean squared, too."""
    count = shape[0]
    for n in shape[2:]:
        count *= n
    return 4 * count


@pytest.mark.parametrize(("dtype", "wide"), FORMATS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_batch_norm(
    shape: tuple[int, ...], affine: bool, dtype: torch.dtype, wide: torch.dtype
) -> None:
    x, dy = (torch.randn(shape).to(dtype) for _ in range(2))
    given = channels(shape, wide)
    weight, bias = (given["weight"], given["bias"]) if affine else (None, None)
    running = given["running_mean"], given["running_var"]
    for training in (True, False):
        args = (x, weight, bias, *running, training, 0.3, 1e-4)
        expected = aten.native_batch_norm.default(
            x, weight, bias, *(t.clone() for t in running), *args[5:]
        )
        found = compute(BATCH, *args)
        eps = max(torch.finfo(dtype).eps, torch.finfo(wide).eps)
        assert_close(found, expected, bound=4 * terms(shape) * eps)
        assert dtypes(found) == dtypes(expected)
        # Saved values that are not those of the batch: the gradient must use them as they are.
        expected = (expected[0], expected[1] + 0.25, expected[2] * 1.25)
        for mask in ([True, True, True], [True, False, False], [False, True, True]):
            saved = (x, weight, *running, expected[1], expected[2], training, 1e-4, mask)
            check(BACKWARD, dy, *saved, terms=terms(shape))
        if affine:
            reserve = torch.empty(0, dtype=torch.uint8)
            saved = (x, weight, *running, expected[1], expected[2], training, 1e-4, mask)
            check("aten::batch_norm_backward", dy, *saved, reserve, terms=terms(shape))


@pytest.mark.parametrize(("dtype", "wide"), FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_functional_batch_norms_return_the_running_statistics(
    shape: tuple[int, ...], dtype: torch.dtype, wide: torch.dtype
) -> None:
    x = torch.randn(shape).to(dtype)
    given = list(channels(shape, wide).values())
    options: dict[str, Any] = {"terms": terms(shape)}
    check("aten::_native_batch_norm_legit_functional", x, *given, True, 0.3, 1e-4, **options)
    check("aten::_native_batch_norm_legit_functional", x, *given, False, 0.3, 1e-4, **options)
    check("aten::_batch_norm_with_update_functional", x, *given, 0.3, 1e-4, **options)
    check("aten::_batch_norm_no_update", x, *given, 0.3, 1e-4, **options)
    check("aten::_native_batch_norm_legit_no_training", x, *given, 0.3, 1e-4, **options)
    weights = given[:2]
    check("aten::_native_batch_norm_legit.no_stats", x, *weights, True, 0.3, 1e-4, **options)


def test_the_op_that_writes_returns_what_the_reference_returns() -> None:
    x = torch.randn(4, 3, 5)
    given = list(channels((4, 3, 5), torch.float32).values())
    args = (True, 0.3, 1e-4)
    found = compute("aten::_native_batch_norm_legit", x, *given, *args)
    kernel = aten._native_batch_norm_legit.default(x, *(t.clone() for t in given), *args)
    assert_close(found, kernel, bound=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_is_the_derivative_of_forward(shape: tuple[int, ...], training: bool) -> None:
    x, dy = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    weight, bias, mean, variance = channels(shape, torch.float64).values()
    y = compute(BATCH, x, weight, bias, mean, variance, training, 0.1, 1e-5)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    wanted = torch.nn.functional.batch_norm(
        x, mean.clone(), variance.clone(), weight, bias, training
    )
    assert_close(y[0], wanted, bound=1e-12)
    want = gradients([wanted], leaves, [dy])
    x, weight, bias = (t.detach() for t in (x, weight, bias))
    every = [True] * 3
    saved = (mean, variance, y[1], y[2])
    found = compute(BACKWARD, dy, x, weight, *saved, training, 1e-5, every)
    assert_close(found, want, bound=1e-10)
    if training:
        unsaved = (mean, variance, None, None)
        found = compute(BACKWARD, dy, x, weight, *unsaved, training, 1e-5, every)
        assert_close(found, want, bound=1e-10)
        reserve = torch.empty(0)
        found = compute("aten::cudnn_batch_norm_backward", x, dy, weight, *saved, 1e-5, reserve)
        assert_close(found, want, bound=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_cudnn_batch_norm_is_the_native_one(training: bool) -> None:
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    given = channels((4, 3, 5), torch.float64)
    args = (x, *given.values(), training, 0.1, 1e-5)
    found = compute("aten::cudnn_batch_norm", *args)
    assert_close(found[:3], aten.native_batch_norm.default(*args), bound=1e-12)
    meta = aten.cudnn_batch_norm.default(
        x.to("meta"), *(t.to("meta") for t in given.values()), *args[5:]
    )
    assert len(found) == len(meta)
    assert (found[3].shape, found[3].dtype) == (meta[3].shape, meta[3].dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm(dtype: torch.dtype) -> None:
    for shape, affine, eps in product(([7], [3, 7]), (False, True), (None, 1e-3)):
        x = (torch.randn(4, 3, 7) * 1e-3).to(dtype)  # small, so that eps counts
        weight = torch.randn(shape).to(dtype) if affine else None
        check("aten::_fused_rms_norm", x, shape, weight, eps or 1e-6, terms=21)
        if eps is None:  # the default depends on the format, so there is no float64 to compare
            y = compute("aten::_fused_rms_norm", x, shape, weight, None)
            expected = aten._fused_rms_norm.default(x, shape, weight, None)
            assert_close(y, expected, bound=84 * torch.finfo(dtype).eps)
            assert dtypes(y) == dtypes(expected)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [[7], [3, 7], [4, 3, 7]])
def test_rms_norm_backward_is_the_derivative_of_forward(shape: list[int], affine: bool) -> None:
    x, dy = (torch.randn(4, 3, 7, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(shape, dtype=torch.float64) if affine else None
    y, inverse = compute("aten::_fused_rms_norm", x, shape, weight, 1e-3)
    leaves = [t.requires_grad_() for t in (x, weight) if t is not None]
    wanted = torch.nn.functional.rms_norm(x, shape, weight, 1e-3)
    assert_close(y, wanted, bound=1e-13)
    want = [*gradients([wanted], leaves, [dy]), None][:2]
    saved = (x.detach(), shape, inverse, None if weight is None else weight.detach())
    for mask in product((True, False), repeat=2):
        part = compute("aten::_fused_rms_norm_backward", dy, *saved, mask)
        kept = [x if wanted else None for x, wanted in zip(want, mask, strict=True)]
        assert_close(part, kept, bound=1e-10)


@pytest.mark.cuda
@pytest.mark.parametrize(("dtype", "wide"), FORMATS[1:])
def test_cuda_kernels(dtype: torch.dtype, wide: torch.dtype) -> None:
    x, dy = (torch.randn(4, 3, 8, 8, device="cuda", dtype=dtype) for _ in range(2))
    given = [t.to("cuda", wide) for t in channels((4, 3), torch.float32).values()]
    args = (x, *given, True, 0.3, 1e-4)
    kernel = aten.cudnn_batch_norm.default(x, *(t.clone() for t in given), True, 0.3, 1e-4)
    widened = [t.double() if isinstance(t, Tensor) else t for t in args]
    bound = 4 * 256 * torch.finfo(dtype).eps
    assert_close(compute("aten::cudnn_batch_norm", *widened)[:3], kernel[:3], bound=bound)
    saved = (x, dy, given[0], given[2], given[3], kernel[1], kernel[2])
    found = compute(
        "aten::cudnn_batch_norm_backward", *(t.double() for t in saved), 1e-4, kernel[3]
    )
    assert_close(
        found, aten.cudnn_batch_norm_backward.default(*saved, 1e-4, kernel[3]), bound=bound
    )
    weight = torch.randn(8, device="cuda", dtype=dtype)
    normed = aten._fused_rms_norm.default(x, [8], weight, 1e-5)
    found = compute("aten::_fused_rms_norm", x.double(), [8], weight.double(), 1e-5)
    assert_close(found, normed, bound=bound)
    back = aten._fused_rms_norm_backward.default(dy, x, [8], normed[1], weight, [True, True])
    wide_args = (dy.double(), x.double(), [8], normed[1].double(), weight.double(), [True, True])
    assert_close(compute("aten::_fused_rms_norm_backward", *wide_args), back, bound=bound)
