"""Workloads as certificates see them: recorded, and opened until core ATen is left."""

import torch

from numgeom.recording import Program, record
from tests.recording.workloads import build


def opened_workload(name: str) -> Program:
    """One training step of a named workload, always with the same random draws."""
    model, step = build(name)
    torch.manual_seed(1)
    with record(model) as recording:
        step()
    return recording.program.decompose()
