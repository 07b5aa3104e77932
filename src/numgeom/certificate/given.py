"""Do gradients that come from elsewhere fit the recorded step?

From another kernel, machine or framework: a tensor in any format on any device, a NumPy array, or
any array that hands over its memory by DLPack (JAX, CuPy, TensorFlow). Their values are judged as
they are; nothing is rounded on the way.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from numgeom.certificate.result import CertificateError
from numgeom.visible import visible


@runtime_checkable
class _SharesMemory(Protocol):
    def __dlpack__(self, **options: Any) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


def fitting(computed: Mapping[str, Any], recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the given gradients as tensors, in the order of the recorded ones.

    Args:
        computed: By parameter name; None for a parameter without a gradient.
        recorded: The gradients of the recorded step.

    Raises:
        CertificateError: if they do not fit; names every problem at once.
    """
    if not isinstance(computed, Mapping):
        raise CertificateError(
            f"`computed` is of type {type(computed).__name__}. Give a mapping from the names of "
            f"the parameters to their gradients: {_some(recorded)}."
        )
    problems = [f"{name}: missing" for name in recorded if computed.get(name) is None]
    found: dict[str, Tensor] = {}
    for name, gradient in computed.items():
        if gradient is None:
            continue
        if name not in recorded:
            problems.append(f"{name}: the recorded step has no gradient of this name")
            continue
        tensor = _tensor(gradient)
        problem = tensor if isinstance(tensor, str) else _problem(tensor, recorded[name])
        if problem:
            problems.append(f"{name}: {problem}")
        elif isinstance(tensor, Tensor):
            found[name] = tensor
    if problems:
        raise CertificateError(
            "The gradients given as `computed` do not fit the recorded step: "
            + "; ".join(map(visible, problems))
            + f". Give one tensor per parameter, named as in the recorded step: {_some(recorded)}."
        )
    return {name: found[name] for name in recorded}


def _problem(gradient: Tensor, recorded: Tensor) -> str:
    """Why a gradient does not fit, "" if it does."""
    if gradient.shape != recorded.shape:
        return f"of shape {tuple(gradient.shape)}, but the parameter has {tuple(recorded.shape)}"
    if not (gradient.is_floating_point() or gradient.is_complex()):
        return f"of {gradient.dtype}, which is no floating-point format"
    if gradient.is_complex() != recorded.is_complex():
        return f"of {gradient.dtype}, but the recorded one is of {recorded.dtype}"
    return ""


def _tensor(gradient: Any) -> Tensor | str:
    """The gradient as a dense tensor of its own, or why it cannot be one."""
    if isinstance(gradient, Tensor):
        plain = gradient.detach()
        return plain.to_dense() if plain.layout is not torch.strided else plain
    kind = f"of type {type(gradient).__name__}"
    try:
        if isinstance(gradient, np.ndarray | np.generic):
            native = np.array(gradient, dtype=gradient.dtype.newbyteorder("="))
            return torch.from_numpy(native)
        if isinstance(gradient, _SharesMemory):
            return torch.from_dlpack(gradient).clone()
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        return f"{kind}, which torch cannot read ({str(error).partition(chr(10))[0]})"
    return f"{kind}, not a tensor or an array"


def _some(names: Mapping[str, Any]) -> str:
    shown = ", ".join(map(visible, list(names)[:4]))
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
