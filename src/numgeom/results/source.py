"""Where does a part of an error come from?"""

from dataclasses import dataclass

from numgeom.results.guarantee import Guarantee


@dataclass(frozen=True)
class Source:
    """Where a part of the error comes from.

    Attributes:
        op: Name of the operation.
        module: Path of the module that ran it, "" outside of every module.
        phase: "forward", "backward" or "weight gradient".
        source: "file.py:line" of the user's line.
        error_share: Its part of the squared error of the whole gradient, from 0 to 1.
        guarantee: What that number promises.
    """

    op: str
    module: str
    phase: str
    source: str
    error_share: float
    guarantee: Guarantee
