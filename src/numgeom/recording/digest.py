"""Are two programs the same step, bit for bit?"""

import hashlib
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.recording.program import Program


def digest(program: Program) -> str:
    """SHA-256 of a program: its calls, its constants, and the gradients that it recorded.

    Where the calls come from (lines, modules) does not count, and neither do the versions of the
    packages.

    Returns:
        64 hexadecimal digits.
    """
    found = hashlib.sha256()
    place: dict[fx.Node, int] = {}

    def written(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return f"%{place[value]}"
        if isinstance(value, (list, tuple)):
            return [written(item) for item in value]
        if isinstance(value, dict):
            return {key: written(item) for key, item in value.items()}
        return repr(value)

    for node in program.graph.nodes:
        place[node] = len(place)
        target = node.op if node.op == "output" else str(node.target)
        found.update(repr((node.op, target, written(node.args), written(node.kwargs))).encode())
        if node.op == "get_attr":
            found.update(repr((node.meta["role"], node.meta["name"])).encode())
            _add(found, program.constants[str(node.target)])
    for name, gradient in program.recorded.gradients.items():
        found.update(name.encode())
        _add(found, gradient)
    found.update(repr((sorted(program.switches.items()), str(program.default_dtype))).encode())
    return found.hexdigest()


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, formats, shapes and bits."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        _add(found, tensor)
    return found.hexdigest()


def _add(found: Any, tensor: Tensor) -> None:
    plain = tensor.detach().cpu().contiguous()
    found.update(repr((str(plain.dtype), tuple(plain.shape))).encode())
    if plain.is_sparse or plain.layout is not torch.strided:
        plain = plain.to_dense()
    found.update(bytes_of(plain))


def bytes_of(tensor: Tensor) -> bytes:
    """The entries of a strided tensor in order, as bytes, whatever its memory looks like."""
    # A tensor of one entry counts as contiguous with any stride, and bytes need a stride of 1.
    line = torch.empty(tensor.numel(), dtype=tensor.dtype)
    line.copy_(tensor.detach().resolve_conj().reshape(-1))
    return line.view(torch.uint8).numpy().tobytes()
