"""Clips decoded on the fly: the same frames as stored features have, and frames that are lost."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_folders import extract_rows, make_folder
from numbered_videos import CLIP_LENGTHS, read_number
from read_videos import without_first
from rich.console import Console
from stage_two import SHAPE, lose_frames_of_clips, write_numbered_rows
from vtnpipe.extract.augmentation import Augmentation
from vtnpipe.extract.create_backbone import create_module, default_preprocessing
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.protocol import Chunk, DecodeEvent, Selected
from vtnpipe.extract.decode.sampling import EVERY_FRAME, Sampling
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.pipelines.inference.clip_reader import IndexedVideos, VideoClipReader, index_videos
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.clips import ClipSampling
from vtnpipe.temporal.dataset import Batch, ClipDataset, RandomClips, Read
from vtnpipe.temporal.feature_reader import FeatureReader
from vtnpipe.temporal.time_table import Clips, Frames

MIXER = "toy_backbones:mixer"
QUIET = Console(quiet=True)


@pytest.fixture
def rows(tmp_path: Path) -> list[VideoRow]:
    """Ten numbered videos of two classes, seven of them for training."""
    return write_numbered_rows(tmp_path)


def _index(tmp_path: Path, rows: list[VideoRow], sampling: Sampling = EVERY_FRAME) -> IndexedVideos:
    index = index_videos(tmp_path / "index.safetensors", rows, QUIET)
    by_id = {row.video_id: row for row in rows}
    return IndexedVideos(rows=by_id, index=index, sampling=sampling)


def _read(reader: VideoClipReader, *clips: tuple[str, Frames, int]) -> Read:
    """Read one batch of clips: video_id, frames and view of each."""
    return next(reader.read(Clips.of(clips), [len(clips)]))


@pytest.mark.parametrize("backbone", [MIXER, "test_vit"])
def test_clips_give_the_logits_of_stored_features(
    tmp_path: Path, rows: list[VideoRow], backbone: str
) -> None:
    rows[2] = replace(rows[2], start=0.3, end=0.62)
    networks: dict[str, VideoTransformerNetwork] = {}
    batches: dict[str, Batch] = {}
    clips = RandomClips(ClipSampling(num_frames=5, seconds=0.5, jitter=1.0))

    def batch(reader: FeatureReader | VideoClipReader) -> Batch:
        dataset = ClipDataset(
            reader, [row.video_id for row in rows], torch.zeros(len(rows)), clips, position_fps=25
        )
        return dataset.batch([(number, 7) for number in range(len(rows))])

    for feature_dtype in ("float32", "float16"):
        root = tmp_path / feature_dtype
        folder = make_folder(root, backbone, feature_dtype=feature_dtype, frame_stride=2)
        extract_rows(folder, rows)
        recipe: dict[str, Any] = {"epochs": 4, "batch_size": 3, "optimizer": "adamw", "lr": 0.005}
        train_temporal(
            root, tmp_path / "run", TrainTemporalSettings(**recipe, **SHAPE, shortcut="none")
        )
        networks[feature_dtype] = VideoTransformerNetwork.from_pretrained(tmp_path / "run")
        batches[feature_dtype] = batch(FeatureReader(open_features(root)))
        (tmp_path / "run").rename(tmp_path / f"run-{feature_dtype}")
    spec, preprocessing = networks["float32"].config.spec, networks["float32"].config.preprocessing
    videos = _index(tmp_path, rows, Sampling.from_spec(spec))
    decoded = batch(VideoClipReader(videos, preprocessing, None))
    assert decoded.inputs.dtype == torch.uint8
    for feature_dtype, tolerance in (("float32", 1e-4), ("float16", 1e-3)):
        network, stored = networks[feature_dtype], batches[feature_dtype]
        assert torch.equal(stored.positions, decoded.positions)
        assert torch.equal(stored.mask, decoded.mask)
        with torch.inference_mode():
            expected = network.temporal(stored.inputs, stored.positions, stored.mask)
            found = network(decoded.inputs, decoded.positions, decoded.mask)
        assert float(expected.std(0).max()) > 1e-3
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_frames_that_cannot_be_decoded_are_masked_and_reported(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = default_preprocessing(create_module(MIXER, pretrained=False))
    reader = VideoClipReader(_index(tmp_path, rows), preprocessing, None)
    whole = _read(reader, *((f"v{n}", np.arange(4), 0) for n in range(3)))
    assert whole.is_lost is not None
    assert not whole.is_lost.any()
    assert whole.faults == ()

    lose_frames_of_clips(monkeypatch)
    dataset = ClipDataset(
        reader,
        [row.video_id for row in rows],
        torch.zeros(10),
        RandomClips(ClipSampling(num_frames=4)),
        position_fps=25,
    )
    batch = dataset.batch([(0, 0), (1, 0), (2, 0)])
    assert batch.is_read.tolist() == [True, True, False]
    assert batch.mask.tolist() == [[True] * 4, [False, False, True, True], [True] * 4]
    assert not batch.inputs[2].any()
    assert batch.faults == ("v1: damaged: 1.x: broken", "v2: damaged: 2.x: broken")


def test_frames_of_an_abandoned_try_are_void(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = DecoderPool.decode

    def decode_twice(self: DecoderPool, requests: Any) -> Iterator[tuple[int, DecodeEvent]]:
        for number, event in decode(self, requests):
            yield number, event
            if isinstance(event, Chunk):  # again, without the first frame
                yield number, Selected(len(event.frame_index))
                yield number, without_first(event, 1)

    monkeypatch.setattr(DecoderPool, "decode", decode_twice)
    preprocessing = default_preprocessing(create_module(MIXER, pretrained=False))
    reader = VideoClipReader(_index(tmp_path, rows), preprocessing, None)
    found = _read(reader, ("v0", np.arange(4), 0))
    assert found.is_lost is not None
    assert found.is_lost.tolist() == [[True, False, False, False]]


def test_frames_come_in_the_order_of_the_clip_and_augmented_by_its_view(
    tmp_path: Path, clips: dict[str, Path]
) -> None:
    row = VideoRow(video_id="a", path=str(clips["a"]))
    preprocessing = default_preprocessing(
        create_module("toy_backbones:block_means", pretrained=False)
    )
    videos = _index(tmp_path, [row])
    reader = VideoClipReader(videos, preprocessing, None)
    order = np.array([40, 3, 17, 4])
    found = _read(reader, ("a", order, 0), ("a", order[:2], 0)).inputs
    numbers = [read_number(image.permute(1, 2, 0).numpy()) for image in found[0]]
    assert numbers == order.tolist()
    assert not found[1, 2:].any()  # padding

    augmentation = Augmentation(
        size=(64, 64), short_sides=(64, 90), flip=True, interpolation="bilinear"
    )
    reader = VideoClipReader(videos, preprocessing, augmentation)
    one, same, other = (_read(reader, ("a", order, view)).inputs for view in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_rows_without_frames_or_with_too_few_are_failures(
    tmp_path: Path, clips: dict[str, Path]
) -> None:
    content = clips["b"].read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(content[: 2 * len(content) // 3])
    rows = [
        VideoRow(video_id="whole", path=str(clips["a"])),
        VideoRow(video_id="span", path=str(clips["a"]), start=0.5, end=1.0),
        VideoRow(video_id="beyond", path=str(clips["a"]), start=60.0),
        VideoRow(video_id="gone", path=str(tmp_path / "gone.mp4")),
        VideoRow(video_id="cut", path=str(cut)),
    ]
    videos = _index(tmp_path, rows)
    found = {one.video_id: (one.status, one.reason) for one in videos.failures()}
    assert found["beyond"] == ("failed", "no-frames")
    assert found["gone"] == ("failed", "missing")
    assert found["cut"] == ("partial", "truncated")
    assert "whole" not in found
    assert "span" not in found
    frame_index, times = videos.times("span")
    assert frame_index.tolist() == list(range(13, 25))
    assert times.tolist() == pytest.approx([n / 25 for n in range(13, 25)])
    assert videos.num_frames("span") == 12


def test_an_index_is_written_once_and_again_when_a_file_changes(
    tmp_path: Path, clips: dict[str, Path]
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(clips["a"].read_bytes())
    row = VideoRow(video_id="a", path=str(path))
    index = tmp_path / "index.safetensors"
    assert _index(tmp_path, [row]).num_frames("a") == CLIP_LENGTHS["a"]
    written = index.stat().st_mtime_ns
    _index(tmp_path, [row])
    assert index.stat().st_mtime_ns == written
    path.write_bytes(clips["b"].read_bytes())
    assert _index(tmp_path, [row]).num_frames("a") == CLIP_LENGTHS["b"]
    assert index.stat().st_mtime_ns != written
