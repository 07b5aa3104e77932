"""How large will the error be, where does it come from, and which precision does each layer need?

`estimate` predicts the rounding error of a gradient by noisy replays; its `sources()` say which
operations make it. `plan_precision` chooses a format for every module, `recommend_loss_scale` a
factor for the loss, `bits_needed` the smallest mantissa of every part. Everything here is
ESTIMATED: a prediction, never a bound.
"""

from numgeom.precision.bits import BitsNeeded, bits_needed
from numgeom.precision.errors import PrecisionError
from numgeom.precision.estimate import Estimate, GradientEstimate, estimate
from numgeom.precision.loss_scale import LossScale, recommend_loss_scale
from numgeom.precision.plan import PrecisionPlan, Verification, plan_precision
from numgeom.precision.sources import Cause, ErrorSource, Sources

__all__ = [
    "BitsNeeded",
    "Cause",
    "ErrorSource",
    "Estimate",
    "GradientEstimate",
    "LossScale",
    "PrecisionError",
    "PrecisionPlan",
    "Sources",
    "Verification",
    "bits_needed",
    "estimate",
    "plan_precision",
    "recommend_loss_scale",
]
