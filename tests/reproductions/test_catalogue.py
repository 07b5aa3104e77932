import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from numgeom.cli import app
from reproductions.catalogue import REPRODUCTIONS
from reproductions.maxpool.figures import FIGURES
from reproductions.maxpool.pool_arms import ARMS
from reproductions.maxpool.problems import problem
from reproductions.maxpool.training import BETAS
from reproductions.maxpool.training_study import Training, run_study
from reproductions.outcome import Settings
from tests.reproductions import shared_work
from tests.reproductions.image_files import write_mnist

ROOT = Path(__file__).parents[2]


def test_every_table_and_figure_of_the_max_pooling_study_is_listed() -> None:
    """Figure 14 alone is not: it trains on ImageNet."""
    names = {f"maxpool-table{n}" for n in range(1, 5)} | {f"maxpool-fig{n}" for n in range(1, 14)}
    assert names <= set(REPRODUCTIONS)


def test_small_and_published_sizes_are_of_one_kind() -> None:
    for row in FIGURES.values():
        assert type(row.small) is type(row.paper)


@pytest.mark.parametrize("name", ["maxpool-table1", "maxpool-table3", "maxpool-fig8"])
def test_quick_ones_write_json_and_plots(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["reproduce", name, "--quiet", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / f"{name}.json").is_file()
    assert (tmp_path / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    assert "deterministic algorithms" in " ".join(result.stdout.split())


def test_data_of_a_folder_take_the_place_of_the_stand_in(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data")
    found = CliRunner().invoke(app, ["reproduce", "maxpool-fig8", "--data", str(tmp_path / "data")])
    assert found.exit_code == 0, found.stderr
    assert "LeNet-5, MNIST" in found.stdout
    assert "Stand-in" not in found.stdout
    missing = CliRunner().invoke(app, ["reproduce", "maxpool-fig8", "--data", str(tmp_path)])
    assert missing.exit_code != 0
    assert "never downloaded" in " ".join(missing.stderr.split())


def test_processes_of_torchrun_share_the_work_and_one_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.reproductions.shared_work", str(tmp_path)]
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("A table of two kinds of work") == 1
    rows = json.loads((tmp_path / "shared.json").read_text())["tables"][0]["rows"]
    settings = Settings()
    runs = run_study(shared_work.lenet(), shared_work.RECIPE, shared_work.TRIALS)
    expected = [[t.beta, *run.losses] for t, run in zip(shared_work.TRIALS, runs, strict=True)]
    assert rows == [*expected, *shared_work.collected(settings)]
    for name in ("study", "shared"):  # each process has measured a part of its own
        parts = [
            [json.loads(line)["piece"] for line in file.read_text().splitlines()[1:]]
            for file in sorted(tmp_path.glob(f"{name}*.jsonl"))
        ]
        assert sorted(map(len, parts)) == [1, 2]
        assert sorted(parts[0] + parts[1]) == [0, 1, 2]


LEARNING = [f"maxpool-fig{n}" for n in (5, 11, 12, 13)]


@pytest.mark.parametrize("name", LEARNING)
def test_networks_of_the_small_scale_learn(name: str) -> None:
    """Else no beta could do harm: at beta = 0 in float32, without batch norm."""
    grid = FIGURES[name].small
    trial = next(t for t in grid.trials(0) if t.beta == 0 and t.dtype == "float32")
    assert not trial.batch_norm
    each = problem(grid.network, grid.data, Settings(), width=grid.width)
    run = Training(each, grid.recipe, trial)
    for _ in range(grid.epochs):
        run.epoch()
    assert run.accuracy() > 0.8


@pytest.mark.parametrize("name", LEARNING)
def test_the_published_scale_has_six_betas_and_ten_seeds(name: str) -> None:
    paper = FIGURES[name].paper
    assert paper.recipe.batch_size == 128
    assert paper.recipe.learning_rate is None
    assert {trial.beta for trial in paper.trials(0)} == set(BETAS)
    assert {trial.seed for trial in paper.trials(0)} == set(range(10))


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_the_grid_has_every_format_optimizer_arm_and_norm(scale: Any) -> None:
    trials = FIGURES["maxpool-training"].size(Settings(scale=scale)).trials(0)
    found = {(t.dtype, t.optimizer, t.arm, t.batch_norm) for t in trials if t.beta > 0}
    assert len(found) == 4 * 2 * len(ARMS) * 2
