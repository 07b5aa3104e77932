"""Which part of a network does a call belong to: attention scores, softmax, values, a norm, an MLP?

Attention is found by its structure, forward and backward, whatever the modules are called: a
softmax is exp / sum(exp), the product that reads it makes the values, the product that it was made
from the scores. The program has to be decomposed, so that fused attention is open.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any

from torch import fx

from numgeom.precision.noisy import moves, op_name, traits
from numgeom.recording import CallInfo, Program


class OpKind(Enum):
    """Parts of a network."""

    SCORES = "attention scores"  # Q K^T, scaled and masked
    SOFTMAX = "softmax"
    VALUES = "attention values"  # the product of weights and V
    PROJECTION = "projections"  # linear layers in a module that holds attention
    NORMALIZATION = "normalization"
    MLP = "MLP"  # linear layers and activations elsewhere
    CONVOLUTION = "convolution"
    OTHER = "other"  # embeddings, residual sums, the loss


def kinds_of(program: Program) -> dict[fx.Node, OpKind]:
    """The kind of every call of a decomposed program."""
    found: dict[fx.Node, OpKind] = {}
    products: dict[str, set[str]] = {}  # by module that holds attention, the ops of its products
    for node in program.calls:
        if (exponential := _softmax_of(node)) is not None and _is_forward(node):
            used = _label_forward(node, exponential, found)
            if used:
                products.setdefault(node.meta["call"].module, set()).update(used)
    for node in program.calls:
        path = node.meta["call"].module
        if not _is_forward(node) and path in products:
            _label_backward(node, products[path], found)
    norms = _modules_with(program, lambda node: traits(node).normalizes)
    linear = _modules_with(program, _is_product)
    convolutions = _modules_with(program, lambda node: op_name(node) == "convolution")
    tables = _modules_with(program, _looks_up) - linear - norms - convolutions
    for node in program.calls:
        if node not in found:
            path = node.meta["call"].module
            kind = _by_module(path, set(products), norms, linear, convolutions)
            found[node] = OpKind.OTHER if path in tables else kind
    return found


def _by_module(
    path: str, held: set[str], norms: set[str], products: set[str], convolutions: set[str]
) -> OpKind:
    if path in norms:
        return OpKind.NORMALIZATION
    if path in convolutions:
        return OpKind.CONVOLUTION
    if any(path == h or (h and path.startswith(h + ".")) for h in held):
        return OpKind.PROJECTION
    around = path.rpartition(".")[0]
    beside = any(p.rpartition(".")[0] == around for p in products | convolutions)
    return OpKind.MLP if path and (path in products or beside) else OpKind.OTHER


def _is_product(node: fx.Node) -> bool:
    """Whether a call is a matrix product."""
    product = traits(node).product
    return product is not None and product.is_matrix


def _looks_up(node: fx.Node) -> bool:
    """Whether a call reads entries of a table at given indices."""
    known = traits(node).moves
    return known is not None and known.by_index


def _modules_with(program: Program, counts: Callable[[fx.Node], bool]) -> set[str]:
    calls: list[CallInfo] = [n.meta["call"] for n in program.calls if counts(n)]
    return {info.module for info in calls if info.phase == "forward" and info.module}


# -- attention -----------------------------------------------------------------------------


def _softmax_of(node: fx.Node) -> fx.Node | None:
    """The exponential, if a call is exp(x) / sum(exp(x))."""
    if op_name(node) != "div" or not all(isinstance(a, fx.Node) for a in node.args[:2]):
        return None
    top: Any = node.args[0]
    below = _behind(node.args[1])
    if (
        op_name(top) == "exp"
        and isinstance(below, fx.Node)
        and op_name(below) == "sum"
        and _behind(below.args[0]) is top
    ):
        return top
    return None


def _label_forward(
    weights: fx.Node, exponential: fx.Node, found: dict[fx.Node, OpKind]
) -> set[str]:
    """Label one attention; returns the ops that its products are. Empty: a softmax alone."""
    values = [n for n in _products_reading(weights) if _is_forward(n)]
    if not values:
        return set()
    shifted: Any = exponential.args[0]
    for node in (weights, _behind(weights.args[1]), exponential, shifted):
        found[node] = OpKind.SOFTMAX
    products = list(values)
    for node in _back_to_products(shifted):
        found.setdefault(node, OpKind.SCORES)
        products += [node] if _is_product(node) else []
    for node in values:
        found[node] = OpKind.VALUES
    return {op_name(node) for node in products}


def _label_backward(node: fx.Node, products: set[str], found: dict[fx.Node, OpKind]) -> None:
    """Of Q K^T computed again, dV = P^T dO, dP = dO V^T, dQ and dK, and what lies between."""
    name = op_name(node)
    if name not in products:
        scaled = name in ("mul", "div") and len(node.all_input_nodes) == 1
        if not _is_product(node) and not moves(node):
            found[node] = OpKind.SCORES if scaled else OpKind.SOFTMAX
    elif any(_is_softmax(_behind(a)) for a in node.all_input_nodes):
        found[node] = OpKind.VALUES  # dV
    elif _reaches_exponential(node) or any(_comes_from_products(a) for a in node.all_input_nodes):
        found[node] = OpKind.SCORES  # Q K^T again; dQ and dK
    else:
        found[node] = OpKind.VALUES  # dP


def _is_softmax(node: fx.Node) -> bool:
    return op_name(node) == "exp" or _softmax_of(node) is not None


def _back_to_products(node: fx.Node) -> list[fx.Node]:
    """The calls that scores came from, up to the product: scaling and masks lie between."""
    waiting, seen = [node], dict[fx.Node, None]()
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in seen and "call" in source.meta and _is_forward(source):
                seen[source] = None
                if not _is_product(source):
                    waiting.append(source)
    return list(seen)


def _reaches_exponential(node: fx.Node) -> bool:
    """Whether a result flows into an exponential before it meets another product."""
    waiting, seen = [node], {node}
    while waiting:
        for user in waiting.pop().users:
            if op_name(user) == "exp":
                return True
            if user not in seen and not _is_product(user):
                seen.add(user)
                waiting.append(user)
    return False


def _comes_from_products(node: fx.Node) -> bool:
    """Whether a value was computed, not just moved, from products of the same module's backward."""
    module = _behind(node).meta["call"].module if "call" in _behind(node).meta else None
    start = _behind(node)
    if module is None or _is_forward(start) or _is_product(start):
        return False
    waiting, seen = [start], {start}
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source in seen or "call" not in source.meta:
                continue
            info: CallInfo = source.meta["call"]
            if info.phase != "backward" or info.module != module:
                continue
            if _is_product(source):
                return True
            seen.add(source)
            waiting.append(source)
    return False


def _products_reading(source: fx.Node) -> list[fx.Node]:
    """Products that read a value, moved perhaps or scaled (dropout)."""
    found: list[fx.Node] = []
    waiting, seen = [source], {source}
    while waiting:
        for user in waiting.pop().users:
            if user in seen or "call" not in user.meta:
                continue
            seen.add(user)
            if _is_product(user):
                found.append(user)
            elif moves(user) or op_name(user) == "mul":
                waiting.append(user)
    return found


def _behind(node: Any) -> Any:
    """What a value is, before it was moved."""
    while isinstance(node, fx.Node) and "call" in node.meta and moves(node):
        node = node.args[0]
    return node


def _is_forward(node: fx.Node) -> bool:
    return node.meta["call"].phase == "forward"
