"""What does a backward pass do where a network is not differentiable, and does it matter?

`select` replaces the derivatives that torch takes at kinks, in code as it is; `zones` says whether
the choice changes a gradient over the reals or only by rounding; `hull` bounds all gradients that
choices can give; `audit` compares torch's choices with its documented rule; `survey` does the three
at once; `estimate_volume` asks how often initialisations are affected. Everything follows Boustany
(2024), "On the numerical reliability of nonsmooth autodiff: a MaxPool case study".
"""

from numgeom.nonsmooth.audit import AuditedOp, audit, audit_of
from numgeom.nonsmooth.backward import FrozenStep
from numgeom.nonsmooth.choices import (
    AbstractChoice,
    AllOnes,
    Custom,
    First,
    Hybrid,
    Last,
    Minimal,
    Native,
    Random,
    Uniform,
)
from numgeom.nonsmooth.hull import Hull, HullError, hull, hull_of
from numgeom.nonsmooth.margins import (
    MarginError,
    clopper_pearson,
    hoeffding_margin,
    hoeffding_sample_size,
    mcdiarmid_margin,
    mcdiarmid_sample_size,
)
from numgeom.nonsmooth.selection import Applied, Selection, select
from numgeom.nonsmooth.survey import Survey, survey, survey_of
from numgeom.nonsmooth.thresholds import Threshold, tau1, tau1_emulated, tau2, tau_curve
from numgeom.nonsmooth.variation import (
    Norms,
    Variation,
    VariationError,
    backprop,
    backprop_variation,
    compare_gradients,
)
from numgeom.nonsmooth.volume import Sampling, Volume, VolumeError, estimate_volume
from numgeom.nonsmooth.zones import CONTRAST, NATIVE, Tie, Zones, zone_of_point, zones, zones_of
from numgeom.ops.selection import SelectionError

__all__ = [
    "CONTRAST",
    "NATIVE",
    "AbstractChoice",
    "AllOnes",
    "Applied",
    "AuditedOp",
    "Custom",
    "First",
    "FrozenStep",
    "Hull",
    "HullError",
    "Hybrid",
    "Last",
    "MarginError",
    "Minimal",
    "Native",
    "Norms",
    "Random",
    "Sampling",
    "Selection",
    "SelectionError",
    "Survey",
    "Threshold",
    "Tie",
    "Uniform",
    "Variation",
    "VariationError",
    "Volume",
    "VolumeError",
    "Zones",
    "audit",
    "audit_of",
    "backprop",
    "backprop_variation",
    "clopper_pearson",
    "compare_gradients",
    "estimate_volume",
    "hoeffding_margin",
    "hoeffding_sample_size",
    "hull",
    "hull_of",
    "mcdiarmid_margin",
    "mcdiarmid_sample_size",
    "select",
    "survey",
    "survey_of",
    "tau1",
    "tau1_emulated",
    "tau2",
    "tau_curve",
    "zone_of_point",
    "zones",
    "zones_of",
]
