"""Is the table of references whole, and does each entry keep to the form of its op?"""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from numgeom.recording.references import DEFINITIONS, REFERENCES, overload
from tests.recording.references.agreement import reference
from tests.recording.references.test_zoo import NAMES as FROM_STEPS  # run in float64 there

TESTED_TORCH = (2, 13)


def installed_torch() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def test_every_definition_is_in_the_table() -> None:
    names = [definition.name for definition in DEFINITIONS]
    assert len(set(names)) == len(names)
    absent = [name for name in names if overload(name) is None]
    assert len(REFERENCES) == len(names) - len(absent)
    if installed_torch() == TESTED_TORCH:
        assert absent == []


def test_every_entry_takes_the_arguments_of_its_op() -> None:
    for op, entry in REFERENCES.items():
        if op._schema.name.startswith("aten::_foreach_"):
            continue  # one function for all of them, tested on every op of the installed torch
        takes = dict(inspect.signature(entry.compute).parameters)
        for own in ("decoupled", "returns_steps"):
            takes.pop(own, None)
        arguments = op._schema.arguments
        if installed_torch() == TESTED_TORCH:  # other versions may have fewer
            assert len(takes) == len(arguments), op
        for argument in arguments:
            if argument.kwarg_only:
                assert takes[argument.name].kind is inspect.Parameter.KEYWORD_ONLY, op
            if argument.has_default_value():
                assert takes[argument.name].default == argument.default_value, op
        positions = [p for p in takes.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        assert len(positions) >= sum(not a.kwarg_only for a in arguments), op


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64) + 0.5


SDPA = "aten::_scaled_dot_product_flash_attention_for_cpu"


def float64_arguments() -> dict[str, tuple[Any, ...]]:
    """Draw arguments for the ops declared to run in float64, besides those on lists."""
    qkv = (draw(2, 3, 4, 5), draw(2, 3, 4, 5), draw(2, 3, 4, 5))
    batch = (draw(4, 3, 5), draw(3), draw(3), draw(3), draw(3))
    saved = (draw(4, 3, 5), draw(4, 3, 5), draw(3), draw(3), draw(3), draw(3), draw(3))
    return {
        SDPA: qkv,
        f"{SDPA}_backward": (qkv[0], *qkv, qkv[0], draw(2, 3, 4), 0.0, False),
        "aten::_native_batch_norm_legit.no_stats": (*batch[:3], True, 0.1, 1e-5),
        "aten::_native_batch_norm_legit_no_training": (*batch, 0.1, 1e-5),
        "aten::_native_batch_norm_legit_functional": (*batch, True, 0.1, 1e-5),
        "aten::_batch_norm_with_update_functional": (*batch, 0.1, 1e-5),
        "aten::_batch_norm_no_update": (*batch, 0.1, 1e-5),
        "aten::native_batch_norm_backward": (*saved, True, 1e-5, [True] * 3),
        "aten::batch_norm_backward": (*saved, True, 1e-5, [True] * 3, draw(0)),
        "aten::_fused_rms_norm": (draw(4, 5), [5], draw(5), 1e-5),
        "aten::_addmm_activation": (draw(3, 5), draw(3, 4), draw(4, 5)),
    }


def test_what_is_declared_to_run_in_float64_does() -> None:
    declared = {d.name for d in DEFINITIONS if d.float64_on_cpu}
    assert {d.name for d in DEFINITIONS if "aten::_foreach_" in d.name} <= declared
    arguments = float64_arguments()
    assert {name for name in declared if "_foreach_" not in name} == {
        *arguments,
        *(declared & set(FROM_STEPS)),
    }
    for name, args in arguments.items():
        before = tree_map_only(torch.Tensor, torch.Tensor.clone, args)
        outputs = reference(name).op(*args)
        for a, b in zip(tree_leaves(args), tree_leaves(before), strict=True):
            assert a is b or torch.equal(a, b), name
        kept = [t for t in tree_leaves(outputs) if t.is_floating_point()]
        assert {t.dtype for t in kept} == {torch.float64}, name


def test_every_entry_names_its_source() -> None:
    assert all(reference.source.strip() for reference in REFERENCES.values())


def test_every_entry_is_named_in_a_test() -> None:
    """An op is named by its family and a suffix, so the family is what must appear."""
    texts = "".join(p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("test_*.py"))
    for definition in DEFINITIONS:
        base = definition.name.partition(".")[0]
        family = base.removesuffix("_impl").removesuffix("_backward")
        assert family in texts or "_foreach_" in family, definition.name
