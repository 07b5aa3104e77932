"""Is the first NaN or infinity traced to what made it, and to nothing else?"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.certificate.nonfinite import NonFinite, _harmless, first_nonfinite, kinds_of
from numgeom.recording import record_step
from numgeom.results.codec import decode, encode


def find(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batch: Any = None
) -> NonFinite | None:
    program = record_step(model, loss_fn, batch)
    return first_nonfinite(program, program.replay(torch.float64))


class Weight(nn.Module):
    """One parameter."""

    def __init__(self, values: list[float], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=dtype))


class Attention(nn.Module):
    """Scores, mask, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.key = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).T
        return scores.masked_fill(mask, -math.inf).softmax(-1)


def attention_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(*batch) * torch.arange(4.0).to(batch[0].dtype)).square().sum()


CAUSAL = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)


def test_a_mask_of_infinities_that_never_reaches_the_loss_is_not_reported() -> None:
    assert find(Attention(), attention_loss, (torch.randn(4, 8), CAUSAL)) is None


def test_a_row_that_is_masked_away_whole_is_traced_to_its_mask() -> None:
    mask = CAUSAL.clone()
    mask[2] = True
    found = find(Attention(), attention_loss, (torch.randn(4, 8), mask))
    assert found is not None
    assert (found.value, found.name, found.phase) == ("NaN", "aten._softmax.default", "forward")
    assert found.made_from is not None
    assert (found.made_from.value, found.made_from.name) == ("Inf", "aten.masked_fill.Scalar")
    assert found.seen_in == "both"
    assert "loss" in found.reached


def test_an_overflow_is_told_from_the_mask_beside_it() -> None:
    model = Attention().half()
    with torch.no_grad():
        model.query.weight.fill_(100.0)
        model.key.weight.fill_(100.0)
    found = find(model, attention_loss, (torch.ones(4, 8).half(), CAUSAL))
    assert found is not None
    assert found.value == "NaN"
    assert found.made_from is not None
    assert (found.made_from.value, found.made_from.name) == ("Inf", "aten.mm.default")
    assert found.seen_in == "computed"
    assert "range" in found.describe()


def test_a_call_that_makes_an_infinity_beside_one_on_purpose_is_the_origin() -> None:
    def loss(model: Weight, batch: None) -> Tensor:
        return model.w.masked_fill(torch.tensor([False, True]), -math.inf).exp().sum()

    found = find(Weight([1000.0, 1.0]), loss)
    assert found is not None
    assert (found.value, found.name) == ("Inf", "aten.exp.default")


def test_a_call_that_makes_a_nan_beside_an_infinity_on_purpose_is_the_origin() -> None:
    def loss(model: Weight, batch: None) -> Tensor:
        kept = model.w.masked_fill(torch.tensor([False, True]), math.inf).log()
        return kept[0]

    found = find(Weight([-1.0, 1.0]), loss)
    assert found is not None
    assert (found.value, found.name, found.made_from) == ("NaN", "aten.log.default", None)


def test_the_forward_line_and_module_are_named() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Weight([-1.0, 2.0])

        def forward(self) -> Tensor:
            return self.inner.w.log().sum()

    model = nn.ModuleDict({"layer": Layer()})
    found = find(model, lambda model, batch: model["layer"]())
    line = inspect.getsourcelines(Layer)[1] + 6
    assert found is not None
    assert (found.module, found.phase) == ("layer", "forward")
    assert found.source.endswith(f"test_nonfinite.py:{line}")
    for word in ("NaN", "aten.log.default", "layer", f":{line}", "forward"):
        assert word in found.describe()


def test_a_nan_of_the_backward_pass_names_the_infinity_it_is_made_from() -> None:
    found = find(Weight([0.0, 1.0]), lambda model, batch: (model.w * 0.0).sqrt().sum())
    assert found is not None
    assert (found.value, found.phase, found.reached) == ("NaN", "backward", ("w",))
    assert found.made_from is not None
    assert (found.made_from.name, found.made_from.phase) == ("aten.div.Tensor", "backward")


def test_an_overflow_in_the_backward_pass_alone_is_found() -> None:
    def loss(model: Weight, batch: Any) -> Tensor:
        return ((model.w * 300.0) * 300.0 * 1e-3).sum().float() * 1e3

    found = find(Weight([1e-4], torch.float16), loss)
    assert found is not None
    assert (found.value, found.phase, found.reached) == ("Inf", "backward", ("w",))
    assert found.seen_in == "computed"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_that_is_not_finite_is_named(value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    with torch.no_grad():
        model[2].weight[0, 1] = value
    found = find(model, lambda model, x: model(x).sum(), torch.ones(3, 2))
    assert found is not None
    assert (found.origin, found.name) == ("parameter", "2.weight")
    assert found.value == ("NaN" if math.isnan(value) else "Inf")
    assert "parameter '2.weight'" in found.describe()


def test_a_parameter_called_loss_is_not_taken_for_the_loss() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = nn.Parameter(torch.tensor([-1.0]))

    found = find(Model(), lambda model, batch: model.loss.log().sum())
    assert found is not None
    assert found.reached == ("loss",)
    assert found.name == "aten.log.default"


def test_a_batch_that_is_not_finite_is_named() -> None:
    x = torch.ones(3, 2)
    x[1, 1] = math.nan
    found = find(nn.Linear(2, 1), lambda model, x: model(x).sum(), x)
    assert found is not None
    assert (found.value, found.origin) == ("NaN", "input")


def test_a_bad_value_of_the_batch_that_is_not_used_is_not_reported() -> None:
    x = torch.tensor([[1.0, math.nan]])
    assert find(nn.Linear(1, 1), lambda model, x: model(x[:, :1]).sum(), x) is None


def test_a_reference_that_alone_is_infinite_is_told_apart() -> None:
    def misses(a: float, b: float, dtype: torch.dtype) -> float:
        x = torch.tensor(a, dtype=dtype)
        return float(x / b * b - x)

    a, b = next(
        (a, b)
        for a, b in itertools.product(range(1, 20), range(3, 100, 2))
        if misses(a, b, torch.float32) != 0.0 == misses(a, b, torch.float64)
    )
    found = find(
        Weight([float(a)]), lambda model, batch: (1.0 / (model.w / b * b - model.w.detach())).sum()
    )
    assert found is not None
    assert (found.seen_in, found.value, found.name) == (
        "reference",
        "Inf",
        "aten.reciprocal.default",
    )


def test_a_recording_that_does_not_reproduce_the_value_says_so() -> None:
    program = record_step(Weight([1.0]), lambda model, batch: model.w.sum(), None)
    bad = dataclasses.replace(program.recorded, loss=torch.tensor(math.nan))
    program = dataclasses.replace(program, recorded=bad)
    found = first_nonfinite(program, program.replay(torch.float64))
    assert found is not None
    assert found.origin == "unknown"
    assert "did not give it" in found.describe()


FORMATS = [
    torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e5m2,
    torch.float8_e4m3fn,
]  # fmt: skip


@pytest.mark.parametrize("dtype", FORMATS)
def test_kinds_are_seen_in_every_format(dtype: torch.dtype) -> None:
    bad = torch.tensor([math.nan, 1.0]).to(dtype)
    assert kinds_of(torch.ones(3).to(dtype)) == frozenset()
    assert kinds_of((torch.ones(3), [bad])) == {"NaN"}
    assert kinds_of(_harmless(bad)) == frozenset()
    assert _harmless(bad).dtype is dtype
    if dtype is not torch.float8_e4m3fn:  # has no infinity
        assert "Inf" in kinds_of({"a": torch.tensor([-math.inf, 1.0]).to(dtype)})


def test_what_is_no_float_has_no_kind() -> None:
    assert (
        kinds_of((torch.ones(3, dtype=torch.int64), torch.ones(2).bool(), 3, None)) == frozenset()
    )
    assert kinds_of(torch.ones(0)) == frozenset()


def test_an_origin_comes_back_from_its_document() -> None:
    inner = NonFinite("Inf", "input", "x")
    outer = NonFinite("NaN", "operation", "aten.mm.default", "a", "forward", "m.py:1", ("loss",),
                      "both", made_from=inner)  # fmt: skip
    assert decode(NonFinite, encode(outer)) == outer
