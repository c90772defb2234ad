"""`vtnpipe demo`: only the order of its frames tells a video's class; and a short run."""

from pathlib import Path

import numpy as np
from command_line import Vtnpipe
from read_videos import read_video
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.pipelines.demo import LABELS, NUM_FRAMES, write_videos


def _images(path: str) -> list[bytes]:
    frames, _ = read_video(Path(path))
    assert len(frames) == NUM_FRAMES
    return [frame.image.tobytes() for frame in frames]


def test_the_two_videos_of_an_event_have_the_same_frames(tmp_path: Path) -> None:
    rows = write_videos(tmp_path / "videos", 6)
    assert len(rows) == 12
    assert {row.label for row in rows} == set(LABELS)
    for forwards, backwards in zip(rows[::2], rows[1::2], strict=True):
        assert forwards.split == backwards.split
        assert (forwards.label, backwards.label) == LABELS
        assert _images(forwards.path) == _images(backwards.path)[::-1]
        sizes = {Path(row.path).stat().st_size for row in (forwards, backwards)}
        assert max(sizes) - min(sizes) < 0.01 * max(sizes)
    before = {row.path: Path(row.path).stat().st_mtime_ns for row in rows}
    assert write_videos(tmp_path / "videos", 6) == rows
    assert before == {row.path: Path(row.path).stat().st_mtime_ns for row in rows}


def test_a_short_demo(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    small = ("--events", 12, "--seeds", 1, "--epochs", 2, "--backbone", "test_vit")
    ran = vtnpipe("demo", "d", *small)
    assert "not as it should be" in ran.stdout  # two epochs teach nothing, and that is printed
    for words in (
        "VTN (Longformer)",
        "mean pooling, same head   50.0%",
        "untrained",
        "--weights none",
    ):
        assert words in ran.stdout
    store = open_features(tmp_path / "d/features")
    assert len(store) == 24
    one, other = store["scene-000-forwards"].features, store["scene-000-backwards"].features
    np.testing.assert_allclose(one.mean(0), other.mean(0), atol=0.01)
    assert (tmp_path / "d/run-longformer-0/predictions/val.json").exists()
