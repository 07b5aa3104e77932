"""How sharp and how expensive are certificates, model by model, with depth and with width?

Three parts, each with its own table and file:

goals   certified over observed error, guarantee, method and h for small networks of every kind, in
        float32 and under bf16 autocast, at initialisation and after a few steps of training
depth   cost, memory and radius of Newton-Kantorovich for a GPT of 1 to 12 layers, width 128, 64
        tokens, and where the time goes
width   the same for widths from 32 to 256, 2 layers

    python benchmarks/certificate.py                 # writes results/certificate-PART.json
    python benchmarks/certificate.py --quick         # a subset, under five minutes, not written
    python benchmarks/certificate.py --parts depth

A file is written anew after every row, so that a run that is cut keeps what it has. Cost is CPU
time over that of a plain step, both with one thread: other work on the machine does not count as
much as in wall time. A plain step is the median of nine before.
"""

import argparse
import ctypes
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is downloaded
sys.path.append(str(Path(__file__).resolve().parents[1]))  # where the folder reproductions is

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from figures import write_figures
from numgeom.certificate import certify
from numgeom.certificate.kantorovich import kantorovich
from numgeom.errors import NumgeomError
from numgeom.examples.models import GPT
from numgeom.recording import Program, record_step
from reproductions.small_steps import SMALL_STEPS, train

PARTS = ("goals", "depth", "width")
GOAL = 1.1
Case = tuple[nn.Module, Callable[[Any, Any], Tensor], Any]
Keep = Callable[[dict[str, Any]], None]


QUICK = ("MLP-Small", "LeNet", "LSTM", "ViT, 2 layers", "GPT-2, 2 layers", "Llama, 4 layers")


# -- goals ---------------------------------------------------------------------------------


def goals(keep: Keep, *, quick: bool) -> dict[str, Any]:
    """One row per network, format and stage."""
    rows: list[dict[str, Any]] = []
    for name in QUICK if quick else SMALL_STEPS:
        for trained in (False, True):
            case = SMALL_STEPS[name](0)
            if trained:
                train(case)
            model, loss_fn, batch = case
            step = statistics.median(plain_seconds(model, loss_fn, batch))
            for fmt in ("float32", "bfloat16"):
                row = {"model": name, "format": fmt, "trained": trained}
                row |= certified(model, under(loss_fn, fmt), batch, step)
                rows.append(row)
                reached = sum(0 < r["certified_over_observed"] <= GOAL for r in rows)
                keep({"rows": rows, "reached": reached, "of": len(rows)})
    return {"rows": rows}


def under(loss_fn: Callable[[Any, Any], Tensor], fmt: str) -> Callable[[Any, Any], Tensor]:
    """The loss as it is computed in a format."""

    def loss(model: Any, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if fmt == "bfloat16" else nullcontext():
            return loss_fn(model, batch)

    return loss


def certified(model: nn.Module, loss_fn: Any, batch: Any, step: float) -> dict[str, Any]:
    """What `certify` says, and what it costs; a ratio without a bound is -1."""
    start = time.process_time()
    try:
        found = certify(model, loss_fn, batch)
    except NumgeomError as error:
        return {"method": "", "guarantee": "none", "certified_over_observed": -1.0,
                "reason": str(error)}  # fmt: skip
    seconds = time.process_time() - start
    observed, bound = found.total.observed_error, found.total.error_bound
    usable = bound is not None and math.isfinite(bound) and observed > 0
    return {
        "method": found.method,
        "guarantee": found.guarantee.name,
        "observed_error": observed,
        "certified_over_observed": bound / observed if usable and bound else -1.0,
        "h": found.provenance.get("h", ""),
        "seconds": seconds,
        "seconds_over_plain": seconds / step,
        "reason": "" if usable else " ".join(found.notes),
    }


# -- cost ----------------------------------------------------------------------------------


def gpt(layers: int, width: int) -> Case:
    """A GPT on 64 tokens."""
    torch.manual_seed(0)
    model = GPT(100, 64, width=width, depth=layers, heads=4)
    batch = torch.randint(0, 100, (2, 1, 64))

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    return model, loss_fn, batch


def cost(layers: int, width: int) -> dict[str, Any]:
    """Newton-Kantorovich alone, stage by stage."""
    model, loss_fn, batch = gpt(layers, width)
    plain = plain_seconds(model, loss_fn, batch)
    program = record_step(model, loss_fn, batch)
    reference = program.replay().gradients
    recorded = program.recorded.gradients
    errors = (float((g.double() - reference[k]).norm()) for k, g in recorded.items())
    error = math.hypot(*errors)
    stages: list[tuple[str, float]] = []
    before = resident_mib(peak=False)
    start = time.process_time()
    opened = program.decompose()
    found = kantorovich(
        opened,
        wanted=0.05 * error,
        progress=lambda text: stages.append((text, time.process_time())),
    )
    end = time.process_time()
    step = statistics.median(plain)
    ends = [when for _, when in stages[1:]] + [end]
    profile: dict[str, float] = {"opening": stages[0][1] - start}
    for (text, when), until in zip(stages, ends, strict=True):
        profile[text] = profile.get(text, 0.0) + (until - when)
    return {
        "layers": layers,
        "width": width,
        "calls": len(opened),
        "values_mib": values_mib(opened),
        "peak_mib": resident_mib(peak=True) - before,
        "holds": found.holds,
        "h": found.h if math.isfinite(found.h) else -1.0,
        "radius_over_observed": found.total_radius / error if found.holds else -1.0,
        "plain_step_seconds": step,
        "plain_step_seconds_least": min(plain),
        "seconds": end - start,
        "seconds_over_plain": (end - start) / step,
        "seconds_per_layer": (end - start) / layers,
        "profile_seconds": profile,
    }


def depth(keep: Keep, *, quick: bool) -> dict[str, Any]:
    """Against the number of layers, width 128."""
    found: dict[str, Any] = {"rows": []}
    for layers in (1, 3) if quick else (1, 2, 3, 4, 8, 12):
        found["rows"].append(cost(layers, 128))
        by_layers = {r["layers"]: r["seconds_per_layer"] for r in found["rows"]}
        if 12 in by_layers:
            found["seconds_per_layer_12_over_3"] = by_layers[12] / by_layers[3]
        keep(found)
    return found


def width(keep: Keep, *, quick: bool) -> dict[str, Any]:
    """Against the width, 2 layers."""
    found: dict[str, Any] = {"rows": []}
    for size in (32, 64) if quick else (32, 64, 128, 256):
        found["rows"].append(cost(2, size))
        keep(found)
    return found


def values_mib(program: Program) -> float:
    """Memory of all values of a program in float64, kept at once."""
    metas = (m for n in program.graph.nodes for m in n.meta.get("tensors", {}).values())
    return sum(8 * math.prod(m.shape) for m in metas) / 2**20


def resident_mib(*, peak: bool) -> float:
    """Memory of this process; -1 where the system does not tell.

    Args:
        peak: The most since the last call without it; otherwise what is resident now.
    """
    try:
        if not peak:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts here
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except (OSError, AttributeError):
        return -1.0
    key = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def plain_seconds(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batch: Any
) -> list[float]:
    """Times of plain steps, each from fresh gradients; the first one is not among them."""

    def plain() -> float:
        model.zero_grad()
        start = time.process_time()
        loss_fn(model, batch).backward()
        return time.process_time() - start

    plain()
    times = [plain() for _ in range(9)]
    model.zero_grad()
    return times


# -- report --------------------------------------------------------------------------------


def tables(part: str, figures: dict[str, Any]) -> Iterator[Table]:
    """The rows of a part, one column per plain figure."""
    rows = figures["rows"]
    columns = [k for k, v in rows[0].items() if not isinstance(v, dict) and k != "reason"]
    result = Table(*columns, title=part)
    for row in rows:
        cells = (row.get(key, "") for key in columns)
        result.add_row(*(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    yield result
    if "profile_seconds" in rows[-1]:
        profile = Table("stage", "seconds", title=f"where the time goes, last row of {part}")
        for stage, seconds in rows[-1]["profile_seconds"].items():
            profile.add_row(stage, f"{seconds:.2f}")
        yield profile


def main() -> None:
    """Measure, print the tables, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="a subset, under five minutes")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # the libraries' own, about configurations
    torch.set_num_threads(1)
    makers: dict[str, Callable[..., dict[str, Any]]] = {
        "goals": goals,
        "depth": depth,
        "width": width,
    }
    cost(1, 16)  # torch loads what it needs
    for part in options.parts:

        def keep(figures: dict[str, Any], part: str = part) -> None:
            print(figures["rows"][-1], file=sys.stderr)
            if not options.quick:
                write_figures(f"certificate-{part}", figures, threads=1)

        for table in tables(part, makers[part](keep, quick=options.quick)):
            Console(width=200).print(table)


if __name__ == "__main__":
    main()
