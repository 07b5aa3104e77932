"""Which backward calls of a recorded step differentiate which kink?

A recorded program is a plain list of calls: autograd's formulas stand in it opened up. Some ops
have a backward op of their own (`threshold_backward`); for the others the formula is known by its
last call and by the forward values that it uses, such as g · sgn(x) for abs. The formulas are those
of torch's derivatives.yaml.

A *site* says: this call's value is the gradient of that argument of that forward call, and there is
the gradient it was made from. Replacing the value replaces the derivative.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from numgeom.nonsmooth.repeats import repeated_calls
from numgeom.nonsmooth.selection import KINKS
from numgeom.ops.selection import bound_arguments, op_name
from numgeom.recording import Program


@dataclass(frozen=True, eq=False)
class Site:
    """Where one argument's gradient of one forward call is computed.

    Attributes:
        forward: The forward call; it has kinks.
        slot: Which of its differentiable arguments.
        last: The backward call whose value is that gradient (before sums over broadcast
            dimensions).
        part: Position of the gradient in the outputs of `last`; None if it has one output.
        upstream: The gradient of the forward call's output.
    """

    forward: fx.Node
    slot: int
    last: fx.Node
    part: int | None
    upstream: fx.Node


@dataclass(frozen=True, eq=False)
class Sites:
    """The sites of a program.

    Attributes:
        found: All sites, in the order of their backward calls.
        origin: For every call that repeats an earlier one (the recomputed forward pass of
            activation checkpointing), that earlier call.
        unmatched: Forward calls with kinks for which no site was found: where no gradient flows
            (no_grad, detach, data), or a formula that is not known.
    """

    found: tuple[Site, ...]
    origin: Mapping[fx.Node, fx.Node]
    unmatched: tuple[fx.Node, ...]


def find_sites(program: Program) -> Sites:
    """Match backward calls with the forward calls that have kinks."""
    origin = repeated_calls(program)
    search = _Search(program, origin)
    found = tuple(
        site for node in program.calls if _phase(node) == "backward" for site in search.sites(node)
    )
    matched = {site.forward for site in found}
    return Sites(found, origin, tuple(n for n in search.kinked if n not in matched))


def _phase(node: fx.Node) -> str:
    return node.meta["call"].phase if "call" in node.meta else ""


@dataclass(frozen=True)
class _Own:
    """A backward op of its own.

    Attributes:
        forward: The op it differentiates.
        known_by: Its argument by which the forward call is known.
        is_output: Whether that argument is the forward call's output; else it is its input, or
            for pools the indices. In-place ops keep the output, and say so in the argument
            `flag`.
    """

    forward: str
    known_by: str = "self"
    is_output: bool = False
    flag: str = ""


_OWN: Mapping[str, tuple[_Own, ...]] = {
    "_prelu_kernel_backward": (_Own("_prelu_kernel"),),
    "adaptive_max_pool2d_backward": (_Own("adaptive_max_pool2d", "indices"),),
    "adaptive_max_pool3d_backward": (_Own("adaptive_max_pool3d", "indices"),),
    "elu_backward": (_Own("elu", "self_or_result", flag="is_result"),),
    "hardsigmoid_backward": (_Own("hardsigmoid"),),
    "hardswish_backward": (_Own("hardswish"),),
    "hardtanh_backward": (_Own("hardtanh"),),
    "leaky_relu_backward": (_Own("leaky_relu", flag="self_is_result"),),
    "max_pool2d_with_indices_backward": (_Own("max_pool2d_with_indices", "indices"),),
    "max_pool3d_with_indices_backward": (_Own("max_pool3d_with_indices", "indices"),),
    "softshrink_backward": (_Own("softshrink"),),
    "threshold_backward": (_Own("relu", is_output=True), _Own("threshold")),
}

_COPIES = frozenset({"alias", "clone", "detach", "lift_fresh"})
_RESHAPES = frozenset({"_unsafe_view", "expand", "squeeze", "unsqueeze", "view"})


class _Search:
    """Matches one backward call after another."""

    def __init__(self, program: Program, origin: Mapping[fx.Node, fx.Node]) -> None:
        self._constants = program.constants
        self._origin = origin
        self.kinked: dict[fx.Node, None] = {}  # in program order
        self._by_input: dict[tuple[str, Any], list[fx.Node]] = {}
        for node in program.calls:
            known = _name(node) in KINKS and _phase(node) == "forward"
            if known and node not in origin and _is_floating(node):
                self.kinked[node] = None
                key = (_name(node), self.value(op_arguments(node)["self"]))
                self._by_input.setdefault(key, []).append(node)

    def value(self, node: Any) -> Any:
        """The node that made a value first: through copies and repeated calls."""
        while isinstance(node, fx.Node):
            known = self._origin.get(node, node)
            if known is node:
                if _name(node) not in _COPIES:
                    return node
                known = node.args[0]
            node = known
        return node

    def content(self, node: Any) -> Any:
        """As `value`, also through changes of shape."""
        node = self.value(node)
        while _name(node) in _RESHAPES:
            node = self.value(node.args[0])
        return node

    def with_input(self, names: tuple[str, ...], x: Any) -> list[fx.Node]:
        """The forward calls of these ops whose first argument is `x`."""
        return [n for name in names for n in self._by_input.get((name, self.value(x)), ())]

    def with_output(self, names: tuple[str, ...], out: Any) -> fx.Node | None:
        """The forward call of one of these ops whose (first) output is `out`."""
        node = self.content(out)
        if isinstance(node, fx.Node) and not _name(node) and node.op == "call_function":
            node = self.value(node.args[0]) if node.args[1] == 0 else None  # getitem
        return node if _name(node) in names and node in self.kinked else None

    def sites(self, node: fx.Node) -> Iterator[Site]:
        """The site that ends in this call, if there is one."""
        name = _name(node)
        rules = [partial(_own, own=own) for own in _OWN.get(name, ())]
        for rule in (*rules, *_FORMULAS.get(name, ())):
            found = rule(self, node)
            if found is not None and self._fits(found):
                yield found
                return

    def _fits(self, site: Site) -> bool:
        """Whether there is one upstream entry per output entry."""
        size, given = self.shape(site.forward), self.shape(site.upstream)
        return size is not None and given is not None and size.numel() == given.numel()

    def shape(self, node: Any) -> torch.Size | None:
        """The shape of a value, of a call's first output if there are several.

        None where it is not known, and for a number: autograd's formulas multiply by some.
        """
        if not isinstance(node, fx.Node):
            return None
        if node.op == "get_attr":
            return self._constants[str(node.target)].shape
        path: tuple[Any, ...] = ()
        while "tensors" not in node.meta:
            path, node = (node.args[1], *path), node.args[0]
        metas = node.meta["tensors"]
        meta = metas.get(path) or metas.get((*path, 0))
        return None if meta is None else torch.Size(meta.shape)


def _name(node: Any) -> str:
    if isinstance(node, fx.Node) and node.op == "call_function" and "call" in node.meta:
        target: Any = node.target
        return op_name(target)
    return ""


def _is_floating(node: fx.Node) -> bool:
    meta = node.meta["tensors"].get(()) or node.meta["tensors"].get((0,))
    return meta is not None and meta.dtype.is_floating_point


def op_arguments(node: Any) -> dict[str, Any]:
    """The arguments of a call node by their names, defaults filled in."""
    return bound_arguments(node.target, node.args, node.kwargs)


def _own(search: _Search, node: Any, *, own: _Own) -> Site | None:
    given = op_arguments(node)
    anchor = given[own.known_by]
    part = 0 if own.forward == "_prelu_kernel" else None
    if own.known_by == "indices":  # getitem(forward, 1)
        forward = search.value(search.value(anchor).args[0])
        found = [forward] if _name(forward) == own.forward else []
    elif own.is_output or (own.flag and given[own.flag]):
        forward = search.with_output((own.forward,), anchor)
        found = [forward] if forward is not None else []
    else:
        found = search.with_input((own.forward,), anchor)
    for forward in found:
        settings = op_arguments(forward)
        shared = (set(settings) & set(given)) - {"self", "weight", "indices"}
        if own.known_by == "indices" or all(settings[n] == given[n] for n in shared):
            return Site(forward, 0, node, part, given["grad_output"])
    return None


# -- formulas, by their last call --------------------------------------------------------


def _abs(search: _Search, node: Any) -> Site | None:
    """Match g · sgn(x), for abs and for the 1-norm."""
    for sign, given in (node.args, node.args[::-1]):
        if _name(sign) != "sgn" or not isinstance(given, fx.Node):
            continue
        shape = search.shape(given)
        for forward in search.with_input(("abs", *_NORMS), sign.args[0]):
            one = _name(forward) == "abs" or _norm_order(forward) == 1
            if one and shape in (search.shape(forward), _kept_shape(search, forward)):
                return Site(forward, 0, node, None, given)
    return None


def _largest_norm(search: _Search, node: Any) -> Site | None:
    """Match sgn(x) · (mask · (g / count)), for the maximum norm."""
    for sign, spread in (node.args, node.args[::-1]):
        if _name(sign) == "sgn" and _name(spread) == "mul":
            found = _even_split(search, _NORMS, spread)
            if found is not None:
                return Site(found[0], 0, node, None, found[1])
    return None


def _reduction(search: _Search, node: Any) -> Site | None:
    """Match an even split among the entries equal to the output, for max, min, amax, amin."""
    found = _even_split(search, ("max", "min", "amax", "amin"), node)
    return None if found is None else Site(found[0], 0, node, None, found[1])


def _even_split(search: _Search, names: tuple[str, ...], node: Any) -> tuple[Any, Any] | None:
    """Match mask · (g / sum(mask)), mask: equal to an output (or both NaN); its call and g."""
    for share, mask in (node.args, node.args[::-1]):
        if _name(share) != "div" or _name(share.args[1]) != "sum":
            continue
        if share.args[1].args[0] is not mask:
            continue
        equal = mask.args[0] if _name(mask) == "logical_or" else mask
        sides = (equal.args, equal.args[::-1]) if _name(equal) == "eq" else ()
        found = [(search.with_output(names, out), inner) for out, inner in sides]
        known = [(forward, inner) for forward, inner in found if forward is not None]
        if len(known) > 1:  # a maximum of a maximum: the outer one has the other as its input
            known = [
                (forward, inner)
                for forward, inner in known
                if search.content(op_arguments(forward)["self"]) is search.content(inner)
            ]
        if known:
            return known[0][0], share.args[0]
    return None


def _norm(search: _Search, node: Any) -> Site | None:
    """Match g · masked(x / n), for the 2-norm, and (x · …) · masked(g / n^…), for the others."""
    for factor, other in (node.args, node.args[::-1]):
        masked = factor.args[0] if _name(factor) == "_to_copy" else factor
        if _name(masked) != "masked_fill" or _name(masked.args[0]) != "div":
            continue
        above, below = masked.args[0].args[:2]
        power = _name(below) == "pow"
        forward = search.with_output(_NORMS, below.args[0] if power else below)
        if forward is not None:
            return Site(forward, 0, node, None, above if power else other)
    return None


def _along_dimension(search: _Search, node: Any) -> Site | None:
    """Match scatter(zeros, dim, indices, g), for max and min along a dimension."""
    _, _, index, given = node.args
    part = search.content(index)
    if isinstance(part, fx.Node) and part.op == "call_function" and not _name(part):
        forward = search.value(part.args[0])
        if _name(forward) in ("max", "min"):
            return Site(forward, 0, node, None, given)
    return None


def _clamp(search: _Search, node: Any) -> Site | None:
    """Match where(comparisons of x with its bounds, g, 0), for clamp."""
    condition, given, _ = node.args
    if _phase(condition) != "backward":  # a `where` of the user
        return None
    tests = [(name, search.value(x), search.value(b)) for name, x, b in _comparisons(condition)]
    if not tests:
        return None
    name, x, _ = tests[0]
    for forward in search.with_input(("clamp", "clamp_min", "clamp_max"), x):
        settings = op_arguments(forward)
        bounds = {
            n: search.value(settings[n]) for n in ("min", "max") if settings.get(n) is not None
        }
        if all(b in bounds.values() for _, value, b in tests if value is x):
            argument = {"ge": "self", "le": "self", "lt": "min", "gt": "max"}[name]
            tensors = ["self", *(n for n in bounds if isinstance(bounds[n], fx.Node))]
            return Site(forward, tensors.index(argument), node, None, given)
    return None


def _comparisons(node: Any) -> Iterator[tuple[str, Any, Any]]:
    """The comparisons that a condition is made of."""
    if _name(node) in ("logical_and", "logical_or", "logical_not"):
        for part in node.args:
            yield from _comparisons(part)
    elif _name(node) in ("ge", "le", "gt", "lt"):
        yield _name(node), node.args[0], node.args[1]


def _pair(search: _Search, node: Any) -> Site | None:
    """Match masked_fill(g or its half, comparison of a with b, 0), for maximum, fmax and so on."""
    source, mask = node.args[:2]
    tests = list(_comparisons(mask))
    if len(tests) != 1:
        return None
    test, a, b = tests[0]
    halves = _name(source) == "where"
    given = source.args[2] if halves else source
    for forward in search.with_input(("maximum", "minimum") if halves else ("fmax", "fmin"), a):
        if search.value(op_arguments(forward)["other"]) is not search.value(b):
            continue
        if halves:  # zero where the other argument wins
            first = test == ("lt" if _name(forward) == "maximum" else "gt")
        else:
            first = _name(mask) == "logical_not"
        return Site(forward, 0 if first else 1, node, None, given)
    return None


_NORMS = ("linalg_vector_norm", "norm")


def _norm_order(forward: fx.Node) -> float:
    given = op_arguments(forward)
    order = given.get("ord", given.get("p"))
    return 2.0 if order is None else float(order)


def _kept_shape(search: _Search, forward: fx.Node) -> torch.Size | None:
    """The shape of a reduction's output if it kept its dimensions."""
    given = op_arguments(forward)
    shape, dims = search.shape(given["self"]), given.get("dim")
    if shape is None or dims is None:
        return None
    reduced = {d % max(1, len(shape)) for d in ([dims] if isinstance(dims, int) else dims)}
    return torch.Size(1 if d in reduced else n for d, n in enumerate(shape))


_FORMULAS: Mapping[str, tuple[Callable[[_Search, Any], Site | None], ...]] = {
    "masked_fill": (_pair,),
    "mul": (_largest_norm, _abs, _reduction, _norm),
    "scatter": (_along_dimension,),
    "where": (_clamp,),
}
