from dataclasses import replace

import pytest

from reproductions.maxpool.figure import reproduce
from reproductions.maxpool.figures import FIGURES
from reproductions.maxpool.training import Grid
from reproductions.outcome import Settings

TRAININGS = {name: row for name, row in FIGURES.items() if isinstance(row.small, Grid)}


def test_figures_that_train() -> None:
    assert len(TRAININGS) == 10


@pytest.mark.parametrize("name", TRAININGS)
def test_every_trial_has_its_row(name: str) -> None:
    (optimizer, *_) = TRAININGS[name].small.optimizers
    tiny = replace(
        TRAININGS[name].small, epochs=1, batch_size=16, train_size=32, betas=(0.0, 10.0),
        optimizers=(optimizer,), dtypes=("float32",), batch_norms=(False,),
        arms=("exact", "blended"), seeds=1,
    )  # fmt: skip
    outcome = reproduce(TRAININGS[name], Settings(), size=tiny)
    rows = [row[:6] for row in outcome.tables[0].rows]
    assert rows == [
        (optimizer, "float32", False, arm, beta, 1)
        for arm, beta in (("exact", 0.0), ("exact", 10.0), ("blended", 10.0))
    ]
    assert [plot.name for plot in outcome.plots] == [
        f"{outcome.name}-accuracy",
        f"{outcome.name}-loss-float32",
    ]


def test_rows_sum_up_seeds_and_log_what_was_not_finite() -> None:
    size = Grid(
        "LeNet-5", "MNIST", epochs=2, betas=(0.0, 1e4), arms=("blended",), seeds=3, batch_size=16,
        train_size=128, learning_rate=0.05,
    )  # fmt: skip
    outcome = reproduce(FIGURES["maxpool-fig12"], Settings(), size=size)
    columns = outcome.tables[0].columns
    rows = [dict(zip(columns, row, strict=True)) for row in outcome.tables[0].rows]
    assert [(r["format"], r["beta"], r["runs"]) for r in rows] == [
        ("float16", 0.0, 3), ("float16", 1e4, 3), ("float32", 0.0, 3), ("float32", 1e4, 3),
    ]  # fmt: skip
    assert [r["not finite"] for r in rows] == [0, 3, 0, 0]
    assert rows[1]["from step"] in range(1, 17)
    for row in rows:
        low, middle, high = row["lowest"], row["accuracy, median"], row["highest"]
        assert float(low or 0) <= float(middle or 0) <= float(high or 0)
