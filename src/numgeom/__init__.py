"""How far can you trust a gradient? Certified error bounds for PyTorch's autograd."""

from numgeom.version import __version__

__all__ = ["__version__"]
