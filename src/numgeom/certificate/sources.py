"""Where does the observed error of a recorded step come from?"""

from dataclasses import dataclass, field

from numgeom.failures import answers
from numgeom.recording import Program
from numgeom.results.source import Source


@dataclass(frozen=True, eq=False)
class Origin:
    """The step that a certificate is about, beside it while both live; see `results.origins`.

    Attributes:
        program: The step.
        found: Its sources, once they were asked for.
    """

    program: Program
    found: list[Source] = field(default_factory=list)


@answers("sources")
def sources(program: Program) -> tuple[Source, ...]:
    """Return where the observed error of a step comes from, largest share first. ESTIMATED.

    By one noisy replay and one reverse pass over the program.

    Args:
        program: The recorded step, in the formats that it ran in.

    Returns:
        One source per op, module, phase and line.
    """
    from numgeom.precision.sources import attribute

    return attribute(program).for_certificate()
