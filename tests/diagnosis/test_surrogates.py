"""Are gradients that are no derivatives told apart from errors, also where views are written?"""

import pytest
import torch

from numgeom.diagnosis import Kind, Severity, diagnose
from reproductions.gallery import FORMATS, SURROGATES, true_gradient


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_is_an_info_and_never_more(name: str) -> None:
    found = diagnose(*SURROGATES[name]())
    (finding,) = found.of(Kind.SURROGATE)
    assert finding.severity is Severity.INFO
    assert not found, str(found)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("dtype", FORMATS)
def test_a_true_gradient_is_none(dtype: torch.dtype, views: bool) -> None:
    assert not diagnose(*true_gradient(dtype, views=views)).findings
