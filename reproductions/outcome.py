"""What is a reproduction of a published table or figure, and how is its result kept?

A *reproduction* has a name and a function from `Settings` to an `Outcome`. The outcome holds
tables, plots and facts, and says which data, device, versions and determinism it came from.
"""

import json
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from numgeom.errors import FileFormatError, NumgeomError
from numgeom.examples.data import DataStamp
from numgeom.files.writing import write_text
from numgeom.version import __version__

Scale = Literal["small", "paper"]
Cell = str | int | float | bool | None
SCHEMA = "numgeom.reproduction"
SCHEMA_VERSION = 1
_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "transformers", "matplotlib")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class ReproductionError(NumgeomError):
    """A reproduction cannot be run as asked."""


def _silent(what: str, done: int, count: int) -> None:
    del what, done, count


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a reproduction runs.

    Attributes:
        scale: "small" ends within ten minutes on two cores; "paper" has the published sizes.
        data: Folder with data sets that are never downloaded; None: what scikit-learn ships.
        seed: Seed of everything that is drawn.
        device: Where the models run, as torch names it.
        out: Folder for results and for the state of interrupted work; None: nothing is written.
        progress: Called as `progress(what, done, count)`; a count of 0 means unknown.
    """

    scale: Scale = "small"
    data: Path | None = None
    seed: int = 0
    device: str = "cpu"
    out: Path | None = None
    progress: Callable[[str, int, int], None] = _silent

    @property
    def is_small(self) -> bool:
        """Whether the short version is wanted."""
        return self.scale == "small"


@dataclass(frozen=True)
class Table:
    """A table: every row has one cell per column.

    Attributes:
        title: What the table shows, with the unit.
        columns: Titles of the columns.
        rows: The cells.
        bounds: Columns of upper bounds, which are rounded upward where they are shown.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    bounds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: a row of {len(row)} cells, {self.columns} columns")


@dataclass(frozen=True)
class Plot:
    """A figure as SVG text; `name` becomes its file name."""

    name: str
    svg: str


@dataclass(frozen=True)
class Outcome:
    """What a reproduction found.

    Attributes:
        name: Name of the reproduction.
        title: What is reproduced, in one line.
        tables: Tables in the order in which they are printed.
        plots: Figures, written as SVG files.
        facts: Single figures; plain JSON values, the unit stands in the key.
        notes: Sentences that a reader needs: what differs from the publication, goals missed.
        data: Stamps of the data that were used.
        circumstances: Scale, seed, device, determinism, threads, versions.
    """

    name: str
    title: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    data: tuple[DataStamp, ...] = ()
    circumstances: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> str:
        """The outcome as JSON, without the plots; infinities and NaN are written as strings."""
        document = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION} | asdict(self)
        document["plots"] = [f"{plot.name}.svg" for plot in self.plots]
        return json.dumps(_finite(document), indent=2, allow_nan=False)

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write `name.json` and one SVG file per plot; return the paths.

        Raises:
            ReproductionError: If the folder cannot be written.
        """
        folder = Path(folder)
        texts = {f"{self.name}.json": self.to_json() + "\n"}
        texts |= {f"{plot.name}.svg": plot.svg for plot in self.plots}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                write_text(folder / name, text)
        except (OSError, FileFormatError) as error:
            raise ReproductionError(
                f"The results cannot be written to {folder}: {error}. Choose another folder with "
                "--out."
            ) from error
        return tuple(folder / name for name in texts)


@dataclass(frozen=True)
class Reproduction:
    """A table or figure that can be made again: `run(settings)` gives its outcome.

    Attributes:
        name: What stands after `numgeom reproduce`: lower case, digits and hyphens.
        title: What is reproduced, in one line.
        run: Does the work.
    """

    name: str
    title: str
    run: Callable[[Settings], Outcome]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"not the name of a reproduction: {self.name!r}")


def circumstances(settings: Settings) -> dict[str, Any]:
    """Say where a result comes from: scale, seed, device, determinism, threads, versions."""
    device = torch.device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = {"python": platform.python_version(), "numgeom": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "scale": settings.scale,
        "seed": settings.seed,
        "device": f"{device} ({name})",
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
