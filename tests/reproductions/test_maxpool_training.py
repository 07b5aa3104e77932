from collections.abc import Callable

import pytest

from reproductions.maxpool.networks import densenet121, svhn, vgg13, vgg16, vgg19
from reproductions.maxpool.training import (
    Study,
    fig5,
    fig11,
    fig12,
    fig13,
    training,
)
from reproductions.maxpool.training_study import OptimizerName, Recipe, grid
from reproductions.outcome import Outcome, Settings

TINY = Recipe(epochs=1, batch_size=16, train_size=32)


@pytest.mark.parametrize(
    "figure",
    [fig5, fig11, fig12, fig13, training, vgg13, vgg16, vgg19, svhn, densenet121],
)
def test_every_trial_has_its_row(figure: Callable[..., Outcome]) -> None:
    optimizer: OptimizerName = "adam" if figure is fig11 else "sgd"
    trials = grid(betas=(0.0, 10.0), optimizers=(optimizer,), arms=("exact", "blended"))
    width = None if figure in (fig12, training) else 4
    study = Study(TINY, trials, width)
    outcome = figure(Settings(), study=study)
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
    trials = grid(
        betas=(0.0, 1e4), dtypes=("float16", "float32"), arms=("blended",), seeds=range(3)
    )
    recipe = Recipe(epochs=2, batch_size=16, train_size=128, learning_rate=0.05)
    outcome = fig12(Settings(), study=Study(recipe, trials))
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
