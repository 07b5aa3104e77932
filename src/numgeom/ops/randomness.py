"""Which ops draw at random?

What they drew is a constant of the recorded program (theory: the exact value is that of the same
draws). So these entries serve programs that still hold the op itself; a replay of a recording
never meets them.
"""

from numgeom.ops.entry import Kind, Op
from numgeom.ops.kinks import smooth
from numgeom.ops.tangents import still

_NAMES = (
    "_sample_dirichlet",
    "_standard_gamma",
    "bernoulli",
    "binomial",
    "cauchy",
    "exponential",
    "geometric",
    "log_normal",
    "multinomial",
    "normal",
    "normal_functional",
    "poisson",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "random",
    "randperm",
    "uniform",
)

RANDOM: tuple[Op, ...] = tuple(
    Op(
        name=name,
        kind=Kind.RANDOM,
        rounding=None,
        complex_too=True,
        spread=None,
        second_order=None,
        doubt=None,
        kinks=smooth("none: the draw is a constant of the program"),
        tangent=still,
        source="the draw is a constant of the program",
    )
    for name in _NAMES
)
