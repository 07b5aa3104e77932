import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from numgeom.cli import app
from numgeom.recording import record_step
from reproductions.gallery import Weights


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["diagnose", *arguments])


def test_a_healthy_example_ends_with_0() -> None:
    result = run("example:digits-mlp", "-q")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("No findings")


def test_findings_end_with_1(tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    record_step(Weights([-1.0, 2.0]), lambda m, _: m.w.log().sum(), None).save(path)
    result = run(str(path))
    assert result.exit_code == 1
    assert "error: domain at aten.log.default" in result.stdout


def test_json_holds_the_findings(tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    record_step(Weights([1.0, 200.0]), lambda m, _: -m.w.softmax(0).log()[0], None).save(path)
    result = run(str(path), "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["schema"] == "numgeom.diagnosis"
    formula = next(f for f in document["findings"] if f["kind"] == "unstable-formula")
    assert formula["verified"] is True
    assert formula["evidence"]["error_after"] < 0.5 * float(formula["evidence"]["error_before"])


def test_wrong_input_is_one_sentence(tmp_path: Path) -> None:
    for wrong in ("example:nothing", str(tmp_path / "missing.py") + ":f"):
        result = run(wrong, "-q")
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
    foreign = tmp_path / "foreign.pt"
    foreign.write_bytes(b"not a program")
    result = run(str(foreign))
    assert result.exit_code == 2
    assert "no file of ours" in result.stderr
