import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from numgeom.cli import app
from numgeom.precision import PrecisionPlan


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_a_plan_is_shown_verified_and_saved(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = run("example:digits-lenet", "--tolerance", "2e-2", "--save", str(path))
    assert result.exit_code == 0, result.stderr
    assert "the tolerance holds" in result.stdout
    assert "features.0" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120
    assert PrecisionPlan.load(path).tolerance == 2e-2


def test_json_holds_what_was_measured() -> None:
    document = json.loads(run("example:digits-mlp", "--tolerance", "0.1", "--json").stdout)
    assert document["schema"] == "numgeom.plan"
    assert document["measured_error"] <= 0.1
    assert document["holds"] is True
    assert document["low_precision_share"] > 0
    assert document["provenance"]["target"] == "example:digits-mlp"


def test_what_cannot_be_had_is_said_with_the_best() -> None:
    result = run("example:digits-mlp", "--tolerance", "1e-9")
    assert result.exit_code == 2
    assert "the best that can be had" in result.stderr
    assert "in reach" in result.stderr


def test_wrong_input_is_one_sentence() -> None:
    assert run("example:digits-mlp").exit_code == 2  # no tolerance
    for wrong in (("--tolerance", "-1"), ("--tolerance", "0.1", "--format", "float7")):
        result = run("example:digits-mlp", *wrong)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")


def test_several_formats_can_be_given() -> None:
    arguments = ("--format", "float16", "--format", "float32", "--no-verify", "-q")
    result = run("example:digits-mlp", "--tolerance", "1e-2", *arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1


def test_formats_are_separated_by_commas_and_may_be_emulated() -> None:
    document = json.loads(
        run("example:digits-mlp", "--tolerance", "0.3", "--formats", "float8_e4m3fn, float32",
            "--json").stdout
    )  # fmt: skip
    assert set(document["formats"].values()) <= {"float8_e4m3fn", "float32"}
    assert document["low_precision_share"] > 0
    assert document["holds"] is True


def test_unknown_formats_list_the_known_ones() -> None:
    result = run("example:digits-mlp", "--tolerance", "0.1", "--formats", "bfloat16,fp7")
    assert result.exit_code == 2
    assert "fp7" in result.stderr
    assert "float8_e4m3fn" in result.stderr
