"""Stage two in tests: features of clips, a small model, and changes to runs and manifests.

A conftest.py that imports the fixtures `extracted`, `folder` and `two_views` provides them.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_folders import extract_rows, made_up_features, make_folder
from numbered_videos import write_video
from read_videos import without_first
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.protocol import Chunk, DecodeRequest
from vtnpipe.manifests.feature_folder import FeatureFolder
from vtnpipe.manifests.manifest import VideoRow, read_manifest
from vtnpipe.pipelines.models.model_folder import read_config
from vtnpipe.pipelines.models.network import load_temporal
from vtnpipe.pipelines.predict import PredictSettings
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.checkpoint import RunFolder, save_weights
from vtnpipe.temporal.model import TemporalClassifier

SHAPE: dict[str, Any] = {"layers": 1, "heads": 2, "intermediate": 16, "head_dim": 8}
SMALL = (
    *("--layers", 1, "--heads", 2, "--intermediate", 16, "--head-dim", 8),
    *("--hidden-dim", 8, "--shortcut", "none", "--epochs", 2),
)
SETTINGS = TrainTemporalSettings(**SHAPE, hidden_dim=8, epochs=2, shortcut="none")
PAPER = TrainTemporalSettings(**SHAPE, epochs=2, recipe="paper")


def write_labelled_clips(root: Path) -> Path:
    """Write twelve clips of two classes, and their manifest `m.csv` with one more, missing row."""
    lines = ["video_id,path,label,split"]
    for number in range(12):
        write_video(root / f"{number}.mp4", 20 + number, first=number * 200)
        split = ("train", "train", "val")[number % 3]
        lines.append(f"v{number},{number}.mp4,{'up' if number < 6 else 'down'},{split}")
    lines.append("lost,none.mp4,up,val")
    (root / "m.csv").write_text("\n".join(lines) + "\n")
    return root / "m.csv"


def write_numbered_rows(root: Path) -> list[VideoRow]:
    """Write ten numbered videos of two classes and three containers; return their rows.

    The first seven are of the split `train`, the others of `val`.
    """
    rows = []
    for number in range(10):
        suffix = ("mp4", "mkv", "avi")[number % 3]
        codec = "mpeg4" if suffix == "avi" else "libx264"
        path = root / f"{number}.{suffix}"
        write_video(path, 12 + 3 * number, codec=codec, first=900 * number)
        split = "train" if number < 7 else "val"
        label = "ab"[number % 2]
        rows.append(VideoRow(video_id=f"v{number}", path=str(path), label=label, split=split))
    return rows


def lose_frames_of_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make decoding of clips lose the first two frames of file 1, and all frames of file 2."""
    decode = DecoderPool.decode

    def losing(self: DecoderPool, requests: Sequence[DecodeRequest]) -> Iterator[tuple[int, Any]]:
        for number, event in decode(self, requests):
            name = Path(requests[number].path).stem
            if isinstance(event, Chunk) and name in ("1", "2"):
                if name == "1":
                    yield number, without_first(event, 2)
            elif isinstance(event, Outcome) and name in ("1", "2"):
                status: Any = "partial" if name == "1" else "failed"
                yield number, Outcome(status=status, reason="damaged", message=f"{name}.x: broken")
            else:
                yield number, event

    monkeypatch.setattr(DecoderPool, "decode", losing)


def extract_manifest(
    manifest: Path, features: Path, backbone: str = "toy_backbones:block_means"
) -> FeatureFolder:
    """Extract a manifest's videos in this process, in float32."""
    folder = make_folder(features, backbone)
    extract_rows(folder, read_manifest(manifest))
    return folder


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve clips of two classes, their manifest `m.csv`, and features `f`."""
    root = tmp_path_factory.mktemp("stage-two")
    extract_manifest(write_labelled_clips(root), root / "f")
    return root


@pytest.fixture
def folder(extracted: Path, tmp_path: Path) -> Path:
    """A copy of `extracted`."""
    root = tmp_path / "work"
    shutil.copytree(extracted, root)
    return root


@pytest.fixture
def two_views(tmp_path: Path) -> Path:
    """A folder with made-up features of two views, `f`, and a run on them, `run`."""
    labels = {
        split: {f"{split}{n}": "ab"[n % 2] for n in range(count)}
        for split, count in (("train", 12), ("val", 9))
    }
    made_up_features(tmp_path / "f", labels, views=("center", "flip"))
    settings = TrainTemporalSettings(**SHAPE, hidden_dim=8, epochs=4, lr=1e-2, shortcut="none")
    train_temporal(tmp_path / "f", tmp_path / "run", settings)
    return tmp_path


def from_features(features: Path) -> PredictSettings:
    """Return the settings for predictions from stored features."""
    return PredictSettings(mode="features", features=str(features))


def make_sensitive(files: RunFolder) -> TemporalClassifier:
    """Give a run's model weights with which order, positions and frames matter."""
    temporal = load_temporal(files, read_config(files))
    torch.manual_seed(4)
    for parameter in temporal.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    save_weights(temporal, files.kept, prefix="temporal.")
    return temporal


def edit(manifest: Path, old: str, new: str) -> str:
    """Write a copy of a manifest with some text replaced; return its path."""
    text = manifest.read_text()
    assert old in text
    path = manifest.with_name("edited.csv")
    path.write_text(text.replace(old, new))
    return str(path)
