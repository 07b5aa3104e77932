"""Evaluate a program in arbitrary precision: what is its exact gradient?

Independent of the package: every op is written out in this folder from its documentation on Arb
balls (python-flint), entry by entry, composite ops included, so that a recorded program is judged
without the package's references and torch's decompositions. Movement of entries is found by moving
their numbers instead. An op that is missing here raises; nothing is guessed.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import flint
import numpy as np
from flint import arb
from torch import Tensor, fx

from numgeom.recording import Program
from tests.oracle.activations import ACTIVATIONS
from tests.oracle.attention import ATTENTION
from tests.oracle.choices import CHOICES
from tests.oracle.elementwise import ELEMENTWISE
from tests.oracle.linear_systems import LINEAR_SYSTEMS
from tests.oracle.lists import list_op
from tests.oracle.losses import LOSSES
from tests.oracle.movement import ADDING_UP, MOVEMENT, MOVES, SAME, SHAPED, added_up, moved
from tests.oracle.normalization import NORMALIZATION
from tests.oracle.numbers import Numbers, UnsupportedError, numbers, real, to_numbers
from tests.oracle.sums import SUMS
from tests.oracle.windows import WINDOWS

ORACLES: dict[str, Callable[..., Any]] = {
    **ELEMENTWISE,
    **ACTIVATIONS,
    **CHOICES,
    **MOVEMENT,
    **SUMS,
    **NORMALIZATION,
    **LOSSES,
    **WINDOWS,
    **LINEAR_SYSTEMS,
    **ATTENTION,
}


def exact_gradients(program: Program, bits: int = 200) -> dict[str, Numbers]:
    """Exact gradients of a program, recorded or opened, as arrays of Arb balls (tiny radii).

    Raises:
        UnsupportedError: an op is not known here.
        UndecidedError: a decision could not be taken at this precision, such as an exact tie.
    """
    before = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        values = exact_values(program)
        output = program.graph.output_node().args[0]
        return {k: numbers(values[n]) for k, n in output["gradients"].items()}
    finally:
        flint.ctx.prec = before


def exact_values(program: Program) -> dict[fx.Node, Any]:
    """The value of every node: `Numbers`, or tensors of integers and decisions."""
    values: dict[fx.Node, Any] = {}
    meant = derived_numbers(program)
    for node in program.graph.nodes:
        if node.op == "get_attr":
            tensor = program.constants[str(node.target)]
            real = tensor.is_floating_point() or tensor.is_complex()
            values[node] = to_numbers(tensor) if real else tensor
        elif node.op == "output":
            continue
        elif node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        else:
            args = fx.node.map_arg(node.args, values.__getitem__)
            options = fx.node.map_arg(node.kwargs, values.__getitem__)
            args = list(args)
            if node.meta["call"].phase == "backward" and node.target._opname in ("mul", "pow"):
                args = [meant.get(a, a) if isinstance(a, float) else a for a in args]
            values[node] = exact_call(node.target, args, dict(options))
    return values


def derived_numbers(program: Program) -> dict[float, arb]:
    """Numbers that derivatives derive from the user's, by their doubles: p - 1, 1 - w, 1 / w.

    The derivative of x^p is p x^(p - 1), and that of lerp has the weight 1 - w; torch hands the
    rounded difference on. Numbers of our own (`numgeom::real_number`) are nobody's weights.
    """
    stated = {
        float(a)
        for node in program.graph.nodes
        if node.op == "call_function" and "call" in node.meta
        and node.meta["call"].phase != "backward" and node.target.namespace == "aten"
        for a in (*node.args, *node.kwargs.values())
        if isinstance(a, float) and math.isfinite(a) and a != 0.0
    }  # fmt: skip
    meant: dict[float, arb] = {}
    for w in stated:
        x = real(w)
        for rounded, exact in ((w - 1, x - 1), (1 - w, 1 - x), (1 / w, 1 / x)):
            if rounded not in stated and real(rounded) != exact:  # else it stands for itself
                meant[rounded] = exact
    return meant


def contains(exact: Numbers, middle: Tensor, radius: Tensor) -> float:
    """Largest |exact - middle| / radius over all entries; above 1 means a violation."""
    worst = 0.0
    m, r = middle.reshape(-1).tolist(), radius.reshape(-1).tolist()
    for value, x, dx in zip(exact.reshape(-1), m, r, strict=True):
        if math.isinf(dx):
            continue
        distance = abs(value - arb(x))
        if dx == 0:
            # the ball of the oracle must not touch a violation: an exact value has radius 0
            if not (distance.is_exact() and distance == 0) and not distance < arb(2) ** -150:
                return math.inf
            continue
        ratio = float((distance / arb(dx)).upper())
        worst = max(worst, ratio)
    return worst


def exact_call(op: Any, args: list[Any], options: dict[str, Any]) -> Any:
    """One op over the real numbers."""
    name = op._opname
    if not any(isinstance(a, np.ndarray) for a in _leaves([args, options])):
        return _without_numbers(op, name, args, options)
    if name in SAME:
        return args[0]
    if name in SHAPED:
        return moved(lambda ids: ids.reshape(args[1]), args[0])
    if name in MOVES:
        return moved(op, args[0], *args[1:], **options)
    if name in ADDING_UP:
        return added_up(op, args[0], *args[1:])
    oracle = ORACLES.get(name) or list_op(name)
    if oracle is not None:
        return oracle(*args, **options)
    raise UnsupportedError(f"the oracle does not know {op}")


def _without_numbers(op: Any, name: str, args: list[Any], options: dict[str, Any]) -> Any:
    """Integers and decisions are torch's business, unless real numbers come out."""
    found = op(*args, **options)
    parts = found if isinstance(found, (tuple, list)) else [found]
    if not any(isinstance(p, Tensor) and p.is_floating_point() for p in parts):
        return found
    if name in ORACLES:
        return ORACLES[name](*args, **options)
    raise UnsupportedError(f"the oracle does not know {op} of integers")


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in _leaves(item)]
    if isinstance(tree, dict):
        return _leaves(list(tree.values()))
    return [tree]
