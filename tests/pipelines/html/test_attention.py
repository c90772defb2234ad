"""Attention of [CLS] along a video: bars, their sums, and the numbers for the page's script."""

import numpy as np
import pytest
import torch
from longformer_reference import dense_cls_attention, longformer_model
from vtnpipe.pipelines.html.attention import (
    MAX_BARS,
    Track,
    VideoStrip,
    bar_starts,
    video_attention,
)
from vtnpipe.pipelines.inference.video_classifier import VideoFeatures
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.model import TemporalClassifier


def _model(encoder: str = "longformer") -> TemporalClassifier:
    torch.manual_seed(0)
    config = TemporalConfig(
        feature_dim=12, num_classes=3, encoder=encoder, num_layers=2, num_heads=2, head_dim=8,
        intermediate_dim=16, attention_window=8,
    )  # fmt: skip
    model = TemporalClassifier(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _video(num_frames: int, num_views: int = 1) -> VideoFeatures:
    torch.manual_seed(1)
    return VideoFeatures(
        torch.randn(num_views, num_frames, 12), np.arange(num_frames) / 25, np.arange(num_frames)
    )


def test_long_videos_have_several_frames_per_bar() -> None:
    assert bar_starts(5).tolist() == [0, 1, 2, 3, 4]
    assert bar_starts(1000, 400).tolist() == [n * 1000 // 400 for n in range(400)]


def test_attention_is_the_models() -> None:
    model, video = _model(), _video(45)
    found = video_attention(model, video)
    assert found is not None
    theirs = longformer_model(model.config).eval()
    theirs.load_state_dict(model.encoder.model.state_dict())  # type: ignore[union-attr]
    positions = torch.arange(45)[None]
    with torch.inference_mode():
        expected = dense_cls_attention(
            theirs, model.encoder.cls_token, video.features, positions,  # type: ignore[arg-type]
            torch.ones_like(positions).bool(),
        )[0].numpy()  # fmt: skip
    np.testing.assert_allclose(found.cls_to_cls, expected[..., 0], atol=1e-5)
    np.testing.assert_allclose(found.frame_weights, expected[..., 1:], atol=1e-5)
    np.testing.assert_allclose(found.weights, expected[..., 1:], atol=1e-5)  # one frame per bar
    assert (found.num_layers, found.num_heads) == (2, 2)
    data = found.data
    np.testing.assert_allclose(data["weights"], expected[..., 1:], atol=1e-5)
    np.testing.assert_allclose(data["cls_to_cls"], expected[..., 0], atol=1e-5)
    assert data["begin"] == pytest.approx([n / 25 for n in range(45)], abs=1e-3)
    most = int(expected[1, :, 1:].mean(0).argmax())
    assert f"at {most / 25:.2f} s" in found.summary
    assert found.last_layer.values == pytest.approx(expected[1, :, 1:].mean(0), abs=1e-5)


def test_bars_add_up_the_attention_to_their_frames() -> None:
    found = video_attention(_model(), _video(900))
    assert found is not None
    assert found.weights.shape == (2, 2, MAX_BARS)
    np.testing.assert_allclose(found.weights.sum(-1) + found.cls_to_cls, 1, atol=1e-5)
    starts = bar_starts(900)
    np.testing.assert_allclose(
        found.weights[..., 0], found.frame_weights[..., : starts[1]].sum(-1), atol=1e-7
    )
    assert found.edges[[0, 1, -1]] == pytest.approx([0, starts[1] / 25, 36])


def test_views_are_averaged_and_models_without_cls_have_no_attention() -> None:
    model, video = _model(), _video(20, num_views=2)
    both = video_attention(model, video)
    each = [video_attention(model, video._replace(features=view[None])) for view in video.features]
    assert both is not None
    mean = np.mean([one.frame_weights for one in each if one is not None], axis=0)
    np.testing.assert_allclose(both.frame_weights, mean, atol=1e-6)
    assert video_attention(_model("mean"), video) is None


def test_negative_values_hang_below_zero() -> None:
    track = Track(edges=np.array([0.0, 1.0, 3.0]), values=np.array([2.0, -2.0]), pattern="{:+.1f}")
    first, second = track.bars
    assert (first["x"], first["width"], first["y"], first["height"]) == (0, 333.33, 0, 50)
    assert (second["x"], second["width"], second["y"], second["height"]) == (333.33, 666.67, 50, 50)
    assert [bar["text"] for bar in track.bars] == ["0.00 s: +2.0", "1.00 s: -2.0"]
    assert track.level_y == 50


def test_ticks_are_seconds_at_percentages_of_the_width() -> None:
    strip = VideoStrip(name="v", lines=[], thumbnails=[], edges=np.array([0.0, 2.0, 5.0]))
    assert {float(tick.text): tick.position for tick in strip.ticks}[1.0] == 20
