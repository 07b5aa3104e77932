"""What does a diagnosis cost, by the size of the model, in plain steps?

GPT-2 of four sizes on random tokens; the plain step and `diagnose` take turns, and the table shows
medians of the ratios within a round.

    python benchmarks/diagnosis.py          # writes results/diagnosis.json
    python benchmarks/diagnosis.py --quick  # the two smallest; writes nothing
"""

import argparse
import gc
import os
import statistics
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is downloaded

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from figures import write_figures
from numgeom.diagnosis import diagnose

# Width and number of layers; the vocabulary is 4096, the sequence has 256 tokens.
SIZES = {"gpt-64x2": (64, 2), "gpt-256x4": (256, 4), "gpt-384x6": (384, 6), "gpt-512x8": (512, 8)}
LARGEST = "gpt-512x8"
GOAL = 5.0
ROUNDS = 3


def load(name: str) -> tuple[nn.Module, Any, Tensor]:
    """A GPT-2 with seeded weights, the next-token loss and a batch."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
        logits = model(tokens, use_cache=False).logits
        return nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])

    width, layers = SIZES[name]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=4096, n_positions=256, n_embd=width, n_layer=layers, n_head=width // 64 or 1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config), next_token_loss, torch.randint(4096, (1, 256))


def measure(name: str) -> dict[str, Any]:
    """Seconds of a plain step, and the cost of a diagnosis in such steps."""
    model, loss_fn, batch = load(name)

    def plain() -> None:
        model.zero_grad()
        loss_fn(model, batch).backward()

    ratios, seconds = [], []
    for i in range(ROUNDS + 1):
        gc.collect()
        start = time.perf_counter()
        plain()
        middle = time.perf_counter()
        found = diagnose(model, loss_fn, batch)
        end = time.perf_counter()
        if found:
            raise RuntimeError(f"{name} has findings; the figure is for a healthy step:\n{found}")
        if i:  # the first round has lazy set-up in it
            seconds.append(middle - start)
            ratios.append((end - middle) / (middle - start))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "plain_seconds": statistics.median(seconds),
        "diagnosis_over_plain": statistics.median(ratios),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two models, nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {name: measure(name) for name in (list(SIZES)[:2] if options.quick else SIZES)}
    table = Table(title="Cost of a diagnosis, recording included")
    for column in ("model", "parameters", "plain step [s]", "diagnosis, plain steps"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in found.items():
        table.add_row(
            name,
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['plain_seconds']:.3f}",
            f"{row['diagnosis_over_plain']:.1f}",
        )
    console = Console()
    console.print(table)
    if not options.quick:
        got = found[LARGEST]["diagnosis_over_plain"]
        console.print(f"Goal at {LARGEST}: at most {GOAL:g}, is {got:.1f}.")
        console.print(f"written: {write_figures('diagnosis', found, threads=options.threads)}")


if __name__ == "__main__":
    main()
