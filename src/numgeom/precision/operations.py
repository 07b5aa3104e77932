"""Which ops and formats does mixed precision treat in a way of their own?"""

import torch

from numgeom.arithmetic.formats import Format

# Work per operation relative to float32: peak rates of matrix products, dense (NVIDIA H100 SXM
# data sheet: 67, 494, 989, 989, 1979, 1979 Tflop/s).
COST = {
    "float32": 1.0,
    "tf32": 67 / 494,
    "bfloat16": 67 / 989,
    "float16": 67 / 989,
    "float8_e4m3fn": 67 / 1979,
    "float8_e5m2": 67 / 1979,
}


def has_kernels(fmt: Format) -> bool:
    """Whether autocast can run a format."""
    return fmt.dtype in (torch.bfloat16, torch.float16)
