"""Which settings do all tests share?"""

import os
import random
import warnings
from collections.abc import Iterator

# Before the first import of transformers: nothing is downloaded, whatever a test asks for.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import pytest
import torch

from numgeom.failures import loud

# One thread: the tensors are small, and results do not depend on the number of cores.
torch.set_num_threads(1)

# The same examples in every run. No deadline: a busy machine is not a defect.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random states."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loud_failures() -> Iterator[None]:
    """Let every exception pass the boundaries of the questions: here a fault has to be seen."""
    with loud():
        yield


@pytest.fixture
def quiet_libraries() -> Iterator[None]:
    """Let torch and transformers warn of what tests do to them on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
