"""How is a batch converted to another floating format, whatever it is made of?"""

import copy
import dataclasses
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor


def convert_floating(batch: Any, dtype: torch.dtype) -> Any:
    """Convert every floating tensor of a batch, however nested, to one format.

    Looks into tuples, lists, mappings and dataclasses, which come back as new objects of the same
    type. Every other object, and every tensor of integers or booleans, comes back as it is. A
    converted tensor is a new leaf; it requires a gradient if the given one did.

    Args:
        batch: Anything.
        dtype: The floating format.

    Returns:
        The converted batch.
    """
    if isinstance(batch, Tensor):
        if not batch.is_floating_point() or batch.dtype == dtype:
            return batch
        return batch.detach().to(dtype).requires_grad_(batch.requires_grad)
    if isinstance(batch, tuple | list):
        items = [convert_floating(item, dtype) for item in batch]
        # A named tuple takes its fields one by one, any other sequence takes one iterable.
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, MutableMapping):
        mapping = copy.copy(batch)
        for key, value in batch.items():
            mapping[key] = convert_floating(value, dtype)
        return mapping
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        converted = copy.copy(batch)
        for field in dataclasses.fields(batch):
            # Past the setter of a frozen dataclass: nobody has seen this copy yet.
            value = convert_floating(getattr(batch, field.name), dtype)
            object.__setattr__(converted, field.name, value)
        return converted
    return batch
