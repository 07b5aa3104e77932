"""Which numbers of a reference may be fixed as they were computed, without being looked at again?

While a program is opened, a reference runs under a mode that records each of its calls. What it
decides by calls is judged like every other decision of the program, and what it reads into Python
is a decision that the opened program keeps. A number that is computed past the mode becomes a
constant whose origin nobody can see. That is right where the result does not depend on it over the
reals, like the shift of a softmax or the order of the rows by which a system is solved. Such
numbers are computed in a block of `free` and declared by `declared`; what arrives from outside of
the mode without that is taken for undecided.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils.weak import WeakTensorKeyDictionary

from numgeom.recording.reads import unheard

_declared: Any = WeakTensorKeyDictionary()


@contextmanager
def free() -> Iterator[None]:
    """Compute without being recorded. Say in a comment why the result does not depend on it."""
    with _disable_current_modes(), unheard():
        yield


def declared(x: Tensor) -> Tensor:
    """Declare that what leaves the reference is the same for every value that this may have."""
    _declared[x] = True
    return x


def is_declared(x: Tensor) -> bool:
    """Whether a tensor was declared to be free."""
    return x in _declared


def is_recorded() -> bool:
    """Whether calls are recorded, so that a decision put into calls will be judged."""
    return bool(_get_current_dispatch_mode_stack())


def unless(wrong: Tensor, x: Tensor) -> Tensor:
    """x, where a decision on which x rests is right; no number where it is not.

    Args:
        wrong: True where the decision is another one; its shape broadcasts to that of x.
        x: What follows from the decision.
    """
    return torch.where(wrong, torch.inf if x.is_floating_point() else -1, x)
