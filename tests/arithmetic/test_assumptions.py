"""Machines that flush subnormal numbers are found out."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from numgeom.arithmetic.assumptions import ArithmeticAssumptionError, require_ieee_float64
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
from numgeom.arithmetic.assumptions import ArithmeticAssumptionError, require_ieee_float64
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
