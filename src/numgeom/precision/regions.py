"""How is a model run with a format of its own for each module?

Hooks open an autocast region around a module's forward and close it afterwards. Autocast casts
operands, never parameters; the backward pass follows the formats of the forward pass. A module's
inputs and results are float32 outside of it, so that neighbours in other formats fit together.
Formats that autocast does not run are emulated: operands of contractions are rounded, forward and
backward (`numgeom.precision.rounded_operands`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from numgeom.arithmetic.formats import Format, format_named
from numgeom.precision.errors import PrecisionError
from numgeom.precision.operations import has_kernels
from numgeom.precision.rounded_operands import RoundedOperands

RUNNABLE = ("float32", "tf32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
"""Formats that a module can be run in; those that autocast does not know are emulated."""


@contextmanager
def formats_applied(model: nn.Module, formats: Mapping[str, str]) -> Iterator[None]:
    """Run modules in their formats inside the block; parameters are not touched.

    A module that is not named runs in the format of the module that calls it. Hooks are removed
    when the block ends. Backward passes may run inside the block or after it.

    Args:
        model: The model.
        formats: Format name by module path; "" is the model itself.

    Raises:
        PrecisionError: for paths that the model does not have, and formats that autocast does not
            run; all at once.
    """
    modules = dict(model.named_modules())
    wrong = [f"no module {path!r}" for path in formats if path not in modules]
    wrong += [
        f"{path or 'the model'}: {name!r} is none of {', '.join(RUNNABLE)}"
        for path, name in formats.items()
        if name not in RUNNABLE
    ]
    if wrong:
        raise PrecisionError(f"The plan does not fit the model: {'; '.join(wrong)}.")
    open_regions: list[torch.autocast] = []
    emulated: list[Format | None] = []
    handles: list[Any] = []
    narrow = {name: format_named(name) for name in formats.values() if name != "float32"}
    needed = any(not has_kernels(fmt) for fmt in narrow.values())
    mode = RoundedOperands(emulated) if needed else nullcontext()
    try:
        for path, name in formats.items():
            enter, leave = _region(name, open_regions, emulated)
            handles.append(modules[path].register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(
                modules[path].register_forward_hook(leave, with_kwargs=True, always_call=True)
            )
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()
        while open_regions:
            open_regions.pop().__exit__(None, None, None)


def _region(
    name: str, open_regions: list[torch.autocast], emulated: list[Format | None]
) -> tuple[Callable[..., Any], ...]:
    fmt = format_named(name)
    low = has_kernels(fmt)

    def enter(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        device = next((t.device.type for t in _tensors(module, args, kwargs)), "cpu")
        region = (
            torch.autocast(device, dtype=fmt.dtype)
            if low
            else torch.autocast(device, enabled=False)
        )
        region.__enter__()
        open_regions.append(region)
        emulated.append(None if low or name == "float32" else fmt)
        return _widened(args), _widened(kwargs)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        del module, args, kwargs
        if open_regions:
            open_regions.pop().__exit__(None, None, None)
            emulated.pop()
        return _widened(output)

    return enter, leave


def _tensors(module: nn.Module, args: Any, kwargs: Any) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
    yield from module.parameters()


def _widened(value: Any) -> Any:
    """Cast tensors in 16-bit formats to float32, in (nested) arguments and results."""
    if isinstance(value, Tensor):
        narrow = value.dtype in (torch.bfloat16, torch.float16)
        return value.to(torch.float32) if narrow else value
    if isinstance(value, dict):  # results of transformers are dictionaries of a class of their own
        narrow_items = {k: w for k, v in value.items() if (w := _widened(v)) is not v}
        if not narrow_items:
            return value
        if type(value) is dict:
            return {**value, **narrow_items}
        for key, item in narrow_items.items():
            value[key] = item
        return value
    if isinstance(value, tuple):
        parts = [_widened(v) for v in value]
        if all(a is b for a, b in zip(parts, value, strict=True)):
            return value
        return tuple(parts) if type(value) is tuple else type(value)(*parts)  # a named tuple
    if isinstance(value, list):
        return [_widened(v) for v in value]
    return value
