import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from numgeom.examples.data import DataStamp
from reproductions.catalogue import REPRODUCTIONS, find_reproduction
from reproductions.outcome import (
    SCHEMA,
    Outcome,
    Reproduction,
    ReproductionError,
    Settings,
    Table,
    circumstances,
)
from reproductions.plots import Series, line_plot


def outcome(**changes: Any) -> Outcome:
    given: dict[str, Any] = {
        "name": "a-table",
        "title": "A table",
        "tables": (Table("Rows", ("n", "error"), ((1, 0.5), (2, math.inf))),),
        "plots": (
            line_plot("curve", "C", [Series("s", [1, 2], [3, 4])], x_label="x", y_label="y"),
        ),
        "facts": {"worst": math.nan, "nested": {"low": -math.inf}},
        "data": (DataStamp("nowhere", "0" * 64, 3),),
        "circumstances": circumstances(Settings()),
    }
    return Outcome(**(given | changes))


def test_json_is_strict_and_says_where_numbers_come_from() -> None:
    document = json.loads(outcome().to_json(), parse_constant=pytest.fail)
    assert document["schema"] == SCHEMA
    assert document["tables"][0]["rows"] == [[1, 0.5], [2, "inf"]]
    assert document["facts"] == {"worst": "NaN", "nested": {"low": "-inf"}}
    assert document["plots"] == ["curve.svg"]
    assert document["data"][0]["source"] == "nowhere"
    assert document["circumstances"]["versions"]["torch"]
    assert document["circumstances"]["scale"] == "small"


def test_results_are_written_side_by_side(tmp_path: Path) -> None:
    found = outcome()
    paths = found.save(tmp_path / "deep" / "folder")
    assert [path.name for path in paths] == ["a-table.json", "curve.svg"]
    assert paths[0].read_text() == found.to_json() + "\n"
    assert paths[1].read_text().lstrip().startswith("<?xml")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReproductionError, match=r"file.*--out"):
        outcome().save(tmp_path / "file")


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="Rows"):
        Table("Rows", ("a", "b"), ((1,),))


@pytest.mark.parametrize("name", ["Table1", "a_b", "", "-a", "a b"])
def test_names_are_lower_case_with_hyphens(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Reproduction(name=name, title="", run=lambda _: outcome())


def test_equal_numbers_give_equal_plots_whatever_the_random_state() -> None:
    def plot() -> str:
        series = [Series("s", [1, 2, 3], [1e-3, 1, 1e3], spread=[(1e-4, 1e-2), (1, 1), (1, 1e4)])]
        return line_plot(
            "p", "T", series, x_label="x", y_label="y", x_scale="log", y_scale="log"
        ).svg

    first = plot()
    random.seed(random.random())
    assert plot() == first
    assert ">T<" in first  # text stays text


def test_every_listed_reproduction_can_be_found() -> None:
    for name, each in REPRODUCTIONS.items():
        assert find_reproduction(name) is each
        assert each.name == name
        assert each.title


def test_an_unknown_name_gets_a_hint() -> None:
    known = next(iter(REPRODUCTIONS), None)
    with pytest.raises(ReproductionError, match="no reproduction named 'nothing-like-it'"):
        find_reproduction("nothing-like-it")
    if known is not None:
        with pytest.raises(ReproductionError, match=f"did you mean {known}"):
            find_reproduction(known + "x")
