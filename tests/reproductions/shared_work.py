"""A reproduction of little work, run by torchrun: `shared_work.py FOLDER`."""

import sys

from numgeom.cli import app
from reproductions import catalogue
from reproductions.maxpool.problems import Problem, problem
from reproductions.maxpool.sampling import collect, state_file
from reproductions.maxpool.training_study import Recipe, grid, run_study
from reproductions.outcome import (
    Outcome,
    Reproduction,
    Settings,
    Table,
    circumstances,
)

RECIPE = Recipe(epochs=1, batch_size=8, train_size=16)
TRIALS = grid(betas=(0.0, 1.0, 10.0))


def lenet() -> Problem:
    return problem("LeNet-5", "MNIST", Settings())


def collected(settings: Settings) -> list[list[float]]:
    return collect(
        settings, "shared", points=3, task={}, measure=lambda number: [float(number), 1.0]
    )


def work(settings: Settings) -> Outcome:
    runs = run_study(lenet(), RECIPE, TRIALS, state=state_file(settings, "study"))
    rows = [(run.trial.beta, run.losses[0]) for run in runs]
    rows += [(row[0], row[1]) for row in collected(settings)]
    return Outcome(
        name="shared",
        title="A table of two kinds of work",
        tables=(Table("Work", ("what", "found"), tuple(rows)),),
        circumstances=circumstances(settings),
    )


if __name__ == "__main__":
    catalogue.REPRODUCTIONS["shared"] = Reproduction(name="shared", title="Shared", run=work)
    app(["reproduce", "shared", "--quiet", "--out", sys.argv[1]])
