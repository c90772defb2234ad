"""Classification of videos: agreement with stored features, failures, clips and shuffling."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_folders import extract_rows, make_folder
from numbered_videos import CLIP_LENGTHS
from rich.console import Console
from vtnpipe.extract.create_backbone import create_module, default_preprocessing
from vtnpipe.extract.decode import groups
from vtnpipe.extract.decode.protocol import DecodeRequest
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.errors import ManifestError, StoppedError
from vtnpipe.manifests.feature_folder import FeatureSpec
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.pipelines.inference.clip_reader import IndexedVideos, index_videos
from vtnpipe.pipelines.inference.evaluation import logits_of_features
from vtnpipe.pipelines.inference.video_classifier import (
    VideoClassifier,
    clips_of_videos,
    extract_features,
    score_videos,
    whole_videos,
)
from vtnpipe.pipelines.models.model_folder import NetworkConfig
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.temporal.clips import ClipSampling
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.distributed import accelerated
from vtnpipe.temporal.model import TemporalClassifier

MEANS = "toy_backbones:block_means"
Rows = list[VideoRow]


def _network(**spec: Any) -> VideoTransformerNetwork:
    """Return a network in whose logits order, positions and frames matter."""
    module = create_module(MEANS, pretrained=False)
    preprocessing = default_preprocessing(module).to_json()
    config = NetworkConfig(
        spec=FeatureSpec(backbone=MEANS, preprocessing=preprocessing, **spec),
        temporal=TemporalConfig(
            feature_dim=16, num_classes=2, num_layers=1, num_heads=2, intermediate_dim=16,
            head_dim=8,
        ),
        class_names=["a", "b"],
    )  # fmt: skip
    temporal = TemporalClassifier(config.temporal)
    torch.manual_seed(4)
    for parameter in temporal.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return VideoTransformerNetwork(module, temporal, config).eval()


@pytest.fixture
def rows(clips: dict[str, Path]) -> Rows:
    """The numbered clips; of one only a span."""
    rows = [VideoRow(video_id=name, path=str(path)) for name, path in clips.items()]
    rows[0] = replace(rows[0], start=0.3, end=1.5)
    return rows


@pytest.mark.parametrize(
    "spec", [{}, {"frame_stride": 3}, {"fps": 4.0}, {"views": ("center", "flip")}]
)
def test_both_modes_give_the_logits_of_stored_features(
    tmp_path: Path, rows: Rows, spec: dict[str, Any]
) -> None:
    network = _network(**spec)
    videos = whole_videos(rows, Sampling.from_spec(network.config.spec))
    found = []
    for mode, num_processes in (("end-to-end", 1), ("chunked", 2)):
        classify = VideoClassifier(
            network=network,
            mode=mode,  # type: ignore[arg-type]
            chunk_frames=7,
            num_decoder_processes=num_processes,
        )
        results = list(classify(videos))
        assert [one.name for one in results] == list(CLIP_LENGTHS)
        assert all(one.outcome.status == "ok" and one.fault == "" for one in results)
        found.append(torch.stack([one.logits for one in results if one.logits is not None]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
    assert float(found[0].std(0).max()) > 0.01
    if "fps" in spec:  # make_folder has no frame rate
        return
    folder = make_folder(tmp_path / "f", MEANS, **spec)
    extract_rows(folder, rows)
    with accelerated("cpu", "float32") as accelerator:
        expected = logits_of_features(
            network.temporal,
            open_features(folder.root),
            [row.video_id for row in rows],
            position_fps=25.0,
            accelerator=accelerator,
        )
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)


def test_failed_and_partial_videos_stay_in_order(tmp_path: Path, rows: Rows) -> None:
    content = Path(rows[1].path).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: 2 * len(content) // 3])
    rows = [
        VideoRow(video_id="gone", path=str(tmp_path / "gone.mp4")),
        rows[0],
        VideoRow(video_id="cut", path=str(tmp_path / "cut.mkv")),
        rows[2],
    ]
    for mode in ("chunked", "end-to-end"):
        classify = VideoClassifier(network=_network(), mode=mode)  # type: ignore[arg-type]
        gone, whole, cut, last = classify(whole_videos(rows, Sampling()))
        assert gone.logits is None
        assert gone.fault.startswith("missing: ")
        assert whole.logits is not None
        assert cut.logits is not None
        assert (cut.outcome.status, cut.outcome.reason) == ("partial", "truncated")
        assert last.name == "c"
        assert last.fault == ""


@pytest.mark.parametrize("mode", ["chunked", "end-to-end"])
def test_a_video_that_is_decoded_again_counts_once(
    rows: Rows, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    classify = VideoClassifier(network=_network(), mode=mode, chunk_frames=16)
    videos = whole_videos(rows, Sampling())
    expected = [one.logits for one in classify(videos)]
    handle = groups.Group.handle
    faulty = {str(rows[1].path), str(rows[2].path)}

    def interrupted(group: Any, message: Any) -> Any:
        found = handle(group, message)
        request = None if group.is_done else group.requests[group.number]
        if message["kind"] == "chunk" and request.path in faulty:
            faulty.remove(request.path)
            return request  # begins again
        return found

    monkeypatch.setattr(groups.Group, "handle", interrupted)
    found = [one.logits for one in classify(videos)]
    assert faulty == set()
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_clips_are_evenly_spaced_and_their_logits_averaged(tmp_path: Path, rows: Rows) -> None:
    network = _network()
    index = index_videos(tmp_path / "index.safetensors", rows, Console(quiet=True))
    videos = IndexedVideos(
        rows={row.video_id: row for row in rows}, index=index, sampling=Sampling()
    )
    sampling = ClipSampling(num_frames=5, seconds=0.5)
    to_classify = clips_of_videos(rows, videos, sampling, 3)
    assert [len(one.clips) for one in to_classify] == [3] * len(rows)
    assert to_classify[0].first == (pytest.approx(0.32), 8)
    (found, *_) = VideoClassifier(network=network)(to_classify)
    single = [to_classify[0]._replace(clips=[clip]) for clip in to_classify[0].clips]
    each = [
        one.logits for one in VideoClassifier(network=network)(single) if one.logits is not None
    ]
    assert len(each) == 3
    assert found.logits is not None
    torch.testing.assert_close(found.logits, torch.stack(each).mean(0), atol=1e-5, rtol=0)
    assert float(torch.stack(each).std(0).max()) > 0.01


def test_frames_can_be_shuffled(rows: Rows) -> None:
    network, videos = _network(), whole_videos(rows[:1], Sampling())
    logits = [
        one.logits
        for seed in (None, 0, 0, 1)
        for one in VideoClassifier(network=network, shuffle_seed=seed)(videos)
    ]
    own, first, again, other = (one for one in logits if one is not None)
    assert torch.equal(first, again)
    assert not torch.allclose(first, own, atol=1e-3)
    assert not torch.allclose(first, other, atol=1e-3)


def test_scores_leave_out_what_cannot_be_decoded(rows: Rows) -> None:
    gone = VideoRow(video_id="gone", path="/none.mp4")
    classify = VideoClassifier(network=_network())
    with accelerated("cpu", "float32") as accelerator:
        scored = score_videos(classify, whole_videos([gone, *rows[:2]], Sampling()), accelerator)
        assert scored.rows is not None
        assert scored.rows.tolist() == [1, 2]
        assert scored.logits.shape == (2, 2)
        ((name, fault),) = scored.faults
        assert name == "gone"
        assert fault.startswith("missing: ")
        with pytest.raises(ManifestError, match=r"none of 1 videos can be decoded.* missing: "):
            score_videos(classify, whole_videos([gone], Sampling()), accelerator)
        with pytest.raises(StoppedError):
            score_videos(classify, whole_videos(rows, Sampling()), accelerator, lambda: True)
    (piece,) = extract_features(classify.network, [DecodeRequest(gone.path)])
    assert piece.inputs.shape == (0, 1, 16)
