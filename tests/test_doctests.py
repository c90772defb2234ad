"""The examples in docstrings."""

import doctest
import importlib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_examples_in_docstrings_hold() -> None:
    num_tried = 0
    for path in sorted(ROOT.glob("*/*.py")):
        if path.parent.name in ("manifests", "extract", "temporal", "pipelines"):
            module = importlib.import_module(f"vtnpipe.{path.parent.name}.{path.stem}")
            result = doctest.testmod(module)
            assert result.failed == 0, path
            num_tried += result.attempted
    assert num_tried >= 8
