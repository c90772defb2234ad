"""What decides an answer: prefixes, hidden parts, and the attention of [CLS]."""

import pytest
import torch
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.explain import even_spans, logits_without, prefix_logits
from vtnpipe.temporal.model import TemporalClassifier

D, T = 12, 45


def _model(encoder: str) -> TemporalClassifier:
    torch.manual_seed(0)
    config = TemporalConfig(
        feature_dim=D, num_classes=3, encoder=encoder, num_layers=2, num_heads=2, head_dim=8,
        intermediate_dim=16, attention_window=8,
    )  # fmt: skip
    model = TemporalClassifier(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _video() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(T, D), torch.arange(T) * 2


@pytest.mark.parametrize("encoder", ["longformer", "full", "perceiver", "mean"])
def test_a_prefix_is_a_shorter_video(encoder: str) -> None:
    model, (features, positions) = _model(encoder), _video()
    lengths = [1, 7, T]
    found = list(prefix_logits(model, features[None], positions, lengths))
    for length, logits in zip(lengths, found, strict=True):
        with torch.inference_mode():
            expected = model(features[None, :length], positions[None, :length])[0]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["full", "mean"])  # which know no neighbors in the sequence
@pytest.mark.parametrize("at_once", [1, 100, 10_000])
def test_what_is_hidden_is_as_if_it_was_not_there(
    encoder: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtnpipe.temporal.explain.TOKENS_AT_ONCE", at_once)
    model, (features, positions) = _model(encoder), _video()
    spans = even_spans(T, 7)
    found = list(logits_without(model, features[None], positions, spans))
    assert len(found) == 7
    for (begin, stop), logits in zip(spans, found, strict=True):
        kept = [n for n in range(T) if not begin <= n < stop]
        with torch.inference_mode():
            expected = model(features[None, kept], positions[None, kept])[0]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_hidden_frames_change_a_longformers_answer_and_their_values_do_not() -> None:
    model, (features, positions) = _model("longformer"), _video()
    (found,) = logits_without(model, features[None], positions, [(10, 13)])
    other = features.clone()
    other[10:13] = 100.0
    (same,) = logits_without(model, other[None], positions, [(10, 13)])
    torch.testing.assert_close(found, same)
    with torch.inference_mode():
        assert not torch.allclose(found, model(features[None], positions[None])[0], atol=1e-4)


def test_attention_of_every_encoder_that_has_a_cls() -> None:
    features, positions = _video()
    for encoder in ("longformer", "full"):
        with torch.inference_mode():
            found = _model(encoder).cls_attention(features[None], positions[None])
        assert found is not None
        assert found.shape == (1, 2, 2, 1 + T)
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 2, 2))
    for encoder in ("perceiver", "mean"):
        assert _model(encoder).cls_attention(features[None], positions[None]) is None


def test_attention_costs_the_normal_path_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr("vtnpipe.temporal.longformer._Layer.cls_weights", never)
    features, positions = _video()
    with torch.inference_mode():
        assert _model("longformer")(features[None], positions[None]).shape == (1, 3)


def test_several_views_are_averaged() -> None:
    model, (features, positions) = _model("longformer"), _video()
    views = torch.stack([features, features.flip(1)])
    spans = [(0, 5), (20, 21)]
    for found, function, of in (
        (prefix_logits(model, views, positions, [9]), prefix_logits, [9]),
        (logits_without(model, views, positions, spans), logits_without, spans),
    ):
        each = [torch.stack(list(function(model, v[None], positions, of))) for v in views]
        torch.testing.assert_close(torch.stack(list(found)), torch.stack(each).mean(0))
