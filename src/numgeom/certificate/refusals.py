"""Why is there no bound? Sentences for steps that are not bounded, or whose evaluation failed."""

from numgeom.errors import ReplayError
from numgeom.failures import reason
from numgeom.recording import Program


def complex_gradients(program: Program) -> str:
    """What to say of gradients that are complex numbers; "" where there are none."""
    names = [name for name, g in program.recorded.gradients.items() if g.is_complex()]
    if not names:
        return ""
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f"No bound: gradients of complex parameters ({shown}) are compared with the reference but "
        "not bounded. Keep real and imaginary part as two parameters and make the complex numbers "
        "inside the step (torch.complex)."
    )


def failed(error: Exception) -> str:
    """What to say where a step could not be opened or evaluated for a bound.

    Args:
        error: A `ReplayError`, which names the call; or an exception that nobody foresaw.
    """
    if isinstance(error, ReplayError):
        return f"No bound: {error}"
    return (
        f"No bound: {reason(error)}. This is a fault of numgeom and not of your step; please "
        "report it with this line."
    )
