"""Which defects must a diagnosis find? Defective programs, each with its healthy twin."""

from reproductions.gallery.case import BRAIN, FORMATS, HALF, Case, Step, Weights, mlp
from reproductions.gallery.digits import DIGITS
from reproductions.gallery.gradients import GRADIENTS
from reproductions.gallery.runs import RUNS, SURROGATES, true_gradient
from reproductions.gallery.values import VALUES

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
