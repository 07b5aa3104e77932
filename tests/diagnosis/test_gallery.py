"""Is every defect of the gallery found by its right name, and is every twin left in peace?"""

import pytest
import torch

from numgeom.diagnosis import Diagnosis, Severity, diagnose
from reproductions.gallery import CASES, Case


def of_defect(case: Case) -> Diagnosis:
    torch.manual_seed(0)
    return diagnose(*case.defective())


def of_twin(case: Case) -> Diagnosis:
    torch.manual_seed(0)
    return diagnose(*case.healthy())


def test_the_gallery_is_large_and_its_names_are_unique() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_defect_is_found_and_its_twin_is_not(case: Case) -> None:
    found = of_defect(case)
    assert found, f"nothing was found:\n{found}"
    hits = [
        finding
        for finding in found
        if finding.severity is not Severity.INFO
        and finding.kind in case.kinds
        and (not case.ops or any(word in finding.op for word in case.ops))
    ]
    assert hits, f"none of {case.kinds} at {case.ops}:\n{found}"
    twin = of_twin(case)
    assert not twin, f"a false alarm:\n{twin}"


VERIFIED = (
    "log-softmax-split", "log-sigmoid-split", "log-one-minus-sigmoid", "softplus-by-hand",
    "logsumexp-by-hand", "logsumexp-of-tiny", "likelihood-as-a-product", "one-minus-cos",
    "exp-minus-one", "log-of-one-plus", "variance-by-moments", "mixture-density-by-hand",
    "flow-log-of-determinant", "entropy-of-a-softmax", "cross-entropy-of-a-sigmoid",
    "sqrt-at-zero", "half-without-loss-scale",
)  # fmt: skip


@pytest.mark.parametrize("name", VERIFIED)
def test_a_remedy_is_verified_on_the_step(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    found = [finding for finding in of_defect(case) if finding.verified]
    assert found
    for finding in found:
        assert finding.evidence["error_after"] < 0.5 * finding.evidence["error_before"]
