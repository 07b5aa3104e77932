"""How does a second process diagnose steps while training goes on?

`python -m numgeom.diagnosis.worker` reads one line of JSON per step from its standard input, the
path of a program file and the ops that it may call, and answers each with one line: what `look`
says of it, or the problem.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from numgeom.diagnosis.diagnose import diagnose_program
from numgeom.diagnosis.watched import Look
from numgeom.errors import NumgeomError
from numgeom.recording import Program

_NICE = 10


def answer(path: str, allow: Sequence[str] = ()) -> dict[str, Any]:
    """What is said of the step in a file: `Look.to_document`, or {"problem": why not}."""
    try:
        return look(Program.load(path, allow=allow)).to_document()
    except (NumgeomError, RuntimeError, MemoryError) as error:
        return {"problem": f"{type(error).__name__}: {error}"}


def look(program: Program) -> Look:
    """Diagnose a recorded step; the random generators are left as they were."""
    with torch.random.fork_rng():
        return Look.of(program, diagnose_program(program))


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what else is printed is no answer
    torch.set_num_threads(1)
    if hasattr(os, "nice"):  # training comes first
        os.nice(_NICE)
    for line in sys.stdin:
        task = json.loads(line)
        answers.write(json.dumps(answer(task["program"], task["allow"])) + "\n")
        answers.flush()


def environment() -> dict[str, str]:
    """The environment of such a process: it finds this package, and takes one thread."""
    folder = str(Path(__file__).parents[2])
    paths = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
