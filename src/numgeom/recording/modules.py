"""Which modules, parameters and buffers does a model have, and under which names?

The same names in the same order as `named_modules`, `named_parameters` and `named_buffers` give,
in one walk: a recording asks when it begins and when it ends, and a step takes milliseconds.
"""

from typing import NamedTuple

from torch import Tensor, nn


class Named(NamedTuple):
    """What a model holds, by name; what is shared has its first name."""

    modules: dict[str, nn.Module]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]


def named(model: nn.Module) -> Named:
    """Everything that a model holds at this moment."""
    found = Named({}, {}, {})
    seen: set[int] = set()
    seen_parameters: set[int] = set()
    seen_buffers: set[int] = set()

    def visit(module: nn.Module, path: str) -> None:
        seen.add(id(module))
        found.modules[path] = module
        prefix = f"{path}." if path else ""
        parameters, buffers = module._parameters, module._buffers
        for name, tensor in parameters.items() if parameters else ():
            if tensor is not None and id(tensor) not in seen_parameters:
                seen_parameters.add(id(tensor))
                found.parameters[prefix + name] = tensor
        for name, tensor in buffers.items() if buffers else ():
            if tensor is not None and id(tensor) not in seen_buffers:
                seen_buffers.add(id(tensor))
                found.buffers[prefix + name] = tensor
        for name, child in module._modules.items():
            if child is not None and id(child) not in seen:
                visit(child, prefix + name)

    visit(model, "")
    return found
