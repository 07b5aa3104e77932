"""How does the choice of an entry pass small changes on? The chosen one's go through."""

from typing import Any

import torch
from torch import Tensor

from numgeom.ops.balls import is_decision
from numgeom.ops.entry import Evaluation
from numgeom.ops.reduction import reduced_dims
from numgeom.ops.tangents import Moved, NoTangentRuleError, Pushed, require_known, still


def chosen_tangent(call: Evaluation, moved: Moved) -> Any:
    """The tangents of the entries that were chosen; of several equal ones, of the first."""
    require_known(call, moved, 0)
    x = call.args[0]
    outputs = call.y if isinstance(call.y, (tuple, list)) else (call.y,)
    if 0 not in moved or is_decision(outputs[0]):
        return still(call, moved)
    lanes = moved[0].lanes
    if x.dim() == 0:
        found = [None if is_decision(y) else Pushed(lanes) for y in outputs]
        return tuple(found) if isinstance(call.y, (tuple, list)) else found[0]
    if call.name == "aminmax":
        dim = call.kwargs.get("dim")
        dims = tuple(range(x.dim())) if dim is None else (dim % x.dim(),)
        return tuple(
            Pushed(_at_extreme(lanes, x, dims, y, largest=i == 1), fresh=True)
            for i, y in enumerate(outputs)
        )
    if not isinstance(call.y, (tuple, list)):
        if call.name in ("median", "nanmedian"):
            flat = torch.argsort(x.reshape(-1), stable=True)
            count = x.numel() if call.name == "median" else int((~torch.isnan(x)).sum())
            return Pushed(lanes.flatten(1)[:, flat[(count - 1) // 2]].reshape(-1))
        if len(call.args) > 1 and isinstance(call.args[1], Tensor):
            raise NoTangentRuleError(f"{call.name} of two tensors has no tangent rule.")
        dims = () if call.name in ("max", "min") else reduced_dims(call)[0]
        dims = dims or tuple(range(x.dim()))
        largest = call.name in ("amax", "max")
        return Pushed(_at_extreme(lanes, x, dims, call.y, largest=largest), fresh=True)
    value, index = call.y
    dim = _ranked_dim(call) % x.dim()
    places = index if index.dim() == x.dim() else index.unsqueeze(dim)
    chosen = torch.gather(lanes, dim + 1, places.expand(len(lanes), *places.shape))
    return Pushed(chosen.reshape(len(lanes), *value.shape), fresh=True), None


def _ranked_dim(call: Evaluation) -> int:
    """The dimension along which entries are compared; the position differs from op to op."""
    position = {"topk": 2, "kthvalue": 2}.get(call.name, 1)
    found = call.arg(position, "dim", -1)
    return -1 if isinstance(found, bool) else int(found)


def _at_extreme(
    lanes: Tensor, x: Tensor, dims: tuple[int, ...], y: Tensor, *, largest: bool
) -> Tensor:
    """The tangents of the first largest or smallest entry over some dimensions."""
    kept = [d for d in range(x.dim()) if d not in dims]
    rows = x.permute(*kept, *dims).reshape(*(x.shape[d] for d in kept), -1)
    place = (torch.argmax if largest else torch.argmin)(rows, -1, keepdim=True)
    order = (0, *(d + 1 for d in kept), *(d + 1 for d in dims))
    lines = lanes.permute(*order).reshape(len(lanes), *rows.shape)
    return torch.gather(lines, -1, place.expand(len(lanes), *place.shape)).reshape(-1, *y.shape)


def scattered_tangent(call: Evaluation, moved: Moved) -> Pushed:
    """The same for scatter_reduce(x, dim, index, src, "amax" or "amin")."""
    require_known(call, moved, 0, 3)
    x, dim, index, src = call.args[:4]
    y, none = call.y, src.numel()
    own = bool(call.arg(5, "include_self", True))
    part = tuple(slice(n) for n in index.shape)
    numbers = torch.arange(none, device=x.device).reshape(src.shape)[part]
    numbers = torch.where(src[part] == torch.gather(y, dim, index), numbers, none)
    base = torch.where((x == y) & own, -1, none)
    chosen = base.scatter_reduce(dim, index, numbers, "amin", include_self=True)
    kept = (chosen < 0) | (chosen == none)
    count = len(next(iter(moved.values())).lanes)
    lanes = torch.zeros(count, *y.shape, dtype=torch.float64, device=x.device)
    if 0 in moved:
        lanes = torch.where(kept, moved[0].lanes, lanes)
    if 3 in moved and none:
        places = torch.where(kept, 0, chosen)
        lanes = torch.where(kept, lanes, moved[3].lanes.flatten(1)[:, places])
    return Pushed(lanes, fresh=True)
