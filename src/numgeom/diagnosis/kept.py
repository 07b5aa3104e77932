"""How is a bad step of a training run kept, so that it can be looked at again elsewhere?

The file is a program file with more in it: parameters, batch and random draws are constants of the
program; beside them stand the number of the step and the state of torch's random generators when
it began. Nothing in it can run code, as in every program file.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from numgeom.errors import FileFormatError
from numgeom.recording import Program
from numgeom.recording.files import load_saved

RandomState = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class KeptStep:
    """A step that was kept.

    Attributes:
        program: The step.
        step: Its number in the run.
        random_state: State of the generators when it began, by device: "cpu", "cuda:0".
    """

    program: Program
    step: int
    random_state: RandomState

    @property
    def batch(self) -> dict[str, Tensor]:
        """The tensors that the step was given, by the name of their constant."""
        nodes = [n for n in self.program.graph.nodes if n.op == "get_attr"]
        given = [str(n.target) for n in nodes if n.meta["role"] == "input"]
        return {name: self.program.constants[name] for name in given}


def random_state() -> dict[str, Tensor]:
    """The present state of torch's generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for i, each in enumerate(torch.cuda.get_rng_state_all()):
            state[f"cuda:{i}"] = each
    return state


def keep_step(path: Path, program: Program, *, step: int, state: RandomState) -> None:
    """Write a step to a file; `numgeom diagnose FILE` and `load_kept` read it."""
    program.save(path, step=step, random_state=dict(state))


def load_kept(path: str | Path, *, allow: Collection[str] = ()) -> KeptStep:
    """Read a step that a monitor kept.

    Args:
        path: The file.
        allow: Names of further ops that it may call, as for `Program.load`.

    Raises:
        FileFormatError: The file is no program file, or no monitor wrote it.
    """
    saved = load_saved(Path(path), allow)
    step, state = saved.more.get("step"), saved.more.get("random_state")
    if not (isinstance(state, dict) and all(isinstance(t, Tensor) for t in state.values())) or (
        type(step) is not int
    ):
        raise FileFormatError(f"{path}: a program, but not kept by a Monitor")
    return KeptStep(saved.program, step, state)
