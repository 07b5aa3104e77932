"""Does a fingerprint tell kernels apart, and do three layouts stand for every way to call one?"""

import functools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from numgeom.arithmetic import elementary
from numgeom.arithmetic.accuracy import default_table
from numgeom.arithmetic.elementary import COMPUTED, LAYOUTS, OF_TWO, fingerprint, in_layout

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
names = pytest.mark.parametrize("name", sorted(COMPUTED))


def columns_of(name: str, dtype: torch.dtype, count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = 2.0 ** torch.randint(-12, 8, (2, count), generator=generator).double()
    values = torch.rand(2, count, generator=generator, dtype=torch.float64) * 2 - 1
    return list((values * sizes).to(dtype)[: 2 if name in OF_TWO else 1])


def bits(x: Tensor) -> Tensor:
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()]
    return torch.where(x.isnan(), torch.full_like(x, torch.nan), x).contiguous().view(whole)


def check_bits(measured: Tensor, computed: Tensor, part: slice, *, how: str) -> None:
    assert (measured[:, part] == bits(computed)).any(0).all(), (computed.dtype, how)


@names
def test_every_call_is_one_of_the_measured_layouts(name: str):
    """Any size, offset and way of calling gives bits that one of the three layouts gave, too."""
    compute = COMPUTED[name]
    for dtype in DTYPES:
        columns = columns_of(name, dtype, 67)
        # Twice the arguments, so that each of them is once inside of whole vectors.
        twice = [torch.cat([c, c[:61]]) for c in columns]
        measured = torch.stack([bits(in_layout(compute, twice, each)[:67]) for each in LAYOUTS])
        check = functools.partial(check_bits, measured)
        for size in (1, 2, 3, 5, 8, 13, 16, 31, 32, 33, 64):
            part = slice(0, size)
            check(compute(*(c[part].clone() for c in columns)), part, how=f"size {size}")
        for offset in (1, 3):
            part = slice(offset, 67)
            check(compute(*(c[part] for c in columns)), part, how=f"offset {offset}")
        single = compute(*(c[5] for c in columns))
        check(single.reshape(1), slice(5, 6), how="one number")
        spread = torch.stack([c.repeat(3, 1).t().contiguous().t() for c in columns])
        check(compute(*spread)[1], slice(0, 67), how="transposed")


@names
def test_threads_do_not_change_the_bits(name: str):
    """Work is split among threads from 2^15 entries on, and vectors end at the seams."""
    columns = columns_of(name, torch.float64, 2**16 + 5, seed=1)
    before = torch.get_num_threads()
    compute = COMPUTED[name]
    measured = torch.stack([bits(in_layout(compute, columns, each)) for each in LAYOUTS])
    try:
        torch.set_num_threads(3)
        computed = bits(compute(*columns))
    finally:
        torch.set_num_threads(before)
    assert (measured == computed).any(0).all()


def test_fingerprints_are_the_same_every_time():
    for name in COMPUTED:
        first = fingerprint.__wrapped__(name, torch.float64)
        assert len(first) == 12
        assert all(fingerprint.__wrapped__(name, torch.float64) == first for _ in range(3))


def test_a_fingerprint_sees_one_changed_bit(monkeypatch: pytest.MonkeyPatch):
    before = fingerprint.__wrapped__("exp", torch.float64)

    def other(x: Tensor) -> Tensor:
        y = torch.exp(x)
        y[17] = torch.nextafter(y[17], y.new_tensor(0.0)) if len(y) > 100 else y[17]
        return y

    monkeypatch.setattr(elementary, "COMPUTED", {**COMPUTED, "exp": other})
    assert fingerprint.__wrapped__("exp", torch.float64) != before


def test_fingerprints_tell_the_instruction_sets_apart():
    columns = {
        name: [entry.fingerprint for entry in default_table().entries if entry.capability == name]
        for name in default_table().capabilities
    }
    assert columns["DEFAULT"] != columns["AVX2"]
    assert columns["DEFAULT"] != columns["AVX512"]


@pytest.mark.parametrize("asked", ["default", "avx2"])
def test_the_lower_instruction_sets_run_their_own_kernels(asked: str):
    """A fresh process: its kernels are those of its own column, and the words stand on them."""
    if elementary.architecture() != default_table().architecture:
        pytest.skip("another kind of processor: nothing is emulated there")
    code = """
import torch, numgeom
from numgeom.arithmetic import elementary
from numgeom.arithmetic.accuracy import default_table
table = default_table()
for function in table.functions:
    entry = table.find(function, torch.float64)
    assert entry.capability == elementary.capability(), entry
    assert entry.runs_here() or entry.is_documented_here(), entry
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 1))
print(elementary.capability())
print(numgeom.certify(model, lambda m, x: m(x).exp().sum(), torch.randn(2, 3)).guarantee)
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": asked}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [asked.upper(), "PROVED"]
