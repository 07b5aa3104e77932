"""How large are the errors of which some samples are at hand?"""

import math

import numpy as np
import torch
from torch import Tensor

NOTHING = 1e-60  # S of entries that no sample reaches
LARGEST = 1e150
_DRAWN = 3.0  # by how much at most a size is drawn towards that of its row
_LOOKED_AT = 512  # entries of a node, for the floor of its sizes


def sizes_of(samples: Tensor) -> Tensor:
    """Root mean squares, drawn towards that of a row where few samples happen to be small.

    Not by much: entries of a row may differ in size for good.
    """
    square = samples[0].square()
    for sample in samples[1:]:
        square.addcmul_(sample, sample)
    if square.dim():
        row = square.mean(-1, keepdim=True)
        square.add_(torch.minimum(row, square * _DRAWN**2)).mul_(0.5)
    return square.mul_(3 / len(samples)).sqrt_()  # a uniform number has the variance 1/3


def floored(e: Tensor) -> Tensor:
    """Sizes, none below the rms of the smallest quarter of the nonzero ones; 0 becomes `NOTHING`.

    The smallest are looked for among some hundred entries.
    """
    if e.numel() == 0:
        return e
    flat = e.reshape(-1)
    few = flat[:: max(1, flat.numel() // _LOOKED_AT)].cpu().numpy()
    least = np.sort(few[few > 0])  # NaN is not, and infinity comes last
    least = least[: max(1, len(least) // 4)]
    if not float(e.sum()) < LARGEST:
        e = torch.nan_to_num_(e, posinf=LARGEST).clamp_(max=LARGEST)
        least = np.minimum(least, LARGEST)
    floor = math.sqrt(float(least @ least) / len(least)) if len(least) > 1 else 0.0
    floor = max(floor, NOTHING)
    if bool(e.amin() > 0):
        return e.clamp_(min=floor)
    return torch.where(e > 0, e.clamp(min=floor), NOTHING)
