"""How wrong is a gradient? Certificates: making, reading and writing them.

Notation: the *computed* gradient is what the user's run produced, the *reference* is the same
program replayed in float64, and the *exact* gradient is the program's over the real numbers.
"""

from numgeom.certificate.certify import certify
from numgeom.certificate.kinks import Kink, Unit
from numgeom.certificate.nonfinite import NonFinite
from numgeom.certificate.result import Certificate, CertificateError, ModuleAccuracy
from numgeom.certificate.sources import sources
from numgeom.certificate.verify import Verdict, Verification, verify
from numgeom.results.accuracy import GradientAccuracy
from numgeom.results.guarantee import Guarantee, weakest
from numgeom.results.source import Source

__all__ = [
    "Certificate",
    "CertificateError",
    "GradientAccuracy",
    "Guarantee",
    "Kink",
    "ModuleAccuracy",
    "NonFinite",
    "Source",
    "Unit",
    "Verdict",
    "Verification",
    "certify",
    "sources",
    "verify",
    "weakest",
]
