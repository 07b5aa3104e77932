"""Are predicted rounding errors those that are observed, and what does a prediction cost?

Three parts, each with its own table:

kernels    what a kernel does inside, modelled over measured (float32 against float64)
accuracy   predicted over observed error of the gradient, total and per parameter tensor of more
           than 1,000 entries, for every built-in example and tiny transformers model, in float32
           and under autocast to 16 bits; observed: the recorded gradient against float64
cost       seconds of an estimate and of its sources over those of a plain step, alternating,
           medians; GPT of width 256 with 4 layers on 128 tokens

    python benchmarks/estimate.py                     # writes results/estimate.json
    python benchmarks/estimate.py --parts accuracy
    python benchmarks/estimate.py --quick             # fewer models; writes nothing
"""

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from figures import write_figures
from numgeom.ops.table import traits_of
from numgeom.precision import estimate
from numgeom.recording import record_step
from numgeom.results.accuracy import measure, total
from numgeom.results.origins import origin_of
from tiny_models import Model, examples, transformers_models, wide_gpt

PARTS = ("kernels", "accuracy", "cost")
FORMATS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGE = 1000
U = 2.0**-24
SAMPLES = 2
REPEATS = 5


# -- kernels -------------------------------------------------------------------------------


def kernels(quick: bool) -> dict[str, float]:
    """Modelled over measured error, root mean square over all entries, by kernel and size."""
    found = {}
    for signs in ("random", "one"):
        for k in (8, 512) if quick else (8, 64, 512, 4096):
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
    deviation = traits_of(name).kernel.inside(wide, outputs)[0]
    inside = 0.0 if deviation is None else (deviation * U).pow(2)
    modelled = (inside + (want.float().double() - want).pow(2)).mean().sqrt()
    return float(modelled / (got.double() - want).pow(2).mean().sqrt())


# -- accuracy ------------------------------------------------------------------------------


def models(quick: bool) -> Iterator[Model]:
    """All that predictions are tried on."""
    yield from examples()
    yield from transformers_models(quick=quick)


def accuracy(quick: bool) -> dict[str, Any]:
    """Predicted over observed, by format and model."""
    return {fmt: accuracy_in(fmt, dtype, quick) for fmt, dtype in FORMATS.items()}


def accuracy_in(fmt: str, dtype: torch.dtype | None, quick: bool) -> dict[str, Any]:
    """Predicted over observed in one format."""
    rows: dict[str, float] = {}
    tensors: list[float] = []
    inside = []
    for name, model, loss_fn, batch in models(quick):

        def under(model: nn.Module, batch: Any, loss_fn: Any = loss_fn) -> Tensor:
            with torch.autocast("cpu", dtype) if dtype else nullcontext():
                return loss_fn(model, batch)

        program = record_step(model, under, batch)
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
    return {
        "predicted_over_observed": rows,
        "quantiles_0_25_50_75_100": quantiles(list(rows.values())),
        "share_within_2": sum(0.5 <= r <= 2 for r in rows.values()) / len(rows),
        "share_of_intervals_that_cover": sum(inside) / len(inside),
        "spread_log": statistics.pstdev(math.log(r) for r in rows.values()),
        "tensors": len(tensors),
        "tensors_share_within_3": sum(1 / 3 <= r <= 3 for r in tensors) / len(tensors),
        "tensors_quantiles_0_25_50_75_100": quantiles(tensors),
    }


def quantiles(values: list[float]) -> list[float]:
    """Least, quartiles, largest."""
    ordered = sorted(values)
    return [ordered[round(q * (len(ordered) - 1))] for q in (0.0, 0.25, 0.5, 0.75, 1.0)]


# -- cost ----------------------------------------------------------------------------------


def cost(quick: bool) -> dict[str, Any]:
    """Seconds over those of a plain step."""
    return {each.name: cost_of(each, quick) for each in map(wide_gpt, (1, 4))}


def cost_of(subject: Model, quick: bool) -> dict[str, float]:
    """Estimates, recording included, as the model runs and under autocast; and sources."""
    _, model, loss_fn, batch = subject

    def plain() -> None:
        model.zero_grad()
        loss_fn(model, batch).backward()

    def low() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_fn(model, batch)
        loss.backward()

    def made(**options: Any) -> Callable[[], Any]:
        return lambda: estimate(model, loss_fn, batch, samples=2, **options)

    repeats = 2 if quick else REPEATS
    found = estimate(model, loss_fn, batch)
    return {
        "plain_step_seconds": statistics.median(seconds(plain) for _ in range(5)),
        "estimate_2_samples_over_plain": ratio(made(), plain, repeats),
        "estimate_2_samples_tf32_over_plain": ratio(made(format="tf32"), plain, repeats),
        "estimate_2_samples_bfloat16_over_plain": ratio(made(format="bfloat16"), plain, 2),
        "estimate_2_samples_bfloat16_over_plain_in_bfloat16": ratio(
            made(format="bfloat16"), low, 2
        ),
        "sources_over_plain": ratio(
            lambda: origin_of(found).found.clear() or found.sources(), plain, 2
        ),
    }


def ratio(action: Callable[[], Any], plain: Callable[[], Any], repeats: int) -> float:
    """Median of seconds over those of the plain steps just before and after."""
    plain()
    found = []
    for _ in range(repeats):
        before = seconds(plain)
        taken = seconds(action)
        found.append(2.0 * taken / (before + seconds(plain)))
    return statistics.median(found)


def seconds(action: Callable[[], Any]) -> float:
    """Processor time of one run in one thread: other work on the machine does not count."""
    start = time.process_time()
    action()
    return time.process_time() - start


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
        elif isinstance(value, list):
            result.add_row(prefix, "  ".join(f"{item:.3g}" for item in value))
        else:
            result.add_row(prefix, str(value))

    add("", figures)
    return result


def main() -> None:
    """Measure, print the tables, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="fewer models, nothing written")
    options = parser.parse_args()
    # A layer norm in 16 bits with weights in float32: autocast makes it, and the kernel says so.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    makers = {"kernels": kernels, "accuracy": accuracy, "cost": cost}
    figures: dict[str, Any] = {}
    for part in options.parts:
        figures[part] = makers[part](options.quick)
        Console(width=120).print(table(part, figures[part]))
    if set(options.parts) == set(PARTS) and not options.quick:  # a part would overwrite the whole
        print("written:", write_figures("estimate", figures, threads=1))


if __name__ == "__main__":
    main()
