"""Does the command line answer, teach, and fail in one clear sentence?"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from numgeom.certificate import Certificate
from numgeom.cli import app
from numgeom.errors import TargetError

ROOT = Path(__file__).resolve().parent.parent.parent

STEPS = """
import torch
from torch import nn


def loss_fn(model, x):
    return model(x).square().sum()


def step():
    return nn.Linear(3, 2), loss_fn, torch.randn(4, 3)


def dropout():
    return nn.Sequential(nn.Linear(3, 2), nn.Dropout()), loss_fn, torch.ones(4, 3)


def diverges():
    return nn.Linear(3, 2), lambda model, x: model(x * 1e30).square().sum(), torch.ones(4, 3)


def fails():
    def broken(model, x):
        raise ValueError("no such thing as [a] loss")

    return nn.Linear(3, 2), broken, None


def frozen():
    return nn.Linear(3, 2).requires_grad_(False), loss_fn, torch.ones(4, 3)


def pair():
    return nn.Linear(3, 2), loss_fn
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "steps.py").write_text(STEPS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def numbers(output: str) -> dict[str, Any]:
    """The JSON of a result without what differs from run to run."""
    document = json.loads(output)
    del document["seconds"]
    return document


# -- certify -------------------------------------------------------------------------------


def test_an_example_is_certified() -> None:
    result = run("certify", "example:digits-mlp")
    assert result.exit_code == 0, result.stderr
    found = re.search(r"Gradient error of example:digits-mlp: at most (\S+)", result.stdout)
    assert 1e-8 < float(found[1]) < 1e-6
    assert "guarantee PROVED" in result.stdout
    assert "data scikit-learn" in " ".join(result.stdout.split())
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_json_is_all_that_is_printed(steps: Path) -> None:
    result = run("certify", "steps.py:step", "--json", "--seed", "3")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["schema"] == "numgeom.certificate"
    assert document["provenance"]["seed"] == "3"
    assert document["provenance"]["target"] == "steps.py:step"
    assert result.stderr == ""


def test_quiet_prints_one_line(steps: Path) -> None:
    for method, level in (("reference", "ESTIMATED"), ("ball", "PROVED")):
        result = run("certify", "steps.py:step", "--quiet", "--method", method)
        assert result.exit_code == 0
        assert result.stdout.count("\n") == 1
        assert result.stdout.endswith(f"{level}\n")


@pytest.mark.parametrize("target", ["steps.py:step", "steps.py:dropout"])
def test_equal_seeds_give_equal_results_and_others_differ(steps: Path, target: str) -> None:
    def result(seed: str) -> dict[str, Any]:
        torch.rand(1)  # what was drawn before does not matter
        made = run("certify", target, "--json", "--seed", seed, "--method", "reference")
        return numbers(made.stdout)

    assert result("5") == result("5")
    assert result("5")["parameters"] != result("6")["parameters"]


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [("float32", 1e-9, 1e-6), ("float16", 1e-5, 1e-2), ("bfloat16", 1e-4, 1e-1)],
)
def test_the_format_decides_the_error(steps: Path, dtype: str, least: float, most: float) -> None:
    result = run("certify", "steps.py:step", "--json", "--dtype", dtype)
    total = json.loads(result.stdout)["total"]
    assert total["dtype"] == dtype
    assert least < total["observed_error"] < most


def test_float64_is_not_called_exact(steps: Path) -> None:
    arguments = ("certify", "steps.py:step", "--dtype", "float64")
    result = run(*arguments, "--method", "reference")
    assert result.exit_code == 0
    assert "guarantee NONE" in result.stdout
    assert "ESTIMATED" not in result.stdout
    bounded = json.loads(run(*arguments, "--json").stdout)
    assert bounded["guarantee"] in ("PROVED", "CERTIFIED")
    assert 0 < bounded["total"]["error_bound"] < 1e-12


def test_training_comes_first_if_asked_for() -> None:
    start, trained = (
        json.loads(run("certify", "example:digits-mlp", "--json", "--epochs", epochs).stdout)
        for epochs in ("0", "1")
    )
    assert trained["computed_loss"] < start["computed_loss"]
    assert trained["provenance"]["epochs"] == "1"


@pytest.mark.parametrize("name", ["result.json", "result.pt"])
def test_the_result_is_saved(steps: Path, name: str) -> None:
    result = run("certify", "steps.py:step", "--json", "--save", name)
    assert result.exit_code == 0
    assert Certificate.load(steps / name).to_json() + "\n" == result.stdout


def test_values_that_are_not_finite_are_a_finding(steps: Path) -> None:
    result = run("certify", "steps.py:diverges")
    assert result.exit_code == 1
    assert "Not finite: Inf first arises in aten.pow.Tensor_Scalar" in result.stdout
    assert "steps.py:" in result.stdout
    as_json = run("certify", "steps.py:diverges", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["first_nonfinite"]["value"] == "Inf"


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["certify", "nowhere.py:step"], ["nowhere.py"]),
        (["certify", "steps.py:stepp"], ["stepp", "did you mean step?"]),
        (["certify", "steps.py:pair"], ["steps.py:pair", "(model, loss_fn, batch)"]),
        (["certify", "steps.py"], ["steps.py", ":"]),
        (["certify", "example:digits"], ["digits-mlp"]),
        (["certify", "no.such.package:step"], ["no.such.package:step"]),
        (["certify", "steps.py:frozen"], ["requires a gradient"]),
        (["certify", "steps.py:fails"], ["steps.py, line", "no such thing as [a] loss", "--debug"]),
        (["certify", "steps.py:step", "--epochs", "2"], ["epochs"]),
        (["certify", "steps.py:step", "--seed", "-1"], ["seed"]),
        (["certify", "steps.py:step", "--quiet", "--save", "no/such/folder"], ["no/such/folder"]),
    ],
)
def test_an_error_is_one_clear_sentence(
    steps: Path, arguments: list[str], words: list[str]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    if "--save" not in arguments:
        assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["certify"],
        ["certify", "steps.py:step", "--dtype", "int8"],
        ["certify", "steps.py:step", "--seed", "x"],
        ["certify", "steps.py:step", "--rows", "0"],
        ["certify", "steps.py:step", "--no-such-option"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_has_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_debug_shows_the_error_itself(steps: Path) -> None:
    result = run("certify", "steps.py:stepp", "--debug")
    assert isinstance(result.exception, TargetError)
    result = run("certify", "steps.py:fails", "--debug")
    assert isinstance(result.exception, ValueError)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_named(steps: Path) -> None:
    result = run("certify", "steps.py:step", "--device", "cuda")
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr


@pytest.mark.cuda
def test_a_step_runs_on_the_gpu(steps: Path) -> None:
    result = run("certify", "steps.py:step", "--device", "cuda", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["provenance"]["device"] == "cuda:0"


def test_an_interrupt_ends_cleanly(steps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("numgeom.certificate.certify", interrupted)
    result = run("certify", "steps.py:step")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"
    assert result.stdout == ""


# -- help ----------------------------------------------------------------------------------


def test_help_teaches() -> None:
    for arguments in ([], ["--help"]):
        result = run(*arguments)
        text = " ".join((result.stdout + result.stderr).split())
        assert "numgeom certify example:digits-mlp" in text
        assert "examples" in text
    text = " ".join(run("certify", "--help").stdout.split())
    assert "(model, loss_fn, batch)" in text
    assert "numgeom certify train.py:make_step" in text


def test_the_examples_are_listed_and_can_be_named() -> None:
    lines = run("examples").stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert "example:digits-mlp" in names
    assert all(len(line.split()) > 2 for line in lines)
    assert list(json.loads(run("examples", "--json").stdout)) == names


def test_the_version_is_the_package_s() -> None:
    from numgeom.version import __version__

    assert run("--version").stdout == f"numgeom {__version__}\n"


# -- as a process --------------------------------------------------------------------------


def process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "src"), OMP_NUM_THREADS="1")
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment
    )


MAIN = "from numgeom.cli import main; main()"


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom numgeom.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    print('code', end.code, 'torch' in sys.modules)"
    )
    assert process(code, "certify", "--help").stdout.endswith("code 0 False\n")


def test_the_exit_codes_of_the_process(steps: Path) -> None:
    good = process(MAIN, "certify", "steps.py:step", "--json")
    assert (good.returncode, good.stderr) == (0, "")
    json.loads(good.stdout)
    bad = process(MAIN, "certify", "steps.py:stepp")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("Error: ")
    assert bad.stderr.count("\n") == 1
    debug = process(MAIN, "certify", "steps.py:stepp", "--debug")
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr
