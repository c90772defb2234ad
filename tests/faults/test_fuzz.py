"""The short form of the fuzz run; its long form is a command of its own."""

from pathlib import Path

import pytest
from fuzz import fuzz


@pytest.mark.parametrize("seed", [0, 1])
def test_no_changed_file_ends_hangs_or_fools_the_children(tmp_path: Path, seed: int) -> None:
    found = fuzz(tmp_path, 300, seed)
    assert {"ok", "damaged", "truncated"} <= found["outcomes"].keys()
    assert found["crashed"] == []
