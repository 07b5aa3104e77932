import math
from pathlib import Path

import pytest
import torch

from numgeom.errors import FileFormatError
from reproductions.maxpool import training_study
from reproductions.maxpool.pool_arms import ARMS
from reproductions.maxpool.problems import Problem, problem
from reproductions.maxpool.training_study import (
    OptimizerName,
    Recipe,
    Run,
    Training,
    Trial,
    grid,
    run_study,
)
from reproductions.outcome import ReproductionError, Settings

LENET = problem("LeNet-5", "MNIST", Settings())
SHORT = Recipe(epochs=2, batch_size=32, train_size=96)


def test_a_grid_has_every_combination_and_beta_zero_once() -> None:
    trials = grid(betas=(0.0, 1.0, 10.0), optimizers=("sgd", "adam"), arms=ARMS, seeds=(0, 1))
    assert len(trials) == len(set(trials)) == 2 * 2 * (1 + 3 * 2)
    assert {t.arm for t in trials if t.beta == 0} == {"exact"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_format_and_optimizer_trains(
    dtype: str, optimizer: OptimizerName, batch_norm: bool
) -> None:
    trial = Trial(beta=0.0, optimizer=optimizer, dtype=dtype, batch_norm=batch_norm)
    training = Training(LENET, SHORT, trial)
    before = [p.detach().clone() for p in training.model.parameters()]
    losses = [training.epoch() for _ in range(SHORT.epochs)]
    assert all(map(math.isfinite, losses))
    assert training.nonfinite_step is None
    assert training.steps == 2 * 3
    after = list(training.model.parameters())
    assert all(p.dtype == getattr(torch, dtype) for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_equal_trials_are_equal_bit_by_bit() -> None:
    trial = Trial(beta=10.0, arm="blended", seed=3)
    first, second = (Training(LENET, SHORT, trial) for _ in range(2))
    assert first.epoch() == second.epoch()
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert first.epoch() != Training(LENET, SHORT, Trial(beta=10.0, seed=4)).epoch()


def test_training_learns_the_digits() -> None:
    """With torch's initial values LeNet-5 leaves chance level after two or three passes."""
    recipe = Recipe(epochs=5, batch_size=32)
    (run,) = run_study(LENET, recipe, [Trial(beta=1.0)])
    assert run.losses[-1] < 0.5 * run.losses[0]
    assert run.accuracies[-1] > 0.9


def test_the_step_that_is_not_finite_is_logged_and_ends_the_run() -> None:
    recipe = Recipe(epochs=3, batch_size=32, train_size=96, learning_rate=0.05)
    trial = Trial(beta=1e4, dtype="float16", arm="blended")
    (run,) = run_study(LENET, recipe, [trial])
    assert run.nonfinite_step is not None
    assert run.nonfinite_step <= 9
    assert len(run.losses) == len(run.accuracies) == 3
    assert math.isnan(run.losses[-1])
    again = Training(LENET, recipe, trial)
    for _ in range(3):
        again.epoch()
    assert again.steps == again.nonfinite_step == run.nonfinite_step


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = grid(betas=(0.0, 1e4), dtypes=("float16",), arms=("blended",))
    state = tmp_path / "study.jsonl"
    done: list[Trial] = []
    real = training_study.run_trial

    def counted(problem: Problem, recipe: Recipe, trial: Trial, *, device: str) -> Run:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(trial)
        return real(problem, recipe, trial, device=device)

    monkeypatch.setattr(training_study, "run_trial", counted)
    with pytest.raises(KeyboardInterrupt):
        run_study(LENET, SHORT, trials, state=state)
    monkeypatch.setattr(training_study, "run_trial", real)
    whole = run_study(LENET, SHORT, trials, state=state)
    fresh = run_study(LENET, SHORT, trials)
    for a, b in zip(whole, fresh, strict=True):
        assert a.trial == b.trial
        assert repr(a.losses) == repr(b.losses)  # NaN too
        assert a.accuracies == b.accuracies
        assert a.nonfinite_step == b.nonfinite_step
    seconds = [run.seconds for run in whole]
    assert [r.seconds for r in run_study(LENET, SHORT, trials, state=state)] == seconds
    with pytest.raises(FileFormatError, match="another task"):
        run_study(LENET, Recipe(epochs=1), trials, state=state)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ReproductionError, match="float16, bfloat16, float32, float64"):
        Trial(beta=0.0, dtype="float8")
    with pytest.raises(ReproductionError, match="larger than the training data"):
        Training(LENET, Recipe(epochs=1, batch_size=64, train_size=32), Trial(beta=0.0))
