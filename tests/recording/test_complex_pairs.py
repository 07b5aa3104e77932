"""Are complex steps opened into real ops that compute the same, and is nothing taken for exact?"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.recording import Program, record
from numgeom.semantics.ball import enclose
from tests.ops.zoo import ZOO, record_zoo

NAMES = ("fourier", "fourier-odd", "fourier-filter", "fourier-2d", "spectrogram", "complex")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_is_real(name: str) -> None:
    assert name in ZOO
    program = record_zoo(name)
    assert complex_results(program)
    assert not complex_results(program.decompose())


def complex_results(program: Program) -> list[str]:
    """The calls whose results are complex."""
    found = []

    def see(node: Any, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_complex():
            found.append(str(node))

    program.replay(on_call=see)
    return found


def recorded(loss: Callable[[Tensor], Tensor], parameter: Tensor) -> Program:
    model = nn.Module()
    model.w = nn.Parameter(parameter)
    with record(model) as recording:
        loss(model.w).backward()
    return recording.program


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "padding": lambda z: nn.functional.pad(z, (1, 2)).abs().sum(),
    "indexing": lambda z: z[torch.tensor([0, 1, 1])].real.pow(2).sum(),
    "halves": lambda z: (z.real + z.imag * z.real).sum(),
    "sums": lambda z: (z.sum() * z.mean()).abs(),
    "division": lambda z: (z / (z * z + 2)).imag.sum() + (1.0 / (z + 3)).real.sum(),
    "both": lambda z: torch.stack([z, z.conj()]).cumsum(0).abs().sum(),
    "powers": lambda z: (z**2).real.sum() + z.exp().imag.sum(),
    "logarithm": lambda z: (z + 5).log().real.sum(),
    "numbers": lambda z: (z * 1j + (2 - 1j)).abs().sum(),
}


@pytest.mark.parametrize("name", STEPS)
def test_opened_steps_compute_the_same(name: str) -> None:
    """Also where something stays closed: then nothing is bounded, and the values are right."""
    x = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(3))
    program = recorded(lambda w: STEPS[name](torch.view_as_complex(w)), x)
    reference = program.replay().gradients["w"]
    found = enclose(program.decompose())
    torch.testing.assert_close(found.midpoints["w"], reference, rtol=1e-12, atol=1e-13)
    closed = bool(found.unknown_ops) or bool(torch.isinf(found.radii["w"]).all())
    assert closed == (name in STAY_CLOSED), found.unknown_ops
    if not closed:
        assert bool(((found.midpoints["w"] - reference).abs() <= 8 * found.radii["w"]).all())


STAY_CLOSED = {"logarithm"}
