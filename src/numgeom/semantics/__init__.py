"""Ways to evaluate a recorded program other than in plain numbers.

Notation of this folder (one linear map, two directions): the program computes z_i = f_i(z_parents),
i = 1..M. With local errors w_i added at every node, the first-order change of all nodes is e = A w,
A = (I - f')^-1; its transpose maps cotangents v at the nodes to a = A^T v.
"""

from numgeom.semantics.sensitivity import Linearization

__all__ = ["Linearization"]
