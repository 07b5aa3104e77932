"""What does a recording cost, beside the plain step: time and memory?

For every workload the plain step (forward and backward), the recorded step, and the recorded step
followed by its float64 replay take turns; the table shows medians. Peak memory comes from a fresh
process for every number: what the step needs at its peak beyond the imports, the model and the
batch, which lie in memory before it begins.

    python benchmarks/recording.py                    # writes results/recording.json
    python benchmarks/recording.py --device cuda      # writes results/recording-cuda.json
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is downloaded

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from figures import write_figures
from numgeom.examples import EXAMPLES, load_example
from numgeom.recording import record_step

Step = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], Any]

GPT = "gpt-256x4"
WORKLOADS = (*EXAMPLES, GPT)
MODES = ("plain", "record", "reference")
LEAST_ROUNDS = 5
MIB = 2**20
# Peaks below this are pages and allocator slack rather than tensors: they make no ratio.
LEAST_PEAK_MIB = 8
GOALS = (
    "Goals: record/plain at most 1.10 where a plain step takes over 50 ms; "
    "record+reference/plain at most 3.5; peak memory of both at most 4 times the plain step's."
)


def load(name: str, *, device: torch.device) -> Step:
    """Make the step of a workload, seeded, at initialisation."""
    model, loss_fn, batch = gpt() if name == GPT else load_example(name, seed=0)
    return model.to(device), loss_fn, moved(batch, device)


def gpt() -> Step:
    """A GPT-2 of width 256 with 4 layers, on one sequence of 256 random tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
        logits = model(tokens, use_cache=False).logits
        return nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])

    torch.manual_seed(0)
    vocabulary, length = 4096, 256
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=256,
        n_layer=4,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config), next_token_loss, torch.randint(vocabulary, (1, length))


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return tuple(moved(value, device) for value in batch)


def run(mode: str, step: Step) -> object:
    """Take the step once; the result keeps alive what a user of the mode would hold."""
    model, loss_fn, batch = step
    if mode == "plain":
        model.zero_grad()
        loss_fn(model, batch).backward()
        return None
    program = record_step(model, loss_fn, batch)
    return program if mode == "record" else (program, program.replay(torch.float64))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(step: Step, *, device: torch.device, budget_seconds: float) -> dict[str, Any]:
    """Median times over rounds in which the modes take turns, and medians of their ratios.

    The ratios are taken within a round: a machine that slows down for a while slows both sides.
    """
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for mode in MODES:  # once without a clock: lazy set-up belongs to no round
        run(mode, step)
    end = time.perf_counter() + budget_seconds
    while len(seconds["plain"]) < LEAST_ROUNDS or time.perf_counter() < end:
        for mode in MODES:
            gc.collect()
            synchronize(device)
            start = time.perf_counter()
            held = run(mode, step)
            synchronize(device)
            seconds[mode].append(time.perf_counter() - start)
            del held
    over_plain = {
        mode: [mine / plain for mine, plain in zip(seconds[mode], seconds["plain"], strict=True)]
        for mode in MODES
    }
    return {
        "rounds": len(seconds["plain"]),
        "seconds": {mode: statistics.median(values) for mode, values in seconds.items()},
        "record_over_plain": statistics.median(over_plain["record"]),
        "reference_over_plain": statistics.median(over_plain["reference"]),
    }


def peak_mib(name: str, mode: str, *, device: torch.device, threads: int) -> float | None:
    """Peak memory of one step, measured in a fresh process; None where the system cannot tell."""
    command = [sys.executable, __file__, "--peak", name, mode, "--device", str(device)]
    answer = subprocess.run(
        [*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return None if answer.strip() == "None" else float(answer)


def own_peak_mib(name: str, mode: str, *, device: torch.device) -> float | None:
    """Peak memory of one step beyond what lay there before, in this process."""
    tiny: Step = (
        nn.Linear(2, 2).to(device),
        lambda model, batch: model(batch).sum(),
        torch.ones(1, 2, device=device),
    )
    run(mode, tiny)  # threads and lazy imports do not count
    step = load(name, device=device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        held = run(mode, step)
        synchronize(device)
        del held
        return (torch.cuda.max_memory_allocated() - before) / MIB
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use now
    except OSError:
        return None
    before = resident_peak_mib()
    held = run(mode, step)
    del held
    return resident_peak_mib() - before


def resident_peak_mib() -> float:
    """The largest resident memory of this process since the peak was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) / 1024


def ratio(part: float | None, whole: float | None) -> float | None:
    """A quotient, or None where a side is missing."""
    return None if part is None or not whole else part / whole


def measure(
    name: str, *, device: torch.device, threads: list[int], budget_seconds: float
) -> dict[str, Any]:
    """All figures of one workload."""
    step = load(name, device=device)
    times = {}
    for count in threads:
        torch.set_num_threads(count)
        times[str(count)] = timed(step, device=device, budget_seconds=budget_seconds)
    peaks = {mode: peak_mib(name, mode, device=device, threads=threads[0]) for mode in MODES}
    plain = peaks["plain"] or 0
    comparable = plain if plain >= LEAST_PEAK_MIB else None
    model = step[0]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "calls": len(record_step(*step)),
        "by_threads": times,
        "peak_mib": peaks,
        "record_peak_over_plain": ratio(peaks["record"], comparable),
        "reference_peak_over_plain": ratio(peaks["reference"], comparable),
    }


def table(figures: dict[str, Any], *, device: torch.device) -> Table:
    """The figures, one row for each workload and number of threads."""

    def shown(value: float | None, digits: int = 2) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    result = Table(title=f"Recording on {device}", caption=GOALS, caption_justify="left")
    result.add_column("workload")
    for column in (
        "calls",
        "threads",
        "plain\nms",
        "record\n/plain",
        "record+reference\n/plain",
        "plain peak\nMiB",
        "record peak\n/plain",
        "record+reference\npeak/plain",
    ):
        result.add_column(column, justify="right")
    for name, row in figures.items():
        for count, times in row["by_threads"].items():
            result.add_row(
                name,
                str(row["calls"]),
                count,
                shown(1000 * times["seconds"]["plain"]),
                shown(times["record_over_plain"]),
                shown(times["reference_over_plain"]),
                shown(row["peak_mib"]["plain"], 1),
                shown(row["record_peak_over_plain"]),
                shown(row["reference_peak_over_plain"]),
            )
    return result


def main() -> None:
    """Measure the workloads, print the table, and keep the figures."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores or 1}))
    parser.add_argument("--seconds", type=float, default=10.0, help="per workload and threads")
    parser.add_argument("--peak", nargs=2, metavar=("WORKLOAD", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads[0])
    if options.peak:
        print(own_peak_mib(*options.peak, device=options.device))
        return
    figures = {}
    for name in options.workloads:
        print(f"measuring {name}", file=sys.stderr)
        figures[name] = measure(
            name, device=options.device, threads=options.threads, budget_seconds=options.seconds
        )
    Console(width=140).print(table(figures, device=options.device))
    if set(options.workloads) == set(WORKLOADS):  # a part would overwrite the whole
        suffix = "" if options.device.type == "cpu" else f"-{options.device.type}"
        print("written:", write_figures(f"recording{suffix}", figures, threads=options.threads))


if __name__ == "__main__":
    main()
