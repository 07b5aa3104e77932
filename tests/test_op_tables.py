"""Does a module outside of `ops` hold a list of ops of its own?

What is known of an op stands on its entry, and is asked for there. A list elsewhere is forgotten
when an op is added, silently. Here every collection of at least three names of ATen ops counts, in
whatever form: strings, attributes of `aten`, keys of a mapping, words of one string.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.test_layers import PACKAGE, Source, package_sources, sources

LEAST = 3
NAMES = frozenset(
    s.name.partition("::")[2]
    for s in torch._C._jit_get_all_schemas()
    if s.name.startswith("aten::")
)
# The parts in which an op is described.
HOME = ("numgeom.ops", "numgeom.recording.references", "numgeom.references")

_TABLE = "columns of the measured table and how its functions are computed, not what ops do"
_FORMULA = "names in a formula that is read back from the graph, each with code of its own"
_RULE = "rules of selections, one function for each op, beside the choices they carry out"
_MATCH = "torch's derivative formulas, matched call by call, each with code of its own"
_RECORD = "how a recorder treats torch's calls; recording stands below ops and cannot ask them"
_OPEN = "which calls are opened before they are bounded, each with its formula"

# Where a list stands, and why it may.
EXCEPTIONS: dict[str, str] = {
    "arithmetic.accuracy:_COLUMNS": "columns of a table that happen to be called like ops",
    "arithmetic.elementary:COMPUTED": _TABLE,
    "arithmetic.elementary:OF_TWO": _TABLE,
    "arithmetic.elementary:VECTOR_MATHEMATICS": _TABLE,
    "diagnosis.clipping:_cut_off": _FORMULA,
    "diagnosis.differences:_is_divided": _FORMULA,
    "diagnosis.formulas:FormulaDetector": _FORMULA,
    "diagnosis.patterns:_PATTERNS": _FORMULA,
    "diagnosis.patterns:_NEAR_ONE": _FORMULA,
    "diagnosis.reading:is_bounded_above": _FORMULA,
    "nonsmooth.grids:_ACCUMULATIONS": "ops whose grid of terms the function below it can name",
    "nonsmooth.grids:_SUMS": "ops whose grid of terms the function below it can name",
    "nonsmooth.kinks:Family": "families of kinks, some of which are called like ops",
    "nonsmooth.maxima:MAXIMA": _RULE,
    "nonsmooth.pointwise:POINTWISE": _RULE,
    "nonsmooth.selection:FAMILIES": "families of kinks, some of which are called like ops",
    "nonsmooth.selection:_CLARKE": "families of kinks, some of which are called like ops",
    "nonsmooth.sites:_COPIES": _MATCH,
    "nonsmooth.sites:_FORMULAS": _MATCH,
    "nonsmooth.sites:_OWN": _MATCH,
    "nonsmooth.sites:_RESHAPES": _MATCH,
    "nonsmooth.sites:_clamp": _MATCH,
    "nonsmooth.sites:_comparisons": _MATCH,
    "nonsmooth.sites:_reduction": _MATCH,
    "recording.complex_pairs:COMPLEX_OPS": _OPEN,
    "recording.complex_pairs:_BY_PARTS": _OPEN,
    "recording.complex_pairs:_FROM_REALS": _OPEN,
    "recording.complex_pairs:_RULES": _OPEN,
    "recording.contents:_decided": _RECORD,
    "recording.contents:copies_after": _RECORD,
    "recording.decompose:_ALSO_OPENED": _OPEN,
    "recording.decompose:_OWN": _OPEN,
    "recording.formulas:FORMULAS": _OPEN,
    "recording.functionalize:ALLOCATES": _RECORD,
    "recording.functionalize:DRAWS": _RECORD,
    "recording.functionalize:HIDDEN_WRITES": _RECORD,
    "recording.functionalize:METADATA_ONLY": _RECORD,
    "recording.functionalize:READS": _RECORD,
    "recording.recorder:Recorder": _RECORD,
    "recording.scalars:_FILLS": _RECORD,
    "recording.scalars:_MADE_BY_TORCH": _RECORD,
    "recording.scalars:_SCALAR_TWINS": _RECORD,
}


def lists_of_ops(files: list[Source]) -> dict[str, int]:
    """Where a list of ops stands ("module:name" of what holds it), with its length."""
    found: dict[str, int] = {}
    for source in files:
        if any(f"{source.module}.".startswith(f"{home}.") for home in HOME):
            continue
        for holder, node in _named(source.tree, ""):
            count = _ops_in(node)
            if count >= LEAST:
                key = f"{source.module.removeprefix(PACKAGE + '.')}:{holder}"
                found[key] = max(count, found.get(key, 0))
    return found


def _named(tree: ast.AST, holder: str) -> Iterator[tuple[str, ast.expr]]:
    """Every expression, with the variable, function or class that it stands in."""
    for node in ast.iter_child_nodes(tree):
        name = holder
        if not holder and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
        elif not holder and isinstance(node, (ast.Assign, ast.AnnAssign)):
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        if isinstance(node, ast.expr):
            yield name, node
        yield from _named(node, name)


def _ops_in(node: ast.expr) -> int:
    if isinstance(node, (ast.Set, ast.Tuple, ast.List)):
        return sum(map(_is_op, node.elts))
    if isinstance(node, ast.Dict):
        return sum(_is_op(key) for key in node.keys if key is not None)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        words = node.value.split()
        return len(words) if all(word in NAMES for word in words) else 0
    return 0


def _is_op(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return node.value in NAMES
    return isinstance(node, ast.Attribute) and "aten." in ast.unparse(node)


def test_no_list_of_ops_stands_outside_of_ops() -> None:
    found = lists_of_ops(package_sources())
    assert {key: n for key, n in found.items() if key not in EXCEPTIONS} == {}


def test_no_exception_is_out_of_date() -> None:
    found = lists_of_ops(package_sources())
    assert [key for key in EXCEPTIONS if key not in found] == []
    assert all(len(reason.split()) > 4 for reason in EXCEPTIONS.values())


@pytest.mark.parametrize(
    ("path", "text", "holder"),
    [
        ("diagnosis/a.py", 'MOVES = frozenset({"view", "permute", "t"})', "diagnosis.a:MOVES"),
        ("diagnosis/a.py", 'MOVES = frozenset("view permute t".split())', "diagnosis.a:MOVES"),
        ("diagnosis/a.py", 'F = {"mm": 1, "bmm": 2, "mv": 3}', "diagnosis.a:F"),
        ("recording/a.py", "F = (aten.mm, aten.bmm, aten.mv.default)", "recording.a:F"),
        ("recording/a.py", 'def f(n):\n    return n in ("mm", "bmm", "mv")', "recording.a:f"),
        ("diagnosis/a.py", 'F = ("mm", "bmm")', ""),
        ("diagnosis/a.py", '"""Add up mean and sum."""', ""),
        ("ops/a.py", 'F = ("mm", "bmm", "mv")', ""),
    ],
)
def test_a_planted_list_is_found(tmp_path: Path, path: str, text: str, holder: str) -> None:
    file = tmp_path / PACKAGE / path
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    assert list(lists_of_ops(sources(tmp_path / PACKAGE))) == ([holder] if holder else [])
