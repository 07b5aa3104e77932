"""numgeom reproduce table1: how far above the observed error are the bounds?

Three bounds of the gradient's error (relative 2-norm) stand beside the observed one: PROVED by
composition of error functionals, ESTIMATED by the sqrt(n) model of rounding, and certified, by ball
arithmetic or the Newton-Kantorovich theorem.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import isfinite
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from numgeom.arithmetic.rounding import ratio_up
from numgeom.examples.data import DataStamp, load_digits
from numgeom.examples.models import MLP
from numgeom.examples.recipes import Step, load_example
from reproductions.outcome import (
    Cell,
    Outcome,
    ReproductionError,
    Settings,
    Table,
    circumstances,
)
from reproductions.small_steps import SMALL_STEPS, train

COLUMNS = (
    "model", "format", "weights", "observed", "proved", "proved / observed", "sqrt(n)",
    "sqrt(n) / observed",
    "certified", "certified / observed", "guarantee", "published", "seconds",
)  # fmt: skip
_BOUNDS = (
    "proved", "proved / observed", "sqrt(n)", "sqrt(n) / observed", "certified",
    "certified / observed",
)  # fmt: skip
# Ratios of bound and observed error in the note that the table is from.
PUBLISHED = {"MLP-Small": "524", "MLP-Deep": "36000"}
_DIGITS_SIDE = 28


@dataclass(frozen=True)
class _Row:
    name: str
    make: Callable[[int], Step]


def table1(settings: Settings, *, names: tuple[str, ...] | None = None) -> Outcome:
    """Measure the table.

    Args:
        settings: The large scale also computes under bfloat16 autocast and after a short training.
        names: Rows to measure; None for all.
    """
    chosen = [row for row in _ROWS if names is None or row.name in names]
    rows: list[tuple[Cell, ...]] = []
    formats = ("float32",) if settings.is_small else ("float32", "bfloat16")
    stages = ("initial",) if settings.is_small else ("initial", "trained")
    for i, row in enumerate(chosen):
        for fmt, stage in product(formats, stages):
            settings.progress(f"{row.name}, {fmt}, {stage}", i, len(chosen))
            rows.append(_measure(row, fmt, stage, settings.seed))
    small = next((r for r in rows if r[0] == "MLP-Small"), None)
    notes = [
        "proved: error functionals composed along the step. sqrt(n): 6.5 standard errors of a "
        "random model of rounding, ESTIMATED. certified: method auto of numgeom certify.",
        "The published models are not described in full; those here have the published names.",
    ]
    if small is not None:
        notes.append(_goals(small))
    if settings.is_small:
        notes.append("bfloat16 autocast and trained weights are left to --scale paper.")
    return Outcome(
        name="table1",
        title="Tightness of error bounds, by model",
        tables=(
            Table("Error of the gradient [relative, 2-norm]", COLUMNS, tuple(rows), bounds=_BOUNDS),
        ),
        notes=tuple(notes),
        data=_stamps(chosen),
        circumstances=circumstances(settings),
    )


def _goals(row: tuple[Cell, ...]) -> str:
    proved, statistical = (
        row[COLUMNS.index(name)] for name in ("proved / observed", "sqrt(n) / observed")
    )
    met = (
        isinstance(proved, float)
        and isinstance(statistical, float)
        and proved <= 500.0
        and statistical <= 100.0
    )
    return (
        "Goals on MLP-Small, proved at most 500 and sqrt(n) at most 100 times the observed error: "
        + ("reached." if met else "NOT reached.")
    )


def _measure(row: _Row, fmt: str, stage: str, seed: int) -> tuple[Cell, ...]:
    from numgeom.certificate import certify
    from numgeom.functionals import track
    from numgeom.precision import estimate

    start = time.perf_counter()
    step = row.make(seed)
    if stage == "trained":
        train(step)
    model, loss_fn, batch = step
    with track(model) as tracking:
        with torch.autocast("cpu", torch.bfloat16, enabled=fmt == "bfloat16"):
            loss = loss_fn(model, batch)
        loss.backward()
    model.zero_grad(set_to_none=True)
    program = tracking.program
    certificate = certify(program, probe_seed=seed, check_replay=False)
    observed = certificate.total.observed_error
    # Relative to the computed norm, so that there is a number where the bound exceeds the gradient.
    proved = ratio_up(tracking.total.error, tracking.total.norm)
    statistical = estimate(program, samples=4, seed=seed).statistical_bound()
    bound = certificate.total.error_bound
    return (
        row.name,
        fmt,
        stage,
        observed,
        proved if isfinite(proved) else None,
        _ratio(proved, observed),
        statistical,
        _ratio(statistical, observed),
        bound,
        None if bound is None else _ratio(bound, observed),
        certificate.guarantee.name,
        PUBLISHED.get(row.name),
        time.perf_counter() - start,
    )


def _ratio(bound: float, observed: float | None) -> float | None:
    return ratio_up(bound, observed) if observed and isfinite(bound) else None


# -- the models ----------------------------------------------------------------------------


def _mlp(sizes: tuple[int, ...], activation: Any) -> Callable[[int], Step]:
    def make(seed: int) -> Step:
        images, labels = load_digits(scale=3, padding=2).train
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), MLP(sizes, activation))
        return Step(model, _cross_entropy, (images[:128], labels[:128]))

    return make


def _example(name: str) -> Callable[[int], Step]:
    return lambda seed: load_example(name, seed=seed)


def _resnet(seed: int) -> Step:
    try:
        from transformers import ResNetConfig, ResNetForImageClassification
    except ImportError as error:
        raise ReproductionError(
            f"The ResNet row needs transformers, which cannot be imported ({error}); install it "
            "with: pip install transformers"
        ) from error
    images, labels = load_digits().train
    torch.manual_seed(seed)
    options: dict[str, Any] = {"layer_type": "basic", "num_labels": 10, "num_channels": 1}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **options)
    model = ResNetForImageClassification(config)
    return Step(
        model, lambda m, b: F.cross_entropy(m(b[0]).logits, b[1]), (images[:16], labels[:16])
    )


def _cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def _stamps(rows: list[_Row]) -> tuple[DataStamp, ...]:
    from numgeom.examples.recipes import EXAMPLES

    stamps = [load_digits().stamp]
    if any(row.name == "GPT" for row in rows):
        stamps.append(EXAMPLES["text-gpt"].load_data().stamp)
    return tuple(stamps)


_PIXELS = _DIGITS_SIDE**2
_ROWS = (
    _Row("MLP-Small", _mlp((_PIXELS, 256, 10), "relu")),
    _Row("MLP-Deep", _mlp((_PIXELS, *(128,) * 8, 10), "tanh")),
    _Row("LeNet", _example("digits-lenet")),
    _Row("ResNet", _resnet),
    _Row("GPT", _example("text-gpt")),
    *(
        _Row(name, make)
        for name, make in SMALL_STEPS.items()
        if name not in ("MLP-Small", "MLP-Deep", "LeNet", "ResNet (transformers)")
    ),
)
