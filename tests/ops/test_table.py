"""Does the table hold every entry once, and find it by whatever variant a program calls?"""

import ast
from pathlib import Path

import pytest
import torch

import numgeom.ops
from numgeom.ops.entry import Example, Kind, Op
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.table import OPS, OpTable, OpTableError, functional_name

aten = torch.ops.aten
FOLDER = Path(numgeom.ops.__file__).parent


def an_op(name: str) -> Op:
    return Op(name, Kind.EXACT, None, None, None, None, NO_KINKS, "a test")


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (aten.add.Tensor, "add"),
        (aten.add_.Tensor, "add"),
        (aten.add.out, "add"),
        (aten.mul.Scalar, "mul"),
        (aten.threshold_backward.grad_input, "threshold_backward"),
        (aten.relu_.default, "relu"),
        (aten.__and__.Tensor, "__and__"),
    ],
)
def test_variants_share_the_functional_name(op: torch._ops.OpOverload, name: str) -> None:
    assert functional_name(op) == name


def test_ops_of_other_namespaces_keep_it() -> None:
    assert functional_name(torch.ops.prims.add.default) == "prims::add"
    assert OPS.lookup(torch.ops.prims.add.default) is None


def test_lookup_finds_the_entry_of_every_variant() -> None:
    entry = OPS.named("add")
    assert entry is not None
    assert OPS.lookup(aten.add.Tensor) is entry
    assert OPS.lookup(aten.add_.Scalar) is entry
    assert OPS.lookup(aten.add.out) is entry


def test_an_unknown_op_has_no_entry() -> None:
    assert OPS.lookup(aten.special_airy_ai.default) is None
    assert OPS.named("airy") is None


def test_duplicates_are_refused_and_named() -> None:
    with pytest.raises(OpTableError, match="double"):
        OpTable((an_op("double"), an_op("other"), an_op("double")))
    with pytest.raises(OpTableError, match="add"):
        OPS.extend(an_op("add"))


def test_extending_leaves_the_table_as_it_is() -> None:
    size = len(OPS)
    larger = OPS.extend(an_op("mine::op"))
    assert (len(OPS), len(larger)) == (size, size + 1)
    assert larger.named("mine::op") is not None
    assert OPS.named("mine::op") is None


def test_every_tuple_of_entries_is_enrolled() -> None:
    """A file that defines entries but is not in the table would be silently without effect."""
    enrolled = {id(op) for op in OPS}
    missing = []
    for path in sorted(FOLDER.glob("*.py")):
        for name in _tuples_of_entries(path):
            module = __import__(f"numgeom.ops.{path.stem}", fromlist=[name])
            missing += [f"{path.stem}.{name}: {op.name}" for op in getattr(module, name)
                        if id(op) not in enrolled]  # fmt: skip
    assert not missing


def _tuples_of_entries(path: Path) -> list[str]:
    """Names of the module-level variables that are annotated `tuple[Op, ...]`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.target.id
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and ast.unparse(node.annotation) == "tuple[Op, ...]"
    ]


@pytest.mark.parametrize("op", OPS.ops, ids=lambda op: op.name)
def test_an_entry_says_what_it_has_to(op: Op) -> None:
    assert op.kinks.sentence
    assert op.source
    if "::" not in op.name:
        assert hasattr(aten, op.name), f"ATen has no {op.name}"
    assert all(isinstance(example, Example) for example in op.examples)
