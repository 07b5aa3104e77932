"""Do the references of the attention kernels' own ops keep sequences and windows apart?"""

from itertools import product

import pytest
import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from tests.recording.references.agreement import assert_close, compute, gradients

aten = torch.ops.aten
FLASH = "aten::_flash_attention_forward"
FLASH_BACKWARD = "aten::_flash_attention_backward"
EFFICIENT = "aten::_efficient_attention_forward"
EFFICIENT_BACKWARD = "aten::_efficient_attention_backward"

QUERIES, KEYS = (3, 1, 5), (4, 2, 3)  # lengths of three sequences; in the last, rows see nothing
HEADS, DIM = 2, 4


def entrywise(
    q: Tensor, k: Tensor, v: Tensor, *, shift: int, left: int, right: int, bias: Tensor | None
) -> Tensor:
    """Attention of one sequence [length, heads, dim], entry by entry from its definition."""
    rows = []
    for i in range(len(q)):
        seen = [j for j in range(len(k)) if i + shift - left <= j <= i + shift + right]
        heads = []
        for h in range(HEADS):
            if not seen:
                heads.append(q[i, h] * 0)
                continue
            scores = torch.stack([q[i, h] @ k[j, h] for j in seen]) / DIM**0.5
            if bias is not None:
                scores = scores + torch.stack([bias[h, i, j] for j in seen])
            weights = scores.exp() / scores.exp().sum()
            heads.append(sum(w * v[j, h] for w, j in zip(weights, seen, strict=True)))
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def inputs(queries: int, keys: int, *, device: str = "cpu") -> list[Tensor]:
    """Query, key, value, and a gradient of the output: [length, heads, dim]."""
    lengths = (queries, keys, keys, queries)
    return [torch.randn(n, HEADS, DIM, dtype=torch.float64, device=device) for n in lengths]


def ends(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


FAR = 100
WINDOWS = [  # is_causal, window_size_left, window_size_right, and what they mean
    (False, None, None, FAR, FAR),
    (True, None, None, FAR, 0),
    (True, -1, -1, FAR, 0),
    (False, 1, 2, 1, 2),
    (True, 2, None, 2, 0),
    (False, 0, -1, 0, FAR),
    (False, 1, None, 1, FAR),
]


@pytest.mark.parametrize(("is_causal", "left", "right", "before", "after"), WINDOWS)
@pytest.mark.parametrize("padding", [0, 2])
def test_flash_on_packed_sequences(
    is_causal: bool, left: int | None, right: int | None, before: int, after: int, padding: int
) -> None:
    q, k, v, dy = inputs(sum(QUERIES) + padding, sum(KEYS) + padding)
    cum = (ends(QUERIES), ends(KEYS), max(QUERIES), max(KEYS))
    window = {"window_size_left": left, "window_size_right": right}
    y = compute(FLASH, q, k, v, *cum, 0.0, is_causal, False, **window)
    found = compute(
        FLASH_BACKWARD, dy, q, k, v, y[0], y[1], *cum, 0.0, is_causal, y[2], y[3], **window
    )
    leaves = [x.requires_grad_() for x in (q, k, v)]
    used = [x.split([*n, padding]) for x, n in zip(leaves, (QUERIES, KEYS, KEYS), strict=True)]
    wanted = [
        entrywise(a, b, c, shift=len(b) - len(a), left=before, right=after, bias=None)
        for a, b, c, _ in zip(*used, QUERIES, strict=False)
    ]
    whole = torch.cat([*wanted, torch.zeros(padding, HEADS, DIM, dtype=torch.float64)])
    assert_close(y[0], whole, bound=1e-13)
    assert y[1].shape == (HEADS, len(q))
    assert_close(found, gradients([whole], leaves, [dy]), bound=1e-10)


@pytest.mark.parametrize(("is_causal", "left", "right", "before", "after"), WINDOWS)
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (3, 6), (5, 2)])
def test_flash_on_a_batch(
    is_causal: bool,
    left: int | None,
    right: int | None,
    before: int,
    after: int,
    queries: int,
    keys: int,
) -> None:
    batch = [inputs(queries, keys) for _ in range(2)]
    q, k, v, dy = (torch.stack(parts) for parts in zip(*batch, strict=True))
    window = {"window_size_left": left, "window_size_right": right}
    cum = (None, None, queries, keys)
    y = compute(FLASH, q, k, v, *cum, 0.0, is_causal, False, **window)
    found = compute(
        FLASH_BACKWARD, dy, q, k, v, y[0], y[1], *cum, 0.0, is_causal, y[2], y[3], **window
    )
    leaves = [x.requires_grad_() for x in (q, k, v)]
    wanted = torch.stack(
        [
            entrywise(*parts, shift=keys - queries, left=before, right=after, bias=None)
            for parts in zip(*leaves, strict=True)
        ]
    )
    assert_close(y[0], wanted, bound=1e-13)
    assert y[1].shape == (2, HEADS, queries)
    assert_close(found, gradients([wanted], leaves, [dy]), bound=1e-10)


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (3, 6), (5, 2)])
def test_efficient_on_a_batch(queries: int, keys: int) -> None:
    for mask_type, with_bias in product(range(3), (False, True)):
        batch = [inputs(queries, keys) for _ in range(2)]
        q, k, v, dy = (torch.stack(parts) for parts in zip(*batch, strict=True))
        bias = torch.randn(2, HEADS, queries, keys, dtype=torch.float64) if with_bias else None
        args = (bias, None, None, None, None, 0.0, mask_type, True)
        y = compute(EFFICIENT, q, k, v, *args)
        assert y[4:] == (queries, keys)
        saved = (bias, y[0], None, None, queries, keys, y[1], 0.0, y[2], y[3], mask_type, with_bias)
        found = compute(EFFICIENT_BACKWARD, dy, q, k, v, *saved)
        leaves = [x.requires_grad_() for x in (q, k, v, bias) if x is not None]
        shift = keys - queries if mask_type == 2 else 0
        wanted = torch.stack(
            [
                entrywise(
                    q[n],
                    k[n],
                    v[n],
                    shift=shift,
                    left=FAR,
                    right=FAR if mask_type == 0 else 0,
                    bias=None if bias is None else bias[n],
                )
                for n in range(2)
            ]
        )
        assert_close(y[0], wanted, bound=1e-13)
        want = gradients([wanted], leaves, [dy])
        assert_close(found, (*want, *[None] * (4 - len(want))), bound=1e-10)


@pytest.mark.parametrize("mask_type", [0, 1, 2])
def test_efficient_on_packed_sequences(mask_type: int) -> None:
    q, k, v, dy = (x.unsqueeze(0) for x in inputs(sum(QUERIES), sum(KEYS)))
    cum = (ends(QUERIES), ends(KEYS), max(QUERIES), max(KEYS))
    y = compute(EFFICIENT, q, k, v, None, *cum, 0.0, mask_type, False)
    assert y[4:] == (max(QUERIES), max(KEYS))
    saved = (None, y[0], *cum, y[1], 0.0, y[2], y[3], mask_type, False)
    found = compute(EFFICIENT_BACKWARD, dy, q, k, v, *saved)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    used = [x[0].split(n) for x, n in zip(leaves, (QUERIES, KEYS, KEYS), strict=True)]
    wanted = torch.cat(
        [
            entrywise(
                a,
                b,
                c,
                shift=len(b) - len(a) if mask_type == 2 else 0,
                left=FAR,
                right=FAR if mask_type == 0 else 0,
                bias=None,
            )
            for a, b, c in zip(*used, strict=True)
        ]
    ).unsqueeze(0)
    assert_close(y[0], wanted, bound=1e-13)
    assert_close(found, (*gradients([wanted], leaves, [dy]), None), bound=1e-10)


def test_a_row_that_the_bias_closes_gives_zero() -> None:
    q, k, v, _ = (x.unsqueeze(0) for x in inputs(3, 4))
    bias = torch.zeros(1, HEADS, 3, 4, dtype=torch.float64)
    bias[:, :, 1] = -torch.inf
    y = compute(EFFICIENT, q, k, v, bias, None, None, None, None, 0.0, 0)[0]
    assert not y[:, 1].any()
    assert y[:, ::2].all()


def test_what_has_no_reference_is_refused() -> None:
    q, k, v, dy = (x.unsqueeze(0) for x in inputs(3, 3))
    dense = (None, None, 3, 3)
    with pytest.raises(UnsupportedOpError, match="alibi_slopes"):
        compute(FLASH, q, k, v, *dense, 0.0, False, False, alibi_slopes=q)
    with pytest.raises(UnsupportedOpError, match="dropout_p=0.2"):
        compute(FLASH, q, k, v, *dense, 0.2, False, False)
    with pytest.raises(UnsupportedOpError, match="dropout_p=0.2"):
        compute(FLASH_BACKWARD, dy, q, k, v, q, q, *dense, 0.2, False, q, q)
    with pytest.raises(UnsupportedOpError, match="window_size"):
        compute(EFFICIENT, q, k, v, None, *dense, 0.0, 0, window_size=3)
    with pytest.raises(UnsupportedOpError, match="dropout_p=0.2"):
        compute(EFFICIENT, q, k, v, None, *dense, 0.2, 0)
    with pytest.raises(UnsupportedOpError, match="custom_mask_type=7"):
        compute(EFFICIENT, q, k, v, None, *dense, 0.0, 7)


@pytest.mark.cuda
@pytest.mark.parametrize(("is_causal", "left", "right"), [w[:3] for w in WINDOWS[:5]])
def test_cuda_flash_kernel(is_causal: bool, left: int | None, right: int | None) -> None:
    lengths = (20, 7, 33)
    cum = (ends(lengths).cuda(), ends(lengths).cuda(), 33, 33)
    window = {"window_size_left": left, "window_size_right": right}
    q, k, v, dy = (torch.randn(60, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    kernel = aten._flash_attention_forward.default(*leaves, *cum, 0.0, is_causal, False, **window)
    wide = [x.double() for x in (q, k, v)]
    y = compute(FLASH, *wide, *cum, 0.0, is_causal, False, **window)
    bound = 4 * 33 * torch.finfo(torch.bfloat16).eps
    assert_close(y[0], kernel[0], bound=bound)
    saved = (y[0], y[1], *cum, 0.0, is_causal, y[2], y[3])
    found = compute(FLASH_BACKWARD, dy.double(), *wide, *saved, **window)
    assert_close(found, gradients([kernel[0]], leaves, [dy]), bound=bound)
