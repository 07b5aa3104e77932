"""Do precision plans hold when they are run, how good are they, and what do they cost?

Four parts, each with its own table:

held        six models and four tolerances: a plan from bfloat16, float16 and float32, run for real
            on the batch that it was made on and on three others; share of the operations in low
            precision
optimal     the work that a plan from bfloat16 and float32 saves, over the most that any assignment
            saves which keeps the tolerance in the same measurements; models of at most 10 modules
autocast    plans beside torch.autocast to bfloat16, which runs all matrix products in bfloat16 and
            a list of other ops in float32: measured error at the same share of the operations,
            root mean square over four batches
cost        seconds of a plan over those of a plain step, alternating, medians; GPT of width 256
            with 4 layers on 128 tokens

    python benchmarks/plan.py                     # writes results/plan.json
    python benchmarks/plan.py --parts held
    python benchmarks/plan.py --quick             # fewer tolerances; writes nothing
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from figures import write_figures
from numgeom.precision import PrecisionError, PrecisionPlan, plan_precision
from numgeom.precision.measuring import Measurer, varied
from numgeom.precision.operations import COST
from numgeom.precision.plan import MARGIN
from numgeom.precision.planning import MOST_TRIED_ALL, search
from numgeom.precision.work import flops_by_module
from numgeom.recording import record_step
from numgeom.results.accuracy import measure, total
from tiny_models import Model, planned_models, wide_gpt

PARTS = ("held", "optimal", "autocast", "cost")
TOLERANCES = (1e-1, 3e-2, 1e-2, 1e-3)
NARROW = ("bfloat16", "float16", "float32")
REPEATS = 3
# An error counts as lower from here on.
CLEARLY = 0.99


# -- held ----------------------------------------------------------------------------------


def held(tolerances: tuple[float, ...]) -> dict[str, Any]:
    """Whether plans hold, and how much they put into low precision."""
    rows = []
    for (name, model, loss_fn, batch), others in planned_models():
        for tolerance in tolerances:
            row: dict[str, Any] = {"model": name, "tolerance": tolerance}
            try:
                plan = plan_precision(model, loss_fn, batch, tolerance=tolerance, formats=NARROW)
            except PrecisionError as error:
                rows.append({**row, "no_plan": str(error)})
                continue
            same = plan.verify(batch)
            found = [plan.verify(other) for other in others]
            rows.append({
                **row,
                "share": plan.low_precision_share,
                "predicted": plan.predicted_error,
                "measured": same.measured_error,
                "holds": same.holds,
                "measured_on_others": [each.measured_error for each in found],
                "hold_on_others": sum(each.holds for each in found),
            })  # fmt: skip
            print(rows[-1], file=sys.stderr)
    made = [row for row in rows if "no_plan" not in row]
    return {
        "plans": len(made),
        "share_that_hold": sum(r["holds"] for r in made) / len(made),
        "share_that_hold_on_other_batches": sum(r["hold_on_others"] for r in made)
        / (len(others) * len(made)),
        "mean_share_of_operations": {
            str(t): statistics.mean(r["share"] for r in made if r["tolerance"] == t)
            for t in tolerances
        },
        "rows": rows,
    }


# -- optimal -------------------------------------------------------------------------------


def optimal(tolerances: tuple[float, ...]) -> dict[str, Any]:
    """Savings of the plan over the most that can be saved, by model and tolerance."""
    found: dict[str, dict[str, float]] = {}
    for (name, model, loss_fn, batch), _ in planned_models(batch_size=8):
        program = record_step(model, loss_fn, batch)
        flops = flops_by_module(program)
        units = [m for m in flops if m in dict(model.named_modules())]
        if len(units) > MOST_TRIED_ALL:
            continue
        measurer = Measurer([program], 1e-7, 1.0, varied(program))
        for tolerance in tolerances:
            limit = tolerance / MARGIN
            plan = search(
                measurer, flops, units, ("bfloat16", "float32"), tolerance=tolerance, limit=limit
            )
            best = best_of_all(measurer, flops, units, limit)
            ratio = saved(flops, plan.formats) / best if best else 1.0
            found.setdefault(name, {})[str(tolerance)] = ratio
            print(name, tolerance, f"{ratio:.3f}", file=sys.stderr)
    return {"saved_over_best": found, "least": min(r for m in found.values() for r in m.values())}


def best_of_all(
    measurer: Measurer, flops: Mapping[str, int], units: list[str], limit: float
) -> float:
    """The most work that an assignment saves within the limit; every one is tried."""
    every = [
        dict(zip(units, chosen, strict=True))
        for chosen in itertools.product(("bfloat16", "float32"), repeat=len(units))
    ]
    for assigned in sorted(every, key=lambda each: -saved(flops, each)):
        if measurer.keeps(assigned, limit):
            return saved(flops, assigned)
    return 0.0


def saved(flops: Mapping[str, int], formats: Mapping[str, str]) -> float:
    """Work that an assignment saves."""
    return sum(flops[m] * (1.0 - COST[f]) for m, f in formats.items())


# -- autocast ------------------------------------------------------------------------------


def autocast(tolerances: tuple[float, ...]) -> dict[str, Any]:
    """Measured errors with all matrix products in low precision, and plans at that error."""
    del tolerances
    rows = {}
    for (name, model, loss_fn, batch), others in planned_models():
        batches = [batch, *others]
        uniform = rms([autocast_error(model, loss_fn, b) for b in batches])
        row: dict[str, Any] = {"autocast": {"error": uniform, "share": 1.0}}
        for label, formats in (("bfloat16", NARROW[::2]), ("bfloat16 and float16", NARROW)):
            # Everything in low precision, as autocast has it: a tolerance that does not bind.
            all_low = plan_precision(model, loss_fn, batch, tolerance=1e3, formats=formats)
            row[f"plan at the same share, {label}"] = verified(all_low, batches)
        row["plan at the same error"] = at_error(model, loss_fn, batch, batches, uniform)
        row["lower_error_at_same_share"] = [
            row[f"plan at the same share, {label}"]["error"] < CLEARLY * uniform
            for label in ("bfloat16", "bfloat16 and float16")
        ]
        rows[name] = row
        print(name, row, file=sys.stderr)
    better = list(zip(*(row["lower_error_at_same_share"] for row in rows.values()), strict=True))
    return {
        "models": len(rows),
        "models_better_from_bfloat16_and_float32": sum(better[0]),
        "models_better_from_bfloat16_float16_and_float32": sum(better[1]),
        "rows": rows,
    }


def verified(plan: PrecisionPlan, batches: list[Any]) -> dict[str, float]:
    """Share of a plan, and its error on all batches."""
    found = [plan.verify(batch).measured_error for batch in batches]
    return {"error": rms(found), "share": plan.low_precision_share}


def at_error(
    model: nn.Module, loss_fn: Any, batch: Any, batches: list[Any], error: float
) -> dict[str, float] | None:
    """A plan whose tolerance is the error of autocast."""
    try:
        plan = plan_precision(model, loss_fn, batch, tolerance=error, formats=NARROW)
    except PrecisionError:
        return None
    return verified(plan, batches)


def autocast_error(model: nn.Module, loss_fn: Any, batch: Any) -> float:
    """Relative error of the gradient under autocast to bfloat16."""

    def low(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_fn(model, batch)

    reference = record_step(model, loss_fn, batch).replay().gradients
    run = record_step(model, low, batch).recorded.gradients
    return total([measure(n, g, reference[n]) for n, g in run.items()]).observed_error


def rms(values: list[float]) -> float:
    """Root mean square."""
    return math.sqrt(statistics.mean(v * v for v in values))


# -- cost ----------------------------------------------------------------------------------


def cost(tolerances: tuple[float, ...]) -> dict[str, Any]:
    """Seconds over those of a plain step, by batch, formats and tolerance."""
    found: dict[str, Any] = {}
    for subject in map(wide_gpt, (1, 4)):
        for formats in (("bfloat16", "float32"), NARROW):
            for tolerance in tolerances:
                label = f"{subject.name}, {' '.join(formats)}"
                found.setdefault(label, {})[str(tolerance)] = cost_of(subject, formats, tolerance)
    return found


def cost_of(subject: Model, formats: tuple[str, ...], tolerance: float) -> dict[str, float]:
    """One plan."""
    _, model, loss_fn, batch = subject
    plans = []

    def plain() -> None:
        model.zero_grad()
        loss_fn(model, batch).backward()

    def planned() -> None:
        plans.append(plan_precision(model, loss_fn, batch, tolerance=tolerance, formats=formats))

    plain()
    ratios = []
    for _ in range(REPEATS):
        before = seconds(plain)
        taken = seconds(planned)
        ratios.append(2.0 * taken / (before + seconds(plain)))
    return {"over_plain": statistics.median(ratios), "share": plans[0].low_precision_share}


def seconds(action: Callable[[], Any]) -> float:
    """Processor time of one run in one thread: other work on the machine does not count."""
    start = time.process_time()
    action()
    return time.process_time() - start


# -- report --------------------------------------------------------------------------------


def table(title: str, figures: Mapping[str, Any]) -> Table:
    """Names and numbers, nested dictionaries indented."""
    result = Table(title=title, show_header=False)

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                add(f"{prefix}{'  ' if prefix else ''}{key}", item)
        elif isinstance(value, float):
            result.add_row(prefix, f"{value:.3g}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for item in value:
                add(f"{prefix}  {item['model']}  {item['tolerance']}", {
                    k: v for k, v in item.items() if k in ("share", "measured", "no_plan")
                })  # fmt: skip
        else:
            result.add_row(prefix, str(value))

    add("", figures)
    return result


def main() -> None:
    """Measure, print the tables, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="two tolerances, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tolerances = TOLERANCES[2:] if options.quick else TOLERANCES
    makers = {"held": held, "optimal": optimal, "autocast": autocast, "cost": cost}
    figures: dict[str, Any] = {}
    for part in options.parts:
        figures[part] = makers[part](tolerances)
        Console(width=140).print(table(part, figures[part]))
    if set(options.parts) == set(PARTS) and not options.quick:  # a part would overwrite the whole
        print("written:", write_figures("plan", figures, threads=1))


if __name__ == "__main__":
    main()
