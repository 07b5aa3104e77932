"""How are variations collected over many parameter points, so that interrupted work goes on?

Names of state files end in `.jsonl` and stand beside the results.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numgeom.nonsmooth import Sampling, Selection, Volume, estimate_volume
from numgeom.nonsmooth.ledger import Ledger
from numgeom.nonsmooth.sharing import Share
from reproductions.maxpool.problems import FORMATS, POOL_PAIR, Problem, cross_entropy
from reproductions.outcome import Settings


@dataclass(frozen=True)
class Sample:
    """What is sampled of one network: initialisations, and mini-batches for each.

    Attributes:
        network: A network of `problems`.
        data: Its published data set.
        width: Channels of the first stage; None: as published.
        points: Initialisations.
        batches: Mini-batches; None: all of the training data.
        batch_size: Samples in one.
        batches16: Mini-batches in float16, which is slow on a CPU; None: `batches`.
    """

    network: str
    data: str
    width: int | None
    points: int
    batches: int | None
    batch_size: int
    batches16: int | None = None


def state_file(settings: Settings, name: str) -> Path | None:
    """Where interrupted work keeps what is done; None: nothing is written."""
    if settings.out is None:
        return None
    kept = "".join(c if c.isalnum() else "-" for c in name.lower())
    return settings.out / f"{kept}.jsonl"


def collect(
    settings: Settings,
    name: str,
    *,
    points: int,
    task: Mapping[str, Any],
    measure: Callable[[int], list[float]],
) -> list[list[float]]:
    """Measure points 0, ..., points - 1, or take from the state file what is known of them.

    Processes that `torchrun` started share the points, and each gets the whole result.

    Args:
        settings: Where the state is, and who is told of the progress.
        name: Of the state file and in the progress.
        points: How many.
        task: What the numbers depend on; state of another task is refused.
        measure: Measures the point of a number, with a result that depends on that number alone.
    """
    path = state_file(settings, name)
    whole = {**task, "seed": settings.seed, "scale": settings.scale, "device": settings.device}
    with Share.of_torchrun() as share:
        ledger = None if path is None else Ledger(path, whole, writer=share.rank)
        kept = {} if ledger is None else ledger.pieces
        found = {number: piece["found"] for number, piece in kept.items() if number < points}
        todo = share.agreed([number for number in range(points) if number not in found])
        for number in share.part(todo):
            settings.progress(name, len(found), points)
            found[number] = measure(number)
            if ledger is not None:
                ledger.add(number, {"found": found[number]})
        found = share.joined(found)
    return [found[number] for number in range(points)]


def volume(
    settings: Settings,
    name: str,
    problem: Problem,
    *,
    dtype: str,
    points: int,
    batches: int | None,
    batch_size: int = 128,
    batch_norm: bool = False,
    kaiming: bool = True,
    zones: bool = False,
    selections: tuple[Selection, Selection] = POOL_PAIR,
) -> Volume:
    """Variations of a problem over its points and mini-batches.

    Args:
        settings: Seed, device, state and progress.
        name: Of the state file and in the progress.
        problem: Network and data.
        dtype: A key of `FORMATS`.
        points: The number M of initialisations.
        batches: The number R of mini-batches; None: all of the training data.
        batch_size: Samples in a mini-batch.
        batch_norm: Whether the network has batch norm.
        kaiming: Initial values of the volume experiments in place of torch's.
        zones: Whether to find zones as well, by float64 replays.
        selections: The two derived programs.
    """
    sampling = Sampling(
        make_model=partial(
            problem.model,
            seed=settings.seed,
            batch_norm=batch_norm,
            kaiming=kaiming,
            dtype=FORMATS[dtype],
            device=settings.device,
        ),
        loss_fn=cross_entropy,
        batches=problem.batches(batches, batch_size, dtype=FORMATS[dtype], device=settings.device),
        selections=selections,
        zones=zones,
    )
    return estimate_volume(
        sampling,
        points=points,
        state=state_file(settings, f"{name}-{dtype}"),
        progress=lambda _, done, count: settings.progress(f"{name}, {dtype}", done, count),
    )
