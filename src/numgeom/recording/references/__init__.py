"""What does each fused, opaque ATen op compute, in plain ATen?

Some kernels exist in a few formats only (attention in half precision, oneDNN's LSTM in float32),
keep state that their schema does not show (batch norm's running statistics), or hide many steps
behind one name (an optimizer). A replay in another format, and a look inside the op, need the
function itself. `REFERENCES` gives it: one entry per op, in a table that is written out here.
"""

from numgeom.recording.references import (
    bags,
    cells,
    ctc,
    distances,
    foreach,
    linear_systems,
    margins,
    matmul,
    normalization,
    optimizer,
    packed_attention,
    recurrent_ops,
    sampling,
    sdpa,
)
from numgeom.recording.references.entry import Definition, Reference, overload, resolve

DEFINITIONS: tuple[Definition, ...] = (
    *sdpa.DEFINITIONS,
    *packed_attention.DEFINITIONS,
    *cells.DEFINITIONS,
    *recurrent_ops.DEFINITIONS,
    *normalization.DEFINITIONS,
    *matmul.DEFINITIONS,
    *foreach.DEFINITIONS,
    *optimizer.DEFINITIONS,
    *bags.DEFINITIONS,
    *margins.DEFINITIONS,
    *distances.DEFINITIONS,
    *sampling.DEFINITIONS,
    *ctc.DEFINITIONS,
    *linear_systems.DEFINITIONS,
)

REFERENCES = resolve(DEFINITIONS)
"""The references of the ops that the installed torch has."""

__all__ = ["DEFINITIONS", "REFERENCES", "Definition", "Reference", "overload"]
