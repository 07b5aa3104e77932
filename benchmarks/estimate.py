"""Are predicted rounding errors those that are observed, and do precision plans hold?

Four parts, each with its own table:

kernels    what a kernel does inside, modelled over measured (float32 against float64)
accuracy   predicted over observed error of the gradient, total and per parameter tensor, for every
           built-in example and tiny transformers model, in float32 and under autocast to 16 bits;
           observed is the recorded gradient against its float64 replay
cost       seconds of an estimate and of its sources over those of a plain step
plans      plans for six models and four tolerances, verified on a batch that they were not made on

    python benchmarks/estimate.py                     # writes results/estimate.json
    python benchmarks/estimate.py --parts accuracy
"""

import argparse
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
sys.path.append(str(Path(__file__).resolve().parent.parent))  # the tests' tiny models

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from figures import write_figures
from numgeom.experiments import EXAMPLES, load_example
from numgeom.experiments.models import GPT, LeNet5
from numgeom.precision import PrecisionError, estimate, plan_precision
from numgeom.precision.kernels import kernel_of
from numgeom.recording import Program, record, record_step
from numgeom.results.accuracy import measure, total
from tests.recording.workloads import WORKLOADS, build

PARTS = ("kernels", "accuracy", "cost", "plans")
FORMATS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = (1e-1, 3e-2, 1e-2, 1e-3)
LARGE = 1000
U = 2.0**-24
SAMPLES = 3


# -- kernels -------------------------------------------------------------------------------


def kernels() -> dict[str, float]:
    """Modelled over measured error, root mean square over all entries, by kernel and size."""
    found = {}
    for signs in ("random", "one"):
        for k in (8, 64, 512, 4096):
            a, b = torch.randn(48, k), torch.randn(k, 40)
            a, b = (a.abs(), b.abs()) if signs == "one" else (a, b)
            found[f"mm, k = {k}, {signs} signs"] = kernel_ratio("mm", torch.mm, a, b)
            x = torch.randn(64, k).abs() if signs == "one" else torch.randn(64, k)
            found[f"sum, n = {k}, {signs} signs"] = kernel_ratio(
                "sum", lambda x, d: x.sum(d), x, [1]
            )
    x = 2 * torch.randn(64, 128)
    for name, function in (
        ("_softmax", lambda x: x.softmax(-1)),
        ("_log_softmax", lambda x: x.log_softmax(-1)),
        ("gelu", nn.functional.gelu),
        ("silu", nn.functional.silu),
        ("sigmoid", torch.sigmoid),
        ("native_layer_norm", lambda x: torch.native_layer_norm(x, [128], None, None, 1e-5)),
    ):
        found[name] = kernel_ratio(name, function, x)
    return found


def kernel_ratio(name: str, kernel: Callable[..., Any], *args: Any) -> float:
    """Of the kernel's first output."""
    wide = [a.double() if isinstance(a, Tensor) else a for a in args]
    got, want = kernel(*args), kernel(*wide)
    outputs = [want] if isinstance(want, Tensor) else list(want)
    got, want = (got, want) if isinstance(got, Tensor) else (got[0], want[0])
    deviation = kernel_of(name).inside(wide, outputs)[0]
    inside = 0.0 if deviation is None else (deviation * U).pow(2)
    modelled = (inside + (want.float().double() - want).pow(2)).mean().sqrt()
    return float(modelled / (got.double() - want).pow(2).mean().sqrt())


# -- accuracy ------------------------------------------------------------------------------


def programs(dtype: torch.dtype | None) -> Iterator[tuple[str, Program]]:
    """The built-in examples and the tiny transformers models, recorded in a format."""
    for name in EXAMPLES:
        model, loss_fn, batch = load_example(name, seed=0, batch_size=16)

        def under(model: nn.Module, batch: Any, loss_fn: Any = loss_fn) -> Tensor:
            with torch.autocast("cpu", dtype) if dtype else nullcontext():
                return loss_fn(model, batch)

        yield name, record_step(model, under, batch)
    for name in WORKLOADS:
        if name.startswith("hf-"):
            model, step = build(name)
            with (
                record(model) as recording,
                torch.autocast("cpu", dtype) if dtype else nullcontext(),
            ):
                step()
            yield name, recording.program


def accuracy() -> dict[str, Any]:
    """Predicted over observed, by format and workload."""
    found: dict[str, Any] = {}
    for fmt, dtype in FORMATS.items():
        rows, tensors, inside = {}, [], []
        for name, program in programs(dtype):
            predicted = estimate(program, samples=SAMPLES)
            reference = program.replay().gradients
            observed = [measure(n, g, reference[n]) for n, g in program.recorded.gradients.items()]
            whole = total(observed).observed_error
            rows[name] = predicted.total.predicted_error / whole
            inside.append(predicted.total.interval[0] <= whole <= predicted.total.interval[1])
            tensors += [
                predicted.parameters[row.name].predicted_error / row.observed_error
                for row in observed
                if row.entries > LARGE and row.observed_error > 0.0
            ]
            print(f"{fmt:9s} {name:18s} {whole:.2e} {rows[name]:5.2f}", file=sys.stderr)
        found[fmt] = {
            "predicted_over_observed": rows,
            "within_2": sum(0.5 <= r <= 2 for r in rows.values()) / len(rows),
            "interval_covers": sum(inside) / len(inside),
            "spread": statistics.pstdev(math.log(r) for r in rows.values()),
            "median": statistics.median(rows.values()),
            "tensors": len(tensors),
            "tensors_within_3": sum(1 / 3 <= r <= 3 for r in tensors) / len(tensors),
            "tensor_quantiles_5_50_95": [sorted(tensors)[int(q * (len(tensors) - 1))]
                                         for q in (0.05, 0.5, 0.95)],
        }  # fmt: skip
    return found


# -- cost ----------------------------------------------------------------------------------


def cost() -> dict[str, float]:
    """Seconds over those of a plain step, for a GPT of width 256 with 4 layers."""
    torch.manual_seed(0)
    model = GPT(100, 128, width=256, depth=4, heads=8)
    tokens, targets = torch.randint(0, 100, (2, 4, 128))

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    def plain() -> None:
        loss_fn(model, (tokens, targets)).backward()

    plain()
    step = min(seconds(plain) for _ in range(5))
    start = time.perf_counter()
    found = estimate(model, loss_fn, (tokens, targets), samples=2)
    estimated = time.perf_counter() - start
    return {
        "plain_step_seconds": step,
        "estimate_2_samples_over_plain": estimated / step,
        "sources_over_plain": seconds(found.sources) / step,
        "plan_over_plain": seconds(
            lambda: plan_precision(model, loss_fn, (tokens, targets), tolerance=1e-2)
        )
        / step,
    }


def seconds(action: Callable[[], Any]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


# -- plans ---------------------------------------------------------------------------------


def plan_models() -> Iterator[tuple[str, nn.Module, Any, Any, Any]]:
    """Name, model, loss, a batch to plan on and one to verify on."""
    for name in EXAMPLES:
        model, loss_fn, batch = load_example(name, batch_size=16)
        yield name, model, loss_fn, batch, load_example(name, seed=1, batch_size=16).batch
    _, loss_fn, batch = load_example("digits-lenet", batch_size=16)
    torch.manual_seed(0)
    model = LeNet5(10, batch_norm=True)
    other = load_example("digits-lenet", seed=1, batch_size=16).batch
    yield "digits-lenet with batch norm", model, loss_fn, batch, other


def plans() -> dict[str, Any]:
    """Whether plans hold, and how much they put into low precision."""
    rows = []
    for name, model, loss_fn, batch, other in plan_models():
        for tolerance in TOLERANCES:
            row: dict[str, Any] = {"model": name, "tolerance": tolerance}
            try:
                plan = plan_precision(
                    model,
                    loss_fn,
                    batch,
                    tolerance=tolerance,
                    formats=("bfloat16", "float16", "float32"),
                )
            except PrecisionError as error:
                rows.append({**row, "holds": None, "reason": str(error)})
                continue
            found = plan.verify(other)
            row |= {"holds": found.holds, "share": plan.low_precision_share}
            row |= {"predicted": plan.predicted_error, "measured": found.measured_error}
            rows.append(row)
            print(row, file=sys.stderr)
    made = [row for row in rows if row["holds"] is not None]
    return {"rows": rows, "plans": len(made), "hold": sum(r["holds"] for r in made) / len(made)}


# -- report --------------------------------------------------------------------------------


def table(title: str, figures: Any) -> Table:
    """Names and numbers, nested dictionaries indented."""
    result = Table(title=title, show_header=False)

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{prefix}{'  ' if prefix else ''}{key}", item)
        elif isinstance(value, float):
            result.add_row(prefix, f"{value:.3g}")
        else:
            result.add_row(prefix, str(value))

    add("", figures)
    return result


def main() -> None:
    """Measure, print the tables, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    # A layer norm in 16 bits with weights in float32: autocast makes it, and the kernel says so.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    makers = {"kernels": kernels, "accuracy": accuracy, "cost": cost, "plans": plans}
    figures: dict[str, Any] = {}
    for part in options.parts:
        figures[part] = makers[part]()
        Console(width=120).print(table(part, figures[part]))
    if set(options.parts) == set(PARTS):  # a part would overwrite the whole
        print("written:", write_figures("estimate", figures, threads=1))


if __name__ == "__main__":
    main()
