"""How does a command get the training step that it was asked about?"""

import copy
import dataclasses
import random
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from numgeom.cli.options import Device, Dtype
from numgeom.errors import NumgeomError

if TYPE_CHECKING:
    from numgeom.targets import TrainingStep


def loaded(
    target: str,
    dtype: Dtype | None,
    seed: int,
    epochs: int,
    device: Device,
    advance: Callable[[str, int, int], None],
) -> "TrainingStep":
    """Load a target, train it if asked for, move it, and seed what the step itself draws."""
    import numpy as np
    import torch

    from numgeom.examples import EpochReport
    from numgeom.targets import load_target

    check_device(device)

    def trained(epoch: EpochReport) -> None:
        advance("training", epoch.epoch, epoch.epochs)

    advance(f"loading {target}", 0, 0)
    chosen = None if dtype is None else getattr(torch, dtype.value)
    step = load_target(target, seed=seed, epochs=epochs, dtype=chosen, progress=trained)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if device is Device.CPU:
        return step
    moved = _moved(step.batch, torch.device(device.value))
    return dataclasses.replace(step, model=step.model.to(device.value), batch=moved)


def check_device(device: Device) -> None:
    """Raise NumgeomError, with what to do, if this torch cannot use the device."""
    import torch

    if device is Device.CUDA and not torch.cuda.is_available():
        raise NumgeomError(
            "There is no CUDA device that this torch can use. Leave --device away to run on the "
            "CPU, or install a torch built for your GPU."
        )


def provenance(step: "TrainingStep", *, seed: int, epochs: int, device: Device) -> dict[str, str]:
    """Say what a result was computed from: target, seed, device, and an example's data."""
    from numgeom.examples import EXAMPLES

    facts = {"target": step.name, "seed": str(seed), "device": device.value}
    example = EXAMPLES.get(step.name.removeprefix("example:"))
    if example is not None:
        stamp = example.load_data().stamp
        facts |= {"epochs": str(epochs), "data": f"{stamp.source}, sha256 {stamp.sha256[:12]}"}
    return facts


def _moved(batch: Any, device: Any) -> Any:
    """Move the tensors of a batch made of tuples, lists and mappings."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, tuple) and type(batch) is not tuple:  # a named tuple takes its fields
        return type(batch)(*(_moved(item, device) for item in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_moved(item, device) for item in batch)
    if isinstance(batch, MutableMapping):
        moved = copy.copy(batch)  # of the same type: its items may be read as attributes
        for key, value in batch.items():
            moved[key] = _moved(value, device)
        return moved
    return batch
