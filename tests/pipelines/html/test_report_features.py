"""The page of a feature folder: counts, failures, and statistics of the features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_folders import extract_rows, make_folder
from numbered_videos import write_video
from vtnpipe.manifests.failures import Failure, write_failures
from vtnpipe.manifests.feature_folder import FeatureFolder, read_extraction
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow, read_manifest, write_manifest
from vtnpipe.manifests.shards import VideoPart, write_shard
from vtnpipe.pipelines.html.report_features import ExtractionSection, extraction_section


def _store(root: Path, features: np.ndarray[Any, Any]) -> FeatureFolder:
    """A folder with one video of these features, at 10 frames per second."""
    folder = make_folder(root, "toy_backbones:block_means")
    write_manifest([VideoRow(video_id="v", path=str(root / "v.mp4"), label="a")], folder.manifest)
    part = VideoPart(
        video_id="v",
        features=features.astype(np.float32),
        frame_index=np.arange(len(features)),
        timestamps=np.arange(len(features)) / 10,
        status="ok",
    )
    write_shard(
        folder.shards / "000-00000.h5",
        [part],
        row_shape=features.shape[1:],
        dtype="float32",
        fingerprint=read_extraction(folder).fingerprint,
        views=("center",),
        settings={},
    )
    return folder


def _section(folder: FeatureFolder) -> ExtractionSection:
    rows = {}
    if folder.manifest.exists():
        rows = {row.video_id: row for row in read_manifest(folder.manifest)}
    return extraction_section(open_features(folder.root), rows, num_frames=4)


def test_statistics_find_dead_dimensions_and_frozen_images(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((40, 16))
    features[:, [3, 7]] = 0.25
    features[20:30] = features[20]  # nine pairs of equal neighbors
    section = _section(_store(tmp_path / "f", features))
    facts = dict(section.statistics.facts)
    assert facts["dead dimensions"] == "2 of 16 never change: 3, 7"
    assert facts["neighboring frames alike"] == f"{9 / 39:.2%} have a cosine above 0.999"
    norms = np.linalg.norm(features, axis=1)
    assert facts["norms"].startswith(f"{norms.min():.3g} to {norms.max():.3g}")
    ((video, frames, share),) = section.statistics.static_videos.rows
    assert (video.text, frames.value) == ("v", 40)
    assert share.value == pytest.approx(9 / 39)


def test_statistics_name_what_is_not_finite_and_what_never_changes(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((40, 16))
    features[5, 3], features[9, 0] = np.nan, np.inf
    facts = dict(_section(_store(tmp_path / "f", features)).statistics.facts)
    assert facts["NOT FINITE"] == "2 frames contain NaN or infinity: v (2)"
    assert facts["dead dimensions"] == "0 of 16 never change"
    for name, length, text in (("g", 1, None), ("h", 3, "16 of 16 never change")):
        folder = _store(tmp_path / name, np.full((length, 16), 0.1))
        assert dict(_section(folder).statistics.facts).get("dead dimensions") == text


def test_an_empty_folder_has_a_section(tmp_path: Path) -> None:
    section = _section(make_folder(tmp_path / "f", "toy_backbones:block_means"))
    assert [one["value"] for one in section.metrics] == ["0", "0", "0", "0", "0.0"]
    assert section.statistics.facts == []
    assert section.failures.rows == []


def test_failures_are_counted_by_reason_and_partial_videos_shown(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means", frame_stride=2)
    path = str(write_video(tmp_path / "v.mp4", 30))
    extract_rows(folder, [VideoRow(video_id="v", path=path), VideoRow(video_id="w", path="/none")])
    write_failures(
        [
            Failure("v", path, "partial", "damaged", "v.mp4: <b>broken</b>", 3),
            Failure("w", "/none", "failed", "missing", "/none: missing", 0),
            Failure("x", "/gone", "failed", "missing", "/gone: missing", 0),
        ],
        folder.failures,
    )
    section = _section(folder)
    assert [[cell.text for cell in row] for row in section.reasons.rows] == [
        ["failed", "missing", "2"],
        ["partial", "damaged", "1"],
    ]
    assert [row[0].text for row in section.failures.rows] == ["v", "w", "x"]
    (strip,) = section.partial
    assert strip.name == "v"
    assert "15 frames stored, 3 lost" in strip.lines
    assert [one.frame_index for one in strip.thumbnails] == [2, 10, 18, 26]
    assert all(one.uri for one in strip.thumbnails)
    facts = dict(section.facts)
    assert facts["sampling"] == "one in 2; views: center"
    assert facts["videos"] == "2 of 2 in the manifest are finished"
    assert [one["value"] for one in section.metrics[:4]] == ["1", "0", "1", "15"]
