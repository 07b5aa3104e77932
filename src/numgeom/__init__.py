"""How far can you trust a gradient? Certified error bounds for PyTorch's autograd.

    certify          How wrong is this gradient?
    diagnose         What is numerically wrong with this step, where, and what cures it?
    estimate         How large will the error be, in these or other formats, and from where?
    plan_precision   Which layers may run in a cheaper format?
    Monitor          Watch the steps of a training run.
    track            Error functionals of your own step: per module, per gradient, as a whole.
    record           Record your own training step; `record_step` runs one for you.
    Program          A recorded step: replay it in float64, open it, save it.
    Certificate      What `certify` says; `Guarantee` how far it can be relied on.
    NumgeomError     Base of all errors that the package raises.

Names are loaded when they are first used; importing the package changes nothing.
"""

from typing import TYPE_CHECKING

from numgeom.errors import NumgeomError
from numgeom.version import __version__

if TYPE_CHECKING:
    from numgeom.certificate import Certificate, Guarantee, certify
    from numgeom.diagnosis import Diagnosis, Monitor, diagnose
    from numgeom.functionals import ErrorFunctional, Tracking, track
    from numgeom.precision import Estimate, PrecisionPlan, estimate, plan_precision
    from numgeom.recording import Program, record, record_step

_HOMES = {
    "Certificate": "numgeom.certificate",
    "Diagnosis": "numgeom.diagnosis",
    "ErrorFunctional": "numgeom.functionals",
    "Estimate": "numgeom.precision",
    "Guarantee": "numgeom.certificate",
    "Monitor": "numgeom.diagnosis",
    "PrecisionPlan": "numgeom.precision",
    "Program": "numgeom.recording",
    "Tracking": "numgeom.functionals",
    "certify": "numgeom.certificate",
    "diagnose": "numgeom.diagnosis",
    "estimate": "numgeom.precision",
    "plan_precision": "numgeom.precision",
    "record": "numgeom.recording",
    "record_step": "numgeom.recording",
    "track": "numgeom.functionals",
}

__all__ = [
    "Certificate",
    "Diagnosis",
    "ErrorFunctional",
    "Estimate",
    "Guarantee",
    "Monitor",
    "NumgeomError",
    "PrecisionPlan",
    "Program",
    "Tracking",
    "__version__",
    "certify",
    "diagnose",
    "estimate",
    "plan_precision",
    "record",
    "record_step",
    "track",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
