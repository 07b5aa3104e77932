"""What is known of each op, and where does it stand written?

`python -m numgeom.ops.coverage` prints `docs/coverage.md`. The tables of the package are the
source: nothing is stated here that they do not say.
"""

import sys
import textwrap
from dataclasses import dataclass
from enum import Enum

import torch
from torch._ops import OpOverload

from numgeom.ops.entry import Kind, Op
from numgeom.ops.refused import REFUSED
from numgeom.ops.table import OPS, OpTable, functional_name
from numgeom.recording.complex_pairs import COMPLEX_OPS
from numgeom.recording.decompose import decompositions
from numgeom.recording.functionalize import DRAWS, Treatment, refusal_of, traits_of
from numgeom.recording.references import REFERENCES
from numgeom.recording.variants import functional_variant

_PARTS = "opened into ops on real and imaginary parts"
_DROPOUT = frozenset({"native_dropout", "_fused_dropout"})  # their masks are recorded


class Status(Enum):
    """What happens to an op on the way to a certificate."""

    RULED = "ruled"  # has facts
    EXACT = "exact"  # computes nothing that could round
    DECOMPOSED = "decomposed"  # opened into simpler ops
    RANDOM = "random"  # what it drew is a constant of the program
    REFUSED = "refused"  # known, and without a sound rule
    UNKNOWN = "unknown"  # the guarantee is NONE


@dataclass(frozen=True)
class Coverage:
    """The status of one op.

    Attributes:
        op: The op, as a program calls it.
        name: The functional name that its facts are found by.
        status: What happens to it.
        reason: Where that is said: the source of the facts or of the reference, or why not.
    """

    op: OpOverload
    name: str
    status: Status
    reason: str


def coverage_of(op: OpOverload, *, ops: OpTable = OPS) -> Coverage:
    """What is known of an op, of whatever overload, in-place and `out=` variants included.

    Example:
        >>> coverage_of(torch.ops.aten.add_.Tensor).status
        <Status.RULED: 'ruled'>
        >>> coverage_of(torch.ops.aten._linalg_svd.default).status
        <Status.REFUSED: 'refused'>
    """
    name = functional_name(op)
    status, reason = _status(op, name, ops)
    return Coverage(op, name, status, reason)


def _status(op: OpOverload, name: str, ops: OpTable) -> tuple[Status, str]:
    treatment = traits_of(op).treatment
    if treatment is Treatment.REFUSE:
        return Status.REFUSED, refusal_of(op)
    if name in REFUSED:
        return Status.REFUSED, REFUSED[name]
    if treatment is Treatment.IGNORE or not _returns_tensors(op):
        return Status.EXACT, "no tensor comes out of it"
    if treatment is Treatment.DRAW and op not in REFERENCES:
        return _drawn(op)
    if treatment is Treatment.DRAW and op._opname.startswith("rrelu"):
        return _drawn(op)
    functional = op
    if op._schema.is_mutable and treatment is not Treatment.WRITE_HIDDEN:
        variant = functional_variant(op)
        if variant is None:
            return Status.UNKNOWN, "no functional op does what it writes"
        functional = variant.op
    reference = REFERENCES.get(functional)
    if reference is not None:
        return Status.DECOMPOSED, reference.source
    if functional in decompositions() or _is_composite(functional):
        return Status.DECOMPOSED, "opened by torch's definition"
    if name in COMPLEX_OPS:
        return Status.DECOMPOSED, _PARTS
    entry = ops.named(name)
    if entry is None:
        return Status.UNKNOWN, "no facts"
    kinds = {Kind.EXACT: Status.EXACT, Kind.RANDOM: Status.RANDOM, Kind.REFUSED: Status.REFUSED}
    return kinds.get(entry.kind, Status.RULED), entry.source


def _drawn(op: OpOverload) -> tuple[Status, str]:
    name = op._opname
    if name in DRAWS or name in _DROPOUT or name.startswith("rrelu"):
        return Status.RANDOM, "the draw is a constant of the program"
    return Status.REFUSED, "it draws inside a fused kernel, where that cannot be recorded"


def _returns_tensors(op: OpOverload) -> bool:
    return any("Tensor" in str(r.type) for r in op._schema.returns) or op._schema.is_mutable


def _is_composite(op: OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")


# -- the page ----------------------------------------------------------------------------

_HEAD = """\
# Which operations are covered

This page is generated: `python -m numgeom.ops.coverage > docs/coverage.md`. The tables in
`numgeom.ops` and `numgeom.recording.references` are its source.

An op of a recorded program is **ruled** (there is an entry with bounds), **exact** (it moves
entries, or nothing comes out of it that could round), **decomposed** (opened into simpler ops,
which are looked up in turn), **random** (what it drew is a constant of the program), or **refused**
(known, and without a sound rule). An op that is on none of these lists is unknown. A program with a
refused or an unknown op gets the guarantee NONE, and the result names these ops and counts their
calls.

In-place ops, `out=` variants and overloads share the entry of the functional op.

The tests hold a list of ops that real models call (`tests/ops/covered.txt`): each of them is ruled,
exact, decomposed into ops that are, random, or on the list of refused ops below.
"""


def page(ops: OpTable = OPS) -> str:
    """The text of `docs/coverage.md`."""
    by_kind = sorted({op.kind.value for op in ops})
    counts = {kind: sum(op.kind.value == kind for op in ops) for kind in by_kind}
    opened = _opened()
    lines = [_HEAD, "## Counts\n", "| status | kind | ops |", "|---|---|---:|"]
    for kind, count in counts.items():
        status = kind if kind in ("exact", "random") else "ruled"
        lines.append(f"| {status} | {kind} | {count} |")
    lines += [f"| decomposed | by a reference | {len(_by_reference())} |"]
    lines += [f"| decomposed | by torch's definition | {len(opened)} |"]
    lines += [f"| decomposed | into real and imaginary parts | {len(COMPLEX_OPS)} |"]
    lines += [f"| refused | | {len(REFUSED)} |", ""]
    lines += ["## Entries\n"]
    lines += ["The local error is that of torch's float64 kernel; 0 means exact. The curvature is"]
    lines += ["the second-order remainder; 0 means that the op is linear in its inputs.", ""]
    for kind in by_kind:
        lines += [f"### {kind}\n", "| op | local error | curvature | kinks | domain | source |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [_row(op) for op in sorted(ops, key=_name) if op.kind.value == kind]
        lines += [""]
    lines += ["## Opened by a reference\n", "| op | source |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(source)} |" for name, source in _by_reference().items()]
    lines += ["", "## Opened by torch's definition, or by one of this package\n"]
    lines += [
        "Nearly all are composites that recorded programs do not hold. What they open into may"
    ]
    lines += ["itself be refused or unknown; then that is what a result names.", ""]
    lines += textwrap.wrap(", ".join(f"`{name}`" for name in opened) + ".", 100) + [""]
    lines += ["## Opened into ops on real and imaginary parts\n"]
    lines += [", ".join(f"`{name}`" for name in sorted(COMPLEX_OPS)) + ", and the usual ops of"]
    lines += ["arithmetic and movement where their arguments are complex.", ""]
    lines += ["## Refused\n", "| op | why |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(why)} |" for name, why in sorted(REFUSED.items())]
    return "\n".join(lines) + "\n"


def _name(op: Op) -> str:
    return op.name


def _row(op: Op) -> str:
    cells = (
        f"`{op.name}`",
        "0" if op.rounding is None else "bounded",
        "0" if op.second_order is None else "bounded",
        op.kinks.sentence,
        op.domain,
        op.source,
    )
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _by_reference() -> dict[str, str]:
    """Ops that the references open, with their sources."""
    found = {functional_name(op): entry.source for op, entry in REFERENCES.items()}
    return dict(sorted(found.items()))


def _opened() -> list[str]:
    """Functional names of what `decompositions` opens, without those of the references."""
    names = {
        functional_name(op)
        for op in decompositions()
        if op.namespace == "aten" and not op._schema.is_mutable  # others depend on what is imported
    }
    return sorted(names - set(_by_reference()))


if __name__ == "__main__":
    sys.stdout.write(page())
