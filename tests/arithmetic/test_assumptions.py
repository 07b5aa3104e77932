"""Machines that flush subnormal numbers are found out."""

import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from numgeom.arithmetic.assumptions import (
    ArithmeticAssumptionError,
    broken_assumptions,
    products_are_exact,
    require_ieee_float64,
)
from numgeom.arithmetic.rounding import add_up, mul_up, norm_up, sum_up


@pytest.fixture
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


def test_this_machine_is_fine():
    require_ieee_float64()
    require_ieee_float64(torch.device("cpu"))


@pytest.mark.cuda
def test_a_cuda_machine_is_fine():
    require_ieee_float64("cuda")


@pytest.mark.usefixtures("flushing")
def test_flushing_is_refused_by_every_bound():
    x = torch.ones(2, dtype=torch.float64)
    for compute in (
        lambda: add_up(1.0, 2.0),
        lambda: mul_up(x, 2.0),
        lambda: norm_up(x),
        lambda: sum_up([1.0]),
    ):
        with pytest.raises(ArithmeticAssumptionError, match="set_flush_denormal"):
            compute()


@pytest.mark.usefixtures("flushing")
def test_flushing_is_found_in_kernels_and_matrix_products():
    with pytest.raises(ArithmeticAssumptionError, match="entry-wise.*matrix products flush"):
        require_ieee_float64()


def test_flushing_left_behind_in_worker_threads_is_found():
    """A worker thread started while flushing is on keeps flushing when it is switched off."""
    script = """
import torch
from numgeom.arithmetic.assumptions import (
    ArithmeticAssumptionError,
    broken_assumptions,
    products_are_exact,
    require_ieee_float64,
)
torch.set_num_threads(2)
torch.set_flush_denormal(True)
x = torch.full((2**18,), 2.0**-1022, dtype=torch.float64)
y = x * 0.5
torch.set_flush_denormal(False)
left_behind = bool((x * 0.5 == 0).any())
try:
    require_ieee_float64()
    found = False
except ArithmeticAssumptionError:
    found = True
print(left_behind, found)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    left_behind, found = done.stdout.split()
    assert found == left_behind


def strassen(x: Tensor, y: Tensor) -> Tensor:
    """One level of Strassen's algorithm (1969), which mixes the entries of blocks."""
    n = x.shape[0] // 2
    a, b, c, d = x[:n, :n], x[:n, n:], x[n:, :n], x[n:, n:]
    e, f, g, h = y[:n, :n], y[:n, n:], y[n:, :n], y[n:, n:]
    p = [a @ (f - h), (a + b) @ h, (c + d) @ e, d @ (g - e), (a + d) @ (e + h)]
    p += [(b - d) @ (g + h), (a - c) @ (e + f)]
    top = torch.cat([p[4] + p[3] - p[1] + p[5], p[0] + p[1]], 1)
    return torch.cat([top, torch.cat([p[2] + p[3], p[0] + p[4] - p[2] - p[6]], 1)])


def emulated(x: Tensor, y: Tensor, bits: int = 8, slices: int = 6) -> Tensor:
    """Float64 put together from products of short slices, aligned to the largest of each row."""

    def sliced(t: Tensor) -> list[Tensor]:
        top = torch.exp2(torch.ceil(torch.log2(t.abs().amax(1, keepdim=True))))
        parts = []
        for i in range(1, slices + 1):
            step = top * 2.0 ** (-bits * i)
            parts.append(torch.round(t / step) * step)
            t = t - parts[-1]
        return parts

    columns = [part.T for part in sliced(y.T.contiguous())]
    return sum((p @ q for p in sliced(x) for q in columns), torch.zeros_like(x))


@pytest.mark.parametrize(
    "matmul",
    [strassen, emulated, lambda x, y: (x.float() @ y.float()).double()],
    ids=["strassen", "emulated", "float32"],
)
def test_products_that_mix_entries_or_round_to_shorter_formats_are_found(matmul):
    assert not products_are_exact(matmul)


@pytest.mark.parametrize(
    "matmul",
    [
        torch.matmul,
        lambda x, y: x.flip(1) @ y.flip(0),
        lambda x, y: sum(x[:, i : i + 32] @ y[i : i + 32] for i in range(224, -1, -32)),
        lambda x, y: (y.T @ x.T).T,
        lambda x, y: torch.einsum("ik,kj->ij", x, y),
    ],
    ids=["plain", "reversed", "in blocks", "transposed", "einsum"],
)
def test_every_order_of_summation_passes(matmul):
    assert products_are_exact(matmul)


@pytest.mark.parametrize("mode", ["upward", "downward", "toward zero"])
def test_another_rounding_mode_is_found(mode):
    """Set by the C library, in a process of its own, before any worker thread starts."""
    codes = {
        "x86_64": {"upward": 0x800, "downward": 0x400, "toward zero": 0xC00},
        "aarch64": {"upward": 0x400000, "downward": 0x800000, "toward zero": 0xC00000},
    }.get(platform.machine())
    if codes is None:
        pytest.skip("the codes of rounding modes are not known for this machine")
    script = f"""
import ctypes
import torch
from torch import nn
import numgeom
from numgeom.arithmetic.assumptions import broken_assumptions
model = nn.Linear(3, 2)
subject = model, lambda m, x: m(x).square().sum(), torch.ones(4, 3)
assert broken_assumptions() == ()
assert ctypes.CDLL(None).fesetround({codes[mode]}) == 0
print(len(broken_assumptions()))
for method in ("auto", "kantorovich", "functional", "reference"):
    print(numgeom.certify(*subject, method=method).guarantee)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    broken, *words = done.stdout.split()
    assert int(broken) >= 2
    assert set(words) == {"NONE"}


def test_a_device_without_float64_is_named(monkeypatch):
    def ones(*size: int, **options: object) -> Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64")

    monkeypatch.setattr(torch, "ones", ones)
    assert "cannot compute in float64" in broken_assumptions()[0]
