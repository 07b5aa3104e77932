"""How is a reference compared with the op that it stands for?"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from numgeom.recording.references import REFERENCES, Reference, overload


class PlainOpsOnly(TorchDispatchMode):
    """Fails where a reference calls an op that is itself fused, writes, or draws."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in REFERENCES, f"{func} is no plain op"
        assert torch.Tag.nondeterministic_seeded not in func.tags, f"{func} draws"
        assert not func._schema.is_mutable, f"{func} writes"
        return func(*args, **(kwargs or {}))


class Calls(TorchDispatchMode):
    """Keeps what the named ops are called with, and what they return, in a run of user's code."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.ops = {overload(name): name for name in names}
        self.seen: list[tuple[str, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        if func in self.ops:
            self.seen.append((self.ops[func], args, kwargs, outputs))
        return outputs


def reference(name: str) -> Reference:
    op = overload(name)
    assert op is not None, f"this torch has no {name}"
    return REFERENCES[op]


def compute(name: str, *args: Any, **kwargs: Any) -> Any:
    """Run a reference as a replay does, and see that it is plain and leaves its inputs alone."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    with torch.no_grad(), PlainOpsOnly():
        outputs = reference(name).compute(*args, **kwargs)
    for tensor, copy in zip(tensors, before, strict=True):
        assert_same(tensor, copy)
    return outputs


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def in_dtype(values: Any, dtype: torch.dtype) -> Any:
    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype)
        return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value

    return tree_map(cast, values)


def rel_error(got: Tensor, want: Tensor) -> float:
    """Largest deviation, relative to the largest entry; non-finite entries must be the same."""
    assert got.shape == want.shape, f"{got.shape} is not {want.shape}"
    got, want = got.double(), want.double()
    finite = want.isfinite()
    assert_same(got[~finite], want[~finite])
    got, want = got[finite], want[finite]
    if got.numel() == 0:
        return 0.0
    scale = want.abs().max().item()
    return ((got - want).abs().max() / (scale or 1.0)).item()


def assert_close(got: Any, want: Any, *, bound: float, skip: tuple[int, ...] = ()) -> None:
    """Compare outputs of an op position by position; `skip` lists those that only it can read."""
    got, want = (x if isinstance(x, (tuple, list)) else (x,) for x in (got, want))
    assert len(got) == len(want)
    for position, (a, b) in enumerate(zip(got, want, strict=True)):
        if position in skip:
            assert (a is None) == (b is None) or isinstance(a, Tensor)
        elif isinstance(b, (tuple, list)):
            assert isinstance(a, (tuple, list))
            assert_close(a, b, bound=bound)
        elif isinstance(b, Tensor):
            assert isinstance(a, Tensor), f"output {position} is {a}"
            error = rel_error(a, b)
            assert error <= bound, f"output {position} is off by {error:.3g}, more than {bound:.3g}"
        else:
            assert a == b, f"output {position} is {a}, not {b}"


def dtypes(outputs: Any, skip: tuple[int, ...] = ()) -> list[torch.dtype | None]:
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    kept = [output for position, output in enumerate(outputs) if position not in skip]
    return [leaf.dtype if isinstance(leaf, Tensor) else None for leaf in tree_leaves(kept)]


def check(
    name: str,
    *args: Any,
    terms: int,
    skip: tuple[int, ...] = (),
    spacing: float | None = None,
    **kwargs: Any,
) -> Any:
    """Compare a reference with the fused op on the same inputs.

    The reference runs in float64 and in the formats of the inputs; in those its outputs must have
    the dtypes of the op's. The bound on the error is 4 eps per added term.

    Args:
        name: The op.
        args: Its positional arguments.
        terms: Length of the longest sum in the op.
        skip: Positions of outputs that only the op's kernel can read.
        spacing: What eps is, if not that of the coarsest format among the inputs.
        kwargs: The op's keyword arguments.
    """
    fused = reference(name).op(*args, **kwargs)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    eps = spacing or max(torch.finfo(t.dtype).eps for t in tensors if t.is_floating_point())
    wide_args, wide_kwargs = in_dtype((args, kwargs), torch.float64)
    exact = compute(name, *wide_args, **wide_kwargs)
    assert_close(exact, fused, bound=4 * terms * eps, skip=skip)
    same = compute(name, *args, **kwargs)
    assert dtypes(same, skip) == dtypes(fused, skip)
    assert_close(same, exact, bound=4 * terms * eps, skip=skip)
    return fused


def gradients(outputs: Any, inputs: Any, douts: Any) -> list[Tensor | None]:
    """Let autograd differentiate, as an oracle."""
    pairs = [(y, dy) for y, dy in zip(outputs, douts, strict=True) if dy is not None]
    ys, dys = [y for y, _ in pairs], [dy for _, dy in pairs]
    return list(torch.autograd.grad(ys, inputs, dys, allow_unused=True, retain_graph=True))
