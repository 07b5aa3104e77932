"""Read mutated files of every kind, and see that nothing but our own errors comes of them.

`python -m tests.files.fuzz SEED COUNT FOLDER` prints one JSON object: how many files were read,
how many refused, and what went wrong. Memory and time are limited, and every file that is opened
for writing, every process and every connection is noted.
"""

import json
import os
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from numgeom.certificate import Certificate
from numgeom.diagnosis import Diagnosis
from numgeom.diagnosis.kept import load_kept
from numgeom.errors import NumgeomError
from numgeom.functionals import TrackingResult
from numgeom.precision import PrecisionPlan
from numgeom.recording import Program
from tests.files.mutations import mutated

SAMPLES = Path(__file__).parents[1] / "results" / "samples"
MEMORY = 6 << 30  # bytes of address space
SECONDS = 20.0  # for one file
Load = Callable[[Path], Any]


def _certificate(path: Path) -> None:
    found = Certificate.load(path)
    found.to_json()
    found.worst_modules()
    str(found), found.constants, found.sources()
    for row in (found.total, *found.parameters.values()):
        _ = row.digits, row.tightness, row.largest_entry_error_relative
        assert row.error_bound is None or row.error_bound >= 0.0


def _program(path: Path, *, run: bool) -> None:
    program = Program.load(path)
    str(program), repr(program)
    if run:
        program.digest()
        program.replay()


def loaders(*, run: bool) -> dict[str, Load]:
    """How each sample is read; `run` also replays programs."""
    program: Load = lambda path: _program(path, run=run)  # noqa: E731 - one of several in a table
    certificates = ("", "_nonfinite", "_kink", "_unknown")
    found: dict[str, Load] = {f"certificate{name}.json": _certificate for name in certificates}
    found["certificate.pt"] = _certificate
    found |= {name: lambda p: str(Diagnosis.load(p)) for name in ("diagnosis.json", "diagnosis.pt")}
    found |= {
        name: lambda p: str(PrecisionPlan.load(p)) for name in ("plan.json", "plan_strict.json")
    }
    found |= {
        name: lambda p: str(TrackingResult.load(p)) for name in ("tracking.json", "tracking.pt")
    }
    found |= {f"{name}.pt": program for name in ("program", "program_adam", "program_lstm")}
    found |= {"kept_step.pt": load_kept}
    return found


def today(folder: Path) -> dict[str, Path]:
    """The samples, and what they are when today's version writes them again."""
    files = {name: SAMPLES / name for name in loaders(run=False)}
    for name in ("program.pt", "program_adam.pt", "program_lstm.pt"):
        Program.load(SAMPLES / name).save(folder / name)
    kept = load_kept(SAMPLES / "kept_step.pt")
    state = dict(kept.random_state)
    kept.program.save(folder / "kept_step.pt", step=kept.step, random_state=state)
    for name in ("certificate.json", "certificate.pt", "certificate_kink.json"):
        Certificate.load(SAMPLES / name).save(folder / name)
    for name in ("diagnosis.json", "diagnosis.pt"):
        Diagnosis.load(SAMPLES / name).save(folder / name)
    PrecisionPlan.load(SAMPLES / "plan.json").save(folder / "plan.json")
    for name in ("tracking.json", "tracking.pt"):
        TrackingResult.load(SAMPLES / name).save(folder / name)
    return files | {f"new {path.name}": path for path in folder.iterdir()}


class Watch:
    """Notes what reading does outside of the process, as far as Python sees it."""

    def __init__(self) -> None:
        """Nothing is watched before `on`."""
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            mode, flags = str(arguments[1]), arguments[2] or 0
            writes = any(letter in mode for letter in "wax+") or flags & (os.O_WRONLY | os.O_RDWR)
            if writes and not str(arguments[0]).endswith((".pyc", "/dev/null")):
                self.seen.append(f"open {arguments[0]!r} {mode}")
        elif event.split(".")[0] in ("subprocess", "socket", "ctypes", "shutil", "tempfile") or (
            event
            in ("os.system", "os.exec", "os.remove", "os.rename", "os.fork", "pickle.find_class")
        ):
            self.seen.append(event)


def fuzz(seed: int, count: int, folder: Path, *, run: bool) -> dict[str, Any]:
    """Read `count` mutated files; what came of them.

    Returns:
        "read" and "refused": how many files; "problems": texts, none if all is well.
    """
    draw = random.Random(seed)
    honest, work = folder / "honest", folder / "work"
    honest.mkdir()
    work.mkdir()
    contents = {name: path.read_bytes() for name, path in today(honest).items()}
    known = loaders(run=run)
    watch, counts, problems = Watch(), Counter[str](), []
    for name in contents:  # what is imported at the first use of each kind
        target = work / name.removeprefix("new ")
        target.write_bytes(contents[name])
        known[target.name](target)
        target.unlink()
    for i in range(count):
        name = draw.choice(list(contents))
        target = work / name.removeprefix("new ")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns of names that are there twice
            target.write_bytes(mutated(contents[name], draw))
        start = time.perf_counter()
        watch.on = True
        try:
            known[target.name](target)
            counts["read"] += 1
        except NumgeomError as error:
            counts["refused"] += 1
            text = str(error)
            if len(text) > 5_000 or not text:
                problems.append(f"{i} {name}: an error of {len(text)} characters")
        except Exception as error:  # whatever it is, it is not ours
            problems.append(f"{i} {name}: {type(error).__name__}: {str(error)[:300]}")
        finally:
            watch.on = False
        seconds = time.perf_counter() - start
        if seconds > SECONDS:
            problems.append(f"{i} {name}: took {seconds:.1f} s")
        target.unlink()
        if left := os.listdir(work):
            problems.append(f"{i} {name}: left {left}")
    problems += watch.seen
    return {"read": counts["read"], "refused": counts["refused"], "problems": problems[:20]}


def main() -> None:
    """Fuzz under limits and print what came of it."""
    seed, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(folder)
    print(json.dumps(fuzz(seed, count, folder, run=True)))


if __name__ == "__main__":
    main()
