"""How does a figure keep its circumstances: machine, versions, commit?"""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from numgeom.version import __version__

SCHEMA_VERSION = 1
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "numpy", "transformers", "scikit-learn")


def write_figures(
    name: str, figures: Mapping[str, Any], *, threads: int | list[int], folder: Path = RESULTS
) -> Path:
    """Write figures and their circumstances to `folder/name.json`, replacing an older file.

    Args:
        name: Name of the benchmark, without a suffix.
        figures: What was measured; the unit stands in each key. Plain, finite JSON values.
        threads: Number of threads that torch computed with, or the numbers in turn.
        folder: Where the file goes.

    Returns:
        The path of the file.

    Raises:
        ValueError: if a figure is not finite; a benchmark that failed has no figures.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "threads": threads,
        "figures": figures,
    }
    text = json.dumps(document, indent=2, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(text + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """Describe the machine without naming it: processor, cores, memory, GPU, system."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu_model(),
        "cores": len(usable) if usable else os.cpu_count(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_model() -> str:
    """The processor's own name for itself, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Physical memory; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that figures depend on; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "numgeom": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> dict[str, Any]:
    """The commit that was measured; dirty: files differed from it. Both None outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # The results themselves change with every run and are no part of what was measured.
        changes = git("status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results")
        return {"hash": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"hash": None, "dirty": None}
