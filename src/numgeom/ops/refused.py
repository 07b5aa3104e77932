"""Which ops are known and have no sound rule, and why?

A refused op has no entry, so a lookup finds nothing: the guarantee is NONE, the calls are counted
and named. Nothing is guessed. What is refused while recording raises an error there.
"""

from collections.abc import Mapping
from types import MappingProxyType

_ITERATED = "computed by iteration; its vectors are fixed only up to sign or rotation"
_SPARSE = "sparse tensors cannot be recorded; use dense ones (for embeddings: sparse=False)"
_IMPLICIT = "torch's kernel is an approximation whose error nobody bounds"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "_linalg_eigh": _ITERATED,
        "_linalg_eigvals": _ITERATED,
        "linalg_eig": _ITERATED,
        "_linalg_svd": _ITERATED,
        "linalg_matrix_exp": "computed by truncated series",
        "linalg_pinv": "the rank is decided by a threshold",
        "linalg_lstsq": "the rank is decided by a threshold",
        "_standard_gamma_grad": _IMPLICIT,
        "_dirichlet_grad": _IMPLICIT,
        "polygamma": "its accuracy has not been measured",
        "_ctc_loss": "the shape of its result depends on values, so it cannot be recorded",
        "_values": _SPARSE,
        "_indices": _SPARSE,
        "_coalesce": _SPARSE,
        "sparse_mask": _SPARSE,
        "_sparse_coo_tensor_with_dims_and_tensors": _SPARSE,
    }
)
"""Functional names, with the reason."""
