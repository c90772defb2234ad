"""Evaluation of a split: which videos count, what is averaged, and settings without effect."""

from pathlib import Path
from typing import Any

import pytest
import torch
from numbered_videos import write_video
from stage_two import PAPER, edit, make_sensitive
from vtnpipe.manifests.errors import FeaturesError, ManifestError, SettingsError
from vtnpipe.manifests.feature_store import FeatureStore, open_features
from vtnpipe.pipelines.inference.evaluation import (
    EvaluateSettings,
    ScoredSplit,
    score_feature_split,
    score_video_split,
)
from vtnpipe.pipelines.models.model_folder import read_config
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.temporal.checkpoint import RunFolder
from vtnpipe.temporal.clips import ALL_FRAMES
from vtnpipe.temporal.distributed import accelerated


@pytest.fixture
def sensitive(folder: Path) -> Path:
    """The extracted clips, and a run on them in whose logits order, positions and frames matter."""
    train_temporal(folder / "f", folder / "run", PAPER)
    make_sensitive(RunFolder(folder / "run"))
    return folder


def _score(folder: Path, source: str, settings: EvaluateSettings | None = None) -> ScoredSplit:
    files, settings = RunFolder(folder / "run"), settings or EvaluateSettings()
    score = score_feature_split if source == "f" else score_video_split
    with accelerated("cpu", settings.precision) as accelerator:
        return score(files, read_config(files), folder / source, settings, accelerator)


def test_features_and_videos_give_the_same_logits(sensitive: Path) -> None:
    changes: dict[str, Any]
    for changes in (
        {},
        {"shuffle_frames": True, "seed": 5},
        {"clips": 3, "clip_frames": 4, "clip_seconds": 0.3},
    ):
        stored = _score(sensitive, "f", EvaluateSettings(**changes))
        decoded = _score(sensitive, "m.csv", EvaluateSettings(**changes))
        assert stored.usable.video_ids == decoded.usable.video_ids == ["v2", "v5", "v8", "v11"]
        assert float(stored.logits.std(0).max()) > 0.01
        torch.testing.assert_close(decoded.logits, stored.logits, atol=1e-4, rtol=0)
        assert torch.equal(decoded.targets, stored.targets)
        assert stored.faults == ()
        (fault,) = decoded.faults
        assert fault.startswith("lost: missing: ")
        assert stored.source == f"features {open_features(sensitive / 'f').fingerprint}"
        assert decoded.source == "videos, chunked"


def test_the_order_of_frames_depends_on_the_seed_only_if_shuffled(sensitive: Path) -> None:
    plain, other, shuffled, reshuffled = (
        _score(sensitive, "f", settings).logits
        for settings in (
            EvaluateSettings(),
            EvaluateSettings(seed=1),
            EvaluateSettings(shuffle_frames=True),
            EvaluateSettings(shuffle_frames=True, seed=1),
        )
    )
    assert torch.equal(plain, other)
    assert not torch.allclose(plain, shuffled, atol=1e-3)
    assert not torch.allclose(shuffled, reshuffled, atol=1e-3)


def test_videos_are_scored_in_bfloat16(sensitive: Path) -> None:
    found = [
        _score(sensitive, "m.csv", EvaluateSettings(precision=precision, mode="end-to-end"))
        for precision in ("float32", "bfloat16")
    ]
    assert [one.logits.dtype for one in found] == [torch.float32] * 2
    assert not torch.equal(found[0].logits, found[1].logits)
    torch.testing.assert_close(found[1].logits, found[0].logits, atol=0.1, rtol=0.05)


def test_partial_videos_are_counted_and_can_be_left_out(
    sensitive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = {**open_features(sensitive / "f").statuses, "v2": "partial"}
    monkeypatch.setattr(FeatureStore, "statuses", property(lambda self: statuses))
    usable = _score(sensitive, "f").usable
    counts = (usable.num_expected, len(usable.rows), usable.num_missing, usable.num_partial)
    assert counts == (5, 4, 1, 1)
    scored = _score(sensitive, "f", EvaluateSettings(drop_partial=True))
    usable = scored.usable
    counts = (usable.num_expected, len(usable.rows), usable.num_missing, usable.num_partial)
    assert counts == (5, 3, 1, 0)
    assert usable.num_dropped == 1
    assert usable.video_ids == ["v5", "v8", "v11"]
    assert len(scored.logits) == len(scored.targets) == 3


def test_partial_videos_can_be_left_out_when_decoding(sensitive: Path) -> None:
    content = write_video(sensitive / "whole.mkv", 30).read_bytes()
    (sensitive / "cut.mkv").write_bytes(content[: 2 * len(content) // 3])
    edit(sensitive / "m.csv", "v2,2.mp4", "v2,cut.mkv")
    scored = _score(sensitive, "edited.csv")
    assert scored.usable.video_ids == ["v2", "v5", "v8", "v11"]
    assert scored.usable.num_partial == 1
    assert [fault.split(": ")[:2] for fault in scored.faults] == [
        ["v2", "truncated"],
        ["lost", "missing"],
    ]
    scored = _score(sensitive, "edited.csv", EvaluateSettings(drop_partial=True))
    assert scored.usable.video_ids == ["v5", "v8", "v11"]
    assert (scored.usable.num_dropped, len(scored.logits)) == (1, 3)


def test_a_split_of_which_nothing_can_be_decoded_is_refused(sensitive: Path) -> None:
    manifest = sensitive / "gone.csv"
    manifest.write_text("video_id,path,label,split\nlost,none.mp4,up,val\n")
    for settings in (EvaluateSettings(), EvaluateSettings(clips=2)):
        with pytest.raises(ManifestError, match=r"none of 1 videos can be decoded.*missing: "):
            _score(sensitive, "gone.csv", settings)


def test_other_features_than_the_models_are_refused(sensitive: Path) -> None:
    config = sensitive / "run/config.json"
    config.write_text(config.read_text().replace("block_means", "mixer"))
    with pytest.raises(FeaturesError, match=r"backbone is 'toy_backbones:mixer' here"):
        _score(sensitive, "f")


def test_predictions_are_named_after_what_was_scored() -> None:
    assert EvaluateSettings().predictions_name == "val"
    assert EvaluateSettings(split="").predictions_name == "all"
    assert EvaluateSettings(split="../x").predictions_name == "..%2Fx"
    both = EvaluateSettings(clips=3, shuffle_frames=True)
    assert both.predictions_name == "val+3clips+shuffled"


def test_clips_have_the_given_length_and_whole_videos_none() -> None:
    assert EvaluateSettings().sampling is ALL_FRAMES
    sampling = EvaluateSettings(clips=2, clip_frames=5, clip_seconds=1.5).sampling
    assert (sampling.num_frames, sampling.seconds, sampling.jitter, sampling.drop) == (5, 1.5, 0, 0)
    assert EvaluateSettings(seed=3).shuffle_seed is None
    assert EvaluateSettings(seed=3, shuffle_frames=True).shuffle_seed == 3


def test_settings_without_effect_are_refused() -> None:
    changes: dict[str, Any]
    for changes, message in (
        ({"clip_frames": 4}, "--clip-frames 4"),
        ({"clips": 2, "decoder": "decord"}, "--decoder decord with --clips"),
        ({"mode": "end-to-end", "chunk_frames": 8}, "--chunk-frames 8"),
    ):
        with pytest.raises(SettingsError, match=message):
            EvaluateSettings(**changes)
