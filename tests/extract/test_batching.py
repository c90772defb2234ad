"""Batches across videos: progress, stages, and features that cannot be stored."""

from pathlib import Path

import pytest
from feature_folders import extract_rows, make_folder
from vtnpipe.extract.batching import StageTimer, TaskProgress
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow


def test_seconds_of_stages_and_progress_add_up() -> None:
    timer = StageTimer()
    timer.add("forward", 2.0)
    timer.add("forward", 1.5)
    with timer("wait"):
        pass
    assert set(timer.seconds) == {"wait", "forward"}
    assert timer.seconds["forward"] == 3.5
    assert TaskProgress(2, 1) + TaskProgress(3, -4) == TaskProgress(5, -3)


def test_values_beyond_float16_name_the_remedy(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:huge", feature_dtype="float16")
    message = r"'a', frame \d+: .* exceeds float16.*--feature-dtype float32"
    with pytest.raises(FeaturesError, match=message):
        extract_rows(folder, rows)
    assert list(folder.shards.iterdir()) == []
    other = make_folder(tmp_path / "g", "toy_backbones:huge", feature_dtype="float32")
    extract_rows(other, rows)
    assert open_features(other.root)["a"].features.max() > 1e5


def test_values_that_are_not_finite_are_an_error(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:not_a_number")
    with pytest.raises(FeaturesError, match="not finite"):
        extract_rows(folder, rows)
    # The next task is served as ever.
    extract_rows(make_folder(tmp_path / "g", "toy_backbones:block_means"), rows)
