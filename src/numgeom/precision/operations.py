"""Which ops and formats does mixed precision treat in a way of their own?"""

import torch

from numgeom.arithmetic.formats import Format

# Calls whose operands a low-precision unit takes in: matrix products, convolutions, attention.
CONTRACTIONS = frozenset({
    "mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "convolution", "convolution_backward",
    "_grouped_mm", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward",
})  # fmt: skip

# Run in float32 by autocast on CUDA, not on CPUs (torch.amp's documentation, "CUDA Ops that
# Autocast to float32"), and their backward ops.
WIDE_ON_CUDA = frozenset({
    "_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data",
    "native_layer_norm", "native_layer_norm_backward", "native_group_norm",
    "native_group_norm_backward", "nll_loss_forward", "nll_loss_backward", "exp", "log", "pow",
    "sum", "rsqrt", "softplus", "softplus_backward", "linalg_vector_norm", "cumsum", "prod",
})  # fmt: skip

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
