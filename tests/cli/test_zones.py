"""Does `numgeom zones` answer for people and programs, with exit codes and a help that teaches?"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from numgeom.cli import app
from numgeom.nonsmooth import survey
from numgeom.recording import record_step
from numgeom.targets import load_target

STEPS = """
import torch
from torch import nn
from torch.nn import functional as F


def loss_fn(model, x):
    return F.max_pool1d(model(x), 2).sum()


def layer(weights):
    found = nn.Conv1d(1, 1, 2, bias=False)
    with torch.no_grad():
        found.weight.copy_(torch.tensor([[weights]]))
    return found


def accident():
    return layer([1.0, 1.0]), loss_fn, torch.tensor([[[1.0, 2.0, 1.0, 5.0, 1.0]]])


def flat():
    return layer([1.0, 1.0]), loss_fn, torch.ones(1, 1, 9)


def free():
    return layer([1.0, 0.5]), loss_fn, torch.tensor([[[1.0, 2.0, 4.0]]])


def drawn():
    weights = torch.randint(-1, 2, (2,)).tolist()
    return layer(weights), loss_fn, torch.randint(0, 3, (1, 1, 7)).float()


def broken():
    raise ValueError("no data today")
"""


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps.py"
    path.write_text(STEPS)
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["zones", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("step", "code", "zone"),
    [("accident", 1, "bifurcation"), ("flat", 0, "compensation"), ("free", 0, "regular")],
)
def test_the_exit_code_tells_a_bifurcation(steps: Path, step: str, code: int, zone: str) -> None:
    found, out, _ = run(f"{steps}:{step}")
    assert found == code
    assert out.startswith(f"Zone: {zone}.")
    assert run(f"{steps}:{step}", "-q")[1].startswith(f"{zone}: native against")


def test_the_text_is_that_of_the_survey(steps: Path) -> None:
    _, out, _ = run(f"{steps}:accident", "--rows", 1)
    step = load_target(f"{steps}:accident", seed=0)
    assert out == survey(step.model, step.loss_fn, step.batch).text(rows=1) + "\n"
    for part in ("by accident", "Backprop set: ", "Audit:"):
        assert part in out


def test_json_is_all_that_is_printed(steps: Path) -> None:
    code, out, err = run(f"{steps}:accident", "--json")
    document = json.loads(out)
    assert code == 1
    assert err == ""
    assert document["zone"] == "bifurcation"
    assert document["provenance"]["seed"] == "0"
    assert document["hull"]["method"] == "differences"
    assert document["audit"][0]["breaks_rule"] is True


def test_pullbacks_can_be_limited(steps: Path) -> None:
    _, out, _ = run(f"{steps}:accident", "--json", "--pullbacks", 0)
    assert json.loads(out)["hull"]["method"] == "intervals"


def test_a_saved_program_is_a_target(steps: Path, tmp_path: Path) -> None:
    step = load_target(f"{steps}:accident", seed=0)
    file = tmp_path / "step.program"
    record_step(step.model, step.loss_fn, step.batch).save(file)
    code, out, _ = run(file, "--json")
    assert code == 1
    assert json.loads(out)["zone"] == "bifurcation"


def test_an_example_in_two_formats() -> None:
    assert run("example:digits-mlp", "-q")[0] == 0
    code, out, _ = run("example:digits-lenet", "--dtype", "float64", "-q")
    assert code == 0
    assert out.startswith("compensation")


def test_errors_are_one_sentence(steps: Path) -> None:
    code, _, err = run(f"{steps}:broken")
    assert code == 2
    assert "no data today" in err
    assert "Traceback" not in err
    code, _, err = run("example:digits-lenett")
    assert code == 2
    assert "did you mean" in err


def test_volume_counts_initialisations_by_zone(steps: Path, tmp_path: Path) -> None:
    state = tmp_path / "work.jsonl"
    options = (f"{steps}:drawn", "--volume", 9, "--batches", 2, "--state", state)
    code, out, _ = run(*options, "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["points"], document["batches"]) == (9, 2)
    assert sum(zone["share"] for zone in document["zones"].values()) == pytest.approx(1.0)
    assert document["zones"]["bifurcation"]["share"] > 0
    assert document["margin_of_pairs"] is None  # two mini-batches are too few
    for row in document["curve"]:
        low, high = row["points_interval"]
        assert low <= row["points"] <= high
        assert row["pairs"] <= row["points"]
    before = state.read_bytes()
    _, text, _ = run(*options)
    assert text.startswith("9 points, 2 mini-batches")
    assert state.read_bytes() == before  # nothing was left to do


def test_volume_of_a_file_by_several_processes(steps: Path) -> None:
    whole = run(f"{steps}:drawn", "--volume", 4, "--json")[1]
    assert run(f"{steps}:drawn", "--volume", 4, "--json", "--workers", 2)[1] == whole


def test_help_teaches_without_importing_torch() -> None:
    code, out, _ = run("--help")
    text = re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]|\x1b\[[0-9;]*m", " ", out))
    assert code == 0
    for phrase in (
        "max-pool window",
        "compensation",
        "bifurcation",
        "Exit code 1",
        "numgeom zones example:digits-lenet",
        "torchrun",
    ):
        assert phrase in text
    script = (
        "import sys; from typer.testing import CliRunner; from numgeom.cli import app; "
        "CliRunner().invoke(app, ['zones', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_torch_keeps_its_settings(steps: Path) -> None:
    threads = torch.get_num_threads()
    run(f"{steps}:flat", "-q")
    assert torch.get_num_threads() == threads
