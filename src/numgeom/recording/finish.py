"""What has a recorded step left behind, and how does it become a program?"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from numgeom.errors import RecordingError
from numgeom.recording.build import build_program, circumstances
from numgeom.recording.decisions import row_of
from numgeom.recording.log import Log
from numgeom.recording.modules import Named
from numgeom.recording.problems import describe
from numgeom.recording.program import Program, Replay
from numgeom.recording.recorder import Recorder
from numgeom.recording.seen import Seen
from numgeom.recording.values import Constant

_Kept = tuple[Seen, torch.Tensor]  # where a result of the step lay, and a copy


def names_of(held: Named) -> dict[int, tuple[str, str]]:
    """Role and name of everything that a model holds, by `id`."""
    names = {id(b): ("buffer", name) for name, b in held.buffers.items()}
    names |= {id(p): ("parameter", name) for name, p in held.parameters.items()}
    return names


def covers(held: Named, log: Log) -> bool:
    """Whether all tensors that collect gradients are parameters that were known at first."""
    known = {id(parameter) for parameter in held.parameters.values()}
    return known.issuperset(log.leaves)


def finish(log: Log, held: Named | None, roots: list[nn.Module]) -> Callable[[], Program]:
    """Check a recording and copy its results; what is returned builds the program."""
    if log.problems:
        raise RecordingError(describe(log.problems.values()))
    if not log.ran_backward:
        raise RecordingError(
            "no backward pass ran inside the recording; call loss.backward() before the block "
            "ends (torch.autograd.grad alone leaves no gradient on the parameters)"
        )
    parameters = _parameters(log, held, roots)
    touched: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        grad = parameter.grad
        if grad is None:
            continue
        if grad.layout is not torch.strided:
            raise RecordingError(
                f"the gradient of {name} is a sparse tensor, which is not supported; make the "
                "embedding with sparse=False"
            )
        if log.memories.was_touched(grad):
            touched[name] = grad
    gradients = _kept(log, touched)
    updates = _kept(log, _written(log, parameters, held))
    labels = {} if held is not None else {id(p): name for name, p in parameters.items()}
    recorder = Recorder(log, labels)
    build = functools.partial(_build, recorder, log, gradients, updates, circumstances())
    if log.memories.uncertain or not gradients:  # what may fail fails when the block ends
        program = build()
        return lambda: program
    return build


def _build(
    recorder: Recorder,
    log: Log,
    gradients: dict[str, _Kept],
    updates: dict[str, _Kept],
    attributes: dict[str, Any],
) -> Program:
    """Make the program of a step that has ended.

    Raises:
        RecordingError: it has none.
    """
    recorder.play()
    values = {name: recorder.read(seen) for name, (seen, _) in gradients.items()}
    values = {n: v for n, v in values.items() if not isinstance(v.origin, Constant)}
    if not values:
        raise RecordingError(
            "the backward pass left no gradient on any parameter; is the loss connected to "
            "the parameters, and does the recording know the model?"
        )
    outputs: dict[str, Any] = {
        "gradients": values,
        "loss": recorder.loss,
        "updates": {name: recorder.read(seen) for name, (seen, _) in updates.items()},
    }
    if recorder.decisions:
        outputs["decisions"] = tuple(map(row_of, recorder.decisions))
    recorded = Replay(
        {name: gradients[name][1] for name in values},
        log.loss_tensor,
        {name: tensor for name, (_, tensor) in updates.items()},
    )
    return build_program(recorder.entries, outputs, recorded, **attributes)


def _parameters(log: Log, held: Named | None, roots: list[nn.Module]) -> dict[str, torch.Tensor]:
    """All parameters by name; without a model, every tensor that collects a gradient."""
    if held is not None:
        return {n: p for n, p in held.parameters.items() if p.requires_grad}
    labels: dict[int, str] = {}
    several = len(roots) > 1
    for root in roots:
        for name, parameter in root.named_parameters():
            label = f"{type(root).__name__}.{name}" if several else name
            if label in labels.values():
                label = f"{label}_{len(labels)}"
            labels.setdefault(id(parameter), label)
    order = {key: i for i, key in enumerate(labels)}
    leaves = sorted(log.leaves.values(), key=lambda t: order.get(id(t), len(order)))
    found: dict[str, torch.Tensor] = {}
    for i, leaf in enumerate(leaves):
        found[labels.get(id(leaf), f"leaf_{i}")] = leaf
    return found


def _written(
    log: Log, parameters: dict[str, torch.Tensor], held: Named | None
) -> dict[str, torch.Tensor]:
    """Parameters and buffers that the step gave new values."""
    tensors = dict(parameters)
    if held is not None:
        tensors |= held.buffers
    return {name: t for name, t in tensors.items() if log.memories.was_written(t)}


def _kept(log: Log, tensors: dict[str, torch.Tensor]) -> dict[str, _Kept]:
    copies = map(log.copy, tensors.values())
    looks = (log.memories.look(tensor) for tensor in tensors.values())
    return dict(zip(tensors, zip(looks, copies, strict=True), strict=True))
