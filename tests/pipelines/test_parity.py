"""`vtnpipe parity`: stored features against the plainest path."""

from pathlib import Path

import numpy as np
import pytest
from command_line import Vtnpipe
from feature_folders import extract_rows, make_folder
from numbered_videos import write_video
from vtnpipe.manifests.errors import VideoError
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.shards import open_features
from vtnpipe.pipelines.parity import ParitySettings, draw_sample, parity
from vtnpipe.pipelines.predict import PredictSettings, predict
from vtnpipe.pipelines.train_temporal import TrainTemporalSettings, train_temporal


def _extracted(tmp_path: Path, backbone: str = "test_vit", **options: object) -> Path:
    rows = []
    for number in range(4):
        path = write_video(tmp_path / f"{number}.mp4", 30, height=240, width=320, first=99 * number)
        rows.append(
            VideoRow(
                video_id=f"v{number}",
                path=str(path),
                label="ab"[number % 2],
                split="train" if number < 2 else "val",
                start=0.2 if number == 3 else None,
            )
        )
    folder = make_folder(tmp_path / "f", backbone, **options)  # type: ignore[arg-type]
    extract_rows(folder, rows)
    write_manifest(rows, folder.manifest)
    return folder.root


def test_parity_of_features_and_logits(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    _extracted(tmp_path, store="float16")
    small = {"layers": 1, "heads": 2, "intermediate": 16, "head_dim": 8, "epochs": 1}
    train_temporal(tmp_path / "f", tmp_path / "run", TrainTemporalSettings(**small))
    ran = vtnpipe("parity", "f", "--sample", 50, "--model", "run")
    assert "50 features of 4 videos, computed in float32 and stored in float16" in ran.stdout
    assert "4 of 4 decisions stay" in ran.stdout
    report = parity(tmp_path / "f", ParitySettings(sample=1000, model=str(tmp_path / "run")))
    assert len(report.frames) == 3 * 30 + 25
    assert report.least_cosine > 0.9999
    assert 0 < max(one.change for one in report.logits) < 0.01


def test_a_model_of_some_frames_takes_the_same_of_a_video(tmp_path: Path) -> None:
    root = _extracted(tmp_path, "toy_backbones:block_means", frame_stride=3)
    small = {"layers": 1, "heads": 2, "intermediate": 16, "head_dim": 8, "epochs": 1}
    train_temporal(root, tmp_path / "run", TrainTemporalSettings(**small))
    by_features = predict(
        tmp_path / "run", ["v0"], PredictSettings(mode="features", features=str(root))
    )
    by_video = predict(tmp_path / "run", [tmp_path / "0.mp4"])
    one, other = by_features.predictions[0].logits, by_video.predictions[0].logits
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_every_view_is_compared(tmp_path: Path) -> None:
    root = _extracted(tmp_path, views=("left", "center", "right"))
    frames = parity(root, ParitySettings(sample=20)).frames
    assert len(frames) == 60
    assert min(frame.cosine for frame in frames) > 0.9999
    store = open_features(root)["v0"].features
    assert not np.allclose(store[:, 0], store[:, 2], atol=1e-3)  # the views are different ones


def test_a_wrong_feature_is_found(tmp_path: Path) -> None:
    root = _extracted(tmp_path, "toy_backbones:block_means")
    assert parity(root, ParitySettings(sample=200)).least_cosine > 0.9999
    (tmp_path / "0.mp4").write_bytes((tmp_path / "2.mp4").read_bytes())
    frames = parity(root, ParitySettings(sample=200)).frames
    wrong = {frame.video_id for frame in frames if frame.cosine < 0.99}
    assert wrong == {"v0"}
    (tmp_path / "0.mp4").unlink()
    with pytest.raises(VideoError, match="is not there"):
        parity(root, ParitySettings(sample=200))


def test_a_sample_is_of_many_videos_and_reads_little_of_a_long_one(tmp_path: Path) -> None:
    store = open_features(_extracted(tmp_path, "toy_backbones:block_means"))
    sample = draw_sample(store, 20, seed=1)
    assert sum(map(len, sample.values())) == 20
    assert draw_sample(store, 20, seed=1).keys() == sample.keys()
    assert sum(map(len, draw_sample(store, 10**6, seed=1).values())) == 3 * 30 + 25
    for chosen in sample.values():
        assert (np.diff(chosen) > 0).all()
