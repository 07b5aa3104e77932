"""What does the derivative at ties of a max-pool do to training?

A *trial* is one training run: beta, optimizer, format, batch norm, arm, seed. A study is a list of
trials on one problem with one recipe; finished trials are kept in a ledger, so that interrupted
work goes on.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from numgeom.arithmetic.printing import nearest_short
from numgeom.nonsmooth.ledger import Ledger
from numgeom.nonsmooth.sharing import Share
from reproductions.maxpool.pool_arms import Arm, pooling
from reproductions.maxpool.problems import FORMATS, Problem, cross_entropy
from reproductions.outcome import ReproductionError

OptimizerName = Literal["sgd", "adam"]
Schedule = Literal["cosine", "constant"]
_TEST_BATCH = 512
# Adam divides by sqrt(v) + eps, and torch's 1e-8 is zero in float16, whose least number is 6e-8.
_ADAM_EPS_FLOAT16 = 1e-4

# Step sizes that the paper's published program found by a search at beta = 0, for all betas:
# (network, optimizer, 16 bits or not).
_TUNED: Mapping[tuple[str, str, bool], float] = MappingProxyType(
    {
        ("LeNet-5", "sgd", True): 0.0233,
        ("LeNet-5", "sgd", False): 0.0353,
        ("VGG-11", "sgd", True): 0.0182,
        ("VGG-11", "sgd", False): 0.0382,
        ("ResNet-18", "sgd", True): 0.0362,
        ("ResNet-18", "sgd", False): 0.0380,
        ("VGG-11", "adam", False): 2.65e-4,
    }
)
_UNTUNED = {"sgd": 0.02, "adam": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all trials of a study share.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Samples in a mini-batch; a smaller rest at the end of a pass is left out.
        train_size: Samples that are trained on, the first ones; None: all.
        learning_rate: Step size; None: the published one for the network, optimizer and format
            (see `published_rate`).
        momentum: Of SGD.
        weight_decay: Of SGD.
        schedule: Of the step size over all steps.
        kaiming: Initial values of the volume experiments in place of torch's.
    """

    epochs: int
    batch_size: int = 128
    train_size: int | None = None
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    kaiming: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run.

    Attributes:
        beta: Of the hybrid max-pool.
        optimizer: "sgd" or "adam".
        dtype: Format of parameters, inputs and optimizer state, a key of `FORMATS`.
        batch_norm: Whether the network has batch norm.
        arm: How the hybrid enters (`reproductions.maxpool.pool_arms`).
        seed: Decides initial values and the order of the samples.
    """

    beta: float
    optimizer: OptimizerName = "sgd"
    dtype: str = "float32"
    batch_norm: bool = False
    arm: Arm = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in FORMATS:
            raise ReproductionError(
                f"There is no format {self.dtype!r}; known are {', '.join(FORMATS)}."
            )


@dataclass(frozen=True)
class Run:
    """What a trial did.

    Attributes:
        trial: The trial.
        losses: Mean training loss of each pass; NaN from the pass on that went wrong.
        accuracies: Share of the test samples that are classified right, after each pass.
        nonfinite_step: First step, from 1, whose loss or gradient was not finite; the run ends
            there, and its network keeps the parameters of that step. None: there was none.
        seconds: Time it took.
    """

    trial: Trial
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    nonfinite_step: int | None
    seconds: float


def grid(
    *,
    betas: Iterable[float],
    optimizers: Iterable[OptimizerName] = ("sgd",),
    dtypes: Iterable[str] = ("float32",),
    batch_norms: Iterable[bool] = (False,),
    arms: Iterable[Arm] = ("exact",),
    seeds: Iterable[int] = (0,),
) -> tuple[Trial, ...]:
    """All combinations; beta = 0 is the same in every arm and stands under the first one alone."""
    arms = tuple(arms)
    return tuple(
        Trial(
            beta=beta, optimizer=optimizer, dtype=dtype, batch_norm=batch_norm, arm=arm, seed=seed
        )
        for optimizer, dtype, batch_norm, arm, beta, seed in product(
            optimizers, dtypes, batch_norms, arms, betas, seeds
        )
        if beta != 0 or arm == arms[0]
    )


def run_study(
    problem: Problem,
    recipe: Recipe,
    trials: Sequence[Trial],
    *,
    device: str = "cpu",
    state: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Run, ...]:
    """Run all trials, in their order.

    Processes that `torchrun` started share the trials, and each gets all runs.

    Args:
        problem: Network and data.
        recipe: What the trials share.
        trials: The trials.
        device: Where they run, as torch names it.
        state: File that keeps finished trials; with it an interrupted study goes on.
        progress: Called as `progress(what, done, count)`.

    Raises:
        FileFormatError: If `state` belongs to another study.
    """
    task = {
        "network": problem.label,
        "data": problem.dataset.stamp.sha256,
        "recipe": asdict(recipe),
        "trials": [asdict(trial) for trial in trials],
        "device": device,
    }
    with Share.of_torchrun() as share:
        ledger = None if state is None else Ledger(state, task, writer=share.rank)
        kept = {} if ledger is None else ledger.pieces
        runs = {number: _kept_run(trials[number], piece) for number, piece in kept.items()}
        todo = share.agreed([number for number in range(len(trials)) if number not in runs])
        for number in share.part(todo):
            trial = trials[number]
            if progress is not None:
                what = f"beta {nearest_short(trial.beta, 6)}, {trial.dtype}, {trial.arm}"
                progress(what, len(runs), len(trials))
            runs[number] = run_trial(problem, recipe, trial, device=device)
            if ledger is not None:
                found = asdict(runs[number])
                del found["trial"]
                ledger.add(number, found)
        runs = share.joined(runs)
    return tuple(runs[number] for number in range(len(trials)))


def _kept_run(trial: Trial, piece: Mapping[str, Any]) -> Run:
    return Run(
        trial=trial,
        losses=tuple(piece["losses"]),
        accuracies=tuple(piece["accuracies"]),
        nonfinite_step=piece["nonfinite_step"],
        seconds=piece["seconds"],
    )


def run_trial(problem: Problem, recipe: Recipe, trial: Trial, *, device: str = "cpu") -> Run:
    """Train one network."""
    start = time.perf_counter()
    training = Training(problem, recipe, trial, device=device)
    losses: list[float] = []
    accuracies: list[float] = []
    for _ in range(recipe.epochs):
        losses.append(training.epoch())
        accuracies.append(training.accuracy())
        if training.nonfinite_step is not None:
            left = recipe.epochs - len(losses)
            losses += [math.nan] * left
            accuracies += accuracies[-1:] * left
            break
    return Run(
        trial=trial,
        losses=tuple(losses),
        accuracies=tuple(accuracies),
        nonfinite_step=training.nonfinite_step,
        seconds=time.perf_counter() - start,
    )


def published_rate(network: str, optimizer: OptimizerName, dtype: str) -> float:
    """The step size of the paper's published program, found at beta = 0; else a usual one."""
    narrow = FORMATS[dtype].itemsize == 2
    return _TUNED.get((network, optimizer, narrow), _UNTUNED[optimizer])


class Training:
    """A network in training, epoch by epoch.

    The same arguments give the same parameters bit for bit on a deterministic device.

    Args:
        problem: Network and data.
        recipe: Epochs, mini-batches, step size.
        trial: The rest.
        device: Where it runs.

    Attributes:
        model: The network.
        steps: Steps done.
        nonfinite_step: First step whose loss or gradient was not finite; nothing is done after it.
    """

    def __init__(
        self, problem: Problem, recipe: Recipe, trial: Trial, *, device: str = "cpu"
    ) -> None:
        self._recipe, self._trial = recipe, trial
        dtype = FORMATS[trial.dtype]
        self.model = problem.model(
            trial.seed,
            batch_norm=trial.batch_norm,
            kaiming=recipe.kaiming,
            dtype=dtype,
            device=device,
        )
        images, labels = (part[: recipe.train_size] for part in problem.dataset.train)
        self._train = images.to(device=device, dtype=dtype), labels.to(device)
        images, labels = problem.dataset.test
        self._test = images.to(device=device, dtype=dtype), labels.to(device)
        self._per_epoch = len(self._train[1]) // recipe.batch_size
        if self._per_epoch < 1:
            raise ReproductionError(
                f"A mini-batch of {recipe.batch_size} samples is larger than the training data."
            )
        self._rate = recipe.learning_rate or published_rate(
            problem.network, trial.optimizer, trial.dtype
        )
        self._optimizer = _optimizer(self.model, recipe, trial, self._rate)
        self._order = torch.Generator("cpu").manual_seed(trial.seed)
        self.steps = 0
        self.nonfinite_step: int | None = None

    def epoch(self) -> float:
        """Pass once over the training data; return the mean loss, NaN after a non-finite step."""
        images, labels = self._train
        order = torch.randperm(len(labels), generator=self._order, device="cpu")
        size = self._recipe.batch_size
        self.model.train()
        total = 0.0
        with pooling(self.model, self._trial.arm, self._trial.beta):
            for index in range(self._per_epoch):
                if self.nonfinite_step is not None:
                    return math.nan
                chosen = order[index * size : (index + 1) * size].to(labels.device)
                total += self._step((images[chosen], labels[chosen]))
        return total / self._per_epoch

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of the test samples that are classified right, with the forward pass of the arm."""
        self.model.eval()
        right = 0
        images, labels = self._test
        with pooling(self.model, self._trial.arm, self._trial.beta):
            for x, y in zip(images.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True):
                right += int((self.model(x).argmax(dim=1) == y).sum())
        return right / len(labels)

    def _step(self, batch: tuple[Tensor, Tensor]) -> float:
        self.steps += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate_now()
        self._optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(self.model, batch)
        loss.backward()
        value = float(loss.detach())
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        finite = torch.stack([g.isfinite().all() for g in gradients]).all()
        if not math.isfinite(value) or not bool(finite):
            self.nonfinite_step = self.steps
        self._optimizer.step()
        return value

    def _rate_now(self) -> float:
        if self._recipe.schedule == "constant":
            return self._rate
        done = (self.steps - 1) / (self._recipe.epochs * self._per_epoch)
        return self._rate * 0.5 * (1 + math.cos(math.pi * done))


def _optimizer(
    model: nn.Module, recipe: Recipe, trial: Trial, rate: float
) -> torch.optim.Optimizer:
    if trial.optimizer == "adam":
        eps: Any = _ADAM_EPS_FLOAT16 if trial.dtype == "float16" else 1e-8
        return torch.optim.Adam(model.parameters(), lr=rate, eps=eps)
    return torch.optim.SGD(
        model.parameters(), lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
