"""How far can you trust a gradient? Certified error bounds for PyTorch's autograd.

    certify          How wrong is this gradient?
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
    from numgeom.recording import Program, record, record_step

_HOMES = {
    "Certificate": "numgeom.certificate",
    "Guarantee": "numgeom.certificate",
    "Program": "numgeom.recording",
    "certify": "numgeom.certificate",
    "record": "numgeom.recording",
    "record_step": "numgeom.recording",
}

__all__ = [
    "Certificate",
    "Guarantee",
    "NumgeomError",
    "Program",
    "__version__",
    "certify",
    "record",
    "record_step",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
