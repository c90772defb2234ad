"""`vtnpipe features verify --recompute`: stored features against the plainest path."""

from pathlib import Path

import numpy as np
import pytest
from command_line import Vtnpipe
from feature_folders import extract_rows, make_folder
from numbered_videos import write_video
from vtnpipe.manifests.failures import VideoError
from vtnpipe.manifests.feature_folder import AFTER_RESIZE, read_extraction
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.plan import Computation, with_file_state, write_plan
from vtnpipe.pipelines.inference.recompute import draw_sample, recompute_sample


def _extracted(
    tmp_path: Path, backbone: str = "test_vit", *, num_videos: int = 4, **options: object
) -> Path:
    """Extract numbered videos; return the feature folder."""
    rows = []
    for number in range(num_videos):
        path = write_video(tmp_path / f"{number}.mp4", 30, height=240, width=320, first=99 * number)
        rows.append(
            VideoRow(
                video_id=f"v{number}",
                path=str(path),
                start=0.2 if number == 3 else None,
            )
        )
    folder = make_folder(tmp_path / "f", backbone, **options)  # type: ignore[arg-type]
    planned = [with_file_state(row) for row in rows]
    write_plan(
        folder,
        [planned],
        fingerprint=read_extraction(folder).fingerprint,
        computation=Computation(16),
    )
    extract_rows(folder, planned)
    write_manifest(rows, folder.manifest)
    return folder.root


def test_stored_features_equal_recomputed_ones(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    root = _extracted(tmp_path, feature_dtype="float16")
    ran = vtnpipe("features", "verify", "f", "--recompute", 20)
    assert "20 features of 2 videos, computed in float32 and stored in float16" in ran.stdout
    frames = recompute_sample(root, 1000)
    assert len(frames) == 3 * 30 + 25
    assert min(frame.cosine for frame in frames) > 0.9999
    assert 0 < max(frame.error for frame in frames) < 0.01


def test_planes_that_were_converted_after_the_resize(tmp_path: Path) -> None:
    root = _extracted(tmp_path, num_videos=2, color_conversion=AFTER_RESIZE)
    assert min(frame.cosine for frame in recompute_sample(root, 60)) > 0.9999


def test_every_view_is_compared(tmp_path: Path) -> None:
    root = _extracted(tmp_path, views=("left", "center", "right"), num_videos=2)
    frames = recompute_sample(root, 20)
    assert len(frames) == 60
    assert min(frame.cosine for frame in frames) > 0.9999
    store = open_features(root)["v0"].features
    assert not np.allclose(store[:, 0], store[:, 2], atol=1e-3)  # the views are different ones


def test_a_wrong_feature_is_found(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    root = _extracted(tmp_path, "toy_backbones:block_means", num_videos=2)
    (tmp_path / "0.mp4").write_bytes((tmp_path / "1.mp4").read_bytes())
    cosines = {"v0": [1.0], "v1": [1.0]}
    for frame in recompute_sample(root, 60):
        cosines[frame.video_id].append(frame.cosine)
    assert min(cosines["v0"]) < 0.99
    assert min(cosines["v1"]) > 0.9999
    ran = vtnpipe("features", "verify", "f", "--recompute", 32, code=1)
    assert "cosines below 0.99" in ran.stdout
    assert "v0 frame" in ran.stdout
    (tmp_path / "0.mp4").unlink()
    with pytest.raises(VideoError, match=r"0\.mp4") as caught:
        recompute_sample(root, 32)
    assert caught.value.reason == "missing"


def test_a_sample_is_of_many_videos_and_always_the_same(tmp_path: Path) -> None:
    store = open_features(_extracted(tmp_path, "toy_backbones:block_means"))
    sample = draw_sample(store, 20, seed=1)
    assert sum(map(len, sample.values())) == 20
    assert draw_sample(store, 20, seed=1).keys() == sample.keys()
    assert sum(map(len, draw_sample(store, 10**6, seed=1).values())) == 3 * 30 + 25
    for chosen in sample.values():
        assert (np.diff(chosen) > 0).all()
