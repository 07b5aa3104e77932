"""Which entries of a tensor are equal over the reals, although their balls only overlap?

Max pooling over an image with repeated patches compares equal numbers. No radius above 0 can tell,
but the numbers come from equal inputs by equal formulas. So every entry gets a label, an integer,
such that equal labels imply equal exact values (value numbering, Alpern, Wegman and Zadeck 1988,
entry by entry). The converse need not hold: an entry of which nothing is known has a label of its
own, and a missing rule costs a certificate, never its truth.

Labels. An exact entry is numbered by its value; 0 labels the exact zero, and nothing else. An entry
of an elementwise call is numbered by the labels of its inputs, an entry that was moved keeps its
label, the largest entry of a window has that of the winner where that is certain. All this is
exact: labels are numbered call by call, none is used twice.

Sums. The terms of a sum have no order, so two sums are compared by random evaluation (Schwartz
1980; Zippel 1979). A sum of products is the value of sum_k A[a_k] B[b_k], a_k and b_k the labels of
the factors; replace A[a] and B[b] by independent uniform numbers modulo the prime p, and A[0] and
B[0] by 0, as a product with zero adds nothing. If two sums do not have the same products, equally
often, then their difference is a polynomial of degree at most 2 whose coefficients are smaller than
the number of terms, hence than p, and not all zero: it vanishes with a probability of at most 2/p.
K evaluations, drawn anew in each call, make that (2/p)^K for one pair, and N (N - 1) / 2 pairs of N
entries are compared. A plain sum has degree 1. The evaluations are computed in float64 without any
rounding: all their terms are integers, and the sums of their magnitudes stay below 2^53.

The probability that any label of a walk is wrong is kept below `COLLISION_PROBABILITY`, over our
own draws: a call that would exceed it gets labels of no use.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx

from numgeom.ops.kinks import Where
from numgeom.ops.table import functional_name, kinks_of, traits_of
from numgeom.ops.traits import Moves

COLLISION_PROBABILITY = 1e-15
"""Upper bound of the probability that some label of one walk is wrong."""

PRIME = 2**19 - 1  # a Mersenne prime; residues run from -HALF to HALF
HALF = PRIME // 2
EVALUATIONS = 6  # of each sum: two codes of three residues each
_SEED = 0x7E1  # apart from the seeds of probes


_UNCERTAIN = object()


@dataclass(frozen=True)
class _Product:
    """Sums of products of the entries of two tensors, given by labels, and one more term each."""

    a: Tensor
    b: Tensor
    multiply: Callable[[Tensor, Tensor], Tensor]
    terms: int
    addend: Tensor | None


@runtime_checkable
class Known(Protocol):
    """What a walk knows of a value; see `numgeom.semantics.ball.Enclosure`."""

    @property
    def value(self) -> Any:
        """The midpoint, or the decision; a tuple for several outputs."""

    @property
    def radius(self) -> Any:
        """Its radius; None: exact."""

    @property
    def doubt(self) -> Any:
        """Where a decision may be another one; None: nowhere."""

    @property
    def labels(self) -> Any:
        """Labels of its entries."""


class Twins:
    """Labels the entries of the nodes that some nodes depend on.

    Guarantee: CERTIFIED; equal labels are equal numbers but for `COLLISION_PROBABILITY`, if the
    radii and doubts of the walk are valid: an entry of radius 0 is exact, and a decision without
    doubt is that of the exact program.

    Args:
        asked: The nodes that will ask for labels of their inputs.
        seed: Of the random evaluations.
    """

    def __init__(self, asked: Iterable[fx.Node], *, seed: int = 0) -> None:
        """Find the nodes to label; nothing is computed yet."""
        self._needed = _ancestors(asked)
        self._rng = torch.Generator().manual_seed(_SEED + seed)
        self._next = 1
        self.collision = 0.0  # the probability spent so far

    def __contains__(self, node: fx.Node) -> bool:
        """Whether a node's entries are labelled."""
        return node in self._needed

    def label(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Known
    ) -> Any:
        """Labels of a node's value, int64 on the CPU; a tuple for several outputs.

        Args:
            node: The node.
            args: Its arguments, nodes replaced by what is known of them, with labels.
            kwargs: The same by name.
            found: What is known of its value; its labels are not read.
        """
        moved = None
        if node.op != "get_attr":
            moved = self._followed(node, args, kwargs, found)
        if not isinstance(found.value, (tuple, list)):
            return self._checked(moved, found.value, found.radius, found.doubt)
        columns = [
            part if isinstance(part, (tuple, list)) else [None] * len(found.value)
            for part in (moved, found.value, found.radius, found.doubt)
        ]
        return tuple(self._checked(*row) for row in zip(*columns, strict=True))

    # -- entries -------------------------------------------------------------------------

    def _checked(self, labels: Any, value: Any, radius: Any, doubt: Any) -> Tensor | None:
        """The labels of one output: by value where it is exact, else as found, else of no use."""
        if not isinstance(value, Tensor):
            return None
        value = value.detach().cpu()
        inexact = any(isinstance(t, Tensor) and bool((t != 0).any()) for t in (radius, doubt))
        if not inexact and not value.is_complex():
            return self._by_value(value)
        if labels is None or labels.shape != value.shape:
            labels = self._alone(value.shape)
        if isinstance(radius, Tensor) and value.is_floating_point():
            labels = torch.where((radius.cpu() == 0) & (value == 0), 0, labels)
            labels = torch.where(torch.isnan(value), self._alone(value.shape), labels)
        return labels

    def _by_value(self, value: Tensor) -> Tensor:
        number = value.to(torch.float64) if value.is_floating_point() else value.to(torch.int64)
        found, places = torch.unique(number, return_inverse=True)  # -0.0 is 0.0; no NaN is a NaN
        labels = torch.where(number == 0, 0, places + self._next)
        self._next += len(found)
        return labels

    def _alone(self, shape: torch.Size) -> Tensor:
        """Labels that no other entry has."""
        n = math.prod(shape)
        self._next += n
        return torch.arange(self._next - n, self._next).reshape(shape)

    def _numbered(self, columns: list[Tensor]) -> Tensor:
        """One label for each combination of entries at the same place; the columns have one shape.

        Numbers stay below the number of entries, so that no product of two overflows.
        """
        kinds, code = torch.unique(columns[0], return_inverse=True)
        for column in columns[1:]:
            found, places = torch.unique(column, return_inverse=True)
            kinds, code = torch.unique(code * len(found) + places, return_inverse=True)
        self._next += len(kinds)
        return code + (self._next - len(kinds))

    # -- calls ---------------------------------------------------------------------------

    def _followed(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Known
    ) -> Any:
        """Labels by the rule of the op; None where there is none."""
        target: Any = node.target
        name = functional_name(target)
        if name == "_to_copy":  # between floating formats the identity over the reals
            source = args[0]
            if source.value.is_floating_point() and found.value.is_floating_point():
                return source.labels
            return self._elementwise(args[:1], found.value.shape)
        if _is_entrywise(name):
            return self._elementwise((*args, *kwargs.values()), found.value.shape)
        known = traits_of(name)
        if known.moves is not None and _is_followed(known.moves):
            return self._moved(name, target, args, kwargs, found.value)
        if known.reads_ties and "pool" in name:
            return self._pooled(args[0].labels, found, 3 if "3d" in name else 2)
        if (known.sums or name in ("amax", "amin")) and isinstance(args[0], Known):
            return self._summed(args, kwargs, found.value)
        product = _product(name, target, args)
        return None if product is None else self._multiplied(product, found.value.shape)

    def _elementwise(self, args: tuple[Any, ...], shape: torch.Size) -> Tensor | None:
        columns = [a.labels for a in args if isinstance(a, Known)]
        if any(c is None for c in columns) or not columns:
            return None
        if torch.broadcast_shapes(*(c.shape for c in columns)) != shape:
            return None
        return self._numbered([c.expand(shape) for c in columns])

    def _moved(
        self, name: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], y: Any
    ) -> Any:
        several = isinstance(args[0], (list, tuple))
        labels: Any = [a.labels for a in args[0]] if several else args[0].labels
        rest = _certain([list(args[1:]), dict(kwargs)])
        if rest is _UNCERTAIN:
            return None
        where, named = rest
        if any(isinstance(w, torch.dtype) for w in where):
            return None  # the bits are read as other numbers
        moves = traits_of(name).moves
        assert moves is not None
        if isinstance(y, (list, tuple)) and not moves.parts:
            return None  # some results are no moved entries
        if moves.in_order:
            assert isinstance(y, Tensor)
            return labels.reshape(y.shape)
        if name == "constant_pad_nd":
            value = where[1] if len(where) > 1 else named.get("value", 0)
            fill = 0 if value == 0 else int(self._alone(torch.Size([1])))
            return target(labels, where[0], fill)
        try:
            return target(labels, *where, **named)
        except (RuntimeError, NotImplementedError):  # torch does not move integers like this
            return None

    def _pooled(self, labels: Tensor, found: Known, dims: int) -> Any:
        """Labels of the winners; the indices are numbered by value or not at all."""
        value, index = found.value
        if labels.numel() == 0:
            return None
        lines = labels.reshape(-1, math.prod(labels.shape[-dims:]))
        index = index.cpu().reshape(len(lines), -1)
        won = torch.gather(lines, 1, index).reshape(value.shape)
        doubt = None if found.doubt is None else found.doubt[1]
        if isinstance(doubt, Tensor):
            won = torch.where(doubt.cpu(), self._alone(value.shape), won)
        return won, None

    # -- sums ----------------------------------------------------------------------------

    def _summed(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor
    ) -> Tensor | None:
        x = args[0].labels
        dims = args[1] if len(args) > 1 else kwargs.get("dim", [])
        keepdim = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
        dims = list(range(x.dim())) if dims in (None, [], ()) else dims
        if value.numel() == 0 or not self._afford(value.shape, x.numel() // value.numel(), 1):
            return None
        drawn = self._drawn(x)
        sums = [torch.sum(drawn(i), dims, keepdim=keepdim) for i in range(EVALUATIONS)]
        return self._numbered(_codes(sums))

    def _multiplied(self, product: _Product, shape: torch.Size) -> Tensor | None:
        if not self._afford(shape, product.terms, 2):
            return None
        left, right = self._drawn(product.a), self._drawn(product.b)
        columns = _codes([product.multiply(left(i), right(i)) for i in range(EVALUATIONS)])
        if product.addend is not None:
            columns.append(product.addend.expand(shape))
        return self._numbered(columns)

    def _afford(self, shape: torch.Size, terms: int, degree: int) -> bool:
        """Whether sums can be compared exactly and within the probability; it is then spent."""
        if terms >= PRIME or terms * HALF**degree >= 2**53:
            return False
        n = math.prod(shape)
        chance = 0.5 * n * n * (degree / PRIME) ** EVALUATIONS
        # torch draws no residue with a probability above 1.0002 / p; the hundredth covers that.
        if self.collision + chance > 0.99 * COLLISION_PROBABILITY:
            return False
        self.collision += chance
        return True

    def _drawn(self, labels: Tensor) -> Callable[[int], Tensor]:
        """Random residues in place of labels, one for each label; 0 for the label 0."""
        found, places = torch.unique(labels, return_inverse=True)
        shape = (EVALUATIONS, len(found))
        residues = torch.randint(-HALF, HALF + 1, shape, generator=self._rng)
        residues = residues.masked_fill(found == 0, 0).to(torch.float64)
        return lambda i: residues[i][places]


def _is_entrywise(name: str) -> bool:
    """Whether an entry is a function of the entries of the arguments at its place.

    Where a branch of the function ends, -0.0 may be told from 0.0 (atan2).
    """
    kinks = kinks_of(name)
    return traits_of(name).entrywise and kinks is not None and kinks.where is not Where.CUT


def _is_followed(moves: Moves) -> bool:
    """Whether labels go where entries go: gaps are zeros, and no layout of memory is meant."""
    return moves.data == (0,) and not (moves.signed or moves.casts or moves.in_memory)


def _codes(sums: list[Tensor]) -> list[Tensor]:
    """Three residues in one integer: p^3 < 2^57."""
    rest = [s.to(torch.int64).remainder(PRIME) for s in sums]
    return [rest[i] + PRIME * (rest[i + 1] + PRIME * rest[i + 2]) for i in range(0, EVALUATIONS, 3)]


def _product(name: str, target: Any, args: tuple[Any, ...]) -> _Product | None:
    """A sum of products in terms of its factors; None for other ops."""
    product = traits_of(name).product
    if product is not None and product.is_matrix:
        a, b = args[product.left].labels, args[product.right].labels
        if a is None or b is None or a.dim() == 0:
            return None
        addend = None if product.added is None else args[product.added].labels
        return _Product(a, b, torch.matmul, a.shape[-1], addend)
    if name != "convolution":
        return None
    x, w, bias = (a.labels if isinstance(a, Known) else None for a in args[:3])
    settings = args[3:9]
    if x is None or w is None or x.dim() != w.dim():
        return None
    channels = x.shape[1] // settings[5] if settings[3] else w.shape[1]
    addend = None if bias is None else bias.reshape(1, -1, *[1] * (x.dim() - 2))
    terms = channels * math.prod(w.shape[2:])
    return _Product(x, w, lambda a, b: target(a, b, None, *settings), terms, addend)


def _certain(tree: Any) -> Any:
    """Arguments with decisions in place of what is known of them, if all of them are certain."""
    if isinstance(tree, Known):
        decided = isinstance(tree.value, Tensor) and not tree.value.is_floating_point()
        return tree.value.cpu() if decided and tree.doubt is None else _UNCERTAIN
    if isinstance(tree, (list, tuple)):
        found = [_certain(item) for item in tree]
        return _UNCERTAIN if any(f is _UNCERTAIN for f in found) else found
    if isinstance(tree, Mapping):
        found = {key: _certain(item) for key, item in tree.items()}
        return _UNCERTAIN if any(f is _UNCERTAIN for f in found.values()) else found
    return tree


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [n for node in nodes for n in node.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found
