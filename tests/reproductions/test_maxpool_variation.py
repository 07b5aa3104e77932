from pathlib import Path
from typing import Any

import pytest

from numgeom.errors import FileFormatError
from reproductions.maxpool.figure import reproduce
from reproductions.maxpool.figures import FIGURES
from reproductions.maxpool.variation import Size
from reproductions.outcome import Outcome, Settings

SIZE = Size(2, 2, 32)


def rows(outcome: Outcome) -> dict[str, tuple[Any, ...]]:
    """Number, share of zeros, smallest positive and largest variation, by group."""
    table = next(t for t in outcome.tables if "variation" in t.title)
    return {str(r[0]): (r[1], r[2], r[3], r[5]) for r in table.rows}


def test_a_copy_never_differs_and_minimal_pools_always_do() -> None:
    outcome = reproduce(FIGURES["maxpool-fig1"], Settings(), size=SIZE)
    found = rows(outcome)
    assert found.pop("one program, twice") == (4, 1.0, None, 0.0)
    assert sum(n for n, *_ in found.values()) == 2 * 4
    assert all(zeros == 0 for _, zeros, *_ in found.values())
    _, _, smallest, largest = found["native - minimal, compensation, torch's initial values"]
    assert smallest is not None
    assert 1e-9 < smallest <= largest < 1e-6
    assert outcome.facts["share_of_positive_variations"] == 1
    assert outcome.plots[0].svg.count("native - minimal") == len(found)
    replays = {row[0]: row[1:] for row in outcome.tables[1].rows}
    assert set(replays) == set(found)
    for group, (count, low, high) in replays.items():
        assert count == found[str(group)][0]
        if "compensation" in str(group):
            assert 0 <= float(low or 0) <= float(high or 0) < 1e-12
        else:
            assert float(low or 0) > 1e-6


def test_permuted_sums_are_called_an_emulation_and_scale_with_the_format() -> None:
    outcome = reproduce(FIGURES["maxpool-fig2"], Settings(), size=Size(1, 2, 32))
    found = rows(outcome)
    assert 1e-5 < found["float16"][3] < 1e-1
    assert 1e-9 < found["float32"][3] < 1e-4
    assert 1e-18 < found["float64"][3] < 1e-13
    assert outcome.facts["emulated"] is True
    assert any(note.startswith("EMULATION") for note in outcome.notes)


def test_relu_at_zero_makes_no_difference_in_wide_formats() -> None:
    found = rows(reproduce(FIGURES["maxpool-fig3"], Settings(), size=Size(1, 2, 32)))
    assert set(found) == {"float16", "bfloat16", "float32", "float64"}
    assert found["float32"] == found["float64"] == (2, 1.0, None, 0.0)


def test_max_through_relu_varies_as_the_pool_does() -> None:
    outcome = reproduce(FIGURES["maxpool-fig9"], Settings(), size=Size(1, 1, 32))
    found = rows(outcome)
    assert found["float16"][3] > 1e-4
    assert 0 < found["float32"][3] < 1e-6
    assert 0 < found["float64"][3] < 1e-15
    assert {plot.name for plot in outcome.plots} >= {"maxpool-fig9-x1", "maxpool-fig9-lenet"}
    assert outcome.name == "maxpool-fig9"


def test_norm_pools_vary_in_float16_by_underflow_alone() -> None:
    outcome = reproduce(FIGURES["maxpool-fig10"], Settings(), size=Size(2, 2, 64))
    found = rows(outcome)
    ones, equal, wide, float32 = found.values()
    assert ones[3] > 1e-5
    assert 0 < equal[3] < ones[3]
    assert wide[1] == float32[1] == 1.0
    assert outcome.facts["underflown_windows"] > 0
    assert any("round to zero" in note for note in outcome.notes)


def test_state_makes_the_same_figure_again(tmp_path: Path) -> None:
    settings, size = Settings(out=tmp_path), Size(2, 1, 16)
    first = reproduce(FIGURES["maxpool-fig2"], settings, size=size)
    told: list[str] = []
    again = reproduce(
        FIGURES["maxpool-fig2"],
        Settings(out=tmp_path, progress=lambda what, done, count: told.append(what)),
        size=size,
    )
    assert again.to_json() == first.to_json()
    assert not told
    assert reproduce(FIGURES["maxpool-fig2"], Settings(), size=size).tables == first.tables
    with pytest.raises(FileFormatError, match="another task"):
        reproduce(FIGURES["maxpool-fig2"], Settings(out=tmp_path, seed=1), size=size)
