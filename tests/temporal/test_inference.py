"""Logits of prefixes, and of videos with hidden frames."""

import pytest
import torch
from temporal_models import random_clip, small_model
from vtnpipe.temporal.config import ENCODERS
from vtnpipe.temporal.inference import even_spans, logits_without, prefix_logits
from vtnpipe.temporal.model import TemporalClassifier

T = 45


def _model(encoder: str) -> TemporalClassifier:
    return small_model(encoder=encoder, num_layers=2, attention_window=8)


def _video() -> tuple[torch.Tensor, torch.Tensor]:
    """Features [1, T, D] and positions [T]."""
    features, positions = random_clip(T)
    return features, positions[0] * 2


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_prefix_has_the_logits_of_a_shorter_video(encoder: str) -> None:
    model, (features, positions) = _model(encoder), _video()
    lengths = [1, 7, T]
    found = list(prefix_logits(model, features, positions, lengths))
    for length, logits in zip(lengths, found, strict=True):
        with torch.inference_mode():
            expected = model(features[:, :length], positions[None, :length])[0]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["full", "mean"])  # which have no windows of neighbors
@pytest.mark.parametrize("max_tokens", [1, 100, 10_000])
def test_hidden_frames_are_as_if_they_did_not_exist(
    encoder: str, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtnpipe.temporal.inference.MAX_TOKENS", max_tokens)
    model, (features, positions) = _model(encoder), _video()
    spans = even_spans(T, 7)
    found = list(logits_without(model, features, positions, spans))
    assert len(found) == 7
    for (begin, stop), logits in zip(spans, found, strict=True):
        kept = [n for n in range(T) if not begin <= n < stop]
        with torch.inference_mode():
            expected = model(features[:, kept], positions[None, kept])[0]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_the_values_of_hidden_frames_change_no_logit_of_a_longformer() -> None:
    model, (features, positions) = _model("longformer"), _video()
    (found,) = logits_without(model, features, positions, [(10, 13)])
    other = features.clone()
    other[:, 10:13] = 100.0
    (same,) = logits_without(model, other, positions, [(10, 13)])
    torch.testing.assert_close(found, same)
    with torch.inference_mode():
        assert not torch.allclose(found, model(features, positions[None])[0], atol=1e-4)


def test_logits_are_the_mean_over_the_views() -> None:
    model, (features, positions) = _model("longformer"), _video()
    views = torch.cat([features, features.flip(2)])
    spans = [(0, 5), (20, 21)]
    for found, function, of in (
        (prefix_logits(model, views, positions, [9]), prefix_logits, [9]),
        (logits_without(model, views, positions, spans), logits_without, spans),
    ):
        each = [torch.stack(list(function(model, v[None], positions, of))) for v in views]
        torch.testing.assert_close(torch.stack(list(found)), torch.stack(each).mean(0))
