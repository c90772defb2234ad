"""The examples in docstrings."""

import doctest
import importlib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_examples_in_docstrings_hold() -> None:
    num_tried = 0
    for folder in ("manifests", "extract", "temporal", "pipelines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            result = doctest.testmod(importlib.import_module(f"vtnpipe.{name}"))
            assert result.failed == 0, path
            num_tried += result.attempted
    assert num_tried >= 8
