"""What does watching a training run cost, and what one diagnosis?

Two runs of equal steps take turns, one alone and one with `numgeom.Monitor`; the table shows the
median ratio of their times. The cost of one diagnosis is that of `diagnose_program` on a recorded
step, in plain steps.

    python benchmarks/monitor.py          # writes results/monitor.json
    python benchmarks/monitor.py --quick  # fewer workloads; writes nothing
"""

import argparse
import gc
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from figures import write_figures
from numgeom.diagnosis import Monitor, diagnose
from numgeom.diagnosis.diagnose import diagnose_program
from numgeom.experiments import EXAMPLES, load_example
from numgeom.recording import record_step

GOALS = {100: 1.05, 5: 1.5}
DIAGNOSIS_GOAL = 5.0
ROUNDS = 3


def run(name: str, *, steps: int, every: int | None) -> float:
    """Seconds of some steps of training; the first one, which is watched, is one of them."""
    model, loss_fn, batch = load_example(name, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = None if every is None else Monitor(model, every=every, on_finding=lambda _: None)
    gc.collect()
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        with nullcontext() if monitor is None else monitor():
            loss_fn(model, batch).backward()
        optimizer.step()
    return time.perf_counter() - start


def measure(name: str) -> dict[str, Any]:
    """Ratios of watched and plain runs, and the cost of one diagnosis."""
    found: dict[str, Any] = {}
    diagnose(*load_example(name, seed=0))  # lazy set-up belongs to no round
    for every in GOALS:
        ratios = []
        for _ in range(ROUNDS):
            plain = run(name, steps=every, every=None)
            ratios.append(run(name, steps=every, every=every) / plain)
        found[f"every_{every}_over_plain"] = statistics.median(ratios)
    step = load_example(name, seed=0)
    program = record_step(*step)
    costs = []
    for _ in range(ROUNDS):
        plain = run(name, steps=10, every=None) / 10
        start = time.perf_counter()
        diagnose_program(program)
        costs.append((time.perf_counter() - start) / plain)
    found["diagnosis_over_plain_step"] = statistics.median(costs)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one workload, nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ("digits-lenet",) if options.quick else tuple(EXAMPLES)
    found = {name: measure(name) for name in names}
    table = Table(title="Cost of watching, times the run alone")
    table.add_column("workload")
    for every, goal in GOALS.items():
        table.add_column(f"every={every} (goal {goal})", justify="right")
    table.add_column(f"one diagnosis, plain steps (goal {DIAGNOSIS_GOAL:g})", justify="right")
    for name, row in found.items():
        cells = [f"{row[f'every_{every}_over_plain']:.3f}" for every in GOALS]
        table.add_row(name, *cells, f"{row['diagnosis_over_plain_step']:.1f}")
    console = Console()
    console.print(table)
    if not options.quick:
        console.print(f"written: {write_figures('monitor', found, threads=options.threads)}")


if __name__ == "__main__":
    main()
