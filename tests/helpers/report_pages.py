"""A run and features whose pages are opened in a browser, and the attention that they must show.

A conftest.py that imports the fixture `pages` provides it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_cli
from longformer_reference import dense_cls_attention, longformer_model
from numbered_videos import write_video
from torch import Tensor
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.pipelines.models.model_folder import read_config
from vtnpipe.pipelines.models.network import load_temporal
from vtnpipe.temporal.checkpoint import RunFolder
from vtnpipe.temporal.clips import frame_positions

HOSTILE = "<script>document.title = 'taken over'</script>"
LENGTH = 30  # frames of each video
TRAINING = (
    "--recipe paper --positions seconds --layers 2 --heads 2 --intermediate 16 --head-dim 8 "
    "--epochs 3 --optimizer adamw"
).split()
EXTRACTION = ("--backbone toy_backbones:block_means --weights none --feature-dtype float32").split()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of clips, one with a hostile name and one damaged clip: features `f`, run `r`."""
    root = tmp_path_factory.mktemp("pages")
    lines = ["video_id,path,label,split"]
    for number in range(12):
        path = write_video(root / f"{number}.mp4", LENGTH, first=number * 200)
        label = "calm" if number < 6 else HOSTILE
        lines.append(f'v{number},{path.name},"{label}",{("train", "val")[number % 2]}')
    whole = write_video(root / "whole.mkv", LENGTH).read_bytes()
    (root / "cut.mkv").write_bytes(whole[: 2 * len(whole) // 3])
    lines += ["cut,cut.mkv,calm,train", "gone,none.mp4,calm,train"]
    (root / "m.csv").write_text("\n".join(lines) + "\n")
    run_cli(root, "extract", "m.csv", "f", *EXTRACTION, code=1)
    run_cli(root, "train-temporal", "f", "r", *TRAINING)
    return root


def dense_attention(folder: Path, video_id: str) -> Tensor:
    """Return the attention of [CLS], [L, H, 1 + T], by transformers' model and dense products."""
    files = RunFolder(folder / "r")
    ours = load_temporal(files, read_config(files))
    theirs = longformer_model(ours.config).eval()
    theirs.load_state_dict(ours.encoder.model.state_dict())  # type: ignore[union-attr]
    video = open_features(folder / "f")[video_id]
    positions = frame_positions(video.timestamps, video.frame_index, position_fps=25.0)
    features = torch.from_numpy(np.array(video.features, dtype=np.float32))[None]
    places = torch.from_numpy(positions)[None]
    with torch.inference_mode():
        return dense_cls_attention(
            theirs,
            ours.encoder.cls_token,  # type: ignore[arg-type]
            features,
            places,
            torch.ones_like(places).bool(),
        )[0]
