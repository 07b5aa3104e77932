"""Error functionals Phi(eps) = L eps + Delta: bounds by composition along the graph.

`track` watches a training step and gives a functional per module, per gradient and for the whole.
"""

from numgeom.functionals.functional import ErrorFunctional, FunctionalError
from numgeom.functionals.result import GradientFunctional, ModuleFunctionals, TrackingResult
from numgeom.functionals.tracking import Tracking, track
from numgeom.functionals.walk import Local, Walk, walk

__all__ = [
    "ErrorFunctional",
    "FunctionalError",
    "GradientFunctional",
    "Local",
    "ModuleFunctionals",
    "Tracking",
    "TrackingResult",
    "Walk",
    "track",
    "walk",
]
