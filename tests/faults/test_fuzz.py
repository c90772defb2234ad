"""Short form of the fuzz run; the long form is `python tests/helpers/fuzz.py`."""

from pathlib import Path

import pytest
from fuzz import fuzz


def test_a_few_changed_files(tmp_path: Path) -> None:
    found = fuzz(tmp_path, 60, 2)
    assert {"ok", "damaged", "truncated"} <= found["outcomes"].keys()
    assert found["crashed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_changed_file_crashes_hangs_or_is_counted_wrong(tmp_path: Path, seed: int) -> None:
    found = fuzz(tmp_path, 300, seed)
    assert {"ok", "damaged", "truncated"} <= found["outcomes"].keys()
    assert found["crashed"] == []
