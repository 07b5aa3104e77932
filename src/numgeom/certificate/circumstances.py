"""On what was a certificate made, as far as it may decide the bits?"""

import platform
from pathlib import Path

import torch

from numgeom.version import __version__

NAMES = ("torch", "numgeom", "certificates", "system", "processor", "cpu", "threads")
"""What `circumstances` tells."""

WAY = "2"
"""How certificates are made; raised when one of the same step gets other bounds."""


def circumstances() -> dict[str, str]:
    """Return versions and machine: kernels choose their order of summation by them."""
    return {
        "torch": torch.__version__,
        "numgeom": __version__,
        "certificates": WAY,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def _processor() -> str:
    """The model of the processor; libraries of linear algebra dispatch on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())
