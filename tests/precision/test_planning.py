"""Does the search find the best assignment, and say what can be had where there is none?"""

import functools
import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from numgeom.examples import load_example
from numgeom.precision import PrecisionError, planning
from numgeom.precision.measuring import Measurer, varied
from numgeom.precision.operations import COST
from numgeom.precision.planning import MOST_MEASURED_ALONE, groups, search
from numgeom.precision.work import flops_by_module
from numgeom.recording import Program, record_step


@functools.cache
def measured(name: str) -> tuple[Measurer, Program, nn.Module]:
    """The measurer of an example, which keeps what it measured."""
    model, loss_fn, batch = load_example(name, batch_size=8)
    program = record_step(model, loss_fn, batch)
    variants = varied(program) if name == "digits-mlp" else []
    return Measurer([program], 1e-7, 1024.0, variants), program, model


def saved(flops: Mapping[str, int], assigned: dict[str, str]) -> float:
    return sum(flops[m] * (1.0 - COST[f]) for m, f in assigned.items())


@pytest.mark.parametrize("limit", [2e-4, 1e-3, 4e-3, 1e-2, 5e-2])
@pytest.mark.parametrize("name", ["digits-mlp", "digits-lenet", "digits-vit"])
def test_the_assignment_is_within_five_percent_of_the_best_of_all(name: str, limit: float) -> None:
    measurer, program, model = measured(name)
    flops = flops_by_module(program)
    units = [m for m in flops if m in dict(model.named_modules())]
    assert len(units) <= 10
    formats = ("bfloat16", "float32")
    best = 0.0
    for chosen in itertools.product(formats, repeat=len(units)):
        assigned = dict(zip(units, chosen, strict=True))
        if saved(flops, assigned) > best and measurer.keeps(assigned, limit):
            best = saved(flops, assigned)
    found = search(measurer, flops, units, formats, tolerance=limit, limit=limit)
    assert saved(flops, found.formats) >= 0.95 * best
    assert measurer.worst(found.formats) <= limit


def test_errors_that_undo_each_other_are_found() -> None:
    """The larger of two modules breaks the limit alone, and keeps it together with the other."""
    measurer, program, _ = measured("digits-lenet")
    flops = flops_by_module(program)
    low = dict.fromkeys(("features.0", "features.4"), "bfloat16")
    alone, together = measurer.error({"features.4": "bfloat16"}), measurer.error(low)
    assert together < 0.8 * alone
    limit = 0.5 * (alone + together)
    found = search(
        measurer, flops, list(flops), ("bfloat16", "float32"), tolerance=limit, limit=limit
    )
    assert saved(flops, found.formats) >= saved(flops, low)


def test_many_modules_are_improved_step_by_step(monkeypatch) -> None:
    """With more modules than are tried all, changes of one or two are tried."""
    measurer, program, model = measured("digits-lenet")
    flops = flops_by_module(program)
    units, formats, limit = list(flops), ("bfloat16", "float32"), 1e-2
    everything = search(measurer, flops, units, formats, tolerance=limit, limit=limit)
    monkeypatch.setattr(planning, "MOST_TRIED_ALL", 3)
    some = search(measurer, flops, units, formats, tolerance=limit, limit=limit)
    assert saved(flops, some.formats) >= 0.95 * saved(flops, everything.formats)
    monkeypatch.setattr(planning, "_WORK", 0.0)
    monkeypatch.setattr(planning, "_LEAST_MEASURED", 0)
    none = search(measurer, flops, units, formats, tolerance=limit, limit=limit)
    assert saved(flops, none.formats) < 0.95 * saved(flops, everything.formats)


def test_tables_of_large_steps_are_measured_on_the_recorded_steps_alone(monkeypatch) -> None:
    measurer, program, _ = measured("digits-mlp")
    assert measurer.variants
    flops = flops_by_module(program)
    small = planning._table(measurer, flops, list(flops), ("bfloat16",))
    monkeypatch.setattr(planning, "_WORK", 1.0)
    large = planning._table(measurer, flops, list(flops), ("bfloat16",))
    for module in flops:
        formats = {module: "bfloat16"}
        assert small[module]["bfloat16"] == measurer.error(formats)
        assert large[module]["bfloat16"] == measurer.error(formats, varied=False)


class Undoing(Measurer):
    """Errors of several modules are half of what they would be if they were independent."""

    def _replayed(self, program: Program, formats: Mapping[str, str]) -> float:
        n = sum(f != "float32" for f in formats.values())
        return 1.0 if n == 1 else 0.5 * math.sqrt(n)


@pytest.mark.parametrize(("measured_at_most", "narrow"), [(1, 2), (9, 8), (1000, 8)])
def test_where_not_all_can_be_measured_the_likeliest_are_first(
    monkeypatch, measured_at_most: int, narrow: int
) -> None:
    _, program, _ = measured("digits-mlp")
    flops = dict.fromkeys("abcdefghij", 1)
    monkeypatch.setattr(planning, "_WORK", 0.0)
    monkeypatch.setattr(planning, "_LEAST_MEASURED", measured_at_most)
    found = search(
        Undoing([program], 0.0, 1.0), flops, list(flops), ("bfloat16", "float32"),
        tolerance=1.45, limit=1.45,
    )  # fmt: skip
    assert list(found.formats.values()).count("bfloat16") == narrow


class Lucky(Measurer):
    """A step that breaks every limit as a whole, unless all of it is in TF32."""

    def _replayed(self, program: Program, formats: Mapping[str, str]) -> float:
        if len(formats) < 16:  # modules of one role
            return {"bfloat16": 8e-3, "tf32": 1e-3}[next(iter(formats.values()))]
        return 1e-3 if set(formats.values()) == {"tf32"} else 1.0


def test_one_format_everywhere_is_tried_before_float32() -> None:
    _, program, _ = measured("digits-mlp")
    flops = dict.fromkeys((f"blocks.{i}.{part}" for i in range(8) for part in ("a", "b")), 1)
    found = search(
        Lucky([program], 0.0, 1.0), flops, list(flops), ("bfloat16", "tf32", "float32"),
        tolerance=2e-2, limit=2e-2,
    )  # fmt: skip
    assert set(found.formats.values()) == {"tf32"}


def test_of_equally_cheap_formats_the_more_exact_one_is_taken() -> None:
    measurer, program, _ = measured("digits-vit")
    flops = flops_by_module(program)
    units = [m for m in flops if m]
    for formats in (("bfloat16", "float16"), ("float16", "bfloat16", "float32")):
        found = search(measurer, flops, units, formats, tolerance=0.1, limit=0.1)
        assert set(found.formats.values()) == {"float16"}


def test_what_a_more_exact_format_of_the_same_cost_can_do_is_not_measured() -> None:
    measurer, program, _ = measured("digits-mlp-deep")
    flops = flops_by_module(program)
    formats = ("bfloat16", "float16", "float32")
    found = search(measurer, flops, list(flops), formats, tolerance=1e-3, limit=1e-3)
    assert {"bfloat16"} & {f for row in found.module_errors.values() for f in row} == set()
    assert "float16" in found.formats.values()


def test_a_format_that_overflows_somewhere_is_still_used_elsewhere() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))
    model[2].weight.data.fill_(7e4)  # beyond the largest float16 number
    program = record_step(model, lambda m, x: m(x).sum() * 1e-6, torch.randn(64, 8))
    flops = flops_by_module(program)
    formats = ("bfloat16", "float16", "float32")
    found = search(
        Measurer([program], 1e-7, 1.0), flops, ["0", "2"], formats, tolerance=1e-3, limit=1e-3
    )
    assert found.formats["0"] == "float16"
    assert found.module_errors["2"]["float16"] == math.inf


def test_many_modules_are_measured_by_roles() -> None:
    few = [f"blocks.{i}.mlp" for i in range(MOST_MEASURED_ALONE)]
    assert groups(few) == [[m] for m in few]
    many = [f"blocks.{i}.{part}" for i in range(8) for part in ("attention", "mlp.0", "mlp.2")]
    found = groups([*many, "head"])
    assert sorted(len(group) for group in found) == [1, 8, 8, 8]
    assert [f"blocks.{i}.mlp.0" for i in range(8)] in found


def test_an_overflow_forbids_a_format() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    model[0].weight.data.fill_(3e4)  # times 4 inputs of 1: beyond the largest float16 number
    program = record_step(model, lambda m, x: m(x).sum() * 1e-6, torch.ones(2, 4))
    measurer = Measurer([program], 1e-7, 1.0)
    assert measurer.error({"0": "float16"}) == math.inf
    flops = flops_by_module(program)
    found = search(
        measurer, flops, ["0", "1"], ("float16", "bfloat16", "float32"), tolerance=1.0, limit=1.0
    )
    assert found.formats["0"] == "bfloat16"


def test_what_cannot_be_had_is_said() -> None:
    measurer, program, _ = measured("digits-mlp")
    flops = flops_by_module(program)
    with pytest.raises(PrecisionError, match=r"the best that can be had.*in reach"):
        search(measurer, flops, list(flops), ("float32",), tolerance=1e-9, limit=1e-9)
    with pytest.raises(PrecisionError, match="the best has a predicted error of"):
        search(measurer, flops, list(flops), ("bfloat16",), tolerance=1e-5, limit=1e-5)
