"""What is numerically wrong with a training step? Diagnosis by comparison with the reference.

Notation: the *computed* values are those of the user's run, the *reference* is the same program in
float64, both taken side by side (`numgeom.semantics.lockstep`). Every detector has a file of its
own; it sees every call once and then says what it found.
"""

from numgeom.diagnosis.diagnose import DiagnosisError, diagnose, diagnose_program
from numgeom.diagnosis.kept import KeptStep, load_kept
from numgeom.diagnosis.monitor import FindingError, FindingWarning, Monitor, WatchedStep
from numgeom.diagnosis.result import Diagnosis, Finding, Kind, Severity

__all__ = [
    "Diagnosis",
    "DiagnosisError",
    "Finding",
    "FindingError",
    "FindingWarning",
    "KeptStep",
    "Kind",
    "Monitor",
    "Severity",
    "WatchedStep",
    "diagnose",
    "diagnose_program",
    "load_kept",
]
