"""Does a mutated file of any kind do nothing but raise an error of ours?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.files.fuzz import fuzz


def test_mutated_files_end_in_our_own_error(tmp_path: Path) -> None:
    found = fuzz(0, 400, tmp_path, run=False)
    assert found["problems"] == []
    assert found["refused"] > 200
    assert found["read"] > 10  # some changes are none


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_thousand_mutated_files_also_replayed(tmp_path: Path, seed: int) -> None:
    """In a process with a limit of memory; programs that can be read are run as well."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.files.fuzz", str(seed), "1000", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["problems"] == []
    assert found["read"] + found["refused"] == 1000
