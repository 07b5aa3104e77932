"""Which format can a remedy name, where one has too little range?"""

from numgeom.arithmetic import formats
from numgeom.arithmetic.formats import Format

_WITH_MORE_RANGE = {
    formats.float16: "float32 or bfloat16",
    formats.bfloat16: "float64",  # the range of float32 is the same
    formats.float32: "float64",
}


def run_in_more_range(found: Format | None) -> str:
    """Name formats with more range than a call's own, as the last words of a remedy.

    Args:
        found: The call's format; None where it is not known.

    Returns:
        For instance ", or run it in float64"; nothing where no format has more range.
    """
    if found is None:
        return ", or run it in a format with more range"
    wider = _WITH_MORE_RANGE.get(found)
    return "" if wider is None else f", or run it in {wider}"
