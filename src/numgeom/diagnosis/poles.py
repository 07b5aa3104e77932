"""Which calls stand at a point where their value or derivative is infinite?"""

from typing import Any

import torch
from torch import Tensor, fx

from numgeom.diagnosis.match import Match
from numgeom.diagnosis.rederive import Values
from numgeom.diagnosis.trace import argument, op_name, traits


def at_a_pole(node: fx.Node) -> Match | None:
    """A call whose derivative is infinite at zero, with a form that keeps away from it.

    The two differ at the pole only; there the second has a finite value and derivative.
    """
    name, poles = op_name(node), traits(node).poles
    x = argument(node, 0)
    if poles is None or not poles.at_zero or not isinstance(x, fx.Node):
        return None
    if name == "linalg_vector_norm":
        if argument(node, 1) not in (None, 2, 2.0):
            return None
        dims = list(argument(node, 2)) if isinstance(argument(node, 2), (list, tuple)) else None
        keep = bool(argument(node, 3))

        def norm(values: Values) -> Tensor:
            v = values[x]
            over = list(range(v.dim())) if dims is None else dims
            return (v.square().sum(over, keepdim=keep) + _tiny(v)).sqrt()

        advice = "(x.square().sum(dim) + eps).sqrt()"
        return Match("norm(x) at x = 0", node, (x,), norm, advice, differs_at_zero=True)
    exponent = argument(node, 1)
    if name == "pow" and isinstance(exponent, (int, float)) and exponent >= 1:
        return None  # value and slope are finite at 0
    position = poles.argument
    critical = argument(node, position)
    if not isinstance(critical, fx.Node):
        return None
    target: Any = node.target

    def away(values: Values) -> Tensor:
        args: list[Any] = [values[a] if isinstance(a, fx.Node) else a for a in node.args]
        v = args[position]
        args[position] = torch.where(v.abs() < _tiny(v), torch.full_like(v, _tiny(v)), v)
        return target(*args, **node.kwargs)

    advice = f"{name}(torch.where(x > eps, x, eps))"
    title = f"{name}(x) at x = 0"
    if position == 1:  # a divisor
        kept = "d.clamp_min(eps)"
        advice = f"x / {kept}" if name == "div" else f"{name}(x, {kept})"
        title = "x / d at d = 0" if name == "div" else f"{name}(x, d) at d = 0"
    return Match(title, node, (critical,), away, advice, differs_at_zero=True)


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny ** 0.5
