"""Which defects must a diagnosis find? Defective programs, each with its healthy twin."""

from numgeom.experiments.gallery.case import BRAIN, FORMATS, HALF, Case, Step, Weights, mlp
from numgeom.experiments.gallery.digits import DIGITS
from numgeom.experiments.gallery.gradients import GRADIENTS
from numgeom.experiments.gallery.runs import RUNS, SURROGATES, true_gradient
from numgeom.experiments.gallery.values import VALUES

CASES: tuple[Case, ...] = (*VALUES, *DIGITS, *GRADIENTS, *RUNS)

__all__ = [
    "BRAIN",
    "CASES",
    "FORMATS",
    "HALF",
    "SURROGATES",
    "Case",
    "Step",
    "Weights",
    "mlp",
    "true_gradient",
]
