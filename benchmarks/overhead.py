"""What does tracking cost, beside the plain step?

For every workload the plain step, the step inside `numgeom.track`, and the same with all bounds
made take turns; the table shows medians of the ratios within a round. The goals are for the four
models of the batch sizes that the table names; the examples, whose steps take a few milliseconds,
are shown beside them.

    python benchmarks/overhead.py          # writes results/overhead.json
    python benchmarks/overhead.py --quick  # fewer workloads and rounds; writes nothing
"""

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is downloaded

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from figures import write_figures
from numgeom.examples import EXAMPLES, load_example
from numgeom.functionals import Tracking, track

Step = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], Any]
GOAL = 2.0
GOAL_MEDIAN = 1.5
BOUNDED_ROUNDS = 3  # the bounds take long


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of a classifier."""
    x, y = batch
    out = model(x)
    return nn.functional.cross_entropy(out if isinstance(out, Tensor) else out.logits, y)


def mlp() -> Step:
    """784-256-128-10 with ReLU, batch 128."""
    model = nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    return model, cross_entropy, (torch.randn(128, 784), torch.randint(10, (128,)))


def lenet() -> Step:
    """LeNet-5 with ReLU and max-pooling on 28 x 28 images, batch 128."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    return model, cross_entropy, (torch.randn(128, 1, 28, 28), torch.randint(10, (128,)))


def resnet() -> Step:
    """A ResNet of three stages with two blocks each, widths 16, 32, 64, on 32 images of 32 x 32."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=3, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[2, 2, 2],
        layer_type="basic", num_labels=10,
    )  # fmt: skip
    model = ResNetForImageClassification(config)
    return model, cross_entropy, (torch.randn(32, 3, 32, 32), torch.randint(10, (32,)))


def gpt() -> Step:
    """A GPT-2 of width 256 with 4 layers, on one sequence of 128 random tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
        logits = model(tokens, use_cache=False).logits
        return nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])

    config = GPT2Config(
        vocab_size=4096, n_positions=128, n_embd=256, n_layer=4, n_head=4, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config), next_token_loss, torch.randint(4096, (1, 128))


MODELS: dict[str, Callable[[], Step]] = {
    "mlp-784-256-128-10": mlp, "lenet": lenet, "resnet": resnet, "gpt-256x4": gpt,
}  # fmt: skip


def load(name: str) -> Step:
    """Make the step of a workload, seeded, at initialisation."""
    if name not in MODELS:
        return load_example(name, seed=0)
    torch.manual_seed(0)
    return MODELS[name]()


def plain(step: Step) -> None:
    """Take the step."""
    model, loss_fn, batch = step
    model.zero_grad()
    loss_fn(model, batch).backward()


def tracked(step: Step) -> Tracking:
    """Take the step inside `track`."""
    model, loss_fn, batch = step
    model.zero_grad()
    with track(model) as tracking:
        loss_fn(model, batch).backward()
    return tracking


def bounded(step: Step) -> float:
    """Take the step inside `track` and ask for the bound of the gradient."""
    tracking = tracked(step)
    return sum(tracking.walk.norms.values())


def measure(name: str, *, rounds: int) -> dict[str, Any]:
    """Medians of the ratios over rounds in which the three take turns."""
    step = load(name)
    modes: dict[str, Callable[[Step], object]] = {
        "plain": plain, "tracked": tracked, "bounded": bounded,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    for i in range(rounds + 1):
        for mode, take in modes.items():
            if mode == "bounded" and i > BOUNDED_ROUNDS:
                continue
            gc.collect()
            start = time.perf_counter()
            held = take(step)
            elapsed = time.perf_counter() - start
            del held
            if i:  # the first round has lazy set-up in it
                seconds[mode].append(elapsed)
    ratios = {
        mode: statistics.median(
            a / b for a, b in zip(seconds[mode], seconds["plain"], strict=False)
        )
        for mode in ("tracked", "bounded")
    }
    return {
        "plain_ms": 1e3 * statistics.median(seconds["plain"]),
        "tracked_over_plain": ratios["tracked"],
        "tracked_and_bounded_over_plain": ratios["bounded"],
        "rounds": rounds,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two workloads, nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = tuple(MODELS)[:2] if options.quick else (*MODELS, *EXAMPLES)
    found = {name: measure(name, rounds=3 if options.quick else 15) for name in names}
    table = Table(title="Cost of tracking, times a plain step")
    for column in ("workload", "plain [ms]", "tracked", "tracked, bounds made"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for name, row in found.items():
        table.add_row(
            name,
            f"{row['plain_ms']:.1f}",
            f"{row['tracked_over_plain']:.2f}",
            f"{row['tracked_and_bounded_over_plain']:.1f}",
        )
    console = Console()
    console.print(table)
    ratios = [row["tracked_over_plain"] for name, row in found.items() if name in MODELS]
    median = statistics.median(ratios)
    console.print(
        f"Goals for the tracked step: each at most {GOAL}, largest is {max(ratios):.2f}; median at "
        f"most {GOAL_MEDIAN}, is {median:.2f}."
    )
    if not options.quick:
        figures = {"workloads": found, "largest": max(ratios), "median": median}
        console.print(f"written: {write_figures('overhead', figures, threads=options.threads)}")


if __name__ == "__main__":
    main()
