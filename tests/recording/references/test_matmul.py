"""Do the references of the matrix products in few formats agree with the kernels?"""

from typing import Any

import pytest
import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from tests.recording.references.agreement import assert_close, check, compute, in_dtype

aten = torch.ops.aten
GROUPED = "aten::_grouped_mm"
FORMATS = [torch.float32, torch.bfloat16, torch.float16]


def ends(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("offs", [ends(3, 5, 16), ends(0, 16, 16), ends(16, 16, 16)])
def test_grouped_mm(offs: Tensor, dtype: torch.dtype) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    check(GROUPED, draw(16, 8), draw(3, 8, 24), offs, terms=8)
    check(GROUPED, draw(3, 8, 8), draw(8, 16), offs, terms=8)
    check(GROUPED, draw(8, 16), draw(16, 24), offs, terms=16)
    check(GROUPED, draw(3, 8, 16), draw(3, 16, 24), terms=16)
    check(GROUPED, draw(3, 8, 16), draw(3, 16, 24), None, None, dtype, terms=16)


def test_grouped_mm_where_no_group_reaches() -> None:
    a, b = torch.randn(6, 8, dtype=torch.float64), torch.randn(2, 8, 4, dtype=torch.float64)
    y = compute(GROUPED, a, b, ends(1, 4))
    assert_close(y, torch.cat([a[:1] @ b[0], a[1:4] @ b[1], torch.zeros_like(y[4:])]), bound=1e-14)
    y = compute(GROUPED, b.mT, a.mT, ends(1, 4))
    assert_close(y[:, :4], compute(GROUPED, a, b, ends(1, 4))[:4].mT, bound=1e-14)
    assert not y[:, 4:].any()


def test_grouped_mm_is_its_own_derivative() -> None:
    # The gradients that torch composes from grouped products, in float64 through the reference.
    a, b = torch.randn(16, 8, requires_grad=True), torch.randn(3, 8, 24, requires_grad=True)
    offs, dy = ends(3, 5, 16), torch.randn(16, 24)
    wanted = torch.autograd.grad(torch.nn.functional.grouped_mm(a, b, offs=offs), (a, b), dy)
    a, b, dy = (x.detach().double() for x in (a, b, dy))
    da = compute(GROUPED, dy, b.mT, offs)
    db = compute(GROUPED, a.mT, dy, offs)
    assert_close((da, db), wanted, bound=1e-5)


def test_grouped_mm_with_a_bias_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="bias"):
        compute(GROUPED, torch.randn(2, 3, 4), torch.randn(2, 4, 5), None, torch.randn(5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_into_a_wider_format(dtype: torch.dtype) -> None:
    a, b, row = (torch.randn(s).to(dtype) for s in ((5, 8), (8, 6), (6,)))
    batched = a.expand(2, 5, 8), b.expand(2, 8, 6)
    for out in (torch.float32, torch.float64):
        wide = a.to(out), b.to(out)
        found = compute("aten::mm.dtype", a, b, out)
        assert found.dtype == out
        assert_close(found, torch.mm(*wide), bound=1e-6)
        assert_close(
            compute("aten::bmm.dtype", *batched, out),
            torch.mm(*wide).expand(2, 5, 6),
            bound=1e-6,
        )
        for beta, alpha in ((1, 1), (2, 2), (0.5, -2), (0, 3)):
            options = {"beta": beta, "alpha": alpha}
            bias = row * torch.nan if beta == 0 else row  # with beta = 0 the addend is not read
            want = torch.addmm(row.to(out), *wide, **options)
            found = compute("aten::addmm.dtype", bias, a, b, out, **options)
            assert_close(found, want, bound=1e-6)
            found = compute("aten::baddbmm.dtype", bias, *batched, out, **options)
            assert_close(found, want.expand(2, 5, 6), bound=1e-6)


def test_wider_products_have_the_shapes_of_the_kernels() -> None:
    a, b, c = (torch.randn(s).bfloat16() for s in ((5, 8), (8, 6), (5, 6)))
    calls: list[tuple[str, Any, tuple[Tensor, ...]]] = [
        ("aten::mm.dtype", aten.mm.dtype, (a, b)),
        ("aten::addmm.dtype", aten.addmm.dtype, (c, a, b)),
        ("aten::bmm.dtype", aten.bmm.dtype, (a[None], b[None])),
    ]
    for name, op, args in calls:
        found = compute(name, *args, torch.float32)
        kernel = op(*(x.to("meta") for x in args), torch.float32)
        assert (found.shape, found.dtype) == (kernel.shape, kernel.dtype)


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize("per_row", [False, True])
def test_scaled_mm(out: torch.dtype | None, per_row: bool) -> None:
    a, b = (torch.randn(16, 32).to(torch.float8_e4m3fn) for _ in range(2))
    shapes = ((16, 1), (1, 16)) if per_row else ((), ())
    scales = [torch.rand(shape) + 0.5 for shape in shapes]
    # The inputs are exact; only the output is rounded.
    check_format = out or torch.float8_e4m3fn
    y = aten._scaled_mm.default(a, b.mT, *scales, None, None, out)
    args = (*in_dtype((a, b.mT, *scales), torch.float64), None, None)
    bound = 64 * torch.finfo(torch.float32).eps + torch.finfo(check_format).eps
    assert_close(compute("aten::_scaled_mm", *args, torch.float64), y, bound=bound)
    same = compute("aten::_scaled_mm", a, b.mT, *scales, None, None, out)
    assert same.dtype == y.dtype
    assert_close(same, y, bound=bound)


def test_scaled_mm_adds_the_bias_unscaled() -> None:
    a, b = (torch.randn(16, 32).to(torch.float8_e4m3fn) for _ in range(2))
    bias, scale = torch.randn(16), torch.tensor(0.5)
    args = (a, b.mT, scale, scale, bias, None, torch.float32)
    y = aten._scaled_mm.default(*args)
    assert_close(compute("aten::_scaled_mm", *args), y, bound=1e-5)


def test_other_scales_are_refused() -> None:
    a = torch.randn(16, 32)
    one, blocks = torch.tensor(1.0), torch.ones(16, 2)
    with pytest.raises(UnsupportedOpError, match=r"\[16, 2\]"):
        compute("aten::_scaled_mm", a, a.mT, blocks, blocks.mT)
    with pytest.raises(UnsupportedOpError, match="scale_result"):
        compute("aten::_scaled_mm", a, a.mT, one, one, None, one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_addmm_activation(dtype: torch.dtype) -> None:
    c, a, b = (torch.randn(s, dtype=dtype) for s in ((4,), (3, 5), (5, 4)))
    check("aten::_addmm_activation", c, a, b, terms=5)
    check("aten::_addmm_activation", c, a, b, beta=0.5, alpha=-2, terms=5)
    with pytest.raises(UnsupportedOpError, match="use_gelu"):
        compute("aten::_addmm_activation", c, a, b, use_gelu=True)


@pytest.mark.cuda
def test_cuda_kernels() -> None:
    a, b = (torch.randn(16, 32, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    c = torch.randn(16, 16, device="cuda", dtype=torch.bfloat16)
    wide = [x.double() for x in (c, a, b.mT)]
    bound = 128 * torch.finfo(torch.float32).eps
    kernel = aten.mm.dtype(a, b.mT, torch.float32)
    assert_close(compute("aten::mm.dtype", *wide[1:], torch.float64), kernel, bound=bound)
    kernel = aten.addmm.dtype(c, a, b.mT, torch.float32, beta=0.5, alpha=2)
    options = {"beta": 0.5, "alpha": 2}
    found = compute("aten::addmm.dtype", *wide, torch.float64, **options)
    assert_close(found, kernel, bound=bound)
    offs = ends(4, 4, 16).cuda()
    many = torch.randn(3, 32, 16, device="cuda", dtype=torch.bfloat16)
    kernel = aten._grouped_mm.default(a, many, offs)
    found = compute(GROUPED, a.double(), many.double(), offs)
    assert_close(found, kernel, bound=128 * torch.finfo(torch.bfloat16).eps)
