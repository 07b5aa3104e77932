"""Every mutating ATen op of training has a functional one, and it computes the same."""

import pytest
import torch

from numgeom.recording.variants import functional_variant, written_arguments

aten = torch.ops.aten

CASES = [
    (aten.add_.Tensor, lambda a, b: ((a, b), {"alpha": 2})),
    (aten.mul_.Scalar, lambda a, b: ((a, 3.0), {})),
    (aten.div_.Tensor, lambda a, b: ((a, b), {})),
    (aten.addcmul_.default, lambda a, b: ((a, b, b), {"value": 0.5})),
    (aten.lerp_.Scalar, lambda a, b: ((a, b, 0.25), {})),
    (aten.__iand__.Tensor, lambda a, b: ((a > 0, b > 0), {})),
    (aten.masked_fill_.Scalar, lambda a, b: ((a, b > 0, 7.0), {})),
    (aten.index_add_.default, lambda a, b: ((a, 0, torch.tensor([1, 0, 1]), b), {})),
    (aten.scatter_add_.default, lambda a, b: ((a, 0, torch.zeros(3, 4).long(), b), {})),
    (aten.relu_.default, lambda a, b: ((a,), {})),
    (aten._foreach_add_.List, lambda a, b: (([a, b], [b.clone(), a.clone()]), {})),
    (aten._foreach_addcdiv_.Scalar, lambda a, b: (([a], [b], [b.abs() + 1]), {"value": 0.1})),
]


@pytest.mark.parametrize(("op", "make"), CASES, ids=[str(c[0]) for c in CASES])
def test_a_functional_variant_computes_what_is_written(op, make):
    torch.manual_seed(0)
    args, kwargs = make(torch.randn(3, 4), torch.randn(3, 4))
    variant = functional_variant(op)
    assert variant is not None
    result = variant.op(*args, **kwargs)
    op(*args, **kwargs)
    (position,) = written_arguments(op)
    written = args[position]
    pairs = zip(written, result, strict=True) if isinstance(written, list) else [(written, result)]
    for now, value in pairs:
        assert torch.equal(now, value)


def test_out_variants_drop_their_out_argument():
    variant = functional_variant(aten.topk.values)
    assert variant is not None
    assert variant.op is aten.topk.default
    assert variant.dropped == ("values", "indices")
    assert variant.n_fresh == 0


def test_nearly_all_mutating_ops_have_a_variant():
    """Those without one are factories with `out=`, and a few that training does not use."""
    with_variant, without = 0, []
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        op_name, _, overload = rest.partition(".")
        packet = (
            getattr(getattr(torch.ops, namespace), op_name, None) if namespace == "aten" else None
        )
        op = getattr(packet, overload or "default", None) if packet else None
        if op is None or not op._schema.is_mutable:
            continue
        if functional_variant(op) is None:
            without.append(name)
        else:
            with_variant += 1
    assert with_variant > 1000
    assert len([n for n in without if not n.endswith("out")]) < 40, without
