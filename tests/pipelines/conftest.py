"""Fixtures of stage two: extracted clips, and a copy of them for each test."""

import shutil
from pathlib import Path

import pytest
from command_line import run_cli
from feature_folders import made_up_features
from numbered_videos import write_video
from vtnpipe.pipelines.train_temporal import TrainTemporalSettings, train_temporal


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve clips of two classes, their manifest `m.csv`, and features `f`."""
    root = tmp_path_factory.mktemp("stage-two")
    lines = ["video_id,path,label,split"]
    for number in range(12):
        write_video(root / f"{number}.mp4", 20 + number, first=number * 200)
        split = ("train", "train", "val")[number % 3]
        lines.append(f"v{number},{number}.mp4,{'up' if number < 6 else 'down'},{split}")
    lines.append("lost,none.mp4,up,val")
    (root / "m.csv").write_text("\n".join(lines) + "\n")
    means = ("--backbone", "toy_backbones:block_means", "--weights", "none")
    exact = ("--feature-dtype", "float32", "--precision", "float32")
    run_cli(root, "extract", "m.csv", "f", *means, *exact, code=1)
    return root


@pytest.fixture
def folder(extracted: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    root = tmp_path / "work"
    shutil.copytree(extracted, root)
    return root


@pytest.fixture
def two_views(tmp_path: Path) -> Path:
    """Features of two views, `f`, and a run on them, `run`."""
    labels = {
        split: {f"{split}{n}": "ab"[n % 2] for n in range(count)}
        for split, count in (("train", 12), ("val", 9))
    }
    made_up_features(tmp_path / "f", labels, views=("center", "flip"))
    settings = TrainTemporalSettings(
        layers=1, heads=2, intermediate=16, head_dim=8, epochs=4, optimizer="adamw", lr=1e-2
    )
    train_temporal(tmp_path / "f", tmp_path / "run", settings)
    return tmp_path
