"""Temporal model: inputs that change a logit, and inputs that must not."""

import pytest
import torch
from temporal_models import D, random_clip, small_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.temporal.config import ENCODERS
from vtnpipe.temporal.model import TemporalClassifier


def _clips(*lengths: int) -> list[tuple[Tensor, Tensor]]:
    """Features [T, D] and positions [T] of each."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, D, generator=generator), torch.arange(n) * 3) for n in lengths]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_of_clips_equals_the_clips_alone(encoder: str) -> None:
    model = small_model(encoder=encoder)
    clips = _clips(1, 17, 18, 40, 133)
    features, positions = (
        pad_sequence(column, batch_first=True) for column in zip(*clips, strict=True)
    )
    mask = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one, _ in clips], True)
    with torch.inference_mode():
        together = model(features, positions, mask)
        for row, clip in enumerate(clips):
            alone = model(clip[0][None], clip[1][None])
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_changes_no_logit(encoder: str) -> None:
    model = small_model(encoder=encoder)
    (clip,) = _clips(29)
    features, positions = clip[0][None], clip[1][None]
    with torch.inference_mode():
        expected = model(features, positions)
        for padding in (1, 7, 18, 200):
            mask = torch.arange(29 + padding)[None] < 29
            found = model(
                torch.cat([features, torch.full((1, padding, D), 50.0)], 1),
                torch.nn.functional.pad(positions, (0, padding), value=5),
                mask,
            )
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_order_changes_the_longformer_and_not_the_mean() -> None:
    (clip,) = _clips(40)
    positions = clip[1][None]
    with torch.inference_mode():
        for encoder, is_seen in (("longformer", True), ("mean", False)):
            model = small_model(encoder=encoder)
            logits = model(clip[0][None], positions)
            backwards = model(clip[0].flip(0)[None], positions)
            assert torch.allclose(logits, backwards, atol=1e-5) != is_seen


def test_positions_wrap_below_the_last_two_rows() -> None:
    model = small_model(max_positions=12)
    (clip,) = _clips(20)
    positions = torch.arange(20)[None]
    with torch.inference_mode():
        logits = model(clip[0][None], positions)
        torch.testing.assert_close(model(clip[0][None], positions + 10), logits)
        assert not torch.allclose(model(clip[0][None], positions + 1), logits)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_empty_batch_has_no_logits(encoder: str) -> None:
    model = small_model(encoder=encoder)
    assert model(torch.zeros(0, 7, D), torch.zeros(0, 7, dtype=torch.long)).shape == (0, 5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_reach_everything_that_the_logits_depend_on(encoder: str) -> None:
    model = small_model(encoder=encoder, num_layers=2)
    features, positions = random_clip(30)
    features.requires_grad_()
    model(features, positions).square().sum().backward()
    assert features.grad is not None
    assert bool((features.grad.abs().amax(-1) > 0).all())
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    # Of the last layer, only the output for [CLS] is used, which has its own projections.
    own = ("query", "key", "value")
    last = {f"encoder.model.encoder.layer.1.attention.self.{name}" for name in own}
    expected = {f"{name}.{kind}" for name in last for kind in ("weight", "bias")}
    assert unused == (expected if encoder == "longformer" else set())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_and_models_may_have_any_precision(encoder: str, dtype: torch.dtype) -> None:
    model = small_model(encoder=encoder)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    features, positions = random_clip(40)
    with torch.inference_mode():
        expected = model(features.to(dtype).float(), positions)
        torch.testing.assert_close(model(features.to(dtype), positions), expected)
        if dtype != torch.float16:  # for which a CPU has no kernels
            found = model.to(dtype)(features, positions)
            assert found.dtype == dtype
            tolerance = 0.02 if dtype == torch.bfloat16 else 1e-4
            torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)


def test_regression_outputs_have_the_unit_of_the_labels() -> None:
    model = small_model(
        encoder="mean", task="regression", num_classes=1, target_mean=10.0, target_std=4.0
    )
    features, positions = torch.randn(3, 5, D), torch.zeros(3, 5, dtype=torch.long)
    plain = model.head(model.encoder(features, positions, torch.ones(3, 5, dtype=torch.bool)))
    torch.testing.assert_close(model(features, positions), plain.double() * 4 + 10)


def test_a_user_module_is_built_in_training_mode() -> None:
    model = small_model(encoder="toy_encoders:recurrent", head="toy_encoders:one_layer")
    assert type(model.encoder).__name__ == "Recurrent"
    assert isinstance(model.head, torch.nn.Linear)
    features, positions = random_clip(9)
    assert model(features, positions).shape == (1, 5)
    assert TemporalClassifier(model.config).encoder.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "toy_encoders:none"}, "'toy_encoders:none': AttributeError"),
        ({"encoder": "toy_encoders:fails"}, "'toy_encoders:fails': ZeroDivisionError: no layers"),
        ({"encoder": "toy_encoders:no_module"}, "TemporalConfig; .*Module"),
        ({"encoder": "toy_encoders:too_wide"}, r"'toy_encoders:too_wide' .*\[1, 48\].*\[1, 24\]"),
        ({"encoder": "toy_encoders:one_layer"}, "'toy_encoders:one_layer' failed .*: TypeError"),
        ({"head": "toy_encoders:recurrent"}, "head 'toy_encoders:recurrent' failed"),
    ],
)
def test_an_invalid_user_module_is_an_error(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        small_model(**changes)


def test_every_encoder_with_a_cls_token_has_its_attention() -> None:
    features, positions = random_clip(45)
    for encoder in ("longformer", "full"):
        with torch.inference_mode():
            found = small_model(encoder=encoder, num_layers=2).cls_attention(features, positions)
        assert found is not None
        assert found.shape == (1, 2, 4, 1 + 45)
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 2, 4))
    assert small_model(encoder="mean").cls_attention(features, positions) is None


def test_logits_are_computed_without_attention_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr("vtnpipe.temporal.longformer._Layer.cls_weights", fail)
    with torch.inference_mode():
        assert small_model()(*random_clip(45)).shape == (1, 5)


def test_only_encoders_with_layers_support_gradient_checkpointing() -> None:
    model = small_model()
    model.use_gradient_checkpointing()
    assert model.encoder.model.gradient_checkpointing
    with pytest.raises(SettingsError, match="--gradient-checkpointing: the encoder 'mean'"):
        small_model(encoder="mean").use_gradient_checkpointing()
