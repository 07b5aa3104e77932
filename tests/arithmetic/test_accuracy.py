"""The table of accuracies against Arb, on samples of its own; nothing may exceed its entry."""

import json
import math
import random
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from flint import arb, ctx
from torch import Tensor

from benchmarks.elementary import FUNCTIONS, Elementary, enclose
from benchmarks.ulps import (
    arguments,
    confirmed_ulps,
    exact_values,
    from_float64,
    is_exhaustive,
    points_of,
    worst_error,
)
from numgeom.arithmetic import elementary, formats
from numgeom.arithmetic.accuracy import (
    AccuracyTable,
    Floor,
    default_table,
    load_table,
    pow_function,
    save_table,
    ulps_error_up,
    with_margin,
)
from numgeom.arithmetic.elementary import LAYOUTS, in_layout
from numgeom.arithmetic.formats import Format, bfloat16, float16, float32, float64, round_to
from numgeom.errors import FileFormatError

FORMATS = (float16, bfloat16, float32, float64)
SEED = 99  # not the seed of the table
functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)


def dtype_of(fmt: Format) -> torch.dtype:
    assert fmt.dtype is not None
    return fmt.dtype


def sample(function: Elementary, fmt: Format, count: int) -> tuple[Tensor, ...]:
    columns = arguments(function, fmt, count, SEED)
    generator = torch.Generator().manual_seed(SEED)
    chosen = torch.randperm(len(columns[0]), generator=generator)[:count]
    return tuple(column[chosen] for column in columns)


@functions
def test_no_function_exceeds_its_entry(function: Elementary):
    for fmt in FORMATS:
        entry = default_table().find(function.name, dtype_of(fmt))
        assert entry is not None
        columns = sample(function, fmt, 20_000 if fmt is float32 else 1_000)
        if fmt is float32:
            exact = from_float64(function.compute(*(column.double() for column in columns)))
        else:
            exact = exact_values(function, columns)
        for layout in LAYOUTS:
            worst = worst_error(function, fmt, columns, exact, layout)
            assert worst.ulps <= entry.allowed_ulps, (fmt.name, layout, worst)


@functions
def test_the_measured_errors_are_real(function: Elementary):
    """At the argument that the table names, the error that it names, by the kernels it names."""
    for entry in default_table().entries:
        if entry.function != function.name or not entry.worst_at or not entry.runs_here():
            continue
        columns = [torch.full((64,), x, dtype=dtype_of(entry.format)) for x in entry.worst_at]
        computed = in_layout(function.compute, columns, entry.layout)
        ulps = max(
            confirmed_ulps(function, entry.format, entry.worst_at, value)
            for value in computed.unique().tolist()
        )
        assert 0.999 * entry.measured_ulps <= ulps <= 1.001 * entry.measured_ulps, entry


@functions
def test_error_bounds_hold_with_no_slack(function: Elementary):
    for fmt in FORMATS:
        entry = default_table().find(function.name, dtype_of(fmt))
        assert entry is not None
        columns = sample(function, fmt, 300)
        computed = function.compute(*columns)
        bounds = entry.error_up(computed, *columns)
        assert bounds.dtype == torch.float64
        assert bounds.shape == computed.shape
        rows = zip(points_of(columns), computed.tolist(), bounds.tolist(), strict=True)
        for point, result, bound in rows:
            if not math.isfinite(result):
                assert bound == math.inf
                continue
            exact = enclose(function, point)
            if exact is None or not math.isfinite(bound):
                continue
            with ctx.workprec(400):
                assert abs(arb(result) - exact) <= arb(bound), (fmt.name, point, result)


def test_the_table_is_complete_and_keeps_its_rule():
    table = default_table()
    assert set(table.functions) == {function.name for function in FUNCTIONS}
    assert table.capabilities == ("DEFAULT", "AVX2", "AVX512")
    expected = {
        (f.name, fmt.name, column)
        for f in FUNCTIONS
        for fmt in FORMATS
        for column in table.capabilities
    }
    found = [(entry.function, entry.format.name, entry.capability) for entry in table.entries]
    assert sorted(found) == sorted(expected)
    by_name = {function.name: function for function in FUNCTIONS}
    for entry in table.entries:
        assert entry.allowed_ulps == with_margin(entry.measured_ulps)
        assert entry.floor == by_name[entry.function].floor_in(entry.format)
        assert entry.exhaustive == is_exhaustive(by_name[entry.function], entry.format)
        assert entry.samples >= (60_000 if not entry.exhaustive else 10_000), entry
        assert entry.layout in LAYOUTS
        assert entry.date >= "2026"
        assert len(entry.fingerprint) == 12
    assert table.torch_version
    assert table.architecture == "x86_64"


@pytest.mark.parametrize("measured", [0.0, 0.3, 0.5, 0.5001, 1.0, 3.3, 1e9])
def test_the_margin_is_twofold(measured: float):
    allowed = with_margin(measured)
    assert allowed >= max(1.0, 2.0 * measured)
    assert allowed <= max(1.0, 2.0 * measured + 0.125)
    assert (8.0 * allowed).is_integer()


def test_what_was_not_measured_has_no_value():
    table = default_table()
    assert table.find("erfcx", torch.float64) is None
    assert table.allowed_ulps("erfcx", torch.float64) is None
    assert table.allowed_ulps("exp", torch.float8_e5m2) is None
    assert table.find("exp", torch.float64, device="cuda") is None
    with pytest.raises(formats.FormatError):
        table.find("exp", torch.int32)


def test_an_answer_is_that_of_the_running_kernels_or_the_worst():
    table = default_table()
    for function in table.functions:
        rows = {
            e.capability: e for e in table.entries if (e.function, e.format) == (function, float64)
        }
        for name, entry in rows.items():
            assert table.find(function, torch.float64, capability=name) == entry
        unknown = table.find(function, torch.float64, capability="VSX")
        assert unknown is not None
        assert unknown.allowed_ulps == max(entry.allowed_ulps for entry in rows.values())
        running = table.find(function, torch.float64)
        assert running in (unknown, rows.get(elementary.capability()))


def test_powers_have_entries():
    for exponent in (2, 3.0, -1, -2.0, 0.5, -0.5):
        assert default_table().find(pow_function(exponent), torch.float64) is not None
    assert pow_function(2) == "pow(2)"
    assert pow_function(1.7) == "pow"


# ---------------------------------------------------------------------------------- ulps to error


@pytest.mark.parametrize("fmt", [float64, float32, bfloat16, float16], ids=str)
@pytest.mark.parametrize("ulps", [0.5, 1.0, 1.375, 8.0, 30.0])
def test_ulps_bound_the_distance_to_any_exact_value(fmt: Format, ulps: float):
    """Exact values at every size, as far from the computed one as `ulps` allow."""
    rng = random.Random(5)
    exact, computed = [], []
    while len(exact) < 500:
        size = rng.randint(fmt.min_exponent - fmt.precision, fmt.max_exponent - 6)
        y = Fraction(rng.choice([1.0, 1.0 + 2.0**-40, rng.random() + 1.0, 2.0 - 2.0**-52]))
        y *= Fraction(2) ** size
        spacing = Fraction(2) ** (max(size, fmt.min_exponent) - fmt.precision + 1)
        away = y + rng.choice([-1, 1]) * Fraction(ulps) * spacing
        result = round_to(torch.tensor([float(away)], dtype=torch.float64), fmt).item()
        if abs(Fraction(result) - y) <= Fraction(ulps) * spacing:
            exact.append(y)
            computed.append(result)
    bounds = ulps_error_up(torch.tensor(computed, dtype=torch.float64), ulps, fmt)
    for y, result, bound in zip(exact, computed, bounds.tolist(), strict=True):
        error = abs(Fraction(result) - y)
        assert error <= Fraction(bound)
        if math.isfinite(bound):
            # No more than the spacing of the next binade, where the exact value may be.
            widest = max(abs(y) * 2 * Fraction(fmt.unit_roundoff), Fraction(fmt.smallest_subnormal))
            assert Fraction(bound) <= Fraction(ulps) * 4 * widest + Fraction(2) ** -1070


def test_ulps_say_nothing_about_what_is_not_finite():
    x = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    assert ulps_error_up(x, 1.0, float32).isinf().tolist() == [True, True, True, False]
    assert ulps_error_up(x, 0.0, float32).tolist() == [math.inf] * 3 + [0.0]
    assert ulps_error_up(torch.ones(1), 200.0, bfloat16).tolist() == [math.inf]


def test_floors_are_sums_of_their_terms():
    x = torch.tensor([-3.0, 0.0], dtype=torch.float64)
    y = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert Floor().bound_up(float32) == 0.0
    tiny = float(Floor(normal=2.0).bound_up(float32))
    assert 2.0**-125 <= tiny <= 2.0**-125 * (1 + 1e-15)
    bound = Floor(argument=2.0, one=1.0).bound_up(float32, x, y)
    assert isinstance(bound, Tensor)
    for value, expected in zip(bound.tolist(), [7 * 2.0**-24, 5 * 2.0**-24], strict=True):
        assert expected <= value <= expected * (1 + 1e-14)


# -------------------------------------------------------------------------------------------- files


def test_tables_survive_a_file(tmp_path: Path):
    table = default_table()
    path = tmp_path / "table.json"
    save_table(table, path)
    again = load_table(path)
    assert isinstance(again, AccuracyTable)
    assert again == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "not JSON"),
        ("[]", "no accuracy table"),
        ('{"schema_version": 999}', "found 999"),
        ('{"schema_version": 1, "entries": []}', "no accuracy table of version 2"),
        ('{"schema_version": 2, "entries": []}', "damaged"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message):
        load_table(path)


def test_a_damaged_row_is_refused(tmp_path: Path):
    path = tmp_path / "table.json"
    save_table(default_table(), path)
    content = json.loads(path.read_text())
    content["entries"][3].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match="damaged"):
        load_table(path)
