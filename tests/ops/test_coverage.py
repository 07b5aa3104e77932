"""Is every op that real models call covered, and does the page say what the tables say?

`covered.txt` lists the ops, overload by overload, of one training step of some ninety models and
op collections: transformers, convolutional, recurrent and graph networks, optimizers, losses,
linear algebra.
"""

from pathlib import Path

import pytest
import torch
from torch._ops import OpOverload

from numgeom.ops.coverage import Status, coverage_of, page
from numgeom.ops.refused import REFUSED
from numgeom.ops.table import OPS
from numgeom.recording.functionalize import Treatment, traits_of
from numgeom.recording.variants import functional_variant

LISTED = tuple(Path(__file__).with_name("covered.txt").read_text(encoding="utf-8").split())
PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


def overload(name: str) -> OpOverload:
    namespace, packet, variant = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), variant)


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_op_has_a_status(name: str) -> None:
    found = coverage_of(overload(name))
    assert found.status is not Status.UNKNOWN, found.reason
    assert found.reason
    assert (found.status is Status.REFUSED) == (found.name in REFUSED)


def test_few_listed_ops_are_refused() -> None:
    """Whoever adds a rule takes the op off this list, and off the page."""
    refused = {coverage_of(overload(name)).name for name in LISTED} & set(REFUSED)
    assert refused == REFUSED_AND_LISTED


REFUSED_AND_LISTED = {
    *("_linalg_eigh", "_linalg_svd", "linalg_matrix_exp", "linalg_pinv", "linalg_lstsq"),
    *("_standard_gamma_grad", "_dirichlet_grad", "polygamma", "_ctc_loss"),
    *("_values", "_indices", "_coalesce", "sparse_mask"),
    "_sparse_coo_tensor_with_dims_and_tensors",
}


def test_refused_ops_exist_and_have_no_entry() -> None:
    for name, reason in REFUSED.items():
        assert hasattr(torch.ops.aten, name), name
        assert OPS.named(name) is None, name
        assert reason


def test_variants_of_one_op_have_one_status() -> None:
    """In-place and `out=` variants of every listed op, as far as they have a functional one."""
    tried = 0
    for name in LISTED:
        op = overload(name)
        if op._schema.is_mutable or op.namespace != "aten":
            continue
        in_place = getattr(torch.ops.aten, f"{op._opname}_", None)
        for other in (*_overloads(op.overloadpacket), *_overloads(in_place)):
            variant = functional_variant(other) if other._schema.is_mutable else None
            if variant is None or variant.op is not op:
                continue
            tried += 1
            mine, its = coverage_of(op), coverage_of(other)
            assert its.name == mine.name
            same = its.status is mine.status or its.status is Status.RANDOM
            assert same or traits_of(other).treatment is Treatment.IGNORE, other
    assert tried > 200


def _overloads(packet: object) -> list[OpOverload]:
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return []
    return [getattr(packet, name) for name in packet.overloads()]


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "docs/coverage.md is out of date: python -m numgeom.ops.coverage > docs/coverage.md"
    )


def test_the_page_names_every_entry() -> None:
    text = page()
    assert all(f"| `{op.name}` |" in text for op in OPS)
    assert all(f"| `{name}` |" in text for name in REFUSED)


def test_an_op_of_nobody_is_unknown() -> None:
    assert coverage_of(torch.ops.aten.special_airy_ai.default).status is Status.UNKNOWN
