"""How large are the errors of torch's elementary functions? Measures `accuracy.json`.

Every function of `elementary.FUNCTIONS`, in four formats, over three memory layouts (contiguous;
short rows of 7, where vectors have tails; every second element), by each instruction set that the
processor offers (`ATEN_CPU_CAPABILITY`, a process each). The table keeps the worst of the layouts,
and what identifies the kernels.

- float16, bfloat16: all finite arguments of the domain; pairs are sampled.
- float32: a dense sample (all 2^32 arguments would take hours). Errors are first taken against
  torch's own float64 result, and the largest are confirmed, largest first, against Arb until none
  is left that could be larger.
- float64: a dense sample against Arb, each point.

Run `python -m benchmarks.accuracy` (about 25 minutes for three instruction sets); `--only exp,tanh`
measures some functions and leaves the others as they are.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.elementary import FUNCTIONS, Elementary
from benchmarks.figures import machine
from benchmarks.ulps import (
    Exact,
    arguments,
    exact_values,
    from_float64,
    is_exhaustive,
    worst_error,
)
from numgeom.arithmetic import accuracy
from numgeom.arithmetic.accuracy import Accuracy, AccuracyTable, load_table, save_table
from numgeom.arithmetic.elementary import LAYOUTS, architecture, fingerprint
from numgeom.arithmetic.formats import (
    Format,
    bfloat16,
    float16,
    float32,
    float64,
    format_named,
)

SEED = 20
FORMATS = (float16, bfloat16, float32, float64)
CAPABILITIES = ("default", "avx2", "avx512")
TABLE = Path(accuracy.__file__).with_name("accuracy.json")
# Numbers of samples: against Arb (float64, and pairs of 16 bits), and in float32.
ARB_SAMPLES = 250_000
FLOAT32_SAMPLES = 4_000_000
SAMPLING = (
    "16-bit formats: all finite arguments of the domain where exhaustive; pairs and float64: "
    f"{ARB_SAMPLES} samples, each against Arb; float32: {FLOAT32_SAMPLES} samples (half as many "
    "pairs) against float64 results, the largest errors confirmed by Arb. Of a sample, 25 % are "
    "random bit patterns, 20 % spread evenly where the function varies, 15 % over [-8, 8], 15 % "
    "evenly in log2|x| over [-40, 10], 5 % evenly in log2|x| from the smallest number to 2^40 "
    "times the smallest normal one, 20 % at distances of 2^-1 to 2^-60 from zeros, poles, "
    "thresholds and ends of ranges; within the domain."
)


def measure_all(
    functions: Sequence[Elementary], folder: Path, *, arb_samples: int, float32_samples: int
) -> list[dict[str, Any]]:
    """Measure with this process's instruction set; exact values are kept in the folder."""
    found = []
    for function in functions:
        began = time.perf_counter()
        for fmt in FORMATS:
            count = float32_samples if fmt is float32 else arb_samples
            if fmt is float32 and len(function.domain) == 2:
                count //= 2
            columns = arguments(function, fmt, count, SEED)
            try:
                function.compute(*(values[:1] for values in columns))
            except (NotImplementedError, RuntimeError) as reason:
                print(f"  {function.name} has no {fmt}: {reason}", flush=True)
                continue
            exact = reference(function, fmt, columns, folder)
            rows = [
                {"layout": layout} | asdict(worst_error(function, fmt, columns, exact, layout))
                for layout in LAYOUTS
            ]
            worst = max(rows, key=lambda row: row["ulps"])
            assert fmt.dtype is not None
            found.append(
                {
                    "function": function.name,
                    "format": fmt.name,
                    "fingerprint": fingerprint(function.name, fmt.dtype),
                    **worst,
                    "not_finite": max(row["not_finite"] for row in rows),
                }
            )
        mine = [
            f"{row['format']} {row['ulps']:.4g}"
            for row in found
            if row["function"] == function.name
        ]
        print(
            f"{function.name}: {', '.join(mine)}  [{time.perf_counter() - began:.1f} s]", flush=True
        )
    return found


def reference(function: Elementary, fmt: Format, columns: Sequence[Tensor], folder: Path) -> Exact:
    """Exact values, from the folder if an earlier process left them there."""
    if fmt is float32:
        return from_float64(function.compute(*(values.double() for values in columns)))
    path = folder / f"{function.name}-{fmt.name}.npz"
    if path.exists():
        stored = np.load(path)
        return Exact(stored["high"], stored["low"], stored["exponent"])
    exact = exact_values(function, columns)
    np.savez(path, high=exact.high, low=exact.low, exponent=exact.exponent)
    return exact


def entries_of(
    results: dict[str, list[dict[str, Any]]], functions: Sequence[Elementary]
) -> list[Accuracy]:
    """One entry per function, format and instruction set."""
    by_name = {function.name: function for function in functions}
    return [
        Accuracy(
            function=row["function"],
            format=format_named(row["format"]),
            device="cpu",
            capability=capability,
            fingerprint=row["fingerprint"],
            layout=row["layout"],
            measured_ulps=row["ulps"],
            allowed_ulps=accuracy.with_margin(row["ulps"]),
            floor=by_name[row["function"]].floor_in(format_named(row["format"])),
            worst_at=tuple(row["at"]),
            samples=row["samples"],
            exhaustive=is_exhaustive(by_name[row["function"]], format_named(row["format"])),
            date=datetime.date.today().isoformat(),
            not_finite=row["not_finite"],
        )
        for capability, rows in results.items()
        for row in rows
    ]


def main() -> None:
    """Measure by every instruction set and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="names of functions, separated by commas")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the samples")
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = set(filter(None, options.only.split(",")))
    functions = [function for function in FUNCTIONS if not names or function.name in names]
    torch.set_num_threads(1)
    if options.worker:
        found = measure_all(
            functions,
            options.worker,
            arb_samples=int(ARB_SAMPLES * options.scale),
            float32_samples=int(FLOAT32_SAMPLES * options.scale),
        )
        capability = torch.backends.cpu.get_cpu_capability()
        (options.worker / "found.json").write_text(json.dumps([capability, found]))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for capability in CAPABILITIES:
            environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
            print(f"--- {capability}", flush=True)
            command = [
                sys.executable,
                "-m",
                "benchmarks.accuracy",
                *sys.argv[1:],
                "--worker",
                folder,
            ]
            done = subprocess.run(command, env=environment, check=False)
            if done.returncode == -signal.SIGILL:
                print(f"{capability}: this processor does not have it", flush=True)
                continue
            if done.returncode != 0:
                sys.exit(f"{capability}: the measurement failed (exit {done.returncode})")
            name, found = json.loads((Path(folder) / "found.json").read_text())
            results[name] = found
    entries = entries_of(results, functions)
    kept: list[Accuracy] = []
    if names:
        before = load_table(options.output)
        if before.torch_version != torch.__version__:
            sys.exit(f"The table is one of torch {before.torch_version}: measure all functions.")
        kept = [entry for entry in before.entries if entry.function not in names]
    functions_order = {function.name: i for i, function in enumerate(FUNCTIONS)}
    formats_order = {fmt.name: i for i, fmt in enumerate(FORMATS)}
    table = AccuracyTable(
        entries=tuple(
            sorted(
                [*kept, *entries],
                key=lambda e: (functions_order[e.function], formats_order[e.format.name]),
            )
        ),
        torch_version=torch.__version__,
        architecture=architecture(),
        machine=str(machine()["cpu"]),
        seed=SEED,
        sampling=SAMPLING,
    )
    save_table(table, options.output)


if __name__ == "__main__":
    main()
