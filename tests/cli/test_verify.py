import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from numgeom.cli import app
from numgeom.results.store import sealed


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    made = run(
        "certify", "example:digits-mlp", "--seed", "3", "--dtype", "bfloat16", "--save", str(path)
    )
    assert made.exit_code == 0, made.stderr
    return path


def test_a_certificate_is_verified_with_the_seed_and_format_it_names(saved: Path) -> None:
    result = run("verify", str(saved))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Verified")
    assert json.loads(run("verify", str(saved), "--json").stdout)["verified"] is True


def test_a_changed_file_and_another_target_fail(saved: Path) -> None:
    other = run("verify", str(saved), "--target", "example:digits-mlp-deep")
    assert other.exit_code == 1
    assert "another step" in other.stdout
    assert "names the target 'example:digits-mlp'." in other.stdout
    document = json.loads(saved.read_text())
    document["total"]["error_bound"] /= 2
    saved.write_text(json.dumps(document))
    tampered = run("verify", str(saved), "--json")
    assert tampered.exit_code == 1
    found = json.loads(tampered.stdout)
    assert (found["verified"], found["verdict"], found["same_step"]) == (False, "changed", None)
    shown = run("verify", str(saved), "--quiet")
    assert shown.exit_code == 1
    assert "the file was changed after it was written: checksum" in shown.stdout


def test_a_certificate_with_entry_wise_bounds_and_a_file_from_standard_output(
    tmp_path: Path,
) -> None:
    path = tmp_path / "result.pt"
    made = run("certify", "example:digits-mlp", "--save", str(path), "--json")
    assert run("verify", str(path)).exit_code == 0
    (tmp_path / "printed.json").write_text(made.stdout)
    assert run("verify", str(tmp_path / "printed.json")).exit_code == 0


def test_a_certificate_without_a_step_and_unknown_options_are_usage_errors(saved: Path) -> None:
    document = json.loads(saved.read_text())
    del document["provenance"]["target"]
    saved.write_text(json.dumps(sealed(document)))
    result = run("verify", str(saved))
    assert result.exit_code == 2
    assert "names no target" in result.stderr
    assert run("verify", str(saved), "--target", "nowhere.py:f").exit_code == 2
    assert run("verify").exit_code == 2


def test_files_that_are_no_certificates_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "foreign.json").write_text("{}")
    for path in (tmp_path / "missing.json", tmp_path / "foreign.json"):
        result = run("verify", str(path))
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        assert path.name in result.stderr


EVIL = """
from pathlib import Path
Path("it-ran").touch()
def make():
    Path("it-ran").touch()
"""


@pytest.mark.parametrize("named", ["evil.py:make", "os:abort", "evil:make", "example:no-such", ""])
def test_code_that_a_file_names_never_runs(
    saved: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    (saved.parent / "evil.py").write_text(EVIL)
    document = json.loads(saved.read_text())
    document["provenance"]["target"] = named
    for text, code in ((json.dumps(document), 1), (json.dumps(sealed(document)), 2)):
        saved.write_text(text)
        result = run("verify", str(saved), "--quiet")
        assert result.exit_code == code
        assert "numgeom verify" in result.stderr or code == 1  # what to type
        assert not (saved.parent / "it-ran").exists()
    run("verify", str(saved), "evil.py:make")  # the person's own word is another thing
    assert (saved.parent / "it-ran").exists()


def test_a_changed_file_runs_nothing_even_with_a_target(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    (saved.parent / "evil.py").write_text(EVIL)
    saved.write_text(saved.read_text().replace("bfloat16", "float16"))
    assert run("verify", str(saved), "evil.py:make").exit_code == 1
    assert not (saved.parent / "it-ran").exists()


def test_the_target_is_an_argument_or_an_option(saved: Path) -> None:
    assert run("verify", str(saved), "example:digits-mlp").exit_code == 0
    twice = run("verify", str(saved), "example:digits-mlp", "--target", "example:digits-lenet")
    assert twice.exit_code == 2
    assert "once" in twice.stderr
