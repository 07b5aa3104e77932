"""Are gradients from other machines, formats and frameworks judged, and bad ones refused?"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from numgeom.certificate import CertificateError, Guarantee, certify
from numgeom.certificate.given import fitting
from numgeom.recording import Program, record_step


def subject() -> Program:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    return record_step(model, lambda m, x: m(x).square().sum(), torch.randn(4, 2))


class Foreign:
    """An array of another framework: it hands over memory and is nothing else."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self._tensor.__dlpack_device__()


FORMS = {
    "tensor": lambda g: g,
    "float64": lambda g: g.double(),
    "sparse": lambda g: g.to_sparse(),
    "transposed": lambda g: g.T.contiguous().T if g.dim() == 2 else g,
    "parameter": lambda g: nn.Parameter(g),
    "numpy": lambda g: g.numpy(),
    "numpy, other byte order": lambda g: g.numpy().astype(g.numpy().dtype.newbyteorder(">")),
    "numpy, read only": lambda g: np.frombuffer(g.numpy().tobytes(), "f4").reshape(g.shape),
    "numpy, negative strides": lambda g: g.flip(0).numpy()[::-1],
    "foreign": Foreign,
    "foreign bfloat16": lambda g: Foreign(g.bfloat16()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_judged_by_its_values(form: str) -> None:
    program = subject()
    recorded = program.recorded.gradients
    given = {name: FORMS[form](g) for name, g in reversed(recorded.items())}
    read = fitting(given, recorded)
    assert list(read) == list(recorded)
    wide = {n: g.bfloat16() if "bfloat16" in form else g for n, g in recorded.items()}
    assert all(torch.equal(read[n].double(), g.double()) for n, g in wide.items())
    found = certify(program, computed=given, method="kantorovich")
    assert found.guarantee is Guarantee.CERTIFIED
    expected = certify(program, computed=wide, method="kantorovich")
    assert found.total.error_bound == expected.total.error_bound
    assert found.total.error_norm == expected.total.error_norm
    assert found.total.error_norm > 0


def test_the_bound_grows_with_the_error_of_what_is_given() -> None:
    program = subject()
    half = {n: g.half() for n, g in program.recorded.gradients.items()}
    own, given = certify(program), certify(program, computed=half)
    assert own.total.error_bound is not None
    assert given.total.error_bound is not None
    assert given.total.error_bound > 100 * own.total.error_bound
    assert given.parameters["0.bias"].dtype == "float16"


def test_a_gradient_that_is_given_in_float64_is_bounded_by_the_radius() -> None:
    program = subject()
    reference = program.replay(torch.float64).gradients
    row = certify(program, computed=reference).total
    assert row.error_bound is not None
    assert 0 < row.error_bound < 1e-12


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_get_no_bound_and_are_named(value: float) -> None:
    program = subject()
    given = {name: g.numpy().copy() for name, g in program.recorded.gradients.items()}
    given["2.bias"][0] = value
    found = certify(program, computed=given)
    assert found.guarantee is Guarantee.NONE
    assert found.total.error_bound is None
    assert found.first_nonfinite is not None
    assert "gradients that were given" in found.first_nonfinite.describe()
    assert found.first_nonfinite.reached == ("2.bias",)


def test_every_problem_is_named_at_once() -> None:
    program = subject()
    given: dict[str, Any] = {
        "0.weight": np.ones((3, 3), dtype=np.float32),
        "0.bias": [1.0, 2.0, 3.0],
        "2.weight": np.ones((1, 3), dtype=np.int64),
        "2.bias": torch.ones(1, dtype=torch.complex64),
        "extra": torch.ones(1),
        "words": np.array(["a"]),
    }
    with pytest.raises(CertificateError) as caught:
        certify(program, computed=given)
    for problem in (
        "0.weight: of shape (3, 3), but the parameter has (3, 2)",
        "0.bias: of type list, not a tensor or an array",
        "2.weight: of torch.int64",
        "2.bias: of torch.complex64, but the recorded one is of torch.float32",
        "extra: the recorded step has no gradient of this name",
        "0.weight, 0.bias, 2.weight, 2.bias",
    ):
        assert problem in str(caught.value)
    with pytest.raises(CertificateError, match=r"2\.bias: missing"):
        certify(program, computed={**program.recorded.gradients, "2.bias": None})
    odd = {**program.recorded.gradients, "2.bias": np.array(["a"])}
    with pytest.raises(CertificateError, match=r"2\.bias: of type ndarray, which torch cannot"):
        certify(program, computed=odd)
    no_mapping: Any = [torch.ones(1)]
    with pytest.raises(CertificateError, match="of type list. Give a mapping"):
        certify(program, computed=no_mapping)
