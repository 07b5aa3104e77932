"""Does every module run in the format that it was given?"""

import pytest
import torch
from torch import Tensor, nn

from numgeom.precision.errors import PrecisionError
from numgeom.precision.regions import formats_applied


class Probe(nn.Module):
    """Remembers the format in which a product was computed inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.inner = nn.Linear(4, 4)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x @ self.weight).dtype)
        self.seen.append(self.inner(x).dtype)
        return x @ self.weight


def test_modules_run_in_their_formats_and_hooks_go_away() -> None:
    model = nn.Sequential(Probe(), Probe())
    x = torch.randn(2, 4)
    with formats_applied(model, {"0": "bfloat16", "1": "float16"}):
        assert model(x).dtype is torch.float32
        assert not torch.is_autocast_enabled("cpu")
    first, second = (part.seen for part in model)
    assert first == [torch.bfloat16, torch.bfloat16]
    assert second == [torch.float16, torch.float16]
    model(x)
    assert first[2:] == [torch.float32] * 2
    assert all(p.dtype is torch.float32 for p in model.parameters())


def test_a_module_inside_another_keeps_its_own_format() -> None:
    model = Probe()
    with formats_applied(model, {"": "bfloat16", "inner": "float32"}):
        model(torch.randn(2, 4)).sum().backward()
    assert model.seen == [torch.bfloat16, torch.float32]
    assert model.weight.grad is not None
    assert model.weight.grad.dtype is torch.float32


def test_autocast_ends_when_a_module_raises() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with formats_applied(model, {"0": "bfloat16"}):
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 5))
        assert not torch.is_autocast_enabled("cpu")


def test_all_that_does_not_fit_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    formats = {"7": "bfloat16", "0": "float64"}
    with pytest.raises(PrecisionError, match=r"no module '7'.*'float64' is none of"):
        formats_applied(model, formats).__enter__()


def test_convolutions_may_be_called_by_keywords() -> None:
    class Convolution(nn.Conv1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv1d(x, weight=self.weight, bias=self.bias)

    torch.manual_seed(0)
    plain, named = nn.Sequential(nn.Conv1d(3, 5, 2)), nn.Sequential(Convolution(3, 5, 2))
    named.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 9)
    results = []
    for model in (plain, named):
        with formats_applied(model, {"0": "float8_e4m3fn"}):
            results.append(model(x))
    assert torch.equal(*results)
    assert not torch.equal(results[0], plain(x))
