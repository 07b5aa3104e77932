"""Is a step on data with gaps in memory, or on conjugates, recorded as it ran?"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from numgeom.recording import Program, record_callable, record_step

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns": lambda t: t[:, :5],
    "every second": lambda t: t[:, ::2],
    "crop": lambda t: t[3:40, 2:7],
    "transposed crop": lambda t: t[:5, 2:40].t(),
    "expanded crop": lambda t: t[:, 4:5].expand(-1, 5),
    "columns of a wide table": lambda t: t.new_ones(6, 4000)[:, :3999:1000],
}
MODULES: dict[str, Callable[[int], nn.Module]] = {
    "batch norm": nn.BatchNorm1d,
    "layer norm": nn.LayerNorm,
    "gelu": lambda n: nn.Sequential(nn.GELU(), nn.Linear(n, 2)),
    "silu": lambda n: nn.Sequential(nn.SiLU(), nn.Linear(n, 2)),
    "linear": lambda n: nn.Linear(n, 3),
}


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def identical(program: Program) -> bool:
    again = program.replay(None).gradients
    recorded = program.recorded.gradients
    return all(torch.equal(real(g), real(again[n])) for n, g in recorded.items())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("module", MODULES)
def test_gaps_in_memory_are_kept(view: str, module: str, tmp_path: Path) -> None:
    """Kernels choose the order of their sums by strides, so a copy without gaps has other bits."""
    batch = VIEWS[view](torch.randn(64, 10))
    model = MODULES[module](batch.shape[1])
    program = record_step(model, lambda m, b: m(b).exp().sum(), batch)
    assert identical(program)
    program.save(tmp_path / "program.pt")
    assert identical(Program.load(tmp_path / "program.pt"))


def test_a_column_of_a_large_table_is_kept_without_its_gaps() -> None:
    table = torch.randn(50, 100_000)
    program = record_step(nn.Linear(1, 1), lambda m, b: m(b[:, None]).sum(), table[:, 7])
    held = sum(t.untyped_storage().nbytes() for t in program.constants.values())
    assert held < 10_000


def test_statistics_of_views() -> None:
    w = nn.Parameter(torch.randn(5))
    x = torch.randn(30, 10)[:, ::2]
    functions: list[Callable[[Tensor], Tensor]] = [
        torch.var,
        torch.std,
        torch.norm,
        lambda y: torch.logsumexp(y, 0),
        lambda y: F.cosine_similarity(y, x, 0),
    ]
    for function in functions:
        assert identical(record_callable(lambda f=function: f(x * w).sum().backward()))


@pytest.mark.parametrize(
    "step",
    [
        lambda z, x: (z * z).real.sum(),
        lambda z, x: (x @ z).abs().square().sum(),
        lambda z, x: (x * z.conj()).imag.sum(),
        lambda z, x: torch.fft.ifft(torch.fft.fft(x) * z).abs().square().sum(),
        lambda z, x: F.linear(x, z[None]).real.square().sum(),
    ],
)
def test_conjugates_are_recorded(step: Callable[[Tensor, Tensor], Tensor]) -> None:
    z = nn.Parameter(torch.randn(6, dtype=torch.complex64))
    x = torch.randn(8, 6, dtype=torch.complex64)
    assert identical(record_callable(lambda: step(z, x).backward()))
    assert z.grad is None


def test_negative_views_are_recorded() -> None:
    z = nn.Parameter(torch.randn(6, dtype=torch.complex64))
    scale = nn.Parameter(torch.randn(6))
    assert identical(record_callable(lambda: (z.conj().imag * scale).square().sum().backward()))


class Stop(Exception):
    """Raised by a step of these tests."""


@pytest.mark.parametrize("before", [None, 3.0])
@pytest.mark.parametrize("after", ["forward", "backward"])
def test_gradients_are_restored_when_the_step_raises(before: float | None, after: str) -> None:
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    x.grad = None if before is None else torch.full((2,), before)
    held = x.grad

    def step() -> None:
        loss = (x * x).sum()
        if after == "backward":
            loss.backward()
        raise Stop

    with pytest.raises(Stop):
        record_callable(step)
    assert x.grad is held
    assert held is None or held.tolist() == [before, before]


def test_gradients_are_restored_when_the_recording_is_refused() -> None:
    x = nn.Parameter(torch.tensor([1.0, 2.0]))

    def step() -> None:
        (x * x.detach().view(torch.int32)).sum().backward()

    with pytest.raises(Exception, match="another dtype"):
        record_callable(step)
    assert x.grad is None
