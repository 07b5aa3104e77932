import json
import re
from typing import Any

from typer.testing import CliRunner

from numgeom.cli import app


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["estimate", *arguments])


def test_an_example_is_estimated() -> None:
    result = run("example:digits-mlp")
    assert result.exit_code == 0, result.stderr
    assert "Predicted error of the gradient" in result.stdout
    assert "ESTIMATED" in result.stdout
    assert "layers.0.weight" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_narrower_formats_have_larger_errors() -> None:
    errors = []
    for fmt in ("tf32", "bfloat16", "float8_e5m2"):
        document = json.loads(run("example:digits-mlp", "--json", "--format", fmt).stdout)
        errors.append(document["gradients"][0]["predicted_error"])
        assert document["schema"] == "numgeom.estimate"
        assert document["provenance"]["target"] == "example:digits-mlp"
    assert errors == sorted(errors)
    assert errors[0] < 0.5 * errors[-1]


def test_sources_are_a_tree_and_json() -> None:
    text = run("example:digits-mlp", "--sources", "--format", "bfloat16").stdout
    assert "Sources of the error" in text
    assert "█" in text
    assert "threshold_backward (kink)" in text  # crossings carry the error in 16 bits
    assert re.search(r"Causes of the error .*\d% kink", text)
    document = json.loads(run("example:digits-mlp", "--sources", "--json").stdout)
    shares = [each["error_share"] for each in document["sources"]["sources"]]
    assert abs(sum(shares) - 1.0) < 1e-6


def test_one_line_and_errors() -> None:
    assert run("example:digits-mlp", "-q").stdout.count("\n") == 1
    wrong = run("example:digits-mlp", "--format", "float7")
    assert wrong.exit_code == 2
    assert "bfloat16" in wrong.stderr


def test_a_certificate_shows_its_sources() -> None:
    found = CliRunner().invoke(
        app, ["certify", "example:digits-mlp", "--sources", "--method", "reference"]
    )
    assert found.exit_code == 0, found.stderr
    assert "Sources of the error" in found.stdout
    document = json.loads(
        CliRunner().invoke(app, ["certify", "example:digits-mlp", "--sources", "--json"]).stdout
    )
    assert abs(sum(each["error_share"] for each in document["sources"]) - 1.0) < 1e-6


def test_stored_activations_and_bits() -> None:
    result = run("example:digits-mlp", "--stored-as", "int8", "--bits", "1e-2")
    assert result.exit_code == 0, result.stderr
    assert "activations stored as int8" in result.stdout
    assert "Significant bits needed, by kind" in result.stdout
    assert "MLP" in result.stdout
    document = json.loads(run("example:digits-mlp", "--bits", "1e-2", "--json").stdout)
    assert {row["part"] for row in document["bits_by_module"]} >= {"layers.0"}
    assert all(row["error"] <= 1e-2 for row in document["bits_by_kind"])
    wrong = run("example:digits-mlp", "--stored-as", "papyrus")
    assert wrong.exit_code == 2
    assert "int8" in wrong.stderr
