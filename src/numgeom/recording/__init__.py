"""Recording a training step as a program, and running that program again.

`record`, `record_step` and `record_callable` turn a step into a `Program`; `Program.replay` runs
it in the recorded formats (bit-identical) or in float64 (the reference).
"""

from numgeom.recording.calls import CallInfo, TensorMeta
from numgeom.recording.decompose import decompose_anchored
from numgeom.recording.digest import digest, tensor_digest
from numgeom.recording.program import Program, Replay
from numgeom.recording.record import Recording, record, record_callable, record_step
from numgeom.recording.subject import MISSING, SubjectError, program_of

__all__ = [
    "MISSING",
    "CallInfo",
    "Program",
    "Recording",
    "Replay",
    "SubjectError",
    "TensorMeta",
    "decompose_anchored",
    "digest",
    "program_of",
    "record",
    "record_callable",
    "record_step",
    "tensor_digest",
]
