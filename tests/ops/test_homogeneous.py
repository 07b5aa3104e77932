"""Second-order bounds shrink with the square of the radius, as the curvature of a program needs.

The Newton-Kantorovich certificate takes Q at the largest radius and concludes
|R(e)| <= Q (|e| / r)^2 for every smaller error e. That holds if Q(t r) <= t^2 Q(r).
"""

import dataclasses
from typing import Any

import pytest
import torch

from numgeom.ops.entry import Op
from numgeom.ops.table import OPS
from tests.ops.laws import as_bounds, as_masks, trials

CURVED = [op for op in OPS if op.examples]


def _scaled(radii: Any, factor: float) -> Any:
    if isinstance(radii, dict):
        return {key: _scaled(value, factor) for key, value in radii.items()}
    if isinstance(radii, list):
        return [_scaled(value, factor) for value in radii]
    return None if radii is None else radii * factor


@pytest.mark.parametrize("op", CURVED, ids=lambda op: op.name)
def test_second_order_bounds_shrink_with_the_square(op: Op) -> None:
    for trial in trials(op, seed=3, scales=(1e-9, 1e-2), modes=("up",)):
        call = trial.call
        if op.second_order_of(call) is None:
            continue
        large = as_bounds(op.second_order_of(call), call.y)
        doubtful = as_masks(op.doubt_of(call), call.y)  # there the certificate gives up anyway
        for power in (1, 20):
            t = 2.0**-power  # scaling by it is exact
            small = dataclasses.replace(call, radii=_scaled(call.radii, t))
            second = as_bounds(op.second_order_of(small), call.y)
            for big, little, doubt in zip(large, second, doubtful, strict=True):
                ok = (little <= big * t * t * (1 + 1e-12) + 1e-300) | torch.isinf(big) | doubt
                assert bool(ok.all()), (op.name, t)
