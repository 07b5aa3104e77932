"""Which formulas are known to be unstable, how are they recognised, and what is their stable form?

A pattern looks at a call of the forward pass and at what it was made from. It knows the same number
as a stable formula of earlier values. Calls that only move or cast numbers are seen through.
"""

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from numgeom.diagnosis.match import Match
from numgeom.diagnosis.reading import (
    along,
    is_bounded_above,
    is_one_minus,
    other_term,
    reduced,
    same,
    source_of,
    squared,
)
from numgeom.diagnosis.rederive import Values
from numgeom.diagnosis.trace import argument, op_name


def matches(node: fx.Node) -> Match | None:
    """Recognise an unstable formula that ends in this call."""
    for pattern in _PATTERNS.get(op_name(node), ()):
        found = pattern(node)
        if found is not None:
            return found
    return None


# -- logarithms ----------------------------------------------------------------------------


def _log_softmax(node: fx.Node) -> Match | None:
    soft, way = source_of(argument(node, 0))
    if op_name(soft) != "_softmax":
        return None
    x, dim = argument(soft, 0), argument(soft, 1)

    def stable(values: Values) -> Tensor:
        return along(way, F.log_softmax(values[x], dim=dim), values)

    advice = f"torch.log_softmax(x, {dim}), or F.cross_entropy(x, target)"
    return Match("log(softmax(x))", node, (x,), stable, advice, always=True)


def _log_sigmoid(node: fx.Node) -> Match | None:
    inner, way = source_of(argument(node, 0))
    sign, name = 1.0, "log(sigmoid(x))"
    if is_one_minus(inner):
        inner, more = source_of(argument(inner, 0))
        way, sign, name = [*way, *more], -1.0, "log(1 - sigmoid(x))"
    if op_name(inner) != "sigmoid":
        return None
    x = argument(inner, 0)

    def stable(values: Values) -> Tensor:
        return along(way, F.logsigmoid(sign * values[x]), values)

    advice = "F.logsigmoid(x)" if sign > 0 else "F.logsigmoid(-x)"
    advice += ", or F.binary_cross_entropy_with_logits(x, target)"
    return Match(name, node, (x,), stable, advice, always=True)


def _log_one_plus(node: fx.Node) -> Match | None:
    inner, way = source_of(argument(node, 0))
    if op_name(node) == "log1p":
        term: fx.Node | None = inner
    else:
        term = other_term(inner)
    if term is None:
        return None
    source, more = source_of(term)
    if op_name(source) == "exp":
        x = argument(source, 0)
        if is_bounded_above(x):
            return None
        path = [*way, *more]

        def softplus(values: Values) -> Tensor:
            return along(path, F.softplus(values[x], threshold=40.0), values)

        advice = "F.softplus(x, threshold=40)"  # the default, 20, changes values in float64
        return Match("log(1 + exp(x))", node, (x,), softplus, advice, always=True)
    if op_name(node) == "log1p":
        return None

    def log1p(values: Values) -> Tensor:
        return along(way, torch.log1p(values[term]), values)

    return Match("log(1 + x)", node, (term,), log1p, "torch.log1p(x)")


def _log_one_minus_exp(node: fx.Node) -> Match | None:
    inner, way = source_of(argument(node, 0))
    if not is_one_minus(inner):
        return None
    source, more = source_of(argument(inner, 0))
    if op_name(source) != "exp":
        return None
    x = argument(source, 0)

    def stable(values: Values) -> Tensor:
        return along([*way, *more], torch.log(-torch.expm1(values[x])), values)

    return Match("log(1 - exp(x))", node, (x,), stable, "torch.log(-torch.expm1(x))")


def _log_sum_exp(node: fx.Node) -> Match | None:
    inner, way = source_of(argument(node, 0))
    if op_name(inner) not in ("sum", "mean"):
        return None
    term, path = source_of(argument(inner, 0))
    weight: fx.Node | None = None
    if op_name(term) == "mul" and not path:
        factors = [a for a in term.args if isinstance(a, fx.Node)]
        exps = [a for a in factors if op_name(source_of(a)[0]) == "exp"]
        if len(exps) != 1 or len(factors) != 2:
            return None
        weight = next(a for a in factors if a is not exps[0])
        term, path = source_of(exps[0])
    if op_name(term) != "exp" or path or is_bounded_above(argument(term, 0)):
        return None
    x = argument(term, 0)
    dims, keep = reduced(inner)
    averaged = op_name(inner) == "mean"

    def stable(values: Values) -> Tensor:
        v = values[x] if weight is None else values[x] + torch.log(values[weight])
        over = list(range(v.dim())) if dims is None else dims
        found = torch.logsumexp(v, over, keepdim=keep)
        if averaged:
            count = v.numel() / max(found.numel(), 1)
            found = found - torch.log(torch.tensor(count, dtype=found.dtype))
        return along(way, found, values)

    name = "log(sum(exp(x)))" if weight is None else "log(sum(w * exp(x)))"
    exponent = "x" if weight is None else "(x + torch.log(w))"
    if dims is None:
        exponent, dims_said = f"{exponent}.flatten()", "0" + ", keepdim=True" * keep
    else:
        dims_said = _said(dims, keep)
    advice = f"torch.logsumexp({exponent}, {dims_said})"
    if averaged:
        advice += " - math.log(n), n the number of terms"
    reads = (x,) if weight is None else (x, weight)
    return Match(name, node, reads, stable, advice, always=True)


def _log_prod(node: fx.Node) -> Match | None:
    inner, way = source_of(argument(node, 0))
    if op_name(inner) != "prod":
        return None
    x = argument(inner, 0)
    dim = argument(inner, 1) if len(inner.args) > 1 else None
    keep = bool(argument(inner, 2)) if len(inner.args) > 2 else False

    def stable(values: Values) -> Tensor:
        logs = torch.log(values[x])
        found = logs.sum() if dim is None else logs.sum(dim, keepdim=keep)
        return along(way, found, values)

    advice = f"torch.log(x).sum({'' if dim is None else _said([dim], keep)})"
    return Match("log(prod(x))", node, (x,), stable, advice, always=True)


def _log_exp(node: fx.Node) -> Match | None:
    inner, way = source_of(argument(node, 0))
    if op_name(inner) != "exp":
        return None
    x = argument(inner, 0)

    def stable(values: Values) -> Tensor:
        return along(way, values[x] * 1.0, values)

    return Match("log(exp(x))", node, (x,), stable, "x", always=True)


# -- quotients -----------------------------------------------------------------------------


def _naive_softmax(node: fx.Node) -> Match | None:
    if len(node.all_input_nodes) != 2:
        return None
    top, way = source_of(argument(node, 0))
    bottom, _ = source_of(argument(node, 1))
    if way or op_name(top) != "exp" or op_name(bottom) != "sum":
        return None
    if not same(source_of(argument(bottom, 0))[0], top) or is_bounded_above(argument(top, 0)):
        return None
    x = argument(top, 0)
    dims, _keep = reduced(bottom)
    if dims is None or len(dims) != 1 or not _divides_rows(top, argument(node, 1), dims[0]):
        return None

    def stable(values: Values) -> Tensor:
        return torch.softmax(values[x], dims[0])

    advice = f"torch.softmax(x, {dims[0]})"
    return Match("exp(x) / sum(exp(x))", node, (x,), stable, advice, always=True)


def _divides_rows(top: fx.Node, bottom: fx.Node, dim: int) -> bool:
    """Whether sums over one dimension meet the entries that they are sums of, when broadcast."""
    shape = list(top.meta["tensors"][()].shape)
    sums = list(bottom.meta["tensors"][()].shape)
    shape[dim] = 1
    return [1] * (len(shape) - len(sums)) + sums == shape


def _naive_sigmoid(node: fx.Node) -> Match | None:
    term = other_term(source_of(argument(node, 0))[0])
    if term is None:
        return None
    source, way = source_of(term)
    if op_name(source) != "exp" or way or is_bounded_above(argument(source, 0)):
        return None
    x = argument(source, 0)
    if op_name(x) == "neg":
        x, sign = argument(x, 0), ""
    else:
        sign = "-"

    def stable(values: Values) -> Tensor:
        return torch.sigmoid(-values[x] if sign else values[x])

    name = "1 / (1 + exp(x))" if sign else "1 / (1 + exp(-x))"
    return Match(name, node, (x,), stable, f"torch.sigmoid({sign}x)")


# -- differences ---------------------------------------------------------------------------


def _one_minus(node: fx.Node) -> Match | None:
    """1 - f(x) or f(x) - 1, with f(x) near 1 at small x."""
    if is_one_minus(node):
        sign, inner = 1.0, argument(node, 0)
    elif other_term(node, -1.0) is not None:
        sign, inner = -1.0, other_term(node, -1.0)
    else:
        return None
    source, way = source_of(inner)
    if op_name(source) not in _NEAR_ONE:
        return None
    name, advice, form = _NEAR_ONE[op_name(source)]
    x = argument(source, 0)

    def stable(values: Values) -> Tensor:
        return along(way, sign * form(values[x]), values)

    # "-a" is the negative of "a", and the other way round.
    said = advice if sign > 0.0 else advice[1:] if advice.startswith("-") else f"-{advice}"
    return Match(name, node, (x,), stable, said)


# One minus a function that is near one at small arguments: without the difference.
_NEAR_ONE: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "cos": ("1 - cos(x)", "2 * torch.sin(x / 2) ** 2", lambda x: 2 * torch.sin(x / 2) ** 2),
    "exp": ("1 - exp(x)", "-torch.expm1(x)", lambda x: -torch.expm1(x)),
    "sigmoid": ("1 - sigmoid(x)", "torch.sigmoid(-x)", lambda x: torch.sigmoid(-x)),
    "cosh": ("1 - cosh(x)", "-2 * torch.sinh(x / 2) ** 2", lambda x: -2 * torch.sinh(x / 2) ** 2),
}


def _variance(node: fx.Node) -> Match | None:
    if len(node.args) < 2 or not all(isinstance(a, fx.Node) for a in node.args[:2]):
        return None
    if node.kwargs.get("alpha", 1) != 1:
        return None
    mean_square, way = source_of(argument(node, 0))
    squared_mean, _ = source_of(argument(node, 1))
    x = squared(source_of(argument(mean_square, 0))[0]) if op_name(mean_square) == "mean" else None
    mean = squared(squared_mean)
    if x is None or mean is None or way:
        return None
    mean = source_of(mean)[0]
    if op_name(mean) != "mean" or not same(source_of(argument(mean, 0))[0], source_of(x)[0]):
        return None
    if reduced(mean) != reduced(mean_square):
        return None
    dims, keep = reduced(mean_square)

    def stable(values: Values) -> Tensor:
        v = values[x]
        over = list(range(v.dim())) if dims is None else dims
        return (v - v.mean(over, keepdim=True)).square().mean(over, keepdim=keep)

    over = "" if dims is None else f"{_said(dims, keep=False)}, "
    advice = f"x.var({over}correction=0{', keepdim=True' * keep})"
    return Match("mean(x**2) - mean(x)**2", node, (x,), stable, advice)


def _cross_entropy_of_sigmoid(node: fx.Node) -> Match | None:
    inner, way = source_of(argument(node, 0))
    target, weight = argument(node, 1), argument(node, 2)
    if op_name(inner) != "sigmoid" or not isinstance(target, fx.Node):
        return None
    x = argument(inner, 0)
    reduction = {0: "none", 2: "sum"}.get(argument(node, 3), "mean")

    def stable(values: Values) -> Tensor:
        logits = along(way, values[x] * 1.0, values)
        weights = values[weight] if isinstance(weight, fx.Node) else None
        return F.binary_cross_entropy_with_logits(
            logits, values[target], weights, reduction=reduction
        )

    options = ", weight" if isinstance(weight, fx.Node) else ""
    options += f", reduction='{reduction}'" if reduction != "mean" else ""

    def unguarded(values: Values) -> Tensor:
        p, t = values[argument(node, 0)], values[target]
        terms = -(t * p.log() + (1 - t) * (1 - p).log())
        terms = terms * values[weight] if isinstance(weight, fx.Node) else terms
        return {"none": terms, "sum": terms.sum(), "mean": terms.mean()}[reduction]

    return Match(
        "binary_cross_entropy(sigmoid(x))",
        node,
        (x, target),
        stable,
        f"F.binary_cross_entropy_with_logits(x, target{options}), whose logarithms are not clamped "
        "at -100",
        unguarded=unguarded,
    )


def _said(dims: list[int], keep: bool) -> str:
    """Dimensions as a person writes them."""
    over = str(tuple(dims)) if len(dims) > 1 else str(dims[0])
    return over + ", keepdim=True" * keep


# -- the table ------------------------------------------------------------------------------

_LOGARITHMS = (_log_softmax, _log_sigmoid, _log_one_plus, _log_one_minus_exp, _log_sum_exp,
               _log_prod, _log_exp)  # fmt: skip
_PATTERNS: dict[str, tuple[Callable[[fx.Node], Match | None], ...]] = {
    "log": _LOGARITHMS,
    "log1p": (_log_one_plus,),
    "binary_cross_entropy": (_cross_entropy_of_sigmoid,),
    "div": (_naive_softmax,),
    "reciprocal": (_naive_sigmoid,),
    "rsub": (_one_minus,),
    "sub": (_one_minus, _variance),
    "add": (_one_minus,),
}
