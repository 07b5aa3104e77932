"""Do the references of the fused attention ops compute scaled dot-product attention?"""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from numgeom.errors import UnsupportedOpError
from tests.recording.references.agreement import assert_close, check, compute, dtypes, gradients

aten = torch.ops.aten
CPU = "aten::_scaled_dot_product_flash_attention_for_cpu"
FLASH = "aten::_scaled_dot_product_flash_attention"
EFFICIENT = "aten::_scaled_dot_product_efficient_attention"
CUDNN = "aten::_scaled_dot_product_cudnn_attention"
OVERRIDEABLE = "aten::_scaled_dot_product_fused_attention_overrideable"

# batch, heads, heads of keys, queries, keys, dim
SHAPES = [(2, 4, 4, 7, 7, 8), (1, 6, 2, 5, 9, 16), (2, 2, 1, 40, 33, 4), (1, 1, 1, 1, 3, 5)]


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value, and a gradient of the output."""
    batch, heads, kv_heads, queries, keys, dim = shape
    sizes = (heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries)
    q, k, v, dy = (torch.randn(batch, *size, dim, device=device).to(dtype) for size in sizes)
    return q, k, v, dy


def mask(kind: str, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Any:
    batch, heads, _, queries, keys, _ = shape
    if kind == "none":
        return None
    bias = torch.randn(batch, heads if kind == "full" else 1, queries, keys, device=device)
    bias[..., 0] = bias[..., 0].masked_fill(bias[..., 0] > 0, -torch.inf)
    if kind == "empty row":
        bias[..., queries // 2, :] = -torch.inf
    return (bias[0, 0] if kind == "matrix" else bias).to(dtype)


def math(q: Tensor, k: Tensor, v: Tensor, bias: Any, is_causal: bool, scale: Any) -> Tensor:
    """Attention by torch's plain composition; the causal mask is written out, top-left aligned."""
    if is_causal:
        future = torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril().logical_not()
        future = torch.zeros(future.shape, dtype=q.dtype).masked_fill(future, -torch.inf)
        bias = future if bias is None else bias + future
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["none", "full", "matrix", "empty row"])
@pytest.mark.parametrize("shape", SHAPES)
def test_cpu_kernel(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    for is_causal, scale in product((False, True), (None, 0.3)):
        q, k, v, dy = inputs(shape, dtype)
        options = {"attn_mask": mask(kind, shape, dtype), "scale": scale}
        y, row_sums = check(CPU, q, k, v, 0.0, is_causal, terms=shape[-2], **options)
        saved = (dy, q, k, v, y, row_sums, 0.0, is_causal)
        check(CPU + "_backward", *saved, terms=4 * (shape[-2] + shape[-3]), **options)


def test_fully_masked_rows_give_zero_and_take_no_gradient() -> None:
    q, k, v, dy = inputs((1, 1, 1, 3, 4, 8), torch.float64)
    bias = torch.zeros(3, 4, dtype=torch.float64)
    bias[1] = -torch.inf
    y, row_sums = compute(CPU, q, k, v, attn_mask=bias)
    dq, dk, dv = compute(f"{CPU}_backward", dy, q, k, v, y, row_sums, 0.0, False, attn_mask=bias)
    assert not y[0, 0, 1].any()
    assert not dq[0, 0, 1].any()
    assert dk.isfinite().all()
    assert dv.isfinite().all()


def forward(name: str, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    """Call a reference with the arguments that its op takes."""
    bias, rest = options.pop("bias"), options
    if name == CPU:
        return compute(name, q, k, v, attn_mask=bias, **rest)
    if name == FLASH:
        return compute(name, q, k, v, **rest)
    if name == OVERRIDEABLE:
        return compute(name, q, k, v, bias, **rest)
    return compute(name, q, k, v, bias, True, **rest)


def backward(name: str, dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Any, **options: Any) -> Any:
    """Call the backward reference with what the forward one returned."""
    bias, causal, scale = options["bias"], options["is_causal"], options["scale"]
    op, lse, lengths = f"{name}_backward", y[1], (q.size(2), k.size(2))
    if name == CPU:
        return compute(op, dy, q, k, v, y[0], lse, 0.0, causal, attn_mask=bias, scale=scale)
    if name == FLASH:
        args = (y[0], lse, None, None, *lengths, 0.0, causal, y[6], y[7])
        return compute(op, dy, q, k, v, *args, scale=scale)
    if name == EFFICIENT:
        args = (bias, y[0], lse, y[2], y[3], 0.0, [True] * 4, causal)
        return compute(op, dy, q, k, v, *args, scale=scale)
    if name == CUDNN:
        args = (y[0], lse, y[6], y[7], bias, None, None, *lengths, 0.0, causal)
        return compute(op, dy, q, k, v, *args, scale=scale)
    args = (bias, [True] * 4, y[0], lse, None, None, *lengths, 0.0, causal, y[6], y[7])
    return compute(op, dy, q, k, v, *args, scale=scale)


WITH_BIAS = list(
    product((CPU, EFFICIENT, CUDNN, OVERRIDEABLE), ("none", "full", "broadcast", "matrix"))
)


@pytest.mark.parametrize(("name", "kind"), [(FLASH, "none"), *WITH_BIAS])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_are_those_of_the_plain_composition(
    name: str, kind: str, shape: tuple[int, ...]
) -> None:
    for is_causal, scale in product((False, True), (None, 0.3)):
        q, k, v, dy = inputs(shape, torch.float64)
        bias = mask(kind, shape, torch.float64)
        options = {"bias": bias, "is_causal": is_causal, "scale": scale}
        y = forward(name, q, k, v, **options)
        leaves = [x for x in (q, k, v, bias) if x is not None]
        for leaf in leaves:
            leaf.requires_grad_()
        want = math(q, k, v, bias, is_causal, scale)
        assert_close(y[0], want, bound=1e-13)
        found = backward(name, dy, *(x.detach() for x in (q, k, v)), y, **options)
        wanted = gradients([want], leaves, [dy])
        assert_close(found[:3], wanted[:3], bound=1e-10)
        if len(found) == 4 and bias is not None:
            assert_close(found[3], wanted[3], bound=1e-10)


def test_a_boolean_mask_keeps_what_is_true() -> None:
    q, k, v, _ = inputs((2, 2, 2, 5, 6, 4), torch.float64)
    keep = torch.rand(5, 6) > 0.3
    keep[:, 0] = True
    y = compute(EFFICIENT, q, k, v, keep, True)
    assert_close(y[0], scaled_dot_product_attention(q, k, v, keep), bound=1e-13)


@pytest.mark.parametrize("name", [FLASH, EFFICIENT, CUDNN, OVERRIDEABLE])
def test_outputs_are_laid_out_as_those_of_the_kernel(name: str) -> None:
    q, k, v, _ = inputs((2, 4, 4, 5, 7, 8), torch.bfloat16)
    args = (None, True) if name in (EFFICIENT, CUDNN) else ()
    op = getattr(aten, name.removeprefix("aten::")).default
    kernel = op(*(x.to("meta") for x in (q, k, v)), *args)
    ours = compute(name, q, k, v, *args)
    assert len(ours) == len(kernel)
    for a, b in list(zip(ours, kernel, strict=True))[:6]:
        assert type(a) is type(b)
        assert isinstance(a, Tensor) or a == b
        if isinstance(a, Tensor) and a.is_floating_point():
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert dtypes(ours)[:2] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("name", [CPU, FLASH, EFFICIENT, CUDNN, OVERRIDEABLE])
def test_dropout_is_refused(name: str) -> None:
    q, k, v, _ = inputs(SHAPES[0], torch.float32)
    with pytest.raises(UnsupportedOpError, match=r"sdpa_kernel\(SDPBackend.MATH\)"):
        forward(name, q, k, v, bias=None, dropout_p=0.1)


def test_a_backward_with_dropout_is_refused() -> None:
    q, k, v, dy = inputs(SHAPES[0], torch.float32)
    with pytest.raises(UnsupportedOpError, match="dropout_p=0.5"):
        compute(f"{CPU}_backward", dy, q, k, v, q, q, 0.5, False)


def test_nested_sequences_are_refused() -> None:
    q, k, v, dy = inputs(SHAPES[0], torch.float32)
    ends = torch.tensor([0, 7])
    args = (q, q, ends, ends, 7, 7, 0.0, False, q, q)
    with pytest.raises(UnsupportedOpError, match="cum_seq_q, cum_seq_k"):
        compute(f"{FLASH}_backward", dy, q, k, v, *args)


@pytest.mark.cuda
@pytest.mark.parametrize("name", [FLASH, EFFICIENT, CUDNN])
def test_cuda_kernels(name: str) -> None:
    for is_causal, scale in product((False, True), (None, 0.3)):
        shape = (2, 4, 4, 32, 32, 64)
        q, k, v, dy = inputs(shape, torch.bfloat16, "cuda")
        args = (None, True) if name in (EFFICIENT, CUDNN) else ()
        op = getattr(aten, name.removeprefix("aten::")).default
        kernel = op(q, k, v, *args, is_causal=is_causal, scale=scale)
        wide = [x.double() for x in (q, k, v)]
        ours = compute(name, *wide, *args, is_causal=is_causal, scale=scale)
        bound = 4 * 32 * torch.finfo(torch.bfloat16).eps
        assert_close(ours[0], kernel[0], bound=bound)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = op(*leaves, *args, is_causal=is_causal, scale=scale)[0]
        options = {"bias": None, "is_causal": is_causal, "scale": scale}
        found = backward(name, dy.double(), *wide, ours, **options)
        assert_close(found[:3], gradients([y], leaves, [dy]), bound=bound)
