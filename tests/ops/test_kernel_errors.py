"""Does the model of what kernels do inside agree with float32 kernels compared with float64?"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from numgeom.ops.kernel_errors import PLAIN, accumulation
from numgeom.ops.table import traits_of

aten = torch.ops.aten
U = 2.0**-24


def wide(values: tuple[Any, ...]) -> list[Any]:
    return [v.double() if isinstance(v, Tensor) else v for v in values]


def ratio(name: str, kernel: Callable[..., Any], *args: Any) -> list[float]:
    """Modelled over measured error of each output, root mean square, rounding included."""
    computed, exact = kernel(*args), kernel(*wide(args))
    computed = [computed] if isinstance(computed, Tensor) else list(computed)
    exact = [exact] if isinstance(exact, Tensor) else list(exact)
    deviations = traits_of(name).kernel.inside(wide(args), exact)
    found = []
    for got, want, deviation in zip(computed, exact, deviations, strict=True):
        inside = torch.zeros_like(want) if deviation is None else deviation * U
        rounding = want.float().double() - want
        modelled = (inside.pow(2) + rounding.pow(2)).mean().sqrt()
        found.append(float(modelled / (got.double() - want).pow(2).mean().sqrt()))
    return found


@pytest.mark.parametrize("one_sign", [False, True], ids=["random-signs", "one-sign"])
@pytest.mark.parametrize("k", [4, 32, 256, 2048])
def test_products_of_any_length(k: int, one_sign: bool) -> None:
    a, b = torch.randn(40, k), torch.randn(k, 48)
    if one_sign:
        a, b = a.abs(), b.abs()
    (found,) = ratio("mm", torch.mm, a, b)
    assert 0.5 < found < 2.0


@pytest.mark.parametrize("k", [16, 300, 5000])
def test_sums_of_any_length(k: int) -> None:
    (found,) = ratio("sum", lambda x, d: x.sum(d), torch.rand(60, k), [1])
    assert 0.4 < found < 2.5


def test_convolutions_and_their_backward() -> None:
    x, w = torch.randn(4, 8, 14, 14), torch.randn(12, 8, 3, 3)
    rest = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    (forward,) = ratio("convolution", aten.convolution, x, w, *rest)
    dy = torch.randn(4, 12, 14, 14)
    backward = ratio(
        "convolution_backward", aten.convolution_backward, dy, x, w, [12], *rest[1:], [True] * 3
    )
    for found in (forward, *backward):
        assert 0.4 < found < 2.5


def test_zeros_add_no_error() -> None:
    a, b = torch.randn(40, 512), torch.randn(512, 48)
    mask = torch.rand(40, 512) < 0.05
    (found,) = ratio("mm", torch.mm, a * mask, b)
    assert 0.5 < found < 2.0


def norms() -> tuple[Tensor, ...]:
    return torch.randn(64, 128) * 2, torch.randn(64, 128), torch.rand(128) + 0.5, torch.randn(128)


def test_softmax_and_norms() -> None:
    x, dy, w, b = norms()
    p = x.softmax(-1)
    found = ratio("_softmax", lambda x: x.softmax(-1), x)
    found += ratio("_log_softmax", lambda x: x.log_softmax(-1), x)
    found += ratio(
        "_softmax_backward_data",
        lambda dy, p: aten._softmax_backward_data(dy, p, -1, p.dtype), dy, p,
    )  # fmt: skip
    found += ratio("native_layer_norm", aten.native_layer_norm, x, [128], w, b, 1e-5)
    _, mean, rstd = aten.native_layer_norm(x, [128], w, b, 1e-5)
    found += ratio(
        "native_layer_norm_backward", aten.native_layer_norm_backward,
        dy, x, [128], mean, rstd, w, b, [True] * 3,
    )  # fmt: skip
    assert all(1 / 3 < r < 3.0 for r in found), found


@pytest.mark.parametrize("name", ["gelu", "silu", "sigmoid", "softplus"])
def test_activations(name: str) -> None:
    (found,) = ratio(name, getattr(F, name, torch.sigmoid), torch.randn(4000))
    assert 0.5 < found < 2.0


def test_an_accumulation_of_one_term_adds_nothing() -> None:
    y = torch.tensor([3.0, -2.0], dtype=torch.float64)
    assert accumulation(1, y, y * y, 192).tolist() == [0.0, 0.0]


def test_terms_of_one_sign_cost_more_than_terms_of_random_signs() -> None:
    one = torch.ones(1, dtype=torch.float64)
    random = accumulation(100, 10 * one, 100 * one, 1000)
    same = accumulation(100, 100 * one, 100 * one, 1000)
    # Partial sums j, in place of sqrt(j): sqrt(sum j^2 / sum j) = sqrt(2 * 100 / 3), about.
    assert float(same / random) == pytest.approx(math.sqrt(200 / 3), rel=0.02)


def test_an_op_that_is_not_listed_rounds_once() -> None:
    assert traits_of("mul").kernel is PLAIN
    assert PLAIN.inside([], [torch.ones(2)]) == [None]
