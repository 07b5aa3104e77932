import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from numgeom.cli import app
from reproductions import catalogue
from reproductions.outcome import (
    Outcome,
    Plot,
    Reproduction,
    Settings,
    Table,
    circumstances,
)

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["reproduce", *arguments])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """A reproduction named `toy`; the settings of its runs."""
    seen: list[Settings] = []

    def work(settings: Settings) -> Outcome:
        seen.append(settings)
        settings.progress("playing", 1, 2)
        return Outcome(
            name="toy",
            title="A toy",
            tables=(Table("Errors [relative]", ("n", "error"), ((1, 0.25),)),),
            plots=(Plot("toy", "<svg/>"),),
            facts={"largest": 0.25},
            notes=("A [note] in brackets.",),
            circumstances=circumstances(settings),
        )

    entry = Reproduction(name="toy", title="A toy", run=work)
    monkeypatch.setitem(catalogue.REPRODUCTIONS, "toy", entry)
    return seen


def test_a_reproduction_prints_its_tables_and_its_stamp(toy: list[Settings]) -> None:
    result = run("toy", "--seed", "7")
    assert result.exit_code == 0, result.stderr
    for words in ("Errors [relative]", "0.25", "A [note] in brackets.", "seed 7", "torch 2."):
        assert words in " ".join(result.stdout.split())
    assert toy[0].seed == 7
    assert toy[0].is_small


def test_json_is_all_that_is_printed(toy: list[Settings], tmp_path: Path) -> None:
    result = run("toy", "--json", "--out", str(tmp_path), "--scale", "paper")
    assert json.loads(result.stdout)["circumstances"]["scale"] == "paper"
    assert (tmp_path / "toy.json").read_text() == result.stdout
    assert (tmp_path / "toy.svg").read_text() == "<svg/>"
    assert toy[0].out == tmp_path


def test_the_list_names_every_reproduction(toy: list[Settings]) -> None:
    names = [line.split()[0] for line in run().stdout.splitlines()]
    assert names == list(catalogue.REPRODUCTIONS)
    assert list(json.loads(run("--json").stdout)) == names


def test_errors_are_one_sentence(toy: list[Settings], tmp_path: Path) -> None:
    unknown = run("toyy")
    assert unknown.exit_code == 2
    assert "did you mean toy?" in unknown.stderr
    missing = run("toy", "--data", str(tmp_path / "nowhere"))
    assert missing.exit_code == 2
    assert "nowhere" in missing.stderr
    assert toy == []


def test_without_the_folder_the_command_says_how_to_get_it(tmp_path: Path) -> None:
    """As in an installation from a wheel: the package alone, started where no checkout is."""
    shutil.copytree(ROOT / "src" / "numgeom", tmp_path / "site" / "numgeom")
    done = subprocess.run(
        [sys.executable, "-m", "numgeom", "reproduce", "table1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 2
    assert "python -m reproductions" in done.stderr


def test_the_folder_beside_the_source_code_is_found_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "numgeom", "reproduce", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert list(json.loads(done.stdout)) == list(catalogue.REPRODUCTIONS)
