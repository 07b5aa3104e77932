"""What does a backward pass do where a network is not differentiable, and does it matter?

`select` replaces the derivatives that torch takes at kinks, in code as it is; `zones` says whether
the choice changes a gradient over the reals or only by rounding. Everything follows Boustany
(2024), "On the numerical reliability of nonsmooth autodiff: a MaxPool case study".
"""

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
from numgeom.nonsmooth.margins import (
    MarginError,
    clopper_pearson,
    hoeffding_margin,
    hoeffding_sample_size,
    mcdiarmid_margin,
    mcdiarmid_sample_size,
)
from numgeom.nonsmooth.selection import Applied, Selection, select
from numgeom.nonsmooth.variation import (
    Norms,
    Variation,
    backprop,
    backprop_variation,
    compare_gradients,
)
from numgeom.nonsmooth.zones import CONTRAST, NATIVE, Tie, Zones, zone_of_point, zones, zones_of
from numgeom.ops.selection import SelectionError

__all__ = [
    "CONTRAST",
    "NATIVE",
    "AbstractChoice",
    "AllOnes",
    "Applied",
    "Custom",
    "First",
    "FrozenStep",
    "Hybrid",
    "Last",
    "MarginError",
    "Minimal",
    "Native",
    "Norms",
    "Random",
    "Selection",
    "SelectionError",
    "Tie",
    "Uniform",
    "Variation",
    "Zones",
    "backprop",
    "backprop_variation",
    "clopper_pearson",
    "compare_gradients",
    "hoeffding_margin",
    "hoeffding_sample_size",
    "mcdiarmid_margin",
    "mcdiarmid_sample_size",
    "select",
    "zone_of_point",
    "zones",
    "zones_of",
]
