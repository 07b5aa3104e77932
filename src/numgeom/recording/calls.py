"""Where does one executed operation come from?"""

from typing import Any, Literal, NamedTuple

Phase = Literal["forward", "backward", "update"]


class CallInfo(NamedTuple):
    """The origin of one executed operation.

    Attributes:
        phase: "forward"; "backward" while the autograd engine runs (recomputation
            by activation checkpointing included); "update" for what runs after a
            backward pass without gradients, such as an optimizer's step.
        module: Path of the module whose forward ran the operation, or, in the
            backward phase, whose forward operation is being differentiated.
            "" is the model itself or code outside of every module.
        source: "file.py:line" of the user's line. In the backward phase the line of
            the forward operation that is being differentiated.
    """

    phase: Phase
    module: str
    source: str


class TensorMeta(NamedTuple):
    """Shape, strides, dtype and device that a value had when it was recorded."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: Any
    device: Any
