"""Which switches of torch change the bits of a result, and how were they set?

A replay in the recorded formats runs under the recorded switches, so that it takes the
same kernels; afterwards the user's switches are as they were.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def _attribute(owner: object, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


def _set_deterministic(mode: int) -> None:
    torch.set_deterministic_debug_mode(mode)


def _mkldnn_enabled() -> tuple[Callable[[], Any], Callable[[Any], None]]:
    # torch.backends.mkldnn freezes its flags; only the setters of torch._C remain.
    return torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled


# Each switch changes which kernel runs or how a kernel accumulates.
_SWITCHES: Mapping[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "num_threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic": (torch.get_deterministic_debug_mode, _set_deterministic),
    "mkldnn": _mkldnn_enabled(),
    "cudnn": _attribute(torch.backends.cudnn, "enabled"),
    "cudnn_deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "cudnn_benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "cuda_matmul_tf32": _attribute(torch.backends.cuda.matmul, "allow_tf32"),
    "cudnn_tf32": _attribute(torch.backends.cudnn, "allow_tf32"),
    "fp16_reduction": _attribute(
        torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"
    ),
    "bf16_reduction": _attribute(
        torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"
    ),
}


def current_switches() -> dict[str, Any]:
    """Return how each switch is set now; plain values that can be saved as JSON."""
    return {name: read() for name, (read, _) in _SWITCHES.items()}


@contextmanager
def switches(values: Mapping[str, Any]) -> Iterator[None]:
    """Set the named switches inside the block and restore them after it.

    Names that this version does not know, and values that it refuses, are passed over:
    switches decide bits, never meaning.
    """
    before: list[tuple[Callable[[Any], None], Any]] = []
    try:
        for name, value in values.items():
            if name not in _SWITCHES:
                continue
            read, write = _SWITCHES[name]
            old = read()
            if old == value or (isinstance(old, tuple) and list(old) == value):
                continue
            before.append((write, old))
            write(value)
        yield
    finally:
        for write, old in reversed(before):
            write(old)


@contextmanager
def plain_evaluation(default_dtype: torch.dtype) -> Iterator[None]:
    """Evaluate without autocast, new floating tensors in `default_dtype`.

    Gradient mode is on, as it was when the step ran: some kernels (recurrent layers) ask for it.
    No graph is built, since no constant of a program requires a gradient. The default dtype
    matters: an integer tensor divided by a number becomes a tensor of the default dtype, which in
    a float64 replay must be float64.
    """
    old = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        try:
            torch.set_default_dtype(default_dtype)
            yield
        finally:
            torch.set_default_dtype(old)
