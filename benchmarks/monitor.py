"""What does watching a training run cost, and what one diagnosis?

Runs of equal steps take turns: one alone, one with `numgeom.Monitor` as it is by default, one whose
monitor diagnoses in the background. The table shows ratios of the sums of their times, over at
least 500 steps and two seconds of training alone, and at how many of the turns the step was
diagnosed: a monitor keeps a budget, and a background process may be busy; at the other turns the
gradients alone are read. The cost of one diagnosis is that of `diagnose_program` on a recorded
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
from numgeom.diagnosis import Monitor, WatchedStep, diagnose
from numgeom.diagnosis.diagnose import diagnose_program
from numgeom.examples import EXAMPLES, load_example
from numgeom.recording import record_step

GOALS = {100: 1.05, 5: 1.5}
DIAGNOSIS_GOAL = 5.0
ROUNDS = 5
CHUNK = 20  # steps of a run before it is the other's turn
STEPS = 500  # of every run, and
SECONDS = 2.0  # of training alone, whichever is more
WAYS = ("background", "waiting")


class Run:
    """A training run of an example, alone or watched."""

    def __init__(self, name: str, *, every: int | None = None, background: bool = False) -> None:
        self.model, self.loss_fn, self.batch = load_example(name, seed=0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.looks = 0
        self.monitor = None
        if every is not None:
            self.monitor = Monitor(
                self.model, every=every, on_finding=lambda _: None, on_step=self.count,
                background=background,
            )  # fmt: skip
            while not self.looks:  # the process starts once in a run
                self.step()
                time.sleep(0.01)

    def count(self, step: WatchedStep) -> None:
        """Note that a step was diagnosed."""
        self.looks += step.diagnosis is not None

    def step(self) -> None:
        """Train for one step."""
        self.optimizer.zero_grad()
        with nullcontext() if self.monitor is None else self.monitor():
            self.loss_fn(self.model, self.batch).backward()
        self.optimizer.step()

    def seconds(self, steps: int) -> float:
        """Time of some steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return time.perf_counter() - start


def measure(name: str) -> dict[str, Any]:
    """Ratios of watched and plain runs, and the cost of one diagnosis."""
    found: dict[str, Any] = {}
    diagnose(*load_example(name, seed=0))  # lazy set-up belongs to no round
    for every in GOALS:
        alone = Run(name)
        for way in WAYS:
            watched = Run(name, every=every, background=way == "background")
            gc.collect()
            looks, chunks, plain, seconds = watched.looks, 0, 0.0, 0.0
            while chunks * CHUNK < STEPS or plain < SECONDS:
                plain += alone.seconds(CHUNK)
                seconds += watched.seconds(CHUNK)
                chunks += 1
            found[f"every_{every}_{way}_over_plain"] = seconds / plain
            found[f"every_{every}_{way}_looks"] = watched.looks - looks
            found[f"every_{every}_{way}_turns"] = chunks * CHUNK // every
            if watched.monitor is not None:
                watched.monitor.wait()
    step = load_example(name, seed=0)
    program = record_step(*step)
    costs = []
    for _ in range(ROUNDS):
        plain = Run(name).seconds(10) / 10
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
        table.add_column(f"every={every}, in the background", justify="right")
    table.add_column(f"one diagnosis, plain steps (goal {DIAGNOSIS_GOAL:g})", justify="right")
    for name, row in found.items():
        cells = []
        for every in GOALS:
            for way in reversed(WAYS):
                start = f"every_{every}_{way}"
                looks = f"{row[f'{start}_looks']}/{row[f'{start}_turns']}"
                cells.append(f"{row[f'{start}_over_plain']:.3f} ({looks})")
        table.add_row(name, *cells, f"{row['diagnosis_over_plain_step']:.1f}")
    console = Console()
    console.print(table)
    if not options.quick:
        console.print(f"written: {write_figures('monitor', found, threads=options.threads)}")


if __name__ == "__main__":
    main()
